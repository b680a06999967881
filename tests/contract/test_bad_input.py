"""Peers that misbehave: their connection ends, with one event that names the cause, and nothing else changes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import socket
import threading
import tracemalloc
from typing import Any

import pytest

import longshore
from contract.conftest import Shape, received
from longshore import LengthPrefixed, Limits, Lines, MessageHandler, Netstring, Server, Timeouts
from longshore.config import Proxy
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.testing import Client


def answer(message: bytes, connection: Any) -> bytes:
    return message.upper()


class Bystander:
    """A well-behaved connection beside the bad one, which must not notice anything."""

    def __init__(self, server: Any, *, present: bool = True) -> None:
        self._server = server
        self._client = Client(server.url) if present else None

    def __enter__(self) -> Bystander:
        self.speaks()
        return self

    def speaks(self) -> None:
        if self._client is not None:
            assert self._client.request(b"hello") == b"HELLO"

    def __exit__(self, *_exc: object) -> None:
        if self._client is not None:
            self.speaks()
            self._client.close()


def end_of_the_bad_one(server: Any, count: int = 1) -> ConnectionClosed:
    closed = server.events.wait_for_count(ConnectionClosed, count)
    assert len(closed) == count, closed
    assert all(event.cause in ConnectionClosed.CAUSES for event in closed)
    return closed[-1]


@pytest.fixture
def bystander(framed):
    """Whether there is one: a strategy that serves one at a time has none."""
    return lambda server: Bystander(server, present=framed.strategy != "inline")


def test_an_oversized_message_ends_its_connection(framed, serve, bystander):
    server = serve(framed, answer, framing=Lines(max_size=1000))
    with bystander(server):
        with Client(server.url) as bad:
            bad.send(b"x" * 100_000)
            assert bad.recv_until_closed() == b""
            bad.close()
            closed = end_of_the_bad_one(server)
        assert closed.cause == "framing"
        assert "1000" in str(closed.error)
        assert closed.peer in str(closed.error)
    assert server.events.of(HandlerFailed) == []


def test_a_header_of_two_gigabytes_ends_its_connection(framed, serve):
    server = serve(framed, answer, framing=LengthPrefixed(4))
    with Client(server.url) as bad:
        bad.send(b"\x00\x00\x00\x02ok\x7f\xff\xff\xff")
        assert bad.recv_until_closed() == b"\x00\x00\x00\x02OK"
    closed = end_of_the_bad_one(server)
    assert closed.cause == "framing"
    assert server.events.of(HandlerFailed) == []


def test_a_malformed_message_ends_its_connection(framed, serve):
    server = serve(framed, answer, framing=Netstring())
    with Client(server.url) as bad:
        bad.send(b"2:ok,garbage")
        assert bad.recv_until_closed() == b"2:OK,"
    closed = end_of_the_bad_one(server)
    assert closed.cause == "framing"
    assert server.events.of(HandlerFailed) == []


def test_a_stream_that_ends_in_mid_message_is_a_framing_error(framed, serve, bystander):
    server = serve(framed, answer)
    with bystander(server):
        with Client(server.url) as bad:
            bad.send(b"whole\nhalf")
            bad.half_close()
            assert bad.recv_until_closed() == b"WHOLE\n"
        closed = end_of_the_bad_one(server)
        assert closed.cause == "framing"
    assert server.events.of(HandlerFailed) == []


def test_half_a_message_and_then_silence_is_a_timeout(framed, serve, longshore_clock):
    server = serve(framed, answer, timeouts=Timeouts(idle=60, first_byte=10, lifetime=3600))
    with Client(server.url) as bad:
        assert bad.request(b"hello") == b"HELLO"
        bad.send(b"half")
        received(server, 10)
        longshore_clock.advance(61)
        assert bad.recv_until_closed() == b""
        closed = end_of_the_bad_one(server)
    assert closed.cause == "timeout"
    assert "idle=60" in str(closed.error)
    assert server.events.of(HandlerFailed) == []


def test_a_peer_that_says_nothing_is_a_timeout(shape, serve, longshore_clock):
    server = serve(shape, answer, timeouts=Timeouts(first_byte=10))
    with Client(server.url) as bad:
        server.events.wait_for(ConnectionOpened)
        longshore_clock.advance(11)
        assert bad.recv_until_closed() == b""
        closed = end_of_the_bad_one(server)
    assert closed.cause == "timeout"
    assert "first_byte=10" in str(closed.error)
    assert server.events.of(HandlerFailed) == []


def test_a_peer_that_outstays_its_lifetime_is_a_timeout(shape, serve, longshore_clock):
    server = serve(shape, answer, timeouts=Timeouts(lifetime=100))
    with Client(server.url) as bad:
        assert bad.request(b"hello") == b"HELLO"
        longshore_clock.advance(101)
        assert bad.recv_until_closed() == b""
        closed = end_of_the_bad_one(server)
    assert closed.cause == "timeout"
    assert "lifetime=100" in str(closed.error)


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_a_lifetime_ends_though_the_handler_never_reads(strategy, longshore_server, longshore_clock):
    def handler(connection: Any) -> None:
        connection.sendall(b"here")
        longshore.sleep(1000)

    async def task(connection: Any) -> None:
        await connection.sendall(b"here")
        await asyncio.sleep(1000)

    chosen = handler if strategy == "green" else task
    server = longshore_server(chosen, strategy=strategy, timeouts=Timeouts(lifetime=100))
    with Client(server.url) as client:
        assert client.recv(4) == b"here"
        longshore_clock.advance(101)
        assert client.recv_until_closed() == b""


def test_a_reset_in_mid_message_is_a_reset(framed, serve, bystander):
    server = serve(framed, answer)
    with bystander(server):
        bad = Client(server.url)
        assert bad.request(b"hello") == b"HELLO"
        bad.send(b"half")
        bad.reset()
        closed = end_of_the_bad_one(server)
        assert closed.cause == "reset"
    assert server.events.of(HandlerFailed) == []


def test_a_reset_in_a_class_handler_is_a_reset_and_no_failure(longshore_server, serve):
    import socketserver

    class Echo(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line)

    for strategy in ("threads", "green", "inline", "processes"):
        server = longshore_server(Echo, strategy=strategy)
        bad = Client(server.url)
        assert bad.request(b"hello") == b"hello"
        bad.reset()
        assert end_of_the_bad_one(server).cause == "reset"
        assert server.events.of(HandlerFailed) == []


def test_a_peer_that_never_reads_is_a_timeout(framed, serve, bystander, longshore_clock):
    server = serve(framed, answer, limits=Limits(max_pending_bytes=64 * 1024), timeouts=Timeouts(write=30, idle=9000))
    with bystander(server):
        with Client(server.url, receive_buffer=4096) as bad:
            bad.stall()
            bad.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                while True:
                    bad.socket.send(b"x" * 1023 + b"\n")
            closed = end_after_silence(server, longshore_clock)
        assert closed.cause == "timeout"
        assert "write=30" in str(closed.error)
        assert closed.unsent > 0 or framed.blocks
    assert server.events.of(HandlerFailed) == []


def test_silence_is_not_idle_while_output_is_untaken(longshore_server, longshore_clock):
    size, idle, sent = 8_000_000, [], threading.Event()

    class Flood(MessageHandler):
        framing = Lines(max_size=size)

        def message(self, message: bytes) -> None:
            self.connection.send(b"x" * size)
            sent.set()

        def idle(self) -> None:
            idle.append(self.connection.id)

    limits, timeouts = Limits(max_pending_bytes=2 * size), Timeouts(idle=50, write=900)
    server = longshore_server(Flood, limits=limits, timeouts=timeouts)
    with Client(server.url, receive_buffer=4096) as slow:
        slow.send(b"go\n")
        assert sent.wait(10)
        longshore_clock.advance(51)
        turn(server)
        assert idle == []
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert len(slow.recv_exactly(size + 1)) == size + 1
        turn(server)
        longshore_clock.advance(51)
        assert slow.recv_until_closed() == b""
        assert len(idle) == 1
        assert "idle=50" in str(end_of_the_bad_one(server).error)


def turn(server: Any) -> None:
    """Return once the server's reactor has been through all that there was to do."""
    turned = threading.Event()
    server.reactor.post(server.reactor.again, turned.set)
    assert turned.wait(10)


def end_after_silence(server: Any, clock: Any) -> ConnectionClosed:
    """The end of a connection that makes no progress.

    That its client could send no more does not say that the server waits already: on a busy machine it may only be
    late, and what it sends then counts as progress.
    """
    for _ in range(100):
        clock.advance(31)
        try:
            return server.events.wait_for(ConnectionClosed, timeout=0.3)
        except AssertionError:
            continue
    return end_of_the_bad_one(server)


def test_garbage_on_a_tls_port_ends_in_the_handshake(shape, serve, certificates):
    server = serve(shape, answer, "tls://127.0.0.1:0", tls=certificates.server_tls())
    plain = server.url.replace("tls:", "tcp:")
    with Client(plain) as bad:
        bad.send(random.Random(7).randbytes(2000))
        bad.recv_until_closed()
    assert end_of_the_bad_one(server).cause == "handshake"
    with Client(server.url) as good:
        assert good.request(b"hello") == b"HELLO"
    assert server.events.of(HandlerFailed) == []


def test_plain_text_on_a_tls_port_ends_in_the_handshake(shape, serve, certificates):
    server = serve(shape, answer, "tls://127.0.0.1:0", tls=certificates.server_tls())
    with Client(server.url.replace("tls:", "tcp:")) as bad:
        bad.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        bad.recv_until_closed()
    closed = end_of_the_bad_one(server)
    assert closed.cause == "handshake"
    assert closed.error is not None
    assert server.events.of(ConnectionOpened) == []
    assert server.events.of(HandlerFailed) == []


def test_silence_on_a_tls_port_ends_in_the_handshake(shape, serve, certificates, longshore_clock):
    server = serve(shape, answer, "tls://127.0.0.1:0", tls=certificates.server_tls(), timeouts=Timeouts(handshake=10))
    with Client(server.url.replace("tls:", "tcp:")) as bad:
        sessions(server, 1)
        longshore_clock.advance(11)
        assert bad.recv_until_closed() == b""
    closed = end_of_the_bad_one(server)
    assert closed.cause == "handshake"
    assert "handshake=10" in str(closed.error)


def sessions(server: Any, count: int) -> None:
    """Return once the server has accepted `count` connections; before a handshake there is no event to wait for."""
    pause = threading.Event()
    for _ in range(2000):
        if server.statistics().connections >= count:
            return
        pause.wait(0.001)
    raise AssertionError(f"the server has not accepted {count} connections")


def test_a_client_without_the_certificate_ends_in_the_handshake(shape, serve, certificates):
    tls = certificates.server_tls(client_ca=certificates.authority)
    server = serve(shape, answer, "tls://127.0.0.1:0", tls=tls)
    with pytest.raises(OSError), Client(server.url, tls=certificates.client_context()) as bad:
        bad.send(b"hello\n")
        # TLS 1.3 lets the client finish first: it learns of the refusal with its first read.
        if not bad.recv():
            raise ConnectionResetError
    assert end_of_the_bad_one(server).cause == "handshake"
    assert server.events.of(HandlerFailed) == []


def test_a_client_that_leaves_in_the_handshake_ends_there(shape, serve, certificates):
    server = serve(shape, answer, "tls://127.0.0.1:0", tls=certificates.server_tls())
    with Client(server.url.replace("tls:", "tcp:")) as bad:
        bad.half_close()
        bad.recv_until_closed()
    assert end_of_the_bad_one(server).cause == "handshake"
    assert server.events.of(HandlerFailed) == []


FORMS = [("reactor", "message"), ("threads", "function")]
BAD_INPUT = {
    "oversized": (Lines(max_size=1000), b"x" * 5000),
    "malformed": (Netstring(), b"2:ok,garbage"),
    "two gigabytes": (LengthPrefixed(4), b"\x7f\xff\xff\xff"),
    "half a message": (Lines(), b"whole\nhalf"),
    "cut in its header": (LengthPrefixed(4), b"\x00\x00"),
    "a forged PROXY header": (Lines(), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nhello\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD_INPUT)
@pytest.mark.parametrize("form", [Shape(*form) for form in FORMS], ids=str)
def test_bad_input_of_any_kind_leaves_no_memory_behind(form, kind):
    framing, octets = BAD_INPUT[kind]
    ended = threading.Semaphore(0)

    def note(event: Any) -> None:
        if isinstance(event, ConnectionClosed):
            ended.release()

    # No recorder: it keeps every event, and that is memory too.
    options = form.options(framing=framing, proxy=Proxy(trusted=("192.0.2.1",)))
    server = Server(form.handler(answer), "tcp://127.0.0.1:0", **options)
    server.subscribe(note)

    def misbehave(times: int) -> int:
        for number in range(times):
            with Client(server.addresses[0]) as bad:
                bad.send(octets)
                if number % 2:
                    bad.half_close()
                else:
                    bad.reset()
            assert ended.acquire(timeout=10)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with server:
        tracemalloc.start()
        try:
            misbehave(30)
            sizes = [misbehave(50) for _ in range(4)]
        finally:
            tracemalloc.stop()
    # What one connection takes is some kilobytes: the smallest thing kept of each would be seen, in every round; what
    # is made once (a thread, a larger table) is seen in one.
    grown = min(later - earlier for earlier, later in itertools.pairwise(sizes))
    assert grown < 50 * 64, f"{grown / 50:.0f} bytes are kept of each"


@pytest.mark.slow
def test_many_connections_that_open_and_close_leave_nothing(shape, serve):
    server = serve(shape, answer)
    # A process takes milliseconds to fork and to bury, on a busy machine many.
    count = 60 if shape.strategy == "processes" else 200
    for number in range(count):
        client = Client(server.url)
        if number % 2:
            client.reset()
        else:
            client.close()
    # A connection that is reset in the kernel's queue may never be seen; every one that is has one end.
    with Client(server.url) as good:
        assert good.request(b"hello") == b"HELLO"
    server.drain()
    closed = server.events.of(ConnectionClosed)
    assert len(closed) == server.statistics().accepted > count // 2
    assert {event.cause for event in closed} <= {"peer closed", "finished", "reset", "drained"}
    assert len({event.id for event in closed}) == len(closed)
    assert server.events.of(HandlerFailed) == []
