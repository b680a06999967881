"""What dies, and what the others see: holders, waiters, the broker, its owner; and who is not let in."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import queue
import random
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from longshore import shared
from longshore.errors import BrokerLost, LimitExceeded
from longshore.shared import joining
from longshore.shared.starting import Broker
from longshore.shared.wire import HELLO, encode_request
from longshore.supervisor.mainstay import Mainstay
from shared.conftest import joined

pytestmark = pytest.mark.slow


def gone(pid: int) -> bool:
    """Whether a process has ended, also if nobody has asked for its status yet."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(true, seconds=10):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        threading.Event().wait(0.005)


def test_a_killed_holder_lets_go_at_once_and_the_next_one_knows(place, program):
    holder = program("l = shared.Lock('l'); l.acquire(); print(l.fence, flush=True); time.sleep(60)")
    fence = int(holder.stdout.readline())
    lock = shared.Lock("l")
    assert not lock.acquire(timeout=0)
    holder.kill()
    assert lock.acquire(timeout=5)
    assert lock.recovered
    assert lock.fence > fence


def test_a_local_holder_that_is_stopped_keeps_what_it_holds_and_goes_on_with_it():
    with joined(), stopped_holder() as holder:
        lock = shared.Lock("l")
        assert not lock.acquire(timeout=0)
        assert shared.Queue("q").qsize() == 0
        with pytest.raises(queue.Empty):
            shared.Queue("q").get(timeout=0)
        holder.send_signal(signal.SIGCONT)
        # It releases when it wakes, in order.
        assert lock.acquire(timeout=10)
        assert not lock.recovered
        assert shared.Queue("q").join(timeout=10)


def test_a_local_holder_that_is_killed_while_it_is_stopped_lets_go_at_once():
    with joined(), stopped_holder() as holder:
        lock = shared.Lock("l")
        assert not lock.acquire(timeout=0)
        holder.kill()
        assert lock.acquire(timeout=5)
        assert lock.recovered
        assert shared.Queue("q").get(timeout=5) == "job"


@contextlib.contextmanager
def stopped_holder():
    """A process with a lock and a delivery, stopped by SIGSTOP; when it goes on it gives both back."""
    shared.Queue("q").put("job")
    code = (
        "import os, signal\nfrom longshore import shared\nl = shared.Lock('l'); l.acquire()\n"
        "d = shared.Queue('q').get(ack=True)\nos.kill(os.getpid(), signal.SIGSTOP)\nd.ack(); l.release(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            yield process
        finally:
            process.kill()


def test_slots_and_deliveries_of_a_killed_process_come_back(place, program):
    shared.Queue("q").put("job")
    holder = program(
        "s = shared.Semaphore('s', 2); s.acquire(); s.acquire(); d = shared.Queue('q').get(ack=True)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    holder.stdout.readline()
    semaphore = shared.Semaphore("s", 2)
    assert not semaphore.acquire(timeout=0)
    holder.kill()
    assert semaphore.acquire(timeout=5)
    assert semaphore.acquire(timeout=5)
    delivery = shared.Queue("q").get(timeout=5, ack=True)
    assert (delivery.value, delivery.redelivered) == ("job", 1)


def test_a_socket_that_a_child_has_inherited_does_not_keep_the_lock_of_a_dead_parent(place, program):
    parent = program(
        "l = shared.Lock('l'); l.acquire()\n"
        "if os.fork() == 0: os.write(1, b'%d\\n' % os.getpid()); time.sleep(30); os._exit(0)\n"
        "os.write(1, b'ready\\n'); time.sleep(60)"
    )
    child = int(sorted(parent.stdout.readline() for _ in range(2))[0])
    try:
        parent.kill()
        assert shared.Lock("l").acquire(timeout=5)
        assert not gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("what", ["lock", "queue", "event", "condition", "semaphore"])
def test_a_killed_waiter_swallows_nothing(place, program, what):
    waits = {
        "lock": "shared.Lock('x').acquire()",
        "queue": "shared.Queue('x').get()",
        "event": "shared.Event('x').wait()",
        "condition": "c = shared.Condition('x'); c.acquire(); shared.Queue('r').put(1); c.wait()",
        "semaphore": "shared.Semaphore('x', 1).acquire()",
    }
    if what == "lock":
        shared.Lock("x").acquire()
    elif what == "semaphore":
        shared.Semaphore("x", 1).acquire()
    waiter = program(f"print('ready', flush=True)\n{waits[what]}")
    waiter.stdout.readline()
    if what == "condition":
        shared.Queue("r").get(timeout=5)
    waiter.kill()
    waiter.wait()
    if what == "lock":
        shared.Lock("x").release()
        assert shared.Lock("x").acquire(timeout=5)
    elif what == "queue":
        shared.Queue("x").put("kept")
        assert shared.Queue("x").get(timeout=5) == "kept"
    elif what == "semaphore":
        shared.Semaphore("x", 1).release()
        assert shared.Semaphore("x", 1).acquire(timeout=5)
    elif what == "condition":
        woken = queue.Queue()

        def sleep():
            with shared.Condition("x") as condition:
                shared.Queue("r").put(1)
                woken.put(condition.wait(10))

        sleeper = threading.Thread(target=sleep, daemon=True)
        sleeper.start()
        shared.Queue("r").get(timeout=5)
        with shared.Condition("x") as condition:
            condition.notify()
        assert woken.get(timeout=5) is True
        # It lets go of the condition before its place is left.
        sleeper.join(5)
    else:
        shared.Event("x").set()
        assert shared.Event("x").wait(5)


def test_everybody_who_waits_hears_within_a_second_that_the_broker_is_gone():
    with joined() as made:
        heard = queue.Queue()

        def wait(function, *args):
            try:
                function(*args)
            except BrokerLost:
                heard.put(time.monotonic())

        waits = [shared.Queue("q").get, shared.Event("e").wait, shared.Barrier("b", 2).wait]
        threads = [threading.Thread(target=wait, args=(function,), daemon=True) for function in waits]
        for thread in threads:
            thread.start()
        wait_until(lambda: shared.Barrier("b", 2).n_waiting == 1)
        os.kill(made.pid, signal.SIGKILL)
        began = time.monotonic()
        assert all(heard.get(timeout=5) - began < 1 for _ in threads)
        with pytest.raises(BrokerLost, match="gone"):
            shared.Counter("c").add()
        with pytest.raises(BrokerLost):
            shared.Queue("q").qsize()


def test_fences_rise_over_a_restart_and_old_handles_work_after_joining_again():
    with joined() as made:
        lock = shared.Lock("l")
        lock.acquire()
        fence = lock.fence
        shared.Semaphore("s", 2).acquire()
        items = shared.Manager().list(["item"])
        depth = shared.Manager().Value("i", 7)
        depth.value = 9
        os.kill(made.pid, signal.SIGKILL)
        made.release()
        with shared.start_broker(str(made.directory)) as again:
            with pytest.raises(BrokerLost):
                lock.acquire(timeout=0)
            shared.join(again.url)
            assert lock.acquire(timeout=5)
            assert lock.fence > fence
            assert shared.Semaphore("s", 2).free == 2
            assert items == []
            items.append("another")
            assert items == ["another"]
            assert depth.value == pickle.loads(pickle.dumps(depth)).value == 7


def test_a_broker_that_cannot_be_started_leaves_nothing_open(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        shared.start_broker()
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def own_broker(monkeypatch):
    """This process with a broker of its own, as a supervisor has it; gives what watches that."""
    shared.leave()
    monkeypatch.delenv("LONGSHORE_SHARED", raising=False)
    shared.join("local://")
    yield joining.own_broker()
    shared.leave()


def test_a_program_whose_broker_could_not_be_started_again_starts_one_when_it_next_needs_it(own_broker, monkeypatch):
    os.kill(own_broker.pid, signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        own_broker.begin()
        select.select([own_broker], [], [])
        with pytest.raises(BrokerLost, match="did not come up"):
            own_broker.complete()
    assert shared.Counter("c").add() == 1


def test_a_program_that_leaves_while_its_broker_is_down_is_not_told_of_that_one_any_more(own_broker):
    url = shared.address()
    os.kill(own_broker.pid, signal.SIGKILL)
    select.select([own_broker], [], [])
    own_broker.begin()
    shared.leave()
    assert not pathlib.Path(url.removeprefix("local://")).parent.exists()
    assert shared.Counter("c").add() == 1
    assert shared.address() != url


def test_a_program_that_never_shares_anything_starts_no_broker():
    code = "from longshore import shared; shared.Pipe('p', 0); import os; print(os.environ.get('LONGSHORE_SHARED'))"
    environment = {name: value for name, value in os.environ.items() if name != "LONGSHORE_SHARED"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "None\n"


class Deck:
    """What a mainstay needs of a supervisor."""

    def __init__(self):
        self.watched, self.events = {}, []

    def watch(self, source, heard):
        self.watched[source.fileno()] = heard

    def forget(self, source):
        self.watched.pop(source.fileno(), None)

    def emit(self, event):
        self.events.append(event)

    def turn(self):
        """Wait for what is watched, and hear it."""
        for descriptor in select.select(self.watched, [], [])[0]:
            self.watched[descriptor]()


def test_a_broker_that_hangs_while_it_starts_holds_nobody_up_and_is_given_up(own_broker, monkeypatch, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    deck = Deck()
    mainstay = Mainstay(deck, own_broker)
    monkeypatch.setattr("longshore.supervisor.mainstay.YOUNG", 0)
    mainstay.watch()
    os.kill(own_broker.pid, signal.SIGKILL)
    deck.turn()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(hanging))
        mainstay.mend()
    assert [event.reason for event in deck.events] == ["its process is gone"]
    # It has its time, and then the next one is tried.
    assert mainstay.due[0] > time.monotonic() + 20
    mainstay.due = [0.0]
    mainstay.mend()
    assert "did not come up" in deck.events[-1].reason
    mainstay.due = [0.0]
    mainstay.mend()
    deck.turn()
    assert mainstay.due == []
    assert shared.Counter("c").add() == 1


def test_a_program_starts_its_own_broker_which_ends_with_it_however_it_ends():
    code = "from longshore import shared; shared.Counter('c').add(); print(shared.address(), flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != "LONGSHORE_SHARED"}
    for end in ("exit", "kill"):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        directory = pathlib.Path(process.stdout.readline().strip().removeprefix("local://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "key").stat().st_mode) == 0o600
        assert (directory / "key").read_text() not in str(environment)
        if end == "kill":
            process.kill()
        process.communicate("\n" if end == "exit" else None, timeout=10)
        wait_until(lambda directory=directory: not directory.exists())


def test_a_child_joins_by_the_environment_and_by_fork(place, program):
    child = program("print(shared.Counter('c').add(), flush=True)")
    assert child.stdout.readline() == "1\n"
    pid = os.fork()
    if pid == 0:
        try:
            shared.Counter("c").add()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert shared.Counter("c").value == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_broker_for_another_user_lets_in_that_one_and_who_has_started_it_and_nobody_else(capfd):
    with Broker(user=(65534, 65534)) as made:
        shared.leave()
        shared.join(made.url)
        try:
            assert shared.Counter("c").add() == 1
            for uid, said in ((65534, b"2"), (12345, b"")):
                made.directory.chmod(0o755)
                (made.directory / "socket").chmod(0o777)
                (made.directory / "key").chmod(0o644)
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    with contextlib.suppress(BaseException):
                        os.setgid(uid)
                        os.setuid(uid)
                        os.write(writer, b"%d" % shared.Counter("c").add())
                    os._exit(0)
                os.close(writer)
                os.waitpid(pid, 0)
                assert os.read(reader, 10) == said
                os.close(reader)
        finally:
            shared.leave()
    wait_until(lambda: "of user 12345: this broker serves user 65534 only" in capfd.readouterr().err)
    assert not made.directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_link_in_the_directory_of_another_user_s_broker_gives_nothing_away_when_it_is_started_again(tmp_path):
    root_s = tmp_path / "root's"
    root_s.write_text("7")
    with Broker(user=(65534, 65534)) as made:
        (made.directory / "link").symlink_to(root_s)
        os.kill(made.pid, signal.SIGKILL)
        wait_until(lambda: made.has_ended)
        made.restart()
        assert root_s.stat().st_uid == 0
        (made.directory / "link").unlink()


def test_who_does_not_know_the_key_gets_no_byte_and_is_logged(capfd):
    with joined() as made, socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(made.directory / "socket"))
        stranger.sendall(encode_request(HELLO, 1, b"wrong", 0, 0, 0, ()))
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
        assert shared.Counter("c").add() == 1
        wait_until(lambda: "does not know the key" in capfd.readouterr().err)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_gets_no_byte_and_is_logged(capfd):
    with joined() as made:
        made.directory.chmod(0o755)
        (made.directory / "socket").chmod(0o777)
        pid = os.fork()
        if pid == 0:
            verdict = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                stranger = socket.socket(socket.AF_UNIX)
                stranger.settimeout(5)
                stranger.connect(str(made.directory / "socket"))
                try:
                    verdict = 0 if stranger.recv(100) == b"" else 2
                except ConnectionResetError:
                    verdict = 0
            finally:
                os._exit(verdict)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        wait_until(lambda: "of user 65534" in capfd.readouterr().err)


def test_garbage_from_one_client_harms_no_other():
    with joined() as made, socket.socket(socket.AF_UNIX) as noisy:
        noisy.settimeout(5)
        noisy.connect(str(made.directory / "socket"))
        noisy.sendall(encode_request(HELLO, 1, (made.directory / "key").read_bytes(), 0, 0, 0, ()))
        noisy.recv(1000)
        # At once, as the broker hangs up on the first of them.
        garbage = (random.Random(1).randbytes(40), b"abc")
        noisy.sendall(b"".join(len(part).to_bytes(4, "little") + part for part in garbage))
        with contextlib.suppress(ConnectionResetError):
            while noisy.recv(1000):
                pass
        assert shared.Counter("c").add() == 1


def test_an_item_over_the_limit_is_refused_by_its_name():
    with joined(max_item=1000):
        with pytest.raises(LimitExceeded, match="max_item=1000"):
            shared.Queue("q").put(b"x" * 2000)
        shared.Queue("q").put(b"x" * 900)


def test_a_large_item_goes_through(place):
    shared.Queue("q").put(b"x" * (12 << 20))
    assert len(shared.Queue("q").get(timeout=10)) == 12 << 20


def test_holders_killed_at_random_points_never_strand_the_others(place, program):
    rounds = 4
    for seed in range(rounds):
        workers = [
            program(
                "l, q, d = shared.Lock('l'), shared.Queue('q'), shared.Dict('d')\n"
                "print('ready', flush=True)\n"
                "while True:\n"
                "    delivery = q.get(ack=True)\n"
                "    with l: d[delivery.value] = l.fence\n"
                "    delivery.ack()\n"
            )
            for _ in range(3)
        ]
        for worker in workers:
            worker.stdout.readline()
        jobs = [f"{seed}-{number}" for number in range(200)]
        for job in jobs:
            shared.Queue("q").put(job)
        time_to_die = random.Random(seed).random() * 0.05
        threading.Event().wait(time_to_die)
        for worker in workers[:2]:
            worker.kill()
        assert shared.Queue("q").join(timeout=10)
        assert set(jobs) <= set(shared.Dict("d"))
        workers[2].kill()
        workers[2].wait()
