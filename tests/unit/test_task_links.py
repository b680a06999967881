from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from longshore.config import Limits, Timeouts
from longshore.connection import AsyncConnection
from longshore.errors import ClosedError, LimitExceeded, ReadTimeout, WriteTimeout
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.framing import Lines
from longshore.handlers import Handler, MessageHandler, understand
from longshore.links.tasks import AsyncLink, embed
from longshore.reactor.portable import PortableReactor
from longshore.strategies.aio import AsyncStrategy

PENDING = 32_768


@contextlib.asynccontextmanager
async def connected(**limits: Any) -> AsyncIterator[tuple[AsyncConnection, socket.socket, AsyncLink]]:
    """An async connection in the running loop, and the plain socket at its other end."""
    reactor = PortableReactor()
    embedding = embed(reactor, asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    link = AsyncLink()
    stream = reactor.stream(
        ours, "the peer", sink=link, limits=Limits(**limits), timeouts=Timeouts(linger=0.05), framing=Lines()
    )
    link.attach(stream)
    stream.start()
    try:
        yield AsyncConnection(link, peer="the peer", local="us"), theirs, link
    finally:
        stream.abort()
        theirs.close()
        embedding.close()
        reactor.close()


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))  # type: ignore[arg-type]

    return run


@in_a_loop
async def test_input_that_comes_wakes_the_task_that_waits_for_it() -> None:
    async with connected() as (connection, theirs, _):
        waiting = asyncio.ensure_future(connection.receive())
        await asyncio.sleep(0)
        theirs.send(b"one\ntwo\n")
        assert await waiting == b"one"
        assert await connection.receive() == b"two"


@in_a_loop
async def test_a_wait_that_takes_too_long_raises_and_leaves_the_connection_usable() -> None:
    async with connected() as (connection, theirs, _):
        connection.settimeout(0.01)
        with pytest.raises(ReadTimeout, match=r"the peer sent nothing in 0\.01 s"):
            await connection.receive()
        connection.settimeout(5)
        theirs.send(b"late\n")
        assert await connection.receive() == b"late"


@in_a_loop
async def test_a_cancelled_wait_loses_no_byte() -> None:
    async with connected() as (connection, theirs, link):
        theirs.send(b"ha")
        waiting = asyncio.ensure_future(connection.receive())
        while not link.stream.received:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not link.waiting
        theirs.send(b"lf\n")
        assert await connection.receive() == b"half"


@in_a_loop
async def test_a_wait_ends_with_closed_error_when_another_task_closes() -> None:
    async with connected() as (connection, _, link):
        waiting = asyncio.ensure_future(connection.recv(10))
        await asyncio.sleep(0)
        connection.close()
        with pytest.raises(ClosedError, match="the peer"):
            await waiting
        await link.gone()
        assert connection.fileno() == -1


@in_a_loop
async def test_sending_queues_at_the_call_without_being_awaited() -> None:
    async with connected() as (connection, theirs, _):
        connection.send(b"now")
        assert theirs.recv(100) == b"now\n"


@in_a_loop
async def test_a_send_over_the_limit_waits_for_room() -> None:
    async with connected(max_pending_bytes=PENDING) as (connection, theirs, link):
        sending = asyncio.ensure_future(connection.sendall(bytes(4_000_000)))
        await asyncio.sleep(0)
        assert link.pending > PENDING
        assert not sending.done()
        taken = await drained(theirs, until=sending.done)
        await sending
        assert link.pending <= PENDING // 2
        flushing = asyncio.ensure_future(connection.flush())
        taken += await drained(theirs, until=flushing.done)
        taken += len(theirs.recv(1 << 22)) if taken < 4_000_000 else 0
        assert link.pending == 0


async def drained(sock: socket.socket, until: Callable[[], bool]) -> int:
    total = 0
    while not until():
        with contextlib.suppress(BlockingIOError):
            total += len(sock.recv(1 << 20))
        await asyncio.sleep(0)
    return total


@in_a_loop
async def test_who_never_awaits_is_refused_once_the_limit_is_exceeded() -> None:
    async with connected(max_pending_bytes=PENDING) as (connection, _, _):
        connection.sendall(bytes(4_000_000))
        with pytest.raises(LimitExceeded, match="max_pending_bytes=32768"):
            connection.sendall(b"more")


@in_a_loop
async def test_waiting_for_room_has_a_deadline() -> None:
    async with connected(max_pending_bytes=PENDING) as (connection, _, _):
        connection.settimeout(0.01)
        with pytest.raises(WriteTimeout, match="the peer"):
            await connection.sendall(bytes(4_000_000))
        with pytest.raises(WriteTimeout, match="the peer"):
            await connection.flush()


@in_a_loop
async def test_another_thread_may_send_and_close() -> None:
    async with connected() as (connection, theirs, link):

        def elsewhere() -> None:
            connection.send(b"from a thread")
            connection.close()

        await asyncio.to_thread(elsewhere)
        theirs.close()
        await link.gone()
        assert link.stream.sent == len(b"from a thread\n")


@in_a_loop
async def test_output_put_off_leaves_when_the_loop_iteration_ends() -> None:
    async with connected() as (connection, theirs, link):
        link.stream.coalescing = True
        theirs.send(b"1\n2\n3\n")
        for _ in range(2):
            connection.send(await connection.receive())
        with pytest.raises(BlockingIOError):
            theirs.recv(100)
        await asyncio.sleep(0)
        assert theirs.recv(100) == b"1\n2\n"


@in_a_loop
async def test_timers_and_posts_turn_an_embedded_reactor() -> None:
    loop = asyncio.get_running_loop()
    reactor = PortableReactor()
    embedding = embed(reactor, loop)
    try:
        called: asyncio.Queue[str] = asyncio.Queue()
        await asyncio.sleep(0)
        reactor.call_later(0.02, called.put_nowait, "second")
        reactor.call_later(0.01, called.put_nowait, "first")
        await asyncio.to_thread(reactor.post, called.put_nowait, "posted")
        assert {await called.get() for _ in range(3)} == {"posted", "first", "second"}
    finally:
        embedding.close()
        reactor.close()


def loops() -> list[Any]:
    import uvloop

    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", loops())
def test_keyboard_interrupt_leaves_the_loop_and_the_reactor_turns_on(new_loop: Any) -> None:
    loop = new_loop()
    reactor = PortableReactor()
    embedding = embed(reactor, loop, loop.stop)

    def interrupt() -> None:
        raise KeyboardInterrupt

    called = []
    try:
        reactor.post(interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        reactor.post(called.append, 1)
        reactor.post(reactor.stop)
        loop.run_forever()
        assert called == [1]
    finally:
        embedding.close()
        loop.close()
        reactor.close()


# -- the strategy ------------------------------------------------------------------------------------------


class Host:
    """Stands for the server: takes socket pairs in, and keeps what is told."""

    facade = "the server"
    draining = False

    def __init__(self, handler: Any, **timeouts: Any) -> None:
        self.handler: Handler = understand(handler)
        self.limits = Limits(max_connections=2)
        self.timeouts = Timeouts(linger=0.05, **timeouts)
        self.framing = Lines() if self.handler.takes_messages else None
        self.reactor = PortableReactor()
        self.events: list[Any] = []
        self.sessions: list[Any] = []
        self.all_ended = threading.Event()
        self.strategy = AsyncStrategy(self)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run)

    def wants(self, kind: type) -> bool:
        return True

    def emit(self, event: Any) -> None:
        self.events.append(event)

    def session_ended(self, session: Any) -> None:
        self.sessions.remove(session)
        if not self.sessions:
            self.all_ended.set()

    def handler_freed(self) -> None:
        pass

    def calling(self) -> Any:
        return contextlib.nullcontext()

    def context(self) -> contextvars.Context:
        return contextvars.copy_context()

    def _run(self) -> None:
        self.strategy.run()

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.reactor.post(self._stop)
        self._thread.join(10)
        self.strategy.close()
        self.reactor.close()

    def _stop(self) -> None:
        for session in list(self.sessions):
            session.cut()
        self.reactor.call_later(0.1, self.reactor.stop)

    def dial(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(5)
        self.all_ended.clear()
        self.reactor.post(self.begin, ours)
        return theirs

    def begin(self, ours: socket.socket) -> None:
        session = self.strategy.open(ours, "peer", "local", None)
        self.sessions.append(session)
        session.begin()

    def on_reactor(self, function: Callable[[], Any]) -> Any:
        done = threading.Event()
        results: list[Any] = []

        def call() -> None:
            results.append(function())
            done.set()

        self.reactor.post(call)
        assert done.wait(5)
        return results[0]

    def closing(self) -> ConnectionClosed:
        assert self.all_ended.wait(5)
        [event] = [event for event in self.events if isinstance(event, ConnectionClosed)]
        return event

    def failures(self) -> list[HandlerFailed]:
        return [event for event in self.events if isinstance(event, HandlerFailed)]


def received(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


async def echo(connection: Any) -> None:
    while data := await connection.recv(65536):
        await connection.sendall(data)


async def shout(message: bytes, connection: Any) -> bytes:
    await asyncio.sleep(0)
    return message.upper()


def test_an_async_function_serves_its_connection_until_the_peer_ends() -> None:
    with Host(echo) as host, host.dial() as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert received(sock) == b"hello"
        assert host.closing().cause == "finished"
        assert (host.closing().received, host.closing().sent) == (5, 5)


def test_an_async_message_function_replies_in_order() -> None:
    with Host(shout) as host, host.dial() as sock:
        sock.sendall(b"".join(b"m%d\n" % number for number in range(500)))
        sock.shutdown(socket.SHUT_WR)
        assert received(sock) == b"".join(b"M%d\n" % number for number in range(500))
        assert host.closing().cause == "peer closed"
        assert host.closing().messages == 500


def test_the_hooks_of_a_message_handler_run_in_order() -> None:
    calls: list[Any] = []

    class Noting(MessageHandler):
        async def connected(self) -> None:
            calls.append("connected")

        async def message(self, message: bytes) -> bytes:
            calls.append(message)
            return message

        async def disconnected(self, error: BaseException | None) -> None:
            await asyncio.sleep(0)
            calls.append(error)

    with Host(Noting) as host, host.dial() as sock:
        sock.sendall(b"one\n")
        assert sock.recv(10) == b"one\n"
        sock.shutdown(socket.SHUT_WR)
        assert host.closing().cause == "peer closed"
    assert calls == ["connected", b"one", None]


def test_what_a_batch_handler_returns_is_sent() -> None:
    class Batches(MessageHandler):
        async def message(self, message: bytes) -> None:
            raise AssertionError("messages() is overridden")

        async def messages(self, batch: list[bytes]) -> list[bytes]:  # type: ignore[override]
            return [b"+".join(batch)]

    with Host(Batches) as host, host.dial() as sock:
        sock.sendall(b"a\nb\nc\n")
        sock.shutdown(socket.SHUT_WR)
        assert received(sock) == b"a+b+c\n"
        assert host.closing().messages == 3


def test_an_exception_ends_its_connection_only_and_is_reported_once() -> None:
    async def fail(message: bytes, connection: Any) -> bytes:
        if message == b"bad":
            raise RuntimeError("no")
        return message

    with Host(fail) as host, host.dial() as sock:
        sock.sendall(b"good\nbad\ngood\n")
        assert received(sock) == b"good\n"
        sock.close()
        assert host.closing().cause == "handler failed"
        assert [str(event.error) for event in host.failures()] == ["no"]


def test_a_framing_error_ends_the_connection_after_the_earlier_replies() -> None:
    with Host(shout) as host, host.dial() as sock:
        sock.sendall(b"fine\n" + b"x" * 70_000)
        with contextlib.suppress(ConnectionResetError):
            assert received(sock) == b"FINE\n"
        sock.close()
        assert host.closing().cause == "framing"
        assert host.failures() == []


def test_nothing_is_delivered_after_close() -> None:
    seen: list[bytes] = []

    async def once(message: bytes, connection: Any) -> None:
        seen.append(message)
        connection.send(b"bye")
        connection.close()

    with Host(once) as host, host.dial() as sock:
        sock.sendall(b"one\ntwo\n")
        assert received(sock) == b"bye\n"
        sock.close()
        assert host.closing().cause == "finished"
        assert host.failures() == []
    assert seen == [b"one"]


def test_draining_ends_a_quiet_message_connection() -> None:
    class Polite(MessageHandler):
        async def message(self, message: bytes) -> bytes:
            return message

        async def draining(self, deadline: float | None) -> None:
            await self.connection.send(b"going")

    with Host(Polite) as host, host.dial() as sock:
        sock.sendall(b"one\n")
        assert sock.recv(10) == b"one\n"
        host.on_reactor(lambda: [session.drain(None) for session in host.sessions])
        assert received(sock) == b"going\n"
        assert host.closing().cause == "drained"


def test_draining_waits_for_the_rest_of_a_partial_message() -> None:
    with Host(shout) as host, host.dial() as sock:
        sock.sendall(b"one\ntw")
        assert sock.recv(10) == b"ONE\n"
        host.on_reactor(lambda: [session.drain(None) for session in host.sessions])
        sock.sendall(b"o\n")
        assert received(sock) == b"TWO\n"
        assert host.closing().cause == "drained"


def test_draining_gives_a_waiting_stream_handler_the_end_of_the_stream() -> None:
    with Host(echo) as host, host.dial() as sock:
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        host.on_reactor(lambda: [session.drain(None) for session in host.sessions])
        assert received(sock) == b""
        sock.close()
        assert host.closing().cause == "drained"


def test_cutting_cancels_the_task_whatever_it_waits_for() -> None:
    ended = threading.Event()

    async def stuck(connection: Any) -> None:
        try:
            connection.sendall(b"started")
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with Host(stuck) as host, host.dial() as sock:
        assert sock.recv(10) == b"started"
        host.on_reactor(lambda: [session.cut() for session in host.sessions])
        assert received(sock) == b""
        assert ended.wait(5)
        assert host.closing().cause == "cut"
        assert host.failures() == []


def test_a_task_that_ignores_cancellation_is_named() -> None:
    release = threading.Event()

    async def stubborn(connection: Any) -> None:
        connection.sendall(b"started")
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    host = Host(stubborn)
    with host, host.dial() as sock:
        assert sock.recv(10) == b"started"
    assert len(host.strategy.close()) == 1
    assert "stubborn" in host.strategy.close()[0]
    release.set()


def test_a_reset_is_no_failure_of_the_handler() -> None:
    errors: list[BaseException | None] = []

    class Noting(MessageHandler):
        async def message(self, message: bytes) -> bytes:
            return message

        def disconnected(self, error: BaseException | None) -> None:
            errors.append(error)

    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Host(Noting) as host:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        ours.setblocking(False)
        host.reactor.post(host.begin, ours)
        theirs.sendall(b"one\n")
        assert theirs.recv(10) == b"one\n"
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        assert host.closing().cause == "reset"
        assert host.failures() == []
    assert isinstance(errors[0], ConnectionResetError)


def test_idle_since_is_told_only_while_nothing_is_owed() -> None:
    with Host(echo) as host, host.dial() as sock:
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        assert host.on_reactor(lambda: host.sessions[0].idle_since()) is not None


def test_datagrams_beyond_the_bound_are_refused() -> None:
    async def slow(message: bytes, peer: Any) -> None:
        await asyncio.sleep(3600)

    class Peer:
        framing = None
        session = None

        def failed(self, error: BaseException, size: int = 0) -> None:
            raise AssertionError(error)

        def handled(self) -> None:
            """Nobody counts."""

    with Host(slow) as host:
        taken = host.on_reactor(lambda: [host.strategy.datagram(b"x", "peer", Peer(), "peer") for _ in range(3)])
        assert taken == [True, True, False]


def test_a_function_that_fails_is_reported_with_no_peer() -> None:
    done = threading.Event()

    async def tick() -> None:
        try:
            raise RuntimeError("tick")
        finally:
            done.set()

    with Host(echo) as host:
        host.on_reactor(lambda: host.strategy.call(tick))
        assert done.wait(5)
    assert [(event.peer, str(event.error)) for event in host.failures()] == [(None, "tick")]
