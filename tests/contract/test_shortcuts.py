"""Methods that are tried natively first are, for whoever calls them, the methods that stand in their classes."""

from __future__ import annotations

import inspect
import socketserver
import subprocess
import sys
from typing import Any

import greenlet
import pytest

from longshore import AsyncConnection, Connection
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.testing import Client, running_server

pytestmark = pytest.mark.usefixtures("reactor")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (Connection.sendall, ["self", "data"]),
        (Connection.readline, ["self", "limit"]),
        (Connection.recv, ["self", "count", "flags"]),
        (AsyncConnection.sendall, ["self", "data"]),
        (AsyncConnection.readline, ["self", "limit"]),
        (AsyncConnection.recv, ["self", "count"]),
    ],
)
def test_a_method_tells_its_parameters_and_what_it_does(method, parameters):
    assert list(inspect.signature(method).parameters) == parameters
    assert method.__doc__
    assert method.__name__ in method.__qualname__


def test_modules_may_be_imported_anew():
    program = (
        "import sys, longshore.connection\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'longshore']:\n"
        "    del sys.modules[name]\n"
        "import longshore.connection\n"
        "print(longshore.connection.Connection.readline.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("readline\n", "")


def test_arguments_may_be_given_by_name_and_methods_be_kept():
    def handler(connection: Any) -> None:
        readline, sendall = connection.readline, connection.sendall
        sendall(data=readline(limit=100))
        Connection.sendall(connection, readline())
        sendall(bytearray(connection.recv(count=3)))
        connection.makefile("wb", 0).write(memoryview(connection.recv(3)))

    with running_server(handler, strategy="green") as server, Client(server.url) as client:
        client.send(b"one\ntwo\nsixsix")
        assert client.recv_exactly(14) == b"one\ntwo\nsixsix"


def test_async_methods_take_arguments_by_name_too():
    async def handler(connection: Any) -> None:
        await connection.sendall(data=await connection.readline(limit=100))
        await connection.sendall(bytearray(await connection.recv(count=3)))

    with running_server(handler, strategy="async") as server, Client(server.url) as client:
        client.send(b"one\nsix")
        assert client.recv_exactly(7) == b"one\nsix"


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_what_no_method_takes_is_its_own_type_error(strategy):
    told: list[str] = []

    def wrong(connection: Any) -> None:
        for call in (
            lambda: connection.sendall(),
            lambda: connection.readline(1, 2),
            lambda: connection.recv("x"),
            lambda: connection.sendall("text"),
        ):
            with pytest.raises(TypeError) as raised:
                call()
            told.append(str(raised.value))

    def blocking(connection: Any) -> None:
        connection.readline()
        wrong(connection)

    async def awaiting(connection: Any) -> None:
        await connection.readline()
        with pytest.raises(TypeError):
            await connection.recv("x")
        with pytest.raises(TypeError):
            connection.sendall()

    handler: Any = blocking if strategy == "green" else awaiting
    with running_server(handler, strategy=strategy) as server, Client(server.url) as client:
        client.send(b"go\nmore")
        assert client.recv_until_closed() == b""
        assert not server.events.of(HandlerFailed)


def test_lines_go_on_over_a_timeout_and_a_cork_that_come_in_between():
    def handler(connection: Any) -> None:
        for number, line in enumerate(connection.makefile("rb")):
            if number == 1:
                connection.settimeout(10)
            if number == 2:
                with connection.corked():
                    connection.sendall(b"corked ")
                    connection.sendall(line)
            else:
                connection.sendall(line)
            if number == 3:
                connection.settimeout(None)

    with running_server(handler, strategy="green") as server, Client(server.url) as client:
        for line in (b"a", b"b", b"c", b"d", b"e"):
            assert client.request(line) == (b"corked c" if line == b"c" else line)
        client.send(b"no end")
        client.half_close()
        assert client.recv_until_closed() == b"no end"


class Lines(socketserver.StreamRequestHandler):
    """The class of the standard library, unchanged."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_a_peer_that_resets_while_lines_are_waited_for_is_no_failure_of_the_handler():
    with running_server(Lines, strategy="green") as server, Client(server.url) as client:
        client.send(b"a\n")
        assert client.recv_exactly(2) == b"a\n"
        client.reset()
        assert server.events.wait_for(ConnectionClosed).cause == "reset"
        assert not server.events.of(HandlerFailed)


class _Interrupted(Exception):
    """Something that a program throws into a greenlet of its own."""


def test_a_greenlet_that_is_interrupted_while_it_waits_may_wait_again():
    waiting: list[Any] = []

    def handler(connection: Any) -> None:
        if waiting:
            waiting[0].throw(_Interrupted)
            return
        waiting.append(greenlet.getcurrent())
        for wait in (connection.readline, lambda: next(iter(connection.makefile("rb")))):
            with pytest.raises(_Interrupted):
                wait()
            connection.sendall(b"interrupted")
            connection.sendall(connection.readline())

    with running_server(handler, strategy="green") as server, Client(server.url) as client:
        for line in (b"a\n", b"b\n"):
            # It waits since it was accepted, or has answered.
            with Client(server.url):
                assert client.recv_exactly(11) == b"interrupted"
            client.send(line)
            assert client.recv_exactly(2) == line
        assert client.recv_until_closed() == b""
        assert not server.events.of(HandlerFailed)
