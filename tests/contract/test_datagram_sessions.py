"""Datagrams whose handlers wait: each peer's in order, one at a time, and a drain waits for those at work."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import OrderedDict
from typing import Any

import pytest

import longshore
from longshore import Limits, MessageHandler, peers
from longshore.events import DatagramDropped, HandlerFailed, ServerDraining

WAITING = ["threads", "green", "async"]


def udp_client(url: str) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return client


def answering_late(entered, release):
    """A function that waits for `release`, and its async twin."""

    def late(message: bytes, peer: Any) -> bytes:
        entered.set()
        longshore.to_thread(release.wait, 5)
        return b"late"

    async def late_async(message: bytes, peer: Any) -> bytes:
        entered.set()
        await asyncio.to_thread(release.wait, 5)
        return b"late"

    return {"async": late_async}, late


@pytest.mark.parametrize("strategy", WAITING)
def test_a_drain_waits_for_the_handlers_of_datagrams(longshore_server, strategy):
    entered, release = threading.Event(), threading.Event()
    own, usual = answering_late(entered, release)
    server = longshore_server(own.get(strategy, usual), "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        client.send(b"?")
        assert entered.wait(5)
        drained = threading.Thread(target=server.drain)
        drained.start()
        server.events.wait_for(ServerDraining)
        release.set()
        assert client.recv(100) == b"late"
        drained.join(5)
    assert not drained.is_alive()
    assert server.report.abandoned == ()


def handlers_of_several(log):
    """A session that ends with "end", one that takes batches, and their async twins."""

    class Each(MessageHandler):
        def message(self, message):
            log.append(message)
            if message == b"end":
                self.connection.close()
            return message

    class EachAsync(MessageHandler):
        async def message(self, message):
            return Each.message(self, message)

    class Batches(MessageHandler):
        def messages(self, batch):
            log.extend(batch)
            return batch

    return {"each": Each, "each async": EachAsync, "batches": Batches}


@pytest.mark.parametrize("strategy", ["reactor", *WAITING])
def test_what_comes_in_a_datagram_before_what_is_malformed_is_handled(longshore_server, strategy):
    log: list[bytes] = []
    kinds = handlers_of_several(log)
    for kind in ("each async",) if strategy == "async" else ("each", "batches"):
        server = longshore_server(kinds[kind], "udp://127.0.0.1:0", strategy=strategy, framing=longshore.Lines())
        with udp_client(server.url) as client:
            client.send(b"one\ntwo\nunfinished")
            assert [client.recv(100), client.recv(100)] == [b"one\n", b"two\n"]
            dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.reason, dropped.size) == ("malformed", 18)


@pytest.mark.parametrize("strategy", ["reactor", *WAITING])
def test_nothing_of_a_datagram_is_handled_after_its_session_has_been_closed(longshore_server, strategy):
    log: list[bytes] = []
    handler = handlers_of_several(log)["each async" if strategy == "async" else "each"]
    server = longshore_server(handler, "udp://127.0.0.1:0", strategy=strategy, framing=longshore.Lines())
    with udp_client(server.url) as client:
        client.send(b"one\nend\nmore\n")
        assert [client.recv(100), client.recv(100)] == [b"one\n", b"end\n"]
        client.send(b"two\n")
        assert client.recv(100) == b"two\n"
    assert log == [b"one", b"end", b"two"]


def counting_sessions(log):
    """A session that goes away in the middle of its first message, and its async twin."""

    class Session(MessageHandler):
        def connected(self):
            log.append("connected")

        def message(self, message):
            log.append(message)
            if message == b"1":
                longshore.sleep(0.05)
            log.append(message)
            return message

        def draining(self, deadline):
            log.append("draining")

        def disconnected(self, error):
            log.append("disconnected")

    class AsyncSession(MessageHandler):
        async def connected(self):
            await asyncio.sleep(0)
            log.append("connected")

        async def message(self, message):
            log.append(message)
            if message == b"1":
                await asyncio.sleep(0.05)
            log.append(message)
            return message

        async def draining(self, deadline):
            await asyncio.sleep(0)
            log.append("draining")

        async def disconnected(self, error):
            log.append("disconnected")

    return {"async": AsyncSession}, Session


@pytest.mark.parametrize("strategy", WAITING)
def test_a_peers_datagrams_are_with_its_session_one_at_a_time_between_its_hooks(longshore_server, strategy):
    log: list[Any] = []
    own, usual = counting_sessions(log)
    server = longshore_server(own.get(strategy, usual), "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        for message in (b"1", b"2", b"3"):
            client.send(message)
        assert [client.recv(100) for _ in range(3)] == [b"1", b"2", b"3"]
    server.drain()
    assert log == ["connected", b"1", b"1", b"2", b"2", b"3", b"3", "draining", "disconnected"]
    assert server.events.of(HandlerFailed) == []


@pytest.mark.parametrize("strategy", WAITING)
def test_a_peer_that_overruns_its_session_loses_what_is_over_the_bound(longshore_server, strategy):
    entered, release = threading.Event(), threading.Event()
    own, usual = answering_late(entered, release)

    class Session(MessageHandler):
        def message(self, message):
            return usual(message, self.connection)

    class AsyncSession(MessageHandler):
        async def message(self, message):
            return await own["async"](message, self.connection)

    server = longshore_server(AsyncSession if strategy == "async" else Session, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client:
        client.send(b"first")
        assert entered.wait(5)
        for _ in range(65):
            client.send(b"more")
        assert server.events.wait_for(DatagramDropped).reason == "its session is busy"
        release.set()
        assert [client.recv(100) for _ in range(65)] == [b"late"] * 65


def test_an_async_session_takes_datagrams_in_batches_if_it_wants(longshore_server):
    class Batches(MessageHandler):
        async def message(self, message):
            raise AssertionError("they come in batches")

        async def messages(self, batch):
            return [b"%d" % len(batch)]

    server = longshore_server(Batches, "udp://127.0.0.1:0")
    with udp_client(server.url) as client:
        client.send(b"?")
        assert client.recv(100) == b"1"


def test_a_hook_that_ends_lets_no_datagram_to_a_session_that_still_has_one(longshore_server):
    log: list[Any] = []
    entered, told = threading.Event(), asyncio.Event()

    class Session(MessageHandler):
        async def message(self, message):
            log.append(message)
            if message == b"1":
                entered.set()
                await told.wait()
                for _ in range(10):
                    await asyncio.sleep(0)
            log.append(message)
            return message

        async def draining(self, deadline):
            told.set()

    server = longshore_server(Session, "udp://127.0.0.1:0")
    with udp_client(server.url) as client:
        client.send(b"1")
        assert entered.wait(5)
        client.send(b"2")
        server.drain()
    assert log == [b"1", b"1", b"2", b"2"]


@pytest.mark.parametrize("strategy", WAITING)
def test_what_waits_for_a_session_that_ends_is_told_as_dropped(longshore_server, strategy):
    entered, release = threading.Event(), threading.Event()
    own, usual = answering_late(entered, release)

    class Session(MessageHandler):
        def message(self, message):
            if message == b"first":
                usual(message, self.connection)
                self.connection.close()
            return message

    class AsyncSession(MessageHandler):
        async def message(self, message):
            if message == b"first":
                await own["async"](message, self.connection)
                self.connection.close()
            return message

    server = longshore_server(AsyncSession if strategy == "async" else Session, "udp://127.0.0.1:0", strategy=strategy)
    with udp_client(server.url) as client, udp_client(server.url) as other:
        client.send(b"first")
        assert entered.wait(5)
        client.send(b"second")
        other.send(b"what came before this has arrived")
        assert other.recv(100)
        release.set()
        dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.reason, dropped.size) == ("its session has ended", len(b"second"))
        assert client.recv(100) == b"first"


def test_a_session_that_ends_on_a_thread_while_another_is_looked_up_harms_nobody(longshore_server, monkeypatch):
    ending: list[Any] = []

    def end_one() -> None:
        """Close a session as its handler would on a thread of its own, which is through when this returns."""
        while ending:
            thread = threading.Thread(target=ending.pop())
            thread.start()
            thread.join(5)

    slot: Any = peers.Peer.busy

    class Watched(peers.Peer):
        __slots__ = ()

        @property
        def busy(self) -> bool:
            if not ending:
                return bool(slot.__get__(self))
            end_one()
            return True

        @busy.setter
        def busy(self, busy: bool) -> None:
            slot.__set__(self, busy)

    class Sessions(OrderedDict[Any, Any]):
        def move_to_end(self, key: Any, last: bool = True) -> None:
            if key in self:
                end_one()
            super().move_to_end(key, last)

    class Echo(MessageHandler):
        def message(self, message: bytes) -> bytes:
            return message

    monkeypatch.setattr(peers, "Peer", Watched)
    server = longshore_server(Echo, "udp://127.0.0.1:0", strategy="reactor", limits=Limits(max_connections=2))
    (service,) = server.services
    service._sessions = Sessions()
    with udp_client(server.url) as one, udp_client(server.url) as two, udp_client(server.url) as three:
        for client in (one, two):
            client.send(b"first")
            assert client.recv(100) == b"first"
        ending.append(lambda: service.forget(one.getsockname()))
        one.send(b"ended as it came")
        assert one.recv(100) == b"ended as it came"
        ending.append(lambda: service.forget(two.getsockname()))
        three.send(b"ended as room was looked for")
        assert three.recv(100) == b"ended as room was looked for"
    assert not server.events.of(HandlerFailed)
