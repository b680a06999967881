"""Datagrams and packets: each is a message, every peer gets its own answers, nothing stops the server."""

from __future__ import annotations

import socket
import socketserver
from typing import Any

import pytest

from longshore import Lines, MessageHandler
from longshore.events import ConnectionClosed, DatagramDropped, HandlerFailed
from longshore.testing import Client


def udp_client(url: str, host: str = "127.0.0.1") -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.connect((host, int(url.rpartition(":")[2])))
    return client


def shout(message: bytes, connection: Any) -> bytes:
    return message.upper()


async def shout_async(message: bytes, connection: Any) -> bytes:
    return message.upper()


class ShoutSession(MessageHandler):
    def message(self, message):
        return message.upper()


class Shout(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class ShoutOnSocket(socketserver.BaseRequestHandler):
    def handle(self):
        data, reply = self.request
        reply.sendto(data.upper(), self.client_address)


HANDLERS = [
    (shout, "reactor"),
    (shout, "threads"),
    (shout, "green"),
    (shout_async, "async"),
    (ShoutSession, "reactor"),
    (ShoutSession, "threads"),
    (ShoutSession, "green"),
    (Shout, "threads"),
    (Shout, "green"),
    (Shout, "inline"),
    (Shout, "processes"),
    (ShoutOnSocket, "threads"),
    (ShoutOnSocket, "green"),
    (ShoutOnSocket, "inline"),
    (ShoutOnSocket, "processes"),
]
every_handler = pytest.mark.parametrize(
    ("handler", "strategy"), HANDLERS, ids=[f"{handler.__name__}-{strategy}" for handler, strategy in HANDLERS]
)


@every_handler
def test_a_datagram_is_answered(longshore_server, handler, strategy):
    server = longshore_server(handler, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        for _ in range(3):
            client.send(b"hello")
            assert client.recv(100) == b"HELLO"
    assert server.statistics().datagrams == 3


@every_handler
def test_a_datagram_over_a_unix_socket_is_answered(longshore_server, handler, strategy, tmp_path):
    longshore_server(handler, f"unixgram://{tmp_path}/server", strategy=strategy)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(f"{tmp_path}/client")
        client.sendto(b"hello", f"{tmp_path}/server")
        assert client.recv(100) == b"HELLO"


@every_handler
def test_the_largest_datagram_comes_and_goes_whole(longshore_server, handler, strategy):
    server = longshore_server(handler, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        client.send(b"x" * 65507)
        assert client.recv(65536) == b"X" * 65507


@every_handler
def test_a_reply_leaves_from_the_address_that_was_asked(longshore_server, handler, strategy):
    server = longshore_server(handler, "udp://0.0.0.0:0", strategy=strategy)
    # A connected socket takes datagrams from the address it asked only.
    with udp_client(server.url, "127.0.0.2") as client:
        client.send(b"hello")
        assert client.recv(100) == b"HELLO"
        assert client.getpeername()[0] == "127.0.0.2"


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_a_framing_cuts_each_datagram(longshore_server, strategy):
    server = longshore_server(shout, "udp://127.0.0.1:0", strategy=strategy, framing=Lines())
    with udp_client(server.url) as client:
        client.send(b"one\ntwo\n")
        assert {client.recv(100), client.recv(100)} == {b"ONE\n", b"TWO\n"}
        client.send(b"three\nunfinished")
        assert client.recv(100) == b"THREE\n"
        dropped = server.events.wait_for(DatagramDropped)
        assert dropped.reason == "malformed"
        assert dropped.size == 16
        assert str(client.getsockname()[1]) in dropped.peer


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_each_peer_has_a_session_of_its_own(longshore_server, strategy):
    class Counter(MessageHandler):
        def connected(self):
            self.count = 0

        def message(self, message):
            self.count += 1
            return b"%d" % self.count

    server = longshore_server(Counter, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as one, udp_client(server.url) as two:
        answers = []
        for client in (one, one, two, one):
            client.send(b"count")
            answers.append(client.recv(100))
    assert answers == [b"1", b"2", b"1", b"3"]


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_a_failing_datagram_is_one_event_and_the_next_is_served(longshore_server, strategy):
    def handler(message, connection):
        if message == b"bad":
            raise RuntimeError("the handler's own fault")
        return message

    server = longshore_server(handler, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        client.send(b"bad")
        failed = server.events.wait_for(HandlerFailed)
        assert str(client.getsockname()[1]) in failed.peer
        client.send(b"good")
        assert client.recv(100) == b"good"
    assert len(server.events.of(HandlerFailed)) == 1


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_seqpackets_are_messages_without_a_framing(longshore_server, strategy, tmp_path):
    server = longshore_server(shout, f"seqpacket://{tmp_path}/echo", strategy=strategy)
    with Client(server.url) as client:
        client.send(b"one")
        client.send(b"two\nlines")
        assert client.recv() == b"ONE"
        assert client.recv() == b"TWO\nLINES"
    assert server.events.wait_for(ConnectionClosed).cause == "peer closed"
