"""How a connection ends on a reactor: whoever still reads loses no byte, and whoever still uses it hears why."""

from __future__ import annotations

import asyncio
import threading

import pytest

import longshore
from longshore import ClosedError, Lines, MessageHandler, Raw, Timeouts
from longshore.events import ConnectionClosed, ConnectionOpened
from longshore.testing import Client

#: More than the kernel takes for a client that does not read.
MUCH = b"x" * (8 << 20)

pytestmark = pytest.mark.usefixtures("reactor")


def turn(server):
    """Until the reactor has seen what the kernel has for it now."""
    for _ in range(2):
        turned = threading.Event()
        server.reactor.post(turned.set)
        assert turned.wait(5)


def pouring_out():
    """A handler that leaves much behind and closes, and its async twin."""

    def handler(message, connection):
        connection.send(MUCH)
        connection.close()

    async def async_handler(connection):
        await connection.recv(1)
        connection.sendall(MUCH)
        connection.close()

    return {"reactor": handler, "async": async_handler}


@pytest.mark.parametrize("strategy", ["reactor", "async"])
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_client_that_ends_its_side_while_the_last_bytes_wait_gets_them_all(
    longshore_server, certificates, strategy, scheme
):
    url, tls = f"{scheme}://127.0.0.1:0", certificates.server_tls() if scheme == "tls" else None
    server = longshore_server(pouring_out()[strategy], url, strategy=strategy, framing=Raw(), tls=tls)
    with Client(server.url, receive_buffer=8192) as client:
        client.send(b"?")
        assert client.recv(1) == b"x"
        client.half_close()
        turn(server)
        assert len(client.recv_until_closed()) == len(MUCH) - 1
    closed = server.events.wait_for(ConnectionClosed)
    assert (closed.cause, closed.unsent) == ("finished", 0)


@pytest.mark.parametrize("strategy", ["reactor", "async"])
def test_input_that_comes_while_the_last_bytes_wait_does_not_cost_them(longshore_server, strategy):
    server = longshore_server(pouring_out()[strategy], strategy=strategy, framing=Raw())
    with Client(server.url, receive_buffer=8192) as client:
        client.send(b"?")
        assert client.recv(1) == b"x"
        for _ in range(24):
            client.send(b"nobody reads this" * 4096)
        turn(server)
        assert len(client.recv_until_closed()) == len(MUCH) - 1


def test_a_client_has_its_time_to_read_from_the_last_byte_on(longshore_server, longshore_clock):
    server = longshore_server(pouring_out()["reactor"], framing=Raw(), timeouts=Timeouts(write=30, linger=2))
    with Client(server.url, receive_buffer=8192) as client:
        client.send(b"?")
        assert client.recv(1) == b"x"
        turn(server)
        longshore_clock.advance(20)
        assert len(client.recv_until_closed()) == len(MUCH) - 1
        longshore_clock.advance(1)
        turn(server)
        assert server.events.of(ConnectionClosed) == []
        longshore_clock.advance(1)
        assert server.events.wait_for(ConnectionClosed).unsent == 0


def busy(until, then, seen):
    """A handler that reads once `until` is set, after it has called `then`, and its async twin."""

    def handler(connection):
        connection.sendall(b"ready")
        then(connection)
        longshore.to_thread(until.wait, 5)
        try:
            while data := connection.recv(100):
                seen.append(data)
            seen.append("the end")
        except OSError as error:
            seen.append(type(error))

    async def async_handler(connection):
        await connection.sendall(b"ready")
        then(connection)
        await asyncio.to_thread(until.wait, 5)
        try:
            while data := await connection.recv(100):
                seen.append(data)
            seen.append("the end")
        except OSError as error:
            seen.append(type(error))

    return {"green": handler, "async": async_handler}


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_a_reset_is_never_taken_for_the_end_of_the_stream(longshore_server, strategy):
    seen, until = [], threading.Event()
    handler = busy(until, lambda connection: None, seen)[strategy]
    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_exactly(5) == b"ready"
        client.send(b"first half")
        turn(server)
        client.reset()
        turn(server)
        until.set()
        assert server.events.wait_for(ConnectionClosed).cause == "reset"
    assert seen == [b"first half", ConnectionResetError]


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_whoever_reads_what_he_has_closed_is_told_so_however_late(longshore_server, strategy):
    seen, until = [], threading.Event()
    server = longshore_server(busy(until, lambda connection: connection.close(), seen)[strategy], strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_until_closed() == b"ready"
    turn(server)
    until.set()
    server.events.wait_for(ConnectionClosed)
    assert seen == [ClosedError]


def test_an_exit_in_the_middle_of_a_stop_leaves_no_connection_behind(longshore_server):
    class Leaving(MessageHandler):
        framing = Raw()

        def message(self, message):
            return message

        def disconnected(self, error):
            raise SystemExit

    server = longshore_server(Leaving)
    with Client(server.url) as one, Client(server.url) as other:
        for client in (one, other):
            client.send(b"hello")
            assert client.recv() == b"hello"
        server.stop()
        assert (one.recv_until_closed(), other.recv_until_closed()) == (b"", b"")
    assert server.status == "stopped"


def test_a_connection_whose_destruction_fails_leaves_none_of_the_others_open(longshore_server, monkeypatch):
    async def hold(connection):
        await connection.recv(1)

    server = longshore_server(hold)
    with Client(server.url), Client(server.url), Client(server.url):
        server.events.wait_for_count(ConnectionOpened, 3)
        destroyed = []

        def fail(session):
            destroyed.append(session)
            raise RuntimeError("this end fails")

        (kind,) = {type(session) for session in server.admission.sessions}
        monkeypatch.setattr(kind, "destroy", fail)
        with pytest.raises(RuntimeError, match="this end fails"):
            server.admission.destroy()
        assert len(set(destroyed)) == 3
        monkeypatch.undo()


def receiving(strategy):
    """A handler that lets the end of the stream out, as `receive` tells it."""

    def handler(connection):
        while True:
            connection.send(connection.receive())

    async def async_handler(connection):
        while True:
            await connection.send(await connection.receive())

    return async_handler if strategy == "async" else handler


@pytest.mark.parametrize("strategy", ["inline", "threads", "processes", "green", "async"])
def test_a_peer_that_closes_in_order_is_no_error_though_the_handler_was_told_by_one(longshore_server, strategy):
    server = longshore_server(receiving(strategy), strategy=strategy, framing=Lines())
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
    closed = server.events.wait_for(ConnectionClosed)
    assert (closed.cause, closed.error) == ("peer closed", None)


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
@pytest.mark.parametrize("who", [b"server", b"client"])
def test_an_end_in_order_is_told_to_hooks_and_observers_without_an_error(longshore_server, strategy, who):
    told = []

    class Closing(MessageHandler):
        framing = Lines()

        def message(self, message):
            self.connection.send(message)
            if message == b"server":
                self.connection.close()

        def disconnected(self, error):
            told.append(error)

    server = longshore_server(Closing, strategy=strategy)
    with Client(server.url) as client:
        assert client.request(who) == who
        if who == b"client":
            client.half_close()
        client.recv_until_closed()
    closed = server.events.wait_for(ConnectionClosed)
    assert (closed.cause, closed.error) == ("finished" if who == b"server" else "peer closed", None)
    assert told == [None]
