"""A drain of many: who is ready hears of it first, and idle connections do not all end in one moment."""

from __future__ import annotations

import threading

import pytest

from longshore import Lines, ending
from longshore.events import ConnectionClosed, ServerDraining
from longshore.testing import Client


def echoed(message, connection):
    return message


def test_that_it_is_ready_no_more_is_told_before_a_door_is_shut(longshore_server):
    server = longshore_server(echoed, framing=Lines())
    seen = []

    def note(event):
        if isinstance(event, ServerDraining):
            # A client that comes at this moment is not refused yet.
            with Client(server.url):
                seen.append(server.status)

    server.subscribe(note)
    server.drain()
    assert seen == ["serving"]


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_many_idle_connections_end_one_after_the_other(longshore_server, longshore_clock, monkeypatch, strategy):
    monkeypatch.setattr(ending, "JITTERED", 10)
    server = longshore_server(echoed, framing=Lines(), strategy=strategy)
    clients = [Client(server.url) for _ in range(40)]
    for client in clients:
        assert client.request(b"hello") == b"hello"
    server._request(server._ending.drain, 10.0)
    asked = threading.Event()
    server.reactor.post(asked.set)
    assert asked.wait(10)
    assert len(server.events.of(ConnectionClosed)) < 40
    longshore_clock.advance(4.1)
    server.wait_stopped()
    assert len(server.events.of(ConnectionClosed)) == 40
    assert {event.cause for event in server.events.of(ConnectionClosed)} == {"drained"}
    assert (server.report.finished, server.report.cut, server.report.abandoned) == (40, 0, ())
    for client in clients:
        client.close()
