"""A link whose waits are awaited, and a reactor inside an asyncio loop.

The only place where asyncio and a reactor meet: `AsyncLink` turns the calls of a stream's sink into futures,
`embed` lets a running loop turn a reactor.  The loop's thread is the reactor's thread then, so tasks touch
streams directly.  Nothing here knows handlers, servers or framings.

Facts, and what follows from them:

* A reactor's descriptor is readable whenever the kernel or another thread has something for it.  So the loop
  watches this one descriptor, and the loop's own cost does not grow with the connections.
* Timers make no descriptor readable.  So after each turn the loop is asked to call again when the next is due.
* A task that is cancelled in a wait may go on using the connection.  So a wait changes nothing but how long
  it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any

from longshore.errors import HandshakeTimeout, LimitExceeded, ReadTimeout, WouldBlock, WriteTimeout
from longshore.links.streams import SHARE, StreamLink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from longshore.reactor.portable import PortableReactor
    from longshore.reactor.stream import Stream

__all__ = ("AsyncLink", "Embedding", "embed")


class AsyncLink(StreamLink):
    """A link over a stream whose reactor is embedded in an asyncio loop; make it on the loop's thread."""

    def __init__(self) -> None:
        super().__init__()
        #: The loop whose tasks may wait.
        self.loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[bool]] = []
        # Tasks that wait in a coroutine of ours; a native stream has those of its own.
        self._hungry = 0
        # Room that was handed out and never awaited: its owner does not wait, and gets no more than one.
        self._ignored: _Room | None = None

    share = SHARE

    @property
    def waiting(self) -> bool:
        """Whether a task waits for input now."""
        return self._hungry > 0 or self.stream.watch.waiting

    def attach(self, stream: Stream) -> None:
        """Stand on `stream`."""
        super().attach(stream)
        #: What is awaited where there is nothing to wait for.
        self.done: Awaitable[None] = stream.DONE

    def _wake(self) -> None:
        super()._wake()
        self.stream.wake()
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                _answer(waiter, True)

    def _deadline(self, timeout: float | None) -> float | None:
        return None if timeout is None else self.loop.time() + timeout

    async def _next_call(self, deadline: float | None) -> bool:
        """Wait for the next call of the sink; False if the deadline passed before it."""
        if asyncio.get_running_loop() is not self.loop:
            raise WouldBlock(
                f"the connection to {self.stream.peer} belongs to another event loop",
                hint="Await it on the loop that made it; send(), close() and abort() work from anywhere.",
            )
        waiter: asyncio.Future[bool] = self.loop.create_future()
        self._waiters.append(waiter)
        # Where another task is the one that the stream wakes, the sink would not be told.
        self.stream.telling = True
        timer = None if deadline is None else self.loop.call_at(deadline, _answer, waiter, False)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def input_came(self, timeout: float | None) -> None:
        """Return once more input came or the stream ended.

        Raises:
            ReadTimeout: a deadline passed.
            ClosedError: the connection was closed on our side.
            OSError: the connection was lost.
        """
        stream = self.stream
        # The way that nearly every wait goes: the stream wakes the task, and nobody else is told.
        waiter: asyncio.Future[bool] = self.loop.create_future()
        wake = functools.partial(_answer, waiter, True)
        if (timeout is None or stream.sated()) and stream.expect(wake):
            self._hungry += 1
            try:
                await waiter
            except BaseException:
                stream.unpark(wake)
                raise
            finally:
                self._hungry -= 1
            if stream.spent:
                raise stream.failure()
            return
        if stream.excuse():
            return
        if stream.state in ("closing", "closed"):
            raise stream.failure()
        before = stream.received
        deadline = self._deadline(timeout)
        self._hungry += 1
        stream.want_input(True)
        try:
            while stream.received == before and not stream.input.ended and stream.state not in ("closing", "closed"):
                if not await self._next_call(deadline):
                    raise ReadTimeout(f"{stream.peer} sent nothing in {timeout:g} s")
        finally:
            self._hungry -= 1
            if not self._hungry:
                stream.want_input(False)
        if stream.state in ("closing", "closed") and not stream.input.size:
            raise stream.failure()

    def queue(self, data: bytes, timeout: float | None) -> Awaitable[None]:
        """Queue `data` at the call; the await returns once there is room for more.

        Raises:
            LimitExceeded: the limit was exceeded before, by a caller that does not wait.
            LongshoreError, OSError: the connection has ended.
        """
        stream = self.stream
        limit = stream.limits.max_pending_bytes
        elsewhere = not stream.reactor.on_thread
        if self.pending > limit and (elsewhere or self._ignored is not None):
            raise LimitExceeded(
                f"{stream.peer} has left {self.pending} bytes untaken (Limits.max_pending_bytes={limit})",
                hint="Await each send(): it returns once there is room.",
            )
        if elsewhere:
            self._post_write(data)
            return self.done
        stream.write(data)
        if self.pending <= limit:
            return self.done
        self._ignored = _Room(self, timeout)
        return self._ignored

    async def _room(self, room: _Room) -> None:
        if self._ignored is room:
            self._ignored = None
        stream = self.stream
        limit = stream.limits.max_pending_bytes
        deadline = self._deadline(room.timeout)
        while self.pending > limit // 2 and stream.state == "open":
            if not await self._next_call(deadline):
                raise WriteTimeout(f"{stream.peer} took too little in {room.timeout:g} s")
        if stream.state != "open":
            raise stream.failure()

    async def flushed(self, timeout: float | None) -> None:
        """Return once the kernel has everything that was written.

        Raises:
            WriteTimeout: the peer took too little in time.
            LongshoreError, OSError: the connection ended before that.
        """
        if asyncio.get_running_loop() is not self.loop:
            # The loop of the connection does the waiting, and this one waits for it.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.flushed(timeout), self.loop))
            return
        stream = self.stream
        stream.flush()
        deadline = self._deadline(timeout)
        while self.pending and stream.state != "closed":
            if not await self._next_call(deadline):
                raise WriteTimeout(f"{stream.peer} took too little in {timeout:g} s")
        if stream.state == "closed" and (self.pending or stream.error is not None):
            raise stream.failure()

    async def tls_started(
        self, context: Any, *, server_side: bool, hostname: str | None, timeout: float | None
    ) -> None:
        """Speak TLS from the next byte on; return once the handshake is done.

        Raises:
            TLSError: the handshake failed.
            HandshakeTimeout: it took too long.
            LimitExceeded: there are `Limits.max_handshakes` already, and the connection ends.
        """
        from longshore.tls import Session

        if self.session is not None:
            self.session.handshake_begins(self)
        self._open = False
        self.stream.start_tls(Session(context, server_side=server_side, hostname=hostname))
        await self.ready(timeout)

    async def ready(self, timeout: float | None) -> None:
        """Return once the stream is open, its TLS handshake included.

        Raises:
            TLSError: the handshake failed.
            HandshakeTimeout: it took too long.
        """
        stream = self.stream
        deadline = self._deadline(timeout)
        while not self._open and stream.state == "opening":
            if not await self._next_call(deadline):
                raise HandshakeTimeout(f"{stream.peer} did not finish the TLS handshake in {timeout:g} s")
        if stream.state in ("closing", "closed"):
            raise stream.failure()

    async def gone(self) -> None:
        """Return once the socket is closed."""
        while self.stream.state != "closed":
            await self._next_call(None)


def _answer(waiter: asyncio.Future[bool], in_time: bool) -> None:
    if not waiter.done():
        waiter.set_result(in_time)


class _Room:
    """An awaitable that waits for room only once it is awaited, so it may be dropped without a warning."""

    def __init__(self, link: AsyncLink, timeout: float | None) -> None:
        self._link = link
        self.timeout = timeout

    def __await__(self) -> Generator[Any, None, None]:
        return self._link._room(self).__await__()


class Embedding:
    """A reactor that an asyncio loop turns, until `close`."""

    def __init__(
        self, reactor: PortableReactor, loop: asyncio.AbstractEventLoop, on_stopped: Callable[[], object] | None
    ) -> None:
        self._reactor = reactor
        self._loop = loop
        self._on_stopped = on_stopped
        self._descriptor = reactor.fileno()
        self._closed = False
        # What tasks do before the first turn is done on the reactor's thread already.
        reactor.thread = threading.get_ident()
        reactor.flush_soon = self._flush_soon
        loop.add_reader(self._descriptor, self._run)
        self._next: asyncio.Handle | None = loop.call_soon(self._run)

    def _flush_soon(self) -> None:
        self._loop.call_soon(self._reactor.flush)

    def _run(self) -> None:
        if self._closed:
            return
        if self._next is not None:
            self._next.cancel()
            self._next = None
        try:
            seconds = self._reactor.run_ready()
        except BaseException:
            # It leaves for the loop to judge; what it kept from being done is done in another turn.
            if not self._closed:
                self._next = self._loop.call_soon(self._run)
            raise
        if self._closed:
            return
        if seconds is not None and seconds <= 0:
            self._next = self._loop.call_soon(self._run)
        elif seconds is not None:
            self._next = self._loop.call_later(seconds, self._run)
        elif self._reactor.stopped and self._on_stopped is not None:
            # Once only: a second loop.stop() would end the next run of the loop, which cleans up.
            on_stopped, self._on_stopped = self._on_stopped, None
            on_stopped()

    def close(self) -> None:
        """Take the reactor out of the loop; the reactor itself stays open."""
        if self._closed:
            return
        self._closed = True
        self._reactor.flush_soon = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if not self._loop.is_closed():
            with contextlib.suppress(ValueError):
                self._loop.remove_reader(self._descriptor)


def embed(
    reactor: PortableReactor, loop: asyncio.AbstractEventLoop, on_stopped: Callable[[], object] | None = None
) -> Embedding:
    """Let `loop` turn `reactor`; call it on the loop's thread.

    `on_stopped` is called on that thread once `reactor.stop()` was called.
    """
    return Embedding(reactor, loop, on_stopped)
