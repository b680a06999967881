"""Calls that cannot be meant are refused with the errors that sockets have taught, and lose nothing."""

from __future__ import annotations

import socket

import pytest

from longshore import MessageHandler
from longshore.events import HandlerFailed
from longshore.testing import Client

BLOCKING = ("threads", "green", "inline", "processes")


def refused(error, call, *args):
    try:
        call(*args)
    except error:
        return
    raise AssertionError(f"{call} took {args}")


@pytest.mark.parametrize("strategy", BLOCKING)
def test_what_cannot_be_meant_is_refused_before_a_byte_is_taken(longshore_server, strategy):
    def handler(connection):
        assert connection.recv(1) == b"a"
        refused(ValueError, connection.recv, -1)
        refused(ValueError, connection.read_exactly, -1)
        refused(ValueError, connection.recv_into, bytearray(2), 3)
        refused(ValueError, connection.recv_into, bytearray(2), -1)
        refused(ValueError, connection.settimeout, -1)
        refused(TypeError, connection.sendall, 3)
        refused(TypeError, connection.send, 3)
        refused(TypeError, connection.sendall, "text")
        connection.sendall(connection.readline())

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"abcdef\n")
        assert client.recv_until_closed() == b"bcdef\n"


def test_an_async_handler_is_told_the_same(longshore_server):
    async def handler(connection):
        assert await connection.recv(1) == b"a"
        for wrong in (lambda: connection.recv(-1), lambda: connection.recv_into(bytearray(2), 3)):
            with pytest.raises(ValueError, match="bytes"):
                await wrong()
        refused(TypeError, connection.sendall, 3)
        await connection.sendall(await connection.readline())

    with Client(longshore_server(handler).url) as client:
        client.send(b"abcdef\n")
        assert client.recv_until_closed() == b"bcdef\n"


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
@pytest.mark.parametrize("kind", ["function", "session"])
def test_a_number_is_no_datagram_of_so_many_zeros(longshore_server, strategy, kind):
    def count(message, peer):
        return len(message)

    class Count(MessageHandler):
        def message(self, message):
            return len(message)

    server = longshore_server(count if kind == "function" else Count, "udp://127.0.0.1:0", strategy=strategy)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"three", ("127.0.0.1", int(server.url.rpartition(":")[2])))
        assert isinstance(server.events.wait_for(HandlerFailed).error, TypeError)
