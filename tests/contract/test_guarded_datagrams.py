"""Limits for the peers of datagrams."""

from __future__ import annotations

import socket

import pytest

from longshore import Limits, MessageHandler
from longshore.events import DatagramDropped


class Asking:
    def __init__(self, server, source="127.0.0.1"):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((source, 0))
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def ask(self, data):
        self.socket.send(data)
        return self.socket.recv(100)


def echoed(message, connection):
    return message


async def echoed_async(message, connection):
    return message


class Session(MessageHandler):
    def message(self, message):
        return message


@pytest.fixture(params=["reactor", "threads", "green", "inline", "async"])
def served(request, longshore_server):
    def start(**options):
        handler = echoed_async if request.param == "async" else echoed
        if request.param == "inline":
            import socketserver

            class Echo(socketserver.DatagramRequestHandler):
                def handle(self):
                    self.wfile.write(self.rfile.read())

            handler = Echo
        return longshore_server(handler, "udp://127.0.0.1:0", strategy=request.param, **options)

    return start


def test_who_is_denied_is_not_heard(served):
    server = served(limits=Limits(deny=("127.0.0.9",)))
    with Asking(server, "127.0.0.9") as denied, Asking(server) as good:
        denied.socket.send(b"hello")
        assert good.ask(b"hello") == b"hello"
        dropped = server.events.wait_for(DatagramDropped)
    assert dropped.peer.startswith("127.0.0.9:")
    assert dropped.reason == "Limits.deny"


def test_a_peer_asks_no_faster_than_its_rate(served, longshore_clock):
    server = served(limits=Limits(connection_rate=2))
    with Asking(server) as fast, Asking(server, "127.0.0.9") as other:
        assert fast.ask(b"1") == b"1"
        assert fast.ask(b"2") == b"2"
        fast.socket.send(b"3")
        assert other.ask(b"1") == b"1"
        assert server.events.wait_for(DatagramDropped).reason == "Limits.connection_rate"
        longshore_clock.advance(0.6)
        assert fast.ask(b"4") == b"4"


def test_a_session_counts_once_for_its_rate(longshore_server):
    server = longshore_server(Session, "udp://127.0.0.1:0", limits=Limits(connection_rate=1))
    with Asking(server) as first, Asking(server) as second:
        for number in range(10):
            assert first.ask(b"%d" % number) == b"%d" % number
        second.socket.send(b"another session")
        assert server.events.wait_for(DatagramDropped).reason == "Limits.connection_rate"


def test_a_flood_of_datagrams_is_told_in_sums(longshore_server, longshore_clock):
    server = longshore_server(echoed, "udp://127.0.0.1:0", limits=Limits(deny=("127.0.0.9",)))
    with Asking(server, "127.0.0.9") as flood, Asking(server) as good:
        for _ in range(100):
            flood.socket.send(b"x")
        assert good.ask(b"hello") == b"hello"
        assert len(server.events.of(DatagramDropped)) == 32


def test_what_is_forbidden_changes_at_run_time(served):
    server = served()
    with Asking(server, "127.0.0.9") as other, Asking(server) as good:
        assert other.ask(b"hello") == b"hello"
        server.reconfigure(limits=Limits(deny=("127.0.0.9",)))
        assert good.ask(b"hello") == b"hello"
        other.socket.send(b"hello again")
        assert server.events.wait_for(DatagramDropped).reason == "Limits.deny"
        server.reconfigure(limits=Limits())
        assert good.ask(b"hello") == b"hello"
        assert other.ask(b"once more") == b"once more"
