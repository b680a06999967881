"""Many reactors on many threads, and other threads that use them all the while: nothing is lost, mixed up or left."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from longshore import Lines, MessageHandler
from longshore.events import ConnectionClosed
from longshore.testing import Client, running_server

#: How much is done; more where somebody looks for races, `LONGSHORE_STRESS=20`.
SCALE = int(os.environ.get("LONGSHORE_STRESS", "1"))

pytestmark = pytest.mark.slow


@pytest.fixture
def eager_switching():
    """Threads take turns as often as they can, so that what is half done is seen."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Together:
    """Threads that all begin at once; what any of them raises is raised by the test."""

    def __init__(self) -> None:
        self._work: list[Callable[[], object]] = []
        self.errors: list[BaseException] = []

    def add(self, function: Callable[..., object], *arguments: Any) -> None:
        self._work.append(lambda: function(*arguments))

    def run(self) -> None:
        barrier = threading.Barrier(len(self._work))

        def one(work: Callable[[], object]) -> None:
            barrier.wait()
            try:
                work()
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=one, args=(work,)) for work in self._work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.errors == []


class Counting(MessageHandler):
    framing = Lines()

    def connected(self) -> None:
        self.count = 0

    def message(self, message: bytes) -> bytes:
        self.count += 1
        return b"%s %d %d" % (message, self.count, self.server.number)


def converse(server: Any, messages: int) -> None:
    """Ask some by some, and leave in one of the ways there are."""
    for round_ in range(3):
        with Client(server.url) as client:
            for start in range(0, messages, 10):
                client.send(b"".join(b"%d\n" % number for number in range(start, start + 10)))
                for number in range(start, start + 10):
                    answer = client.recv_line()
                    while answer == b"news\n":
                        answer = client.recv_line()
                    assert answer == b"%d %d %d\n" % (number, number + 1, server.number)
            if round_ == 1:
                client.reset()


def disturb(server: Any, times: int) -> None:
    """What other threads may do: posts, timers, broadcasts, and looking around."""
    rung = threading.Semaphore(0)
    for number in range(times):
        server.reactor.post(rung.release)
        server.reactor.post(lambda: server.reactor.call_later(0.0001, rung.release))
        server.reactor.post(lambda: server.reactor.call_later(1000, rung.release).cancel())
        server.statistics()
        assert server.reactor.blocked_for < 30
        for connection in server.connections:
            if connection.server is not server:
                raise AssertionError("a connection of another server's")
        if number % 10 == 0:
            server.broadcast(b"news")
    for _ in range(2 * times):
        assert rung.acquire(timeout=20)
    assert not rung.acquire(blocking=False)


def ask_by_datagram(server: Any, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect(("127.0.0.1", int(server.addresses[1].rpartition(":")[2])))
        for number in range(count):
            client.send(b"%d" % number)
            assert client.recv(100) == b"%d %d" % (number, server.number)


def test_many_reactors_serve_on_many_threads_while_others_use_them(reactor, eager_switching):
    with contextlib.ExitStack() as stack:
        servers: list[Any] = []
        for number in range(4):
            server: Any = stack.enter_context(running_server(Counting, strategy="reactor"))
            server.number = number
            servers.append(server)
        together = Together()
        for server in servers:
            for _ in range(2):
                together.add(converse, server, 40 * SCALE)
            together.add(disturb, server, 50 * SCALE)
        together.run()
        for server in servers:
            closed = server.events.wait_for_count(ConnectionClosed, 6)
            assert sum(event.messages for event in closed) == 6 * 40 * SCALE
            # The event comes first, then the place is free.
            turned = threading.Event()
            server.reactor.post(turned.set)
            assert turned.wait(20)
            assert server.statistics().connections == 0


def test_many_reactors_take_datagrams_while_others_answer_from_their_threads(reactor, eager_switching):
    with contextlib.ExitStack() as stack:
        together = Together()
        for number in range(4):

            def reply(message: bytes, peer: Any) -> None:
                # From another thread, and while the next datagrams are taken.
                threading.Thread(target=lambda: peer.send(b"%s %d" % (message, peer.server.number))).start()

            addresses = "udp://127.0.0.1:0", "udp://127.0.0.1:0"
            server: Any = stack.enter_context(running_server(reply, *addresses, strategy="reactor"))
            server.number = number
            for _ in range(3):
                together.add(ask_by_datagram, server, 30 * SCALE)
        together.run()


def send_thrice(sock: socket.socket, number: int) -> None:
    for _ in range(3):
        sock.send(bytes([number]))


def test_reactors_are_made_and_closed_on_many_threads(reactor, eager_switching):
    from longshore.reactor import create

    def live(number: int) -> None:
        for _ in range(10 * SCALE):
            mine, _reason = create()
            here, there = socket.socketpair()
            seen: list[int] = []

            def ready(_events: int, mine: Any = mine, here: socket.socket = here, seen: list[int] = seen) -> None:
                seen.append(here.recv(1)[0])
                if len(seen) == 3:
                    mine.watch(here, 0, ready)
                    mine.stop()

            with here, there:
                here.setblocking(False)
                mine.watch(here, 1, ready)
                sender = threading.Thread(target=send_thrice, args=(there, number))
                sender.start()
                mine.run()
                sender.join()
                mine.close()
            assert seen == [number] * 3

    together = Together()
    for number in range(8):
        together.add(live, number)
    together.run()
