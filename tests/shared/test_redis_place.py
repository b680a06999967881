"""The Redis place as its primitives see it: verbs, leases, crashes of clients and of the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from longshore.errors import BrokerLost, ClosedError
from longshore.shared.places import FENCE_BITS, Status, Verb
from longshore.shared.redis import RedisPlace, courier

LOCK, QUEUE, DICT = b"Lledger", b"Qjobs", b"Dcities"


@pytest.fixture
def join(redis_server):
    """Join the server, as a process of its own would: `join(lease=…)`."""
    places = []

    def joined(url=redis_server.url, **options):
        query = "&".join(f"{name}={value}" for name, value in options.items())
        place = RedisPlace(f"{url}?{query}" if query else url)
        place.ask(Verb.DECLARE, LOCK, fields=(b"",))
        place.ask(Verb.DECLARE, QUEUE, fields=(b"maxsize=0",))
        place.ask(Verb.DECLARE, DICT, fields=(b"",))
        places.append(place)
        return place

    yield joined
    for place in places:
        place.close()


class Waiter:
    """A verb that was started, and what came of it."""

    def __init__(self, place, *verb, **more):
        self.arrived = threading.Event()
        self.wait = place.start(self, *verb, **more)

    def __call__(self, reply):
        self.reply = reply
        self.at = time.monotonic()
        self.arrived.set()

    def result(self, timeout=10):
        assert self.arrived.wait(timeout), "nothing came of it"
        return self.reply


def stands_in_line(place, server, line, count):
    """Block until as many wait in a line; nothing else tells that a started verb has come to wait."""
    while server.command("ZCARD", f"longshore:l:{line}") != count:
        place.ask(Verb.LOCKED, LOCK)


class Child:
    """A program of its own that is joined; what it prints are its answers."""

    def __init__(self, url, code):
        program = """
            import os, signal, sys, time
            from longshore.errors import LongshoreError
            from longshore.shared.places import Verb
            from longshore.shared.redis import RedisPlace
            place = RedisPlace(sys.argv[1])
            LOCK, QUEUE = b"Lledger", b"Qjobs"
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program) + textwrap.dedent(code), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number):
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            # Until all its threads have stopped: one that runs on would read what is sent to it.
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.kill()
        self.process.communicate()


HOLD = """
    print(place.ask(Verb.ACQUIRE, LOCK, 1, 0, None).number, flush=True)
    sys.stdin.readline()
"""


# -- one process ------------------------------------------------------------------------------------------------


def test_a_fence_has_the_epoch_above_its_count(join):
    place = join()
    first = place.ask(Verb.ACQUIRE, LOCK, 1).number
    place.tell(Verb.RELEASE, LOCK, 1)
    second = place.ask(Verb.ACQUIRE, LOCK, 1).number
    assert first >> FENCE_BITS == second >> FENCE_BITS == place.epoch
    assert second > first


def test_waiters_get_a_lock_in_the_order_in_which_they_came(join, redis_server):
    place = join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    order = []
    waiters = []
    for holder in (2, 3, 4):
        waiters.append(Waiter(place, Verb.ACQUIRE, LOCK, holder, 0, None))
        stands_in_line(place, redis_server, "wLledger", len(waiters))
    for holder, waiter in zip((2, 3, 4), waiters, strict=True):
        place.tell(Verb.RELEASE, LOCK, holder - 1)
        order.append(waiter.result().status)
    assert order == [Status.OK] * 3


def test_a_waiter_that_is_late_leaves_the_line(join):
    place, other = join(), join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    began = time.monotonic()
    assert other.ask(Verb.ACQUIRE, LOCK, 1, 0, 0.1).status == Status.LATE
    assert 0.1 <= time.monotonic() - began < 2
    place.tell(Verb.RELEASE, LOCK, 1)
    assert place.ask(Verb.ACQUIRE, LOCK, 2).status == Status.OK


def test_a_waiter_that_is_cancelled_swallows_no_item(join, redis_server):
    place, other = join(), join()
    gone = Waiter(place, Verb.GET, QUEUE, 1, 1, None)
    stands_in_line(place, redis_server, "gQjobs", 1)
    stays = Waiter(other, Verb.GET, QUEUE, 1, 1, None)
    stands_in_line(other, redis_server, "gQjobs", 2)
    gone.wait.cancel()
    assert gone.result().status == Status.CANCELLED
    other.ask(Verb.PUT, QUEUE, fields=(b"item",))
    assert stays.result().fields[0] == b"item"


def test_a_notification_goes_on_if_who_got_it_is_cancelled_before_he_has_the_lock(join, redis_server):
    place, condition = join(), b"Cstock"
    place.ask(Verb.DECLARE, condition, fields=(b"",))
    waiters = []
    for holder in (1, 2):
        place.ask(Verb.ACQUIRE, condition, holder, 0, 10)
        waiters.append(Waiter(place, Verb.WAIT, condition, holder, 0, None))
        stands_in_line(place, redis_server, "sCstock", holder)
    place.ask(Verb.ACQUIRE, condition, 3, 0, 10)
    assert place.ask(Verb.NOTIFY, condition, 3, 1).number == 1
    waiters[0].wait.cancel()
    place.tell(Verb.RELEASE, condition, 3)
    assert waiters[0].result().fields[1] == b"c"
    place.tell(Verb.RELEASE, condition, 1)
    assert waiters[1].result().fields[1] == b"1"


def test_a_wait_that_is_interrupted_gives_back_what_it_got(join, redis_server):
    place, other = join(), join()
    other.ask(Verb.ACQUIRE, LOCK, 9)

    def interrupt():
        stands_in_line(other, redis_server, "wLledger", 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        place.ask(Verb.ACQUIRE, LOCK, 1, 0, None)
    thread.join()
    other.tell(Verb.RELEASE, LOCK, 9)
    assert other.ask(Verb.ACQUIRE, LOCK, 8, 0, 5).status == Status.OK


def test_what_a_holder_has_is_released_when_it_ends(join):
    place = join()
    place.ask(Verb.PUT, QUEUE, fields=(b"job",))
    place.ask(Verb.ACQUIRE, LOCK, 1)
    delivery = place.ask(Verb.GET, QUEUE, 1, 1)
    place.end(1)
    again = place.ask(Verb.ACQUIRE, LOCK, 2)
    assert (again.status, list(again.fields)) == (Status.OK, [b"1"])
    assert list(place.ask(Verb.GET, QUEUE, 2, 1).fields) == [b"job", b"1"]
    assert place.ask(Verb.ACK, QUEUE, 2, delivery.number).status == Status.NOT_HELD


def test_many_threads_share_one_connection_without_losing_a_reply(join):
    place = join()
    place.ask(Verb.DECLARE, b"Nhits", fields=(b"",))

    def count():
        for _ in range(50):
            place.ask(Verb.ADD, b"Nhits", number=1)

    threads = [threading.Thread(target=count) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.ask(Verb.VALUE, b"Nhits").number == 800


def test_a_place_that_was_left_has_let_go_of_everything(join):
    place, other = join(lease=60), join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    waiter = Waiter(place, Verb.GET, QUEUE, 1, 0, None)
    place.close()
    assert isinstance(waiter.result(), ClosedError)
    assert list(other.ask(Verb.ACQUIRE, LOCK, 1, 0, 5).fields) == [b"1"]
    with pytest.raises(ClosedError):
        place.ask(Verb.LOCKED, LOCK)


def test_nothing_is_left_of_a_place_that_was_left(join, redis_server):
    # One that stays, as whoever leaves last would be hard to ask.
    other = join()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    place = join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    place.tell(Verb.RELEASE, LOCK, 1)
    client = place._courier.client.decode()
    place.close()
    other.ask(Verb.LOCKED, LOCK)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert redis_server.command("KEYS", f"*{client}*") == []


# -- other processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lock_whose_holder_was_killed_is_free_after_its_lease(join, redis_server):
    place = join()
    with Child(f"{redis_server.url}?lease=1", HOLD) as child:
        before = int(child.says())
        assert place.ask(Verb.ACQUIRE, LOCK, 1).status == Status.LATE
        child.signal(signal.SIGKILL)
        began = time.monotonic()
        reply = place.ask(Verb.ACQUIRE, LOCK, 1, 0, 10)
    assert reply.status == Status.OK
    assert list(reply.fields) == [b"1"]
    assert reply.number > before
    assert 0.3 < time.monotonic() - began < 2


@pytest.mark.slow
def test_a_waiter_that_was_killed_does_not_keep_what_it_was_given(join, redis_server):
    place = join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    with Child(f"{redis_server.url}?lease=1", "print(place.ask(Verb.ACQUIRE, LOCK, 1, 0, None))") as child:
        stands_in_line(place, redis_server, "wLledger", 1)
        waiter = Waiter(place, Verb.ACQUIRE, LOCK, 2, 0, None)
        stands_in_line(place, redis_server, "wLledger", 2)
        child.signal(signal.SIGKILL)
        child.process.wait()
        place.tell(Verb.RELEASE, LOCK, 1)
        reply = waiter.result()
    assert reply.status == Status.OK
    # It went through the dead one's hands.
    assert list(reply.fields) == [b"1"]


@pytest.mark.slow
def test_what_a_killed_process_did_not_acknowledge_is_delivered_again(join, redis_server):
    place = join()
    for job in (b"a", b"b", b"c"):
        place.ask(Verb.PUT, QUEUE, fields=(job,))
    code = """
        for _ in range(2):
            print(place.ask(Verb.GET, QUEUE, 1, 1).fields, flush=True)
        sys.stdin.readline()
    """
    with Child(f"{redis_server.url}?lease=1", code) as child:
        assert (child.says(), child.says()) == ("[b'a', b'0']", "[b'b', b'0']")
        assert place.ask(Verb.GET, QUEUE, 1).fields[0] == b"c"
        child.signal(signal.SIGKILL)
        again = [list(place.ask(Verb.GET, QUEUE, 1, 1, 10).fields) for _ in range(2)]
    assert again == [[b"a", b"1"], [b"b", b"1"]]


@pytest.mark.slow
def test_an_item_and_a_signal_that_were_sent_to_one_who_never_read_them_go_to_another(join, redis_server):
    place = join()
    done = b"Sdone"
    place.ask(Verb.DECLARE, done, fields=(b"value=0",))
    code = """
        place.start(print, Verb.ACQUIRE, b"Sdone", 1, 0, None)
        place.ask(Verb.GET, QUEUE, 1, 0, None)
    """
    with Child(f"{redis_server.url}?lease=1", code) as child:
        stands_in_line(place, redis_server, "wSdone", 1)
        stands_in_line(place, redis_server, "gQjobs", 1)
        # Stopped, so that both lie in its socket's buffer when it dies.
        child.signal(signal.SIGSTOP)
        place.ask(Verb.PUT, QUEUE, fields=(b"item",))
        place.tell(Verb.RELEASE, done, 1)
        assert place.ask(Verb.SIZE, QUEUE).number == 0
        assert place.ask(Verb.LOCKED, done).number == 0
        child.signal(signal.SIGKILL)
        assert place.ask(Verb.GET, QUEUE, 1, 0, 10).fields[0] == b"item"
        assert place.ask(Verb.ACQUIRE, done, 1, 0, 10).status == Status.OK


@pytest.mark.slow
def test_a_notification_of_one_who_never_heard_it_goes_to_another(join, redis_server):
    place = join()
    condition = b"Cstock"
    code = """
        place.ask(Verb.DECLARE, b"Cstock", fields=(b"",))
        place.ask(Verb.ACQUIRE, b"Cstock", 1, 0, None)
        place.ask(Verb.WAIT, b"Cstock", 1, 0, None)
    """
    with Child(f"{redis_server.url}?lease=1", code) as child:
        stands_in_line(place, redis_server, "sCstock", 1)
        place.ask(Verb.DECLARE, condition, fields=(b"",))
        place.ask(Verb.ACQUIRE, condition, 2, 0, 10)
        other = Waiter(place, Verb.WAIT, condition, 2, 0, None)
        stands_in_line(place, redis_server, "sCstock", 2)
        child.signal(signal.SIGSTOP)
        place.ask(Verb.ACQUIRE, condition, 3, 0, 10)
        assert place.ask(Verb.NOTIFY, condition, 3, 1).number == 1
        place.tell(Verb.RELEASE, condition, 3)
        child.signal(signal.SIGKILL)
        reply = other.result()
    assert (reply.status, list(reply.fields)) == (Status.OK, [b"1", b"1"])


@pytest.mark.slow
def test_a_barrier_breaks_when_one_who_waits_at_it_is_killed(join, redis_server):
    place = join()
    place.ask(Verb.DECLARE, b"Bstart", fields=(b"parties=3",))
    with Child(f"{redis_server.url}?lease=1", 'place.ask(Verb.ARRIVE, b"Bstart", 1, 0, None)') as child:
        stands_in_line(place, redis_server, "wBstart", 1)
        child.signal(signal.SIGKILL)
        assert place.ask(Verb.ARRIVE, b"Bstart", 1, 0, 10).status == Status.BROKEN


@pytest.mark.slow
def test_a_process_that_ends_in_order_keeps_nobody_waiting_for_its_lease(join, redis_server):
    place = join()
    with Child(f"{redis_server.url}?lease=60", HOLD) as child:
        child.says()
        child.go()
        assert place.ask(Verb.ACQUIRE, LOCK, 1, 0, 15).status == Status.OK


@pytest.mark.slow
def test_a_lease_is_renewed_while_its_process_does_something_else(join, redis_server):
    place = join()
    code = """
        print(place.ask(Verb.ACQUIRE, LOCK, 1, 0, None).number, flush=True)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            pass
        place.tell(Verb.RELEASE, LOCK, 1)
        sys.stdin.readline()
    """
    with Child(f"{redis_server.url}?lease=1", code) as child:
        child.says()
        began = time.monotonic()
        reply = place.ask(Verb.ACQUIRE, LOCK, 1, 0, 10)
    assert list(reply.fields) == []
    assert time.monotonic() - began > 1.5


@pytest.mark.slow
def test_the_fence_tells_two_holders_apart_when_one_was_stopped_past_its_lease(join, redis_server):
    place = join()
    code = """
        fence = place.ask(Verb.ACQUIRE, LOCK, 1, 0, None).number
        print(fence, flush=True)
        sys.stdin.readline()
        # It believes that it holds the lock, and writes to what the lock protects: a file, which checks no fence.
        print(fence, flush=True)
        time.sleep(0)
        try:
            place.ask(Verb.LOCKED, LOCK)
        except LongshoreError as error:
            print(type(error).__name__, flush=True)
        try:
            place.tell(Verb.RELEASE, LOCK, 1)
        except LongshoreError as error:
            print(type(error).__name__, flush=True)
        sys.stdin.readline()
    """
    with Child(f"{redis_server.url}?lease=1", code) as child:
        stopped = int(child.says())
        child.signal(signal.SIGSTOP)
        reply = place.ask(Verb.ACQUIRE, LOCK, 1, 0, 10)
        assert (reply.status, list(reply.fields)) == (Status.OK, [b"1"])
        child.signal(signal.SIGCONT)
        child.go()
        # Two hold it now, and what they protect can refuse the lower number.
        assert int(child.says()) == stopped < reply.number
        # The one of before hears it from the place at its next word, and takes nothing from the other.
        assert child.says() == "BrokerLost"
        assert child.says() == "BrokerLost"
        assert place.ask(Verb.LOCKED, LOCK).number == 1


@pytest.mark.slow
def test_a_child_that_was_forked_is_a_process_of_its_own(join):
    place, other = join(), join()
    place.ask(Verb.ACQUIRE, LOCK, 1)
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # Not the holder, though of the same number.
            place.tell(Verb.RELEASE, LOCK, 1)
            os.write(writable, b"%d" % place.ask(Verb.ACQUIRE, LOCK, 1, 0, 0).status)
            place.ask(Verb.PUT, QUEUE, fields=(b"of the child",))
            place.close()
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as answer:
        assert int(answer.read()) == Status.LATE
    assert os.waitpid(pid, 0)[1] == 0
    assert other.ask(Verb.GET, QUEUE, 1, 0, 5).fields[0] == b"of the child"
    assert place.ask(Verb.LOCKED, LOCK).number == 1


# -- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_waiter_hears_within_a_second_that_the_server_was_killed(own_redis, join):
    server = own_redis()
    place = join(server.url)
    fence = place.ask(Verb.ACQUIRE, LOCK, 1).number
    blocked = []

    def block():
        try:
            place.ask(Verb.ACQUIRE, LOCK, 2, 0, None)
        except BrokerLost as error:
            blocked.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    waiter = Waiter(place, Verb.GET, QUEUE, 1, 0, None)
    stands_in_line(place, server, "wLledger", 1)
    stands_in_line(place, server, "gQjobs", 1)
    killed = time.monotonic()
    server.kill()
    assert isinstance(waiter.result(), BrokerLost)
    thread.join(5)
    assert time.monotonic() - killed < 1
    assert len(blocked) == 1
    # It stays lost, also when there is a server again, which is empty.
    server.start()
    assert place.is_lost
    with pytest.raises(BrokerLost, match="Join again|is lost"):
        place.ask(Verb.SIZE, QUEUE)
    again = join(server.url)
    assert again.epoch > place.epoch
    assert again.ask(Verb.ACQUIRE, LOCK, 1).number > fence


@pytest.mark.slow
def test_who_waits_hears_that_the_server_has_fallen_silent(own_redis, join, monkeypatch):
    monkeypatch.setattr(courier, "_PROBE", 0.02)
    server = own_redis()
    place = join(f"{server.url}?socket_timeout=0.1")
    waiter = Waiter(place, Verb.GET, QUEUE, 1, 0, None)
    stands_in_line(place, server, "gQjobs", 1)
    server.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert isinstance(waiter.result(), BrokerLost)
    # A third of its lease is 3.3 s.
    assert time.monotonic() - stopped < 2


@pytest.mark.slow
def test_the_epoch_rises_also_for_one_who_never_saw_the_server_of_before(own_redis, join):
    server = own_redis()
    epochs = []
    for _ in range(3):
        with Child(server.url, "print(place.epoch, flush=True)") as child:
            epochs.append(int(child.says()))
        server.kill()
        server.start()
    assert epochs == sorted(set(epochs))


@pytest.mark.slow
def test_a_server_that_comes_back_with_its_data_has_a_higher_epoch_and_the_items(own_redis, join):
    server = own_redis("--appendonly", "yes", "--appendfsync", "always")
    place = join(f"{server.url}", lease=1)
    fence = place.ask(Verb.ACQUIRE, LOCK, 1).number
    place.ask(Verb.PUT, QUEUE, fields=(b"survives",))
    server.kill()
    server.start()
    again = join(server.url)
    assert again.ask(Verb.GET, QUEUE).fields[0] == b"survives"
    reply = again.ask(Verb.ACQUIRE, LOCK, 1, 0, 10)
    assert (list(reply.fields), reply.number > fence) == ([b"1"], True)


def test_a_server_that_was_emptied_is_lost_and_never_looks_empty(join, redis_server):
    place = join()
    place.ask(Verb.PUT, QUEUE, fields=(b"item",))
    redis_server.command("FLUSHALL")
    with pytest.raises(BrokerLost, match="lost its objects"):
        place.ask(Verb.SIZE, QUEUE)


def test_scripts_that_the_server_has_forgotten_are_given_to_it_again(join, redis_server):
    place = join()
    redis_server.command("SCRIPT", "FLUSH")
    assert place.ask(Verb.ACQUIRE, LOCK, 1).status == Status.OK
    redis_server.command("SCRIPT", "FLUSH")
    place.end(1)
    assert place.ask(Verb.LOCKED, LOCK).number == 0


@pytest.mark.slow
def test_a_server_without_memory_refuses_items_and_lets_go_of_locks(own_redis, join):
    server = own_redis()
    place = join(server.url)
    place.ask(Verb.ACQUIRE, LOCK, 1)
    waiter = Waiter(place, Verb.ACQUIRE, LOCK, 2, 0, None)
    stands_in_line(place, server, "wLledger", 1)
    server.command("CONFIG", "SET", "maxmemory", "1")
    full = place.ask(Verb.PUT, QUEUE, fields=(b"item",))
    assert (full.status, list(full.fields)) == (Status.TOO_LARGE, [b"the server's maxmemory is reached"])
    place.tell(Verb.RELEASE, LOCK, 1)
    assert waiter.result().status == Status.OK
