"""How a connection ends on a reactor: whoever still reads loses no byte."""

from __future__ import annotations

import threading

import pytest

from longshore import Raw, Timeouts
from longshore.events import ConnectionClosed
from longshore.testing import Client

#: More than the kernel takes for a client that does not read.
MUCH = b"x" * (8 << 20)


@pytest.fixture(params=["native", "portable"], autouse=True)
def reactor(request, monkeypatch):
    if request.param == "native":
        pytest.importorskip("longshore.reactor.native", reason="it was not built", exc_type=ImportError)
    monkeypatch.setenv("LONGSHORE_REACTOR", request.param)


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
