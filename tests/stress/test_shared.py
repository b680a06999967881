"""Holders, waiters and brokers of the shared primitives, killed at random points, round after round.

`make stress` runs it; `LONGSHORE_ROUNDS` says how many rounds.  A round that fails names its seed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

from longshore import shared
from longshore.errors import BrokerLost
from shared.redis_servers import PROGRAM, WHY_NOT, RedisProcess

ROUNDS = int(os.environ.get("LONGSHORE_ROUNDS", "1000"))

WORKER = """
import os, sys, time
from longshore import shared
lock, log, work = shared.Lock("lock"), shared.Dict("log"), shared.Queue("work")
slots, inside = shared.Semaphore("slots", 2), shared.Counter("inside")
condition, event = shared.Condition("condition"), shared.Event("event")
print("ready", flush=True)
while True:
    delivery = work.get(ack=True)
    with lock:
        fence = lock.fence
        if log.get("fence", 0) > fence:
            log["broken"] = f"fence {fence} after {log['fence']}"
        log["fence"] = fence
        log["owner"] = os.getpid()
        if log["owner"] != os.getpid():
            log["broken"] = "two holders"
    with slots:
        log[delivery.value] = os.getpid()
    with condition:
        condition.wait(timeout=0.001)
        condition.notify()
    event.wait(timeout=0.0005)
    delivery.ack()
"""


#: Takes a lock in bursts, alone or against others, and counts in memory that only the lock protects.
BURSTS = """
import mmap, os, random, struct, sys, time
from longshore import shared
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 16)
rng, lock, count = random.Random(int(sys.argv[2])), shared.Lock("bursts"), struct.Struct("QQ")
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    for _ in range(rng.choice((1, 2, 5, 50))):
        with lock:
            before, fence = count.unpack_from(memory)
            if lock.fence <= fence:
                sys.exit(f"fence {lock.fence} after {fence}")
            if rng.random() < 0.02:
                os.sched_yield()
            count.pack_into(memory, 0, before + 1, lock.fence)
            print(end="x")
    time.sleep(rng.choice((0, 0, 0.0005)))
print(flush=True)
"""

#: Uses objects in bursts, alone or against others, and notes in memory what it has begun, and what has returned.
BORROWERS = """
import mmap, os, random, struct, sys, time
from longshore import shared
memory, me = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096), int(sys.argv[2])
rng, number = random.Random(me), struct.Struct("Q")
total, marks, items = shared.Counter("total"), shared.Dict("marks"), shared.Queue("items")
print("ready", flush=True)
count = 0
while True:
    for _ in range(rng.choice((1, 2, 20, 200))):
        count += 1
        number.pack_into(memory, 16 * me, count)
        total.add(); marks[me] = count; items.put((me, count))
        number.pack_into(memory, 16 * me + 8, count)
    time.sleep(rng.choice((0, 0.0005, 0.005)))
"""


#: Sends what was sent last and on, by a counter; one that is killed between sending and counting sends that twice.
SENDER = """
from longshore import shared
pipe, sent = shared.Pipe("pipe", 0).open(), shared.Counter("sent")
print("ready", flush=True)
while True:
    number = sent.value
    pipe.send((number, b"x" * (number % 5 * 50_000)))
    sent.add()
"""
#: Says what it has got; one that is killed between takes a message along.
RECEIVER = """
import sys
from longshore import shared
pipe = shared.Pipe("pipe", 1).open()
print("ready", flush=True)
while True:
    shared.Queue("got").put(pipe.recv()[0])
"""


def start(program=WORKER, *arguments) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.fixture(params=["local", "redis"])
def joined(request, tmp_path):
    shared.leave()
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            url = stack.enter_context(shared.start_broker()).url
        elif PROGRAM is None:
            pytest.skip(WHY_NOT)
        else:
            server = RedisProcess(tmp_path)
            stack.callback(server.kill)
            # A killed worker is missed for its lease, which is what a round takes; one that a busy machine does not let
            # run for so long ends, as it must, and its round is lost.
            url = f"{server.url}?lease=4"
        shared.join(url)
        yield url
        shared.leave()


def test_workers_killed_at_random_points_strand_nobody_and_lose_nothing(joined):
    log, work = shared.Dict("log"), shared.Queue("work")
    workers = [start() for _ in range(3)]
    try:
        for seed in range(ROUNDS):
            rng = random.Random(seed)
            jobs = [f"{seed}-{number}" for number in range(5)]
            for job in jobs:
                work.put(job)
            time.sleep(rng.random() * 0.02)
            end(workers.pop(rng.randrange(len(workers))))
            done = work.join(timeout=20)
            for worker in workers:
                assert worker.poll() is None, f"round {seed}: a worker ended by itself: {worker.stderr.read().decode()}"
            assert done, f"round {seed}: stranded with {work.qsize()} left"
            assert all(log.delete(job) for job in jobs), f"round {seed}: a job was lost"
            assert "broken" not in log, f"round {seed}: {log['broken']}"
            assert shared.Lock("lock").acquire(timeout=5), f"round {seed}"
            shared.Lock("lock").release()
            workers.append(start())
    finally:
        for worker in workers:
            end(worker)


def test_what_killed_senders_have_sent_comes_whole_and_in_order(joined):
    pipe, expected = shared.Pipe("pipe", 1).open(), 0
    for seed in range(max(1, ROUNDS // 10)):
        rng = random.Random(seed)
        sender = start(SENDER)
        for _ in range(rng.randrange(1, 60)):
            number, filling = pipe.recv(timeout=20)
            assert number in (expected, expected - 1), f"round {seed}"
            assert len(filling) == number % 5 * 50_000, f"round {seed}"
            expected = number + 1
        end(sender)
        with contextlib.suppress(EOFError):
            while True:
                number, _ = pipe.recv(timeout=20)
                assert number in (expected, expected - 1), f"round {seed}"
                expected = number + 1


def test_a_killed_receiver_takes_one_message_along_at_most(joined):
    pipe, got = shared.Pipe("pipe", 0).open(), shared.Queue("got")
    kills, sent, seen = 0, 0, []
    receivers = [start(RECEIVER) for _ in range(2)]
    try:
        for seed in range(max(1, ROUNDS // 10)):
            rng = random.Random(seed)
            for _ in range(rng.randrange(1, 60)):
                pipe.send((sent, b"x" * (sent % 5 * 50_000)), timeout=20)
                sent += 1
            end(receivers.pop(rng.randrange(2)))
            kills += 1
            receivers.append(start(RECEIVER))
        while len(seen) < sent - kills:
            seen.append(got.get(timeout=20))
    finally:
        for receiver in receivers:
            end(receiver)
    assert len(set(seen)) == len(seen)


def test_no_turn_is_lost_of_a_lock_that_is_lent_and_taken_back_again_and_again(joined, tmp_path):
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(16))
    turns = 0
    programs = [start(BURSTS, str(memory), str(seed), str(ROUNDS)) for seed in range(3)]
    for program in programs:
        output, errors = program.communicate()
        assert program.returncode == 0, errors
        turns += output.count(b"x")
    assert int.from_bytes(memory.read_bytes()[:8], sys.byteorder) == turns


def test_borrowers_killed_and_stopped_at_random_points_have_done_all_that_returned_in_order(tmp_path):
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(4096))
    shared.leave()
    with shared.start_broker() as broker, contextlib.ExitStack() as stack:
        stack.callback(shared.leave)
        shared.join(broker.url)
        total, marks, items = shared.Counter("total"), shared.Dict("marks"), shared.Queue("items")
        seen: dict[int, int] = {}

        def drain():
            with contextlib.suppress(queue.Empty):
                while True:
                    number, count = items.get(timeout=0)
                    assert count == seen.get(number, 0) + 1, f"an item of {number} is lost or there twice"
                    seen[number] = count

        for seed in range(min(ROUNDS, 250)):
            rng = random.Random(seed)
            worker = start(BORROWERS, str(memory), str(seed))
            stack.callback(end, worker)
            for _ in range(rng.randrange(1, 4)):
                time.sleep(rng.random() * 0.02)
                worker.send_signal(signal.SIGSTOP)
                drain()
                worker.send_signal(signal.SIGCONT)
            time.sleep(rng.random() * 0.02)
            worker.kill()
            worker.wait()
            drain()
            begun, done = struct.unpack_from("QQ", memory.read_bytes(), 16 * seed)
            assert done <= marks.get(seed, 0) <= begun
            assert done <= seen.get(seed, 0) <= begun
            assert sum(seen.values()) <= total.value <= sum(seen.values()) + seed + 1


def wait(function, heard: list[float]) -> None:
    """Wait again and again, until the broker is gone."""
    while True:
        try:
            function(timeout=0.002)
        except BrokerLost:
            heard.append(time.monotonic())
            return
        except queue.Empty:
            pass


def test_a_killed_broker_is_heard_of_by_all_who_wait_and_fences_rise_over_it():
    shared.leave()
    fence = 0
    directory = None
    broker = shared.start_broker()
    try:
        for seed in range(max(1, ROUNDS // 10)):
            rng = random.Random(seed)
            shared.join(broker.url)
            lock = shared.Lock("lock")
            assert lock.acquire(timeout=5)
            assert lock.fence > fence, f"round {seed}: fence {lock.fence} after {fence}"
            fence = lock.fence
            heard: list[float] = []
            waits = [shared.Queue("q").get, shared.Event("e").wait, shared.Semaphore("s", 0).acquire]
            threads = [threading.Thread(target=wait, args=(function, heard)) for function in waits]
            for thread in threads:
                thread.start()
            time.sleep(rng.random() * 0.02)
            os.kill(broker.pid, signal.SIGKILL)
            killed = time.monotonic()
            for thread in threads:
                thread.join(5)
                assert not thread.is_alive(), f"round {seed}: a waiter is stranded"
            assert all(when - killed < 1 for when in heard), f"round {seed}"
            directory = str(broker.directory)
            broker.release()
            broker = shared.start_broker(directory)
            with pytest.raises(BrokerLost):
                shared.Counter("c").add()
    finally:
        shared.leave()
        broker.stop()
