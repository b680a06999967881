"""Whoever has much input takes no more of it in one turn of the reactor than leaves the others theirs."""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from longshore import Lines, MessageHandler
from longshore.testing import Client, running_server

#: What each finds in its input at once, and how much of that is its share.
LINES, SHARE = 1000, 64

pytestmark = pytest.mark.usefixtures("reactor")


class Turns:
    """Counts the reactor's turns, and what was taken in each, from when the input is there."""

    def __init__(self, connection: Any) -> None:
        self.stream = connection._link.stream
        self.number = 0
        self.taken: Counter[int] = Counter()
        self.stream.input.feed(b"line\n" * LINES)
        self._turn()

    def _turn(self) -> None:
        self.number += 1
        if self.taken.total() < LINES:
            self.stream.reactor.again(self._turn)

    def took(self) -> bool:
        """Whether that was not the last."""
        self.taken[self.number] += 1
        return self.taken.total() < LINES

    @property
    def largest(self) -> bytes:
        """The most that was taken in one turn."""
        return b"%d" % max(self.taken.values())


def lines(connection: Any) -> None:
    turns = Turns(connection)
    while connection.readline() == b"line\n" and turns.took():
        pass
    connection.sendall(turns.largest)


def lines_in_time(connection: Any) -> None:
    connection.settimeout(10)
    lines(connection)


def lines_of_a_file(connection: Any) -> None:
    turns = Turns(connection)
    for _ in itertools.takewhile(lambda _line: turns.took(), connection.makefile("rb")):
        pass
    connection.sendall(turns.largest)


def pieces(connection: Any) -> None:
    turns = Turns(connection)
    takes = itertools.cycle((lambda: connection.recv(5), lambda: connection.read_exactly(5)))
    while next(takes)() == b"line\n" and turns.took():
        pass
    connection.sendall(turns.largest)


async def lines_async(connection: Any) -> None:
    turns = Turns(connection)
    while await connection.readline() == b"line\n" and turns.took():
        pass
    await connection.sendall(turns.largest)


async def lines_async_in_time(connection: Any) -> None:
    connection.settimeout(10)
    await lines_async(connection)


async def pieces_async(connection: Any) -> None:
    turns = Turns(connection)
    takes = itertools.cycle((lambda: connection.recv(5), lambda: connection.read_until(b"\n")))
    while await next(takes)() == b"line\n" and turns.took():
        pass
    await connection.sendall(turns.largest)


TAKERS: dict[Callable[[Any], Any], str] = {
    lines: "green",
    lines_in_time: "green",
    lines_of_a_file: "green",
    pieces: "green",
    lines_async: "async",
    lines_async_in_time: "async",
    pieces_async: "async",
}


@pytest.mark.parametrize("handler", TAKERS)
def test_a_handler_that_finds_much_has_a_share_of_each_turn(handler):
    with running_server(handler, strategy=TAKERS[handler]) as server, Client(server.url) as client:
        assert int(client.recv_until_closed()) == SHARE


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_messages_are_handled_in_shares_too(strategy):
    class Handler(MessageHandler):
        def message(self, message: bytes) -> Any:
            if message == b"begin":
                self.turns = Turns(self.connection)
                return None
            return None if self.turns.took() else self.turns.largest

    class AsyncHandler(Handler):
        async def message(self, message: bytes) -> Any:
            return super().message(message)

    chosen = Handler if strategy == "green" else AsyncHandler
    with running_server(chosen, strategy=strategy, framing=Lines()) as server, Client(server.url) as client:
        client.send(b"begin\n")
        assert int(client.recv_line()) <= SHARE


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_batches_are_handled_one_in_a_turn(strategy):
    class Handler(MessageHandler):
        def messages(self, batch: list[bytes]) -> Any:
            if batch == [b"begin"]:
                self.turns = Turns(self.connection)
                return None
            return None if [self.turns.took() for _ in batch][-1] else [self.turns.largest]

    class AsyncHandler(Handler):
        async def message(self, message: bytes) -> None:
            raise AssertionError("batches go elsewhere")

    chosen = Handler if strategy == "green" else AsyncHandler
    with running_server(chosen, strategy=strategy, framing=Lines()) as server, Client(server.url) as client:
        client.send(b"begin\n")
        assert int(client.recv_line()) <= 4 * SHARE


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_what_arrives_meanwhile_is_not_taken_before_the_turn_comes(strategy):
    """Otherwise a flood would have two turns for each of the others."""
    seen: list[bool] = []

    def wait_for_a_turn(connection: Any) -> None:
        stream = connection._link.stream
        stream.input.feed(b"line\n" * LINES)
        while connection._link.input.take_line(10) == b"line\n":
            pass
        assert stream.sated()
        assert stream.expect(lambda: None)
        assert stream.sated()
        client.send(b"more")
        assert select.select([connection.fileno()], [], [], 5)[0]
        stream.take_arrived()
        seen.extend([stream.sated(), stream.watch.waiting])

    def handler(connection: Any) -> None:
        connection.readline()
        wait_for_a_turn(connection)
        connection.sendall(b"done")

    async def handler_async(connection: Any) -> None:
        await connection.readline()
        wait_for_a_turn(connection)
        await connection.sendall(b"done")

    chosen = handler if strategy == "green" else handler_async
    with running_server(chosen, strategy=strategy) as server, Client(server.url) as client:
        client.send(b"begin\n")
        assert client.recv_exactly(4) == b"done"
    assert seen == [True, False]


def test_what_is_left_over_by_many_keeps_nobody_waiting_for_all_of_it():
    seen: list[str] = []
    done = threading.Event()

    def begin() -> None:
        for _ in range(5):
            server.reactor.again(work)
        server.reactor.again(done.set)

    def work() -> None:
        seen.append("left over")
        server.reactor.post(seen.append, "another")
        # More than a turn has for this.
        time.sleep(0.002)

    with running_server(lines, strategy="green") as server:
        server.reactor.post(begin)
        assert done.wait(10)
    assert seen[:4] == ["left over", "another"] * 2


def test_who_cannot_wait_for_a_turn_has_all_of_it_at_once():
    """A hook runs on the reactor's own greenlet, which must not wait."""
    heard: list[bytes] = []

    class Handler(MessageHandler):
        def message(self, message: bytes) -> None:
            self.server.reactor.again(self.read)

        def read(self) -> None:
            stream = self.connection._link.stream
            stream.input.feed(b"line\n" * 200)
            heard.extend(self.connection.readline() for _ in range(200))
            self.connection.sendall(b"%d\n" % len(heard))

    with running_server(Handler, strategy="green", framing=Lines()) as server, Client(server.url) as client:
        client.send(b"begin\n")
        assert client.recv_line() == b"200\n"
