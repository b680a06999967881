"""A link over a stream of a reactor; a strategy adds how its handlers wait."""

from __future__ import annotations

import threading
from errno import EAGAIN
from typing import TYPE_CHECKING, Any

from longshore.buffers import InputBuffer, closed
from longshore.errors import LimitExceeded, LongshoreError, ReadTimeout, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as Socket

    from longshore.links import Output
    from longshore.reactor.stream import Stream

__all__ = ("SHARE", "StreamLink")

#: Pieces of input (lines, messages) that a handler takes before others on its thread have their turn.
SHARE = 64


#: Held while a link's sleepers are replaced, never while somebody sleeps.
_sleeping = threading.Lock()


class StreamLink:
    """A link over a reactor's stream: a client's is the stream's sink; a session tells its own what it is told.

    On the reactor's thread nothing may wait here, so what would raises `WouldBlock` or `LimitExceeded`;
    strategies whose handlers can wait override `_pause`.
    """

    # Each idle connection has one of these, and a dict for it would take half as much again.
    __slots__ = ("_calls", "_held", "_open", "_posted", "_seen", "_sleepers", "input", "output", "session", "stream")

    def __init__(self) -> None:
        # All three are set by `attach`, before anybody else sees the link.
        self.stream: Stream
        #: What came and is not consumed.
        self.input: InputBuffer
        #: Who takes output that needs no waiting.
        self.output: Output
        #: The `strategies.Session` that is told of handshakes; a client has none.
        self.session: Any = None
        #: Whether the stream is ready, with its handshake if there is one.
        self._open = False
        #: Calls of the sink, and how many there had been when another thread last went to look at the input.
        self._calls, self._seen = 0, -1
        #: Bytes that were written on other threads, and that the stream does not have yet.
        self._posted = 0
        #: Threads that wait.
        self._sleepers: tuple[threading.Event, ...] = ()
        #: Whether nothing is to be read for now.
        self._held = False

    #: The share of those whose handlers take turns on one thread; None: they do not.
    share: int | None = None

    @property
    def link(self) -> StreamLink:
        """What whoever takes input waits through, as a sink tells it."""
        return self

    def attach(self, stream: Stream) -> None:
        """Stand on `stream`."""
        self.stream = stream
        self.input = stream.input if self.share is None else stream.in_shares(self.share)
        self.output = stream
        if self._held:
            stream.hold(True)

    def hold(self, held: bool) -> None:
        """Read nothing for now, or read again as before; so does the stream that takes the place of this one."""
        self._held = held
        self.stream.hold(held)

    # -- the stream's sink -----------------------------------------------------------------------------

    def opened(self) -> None:
        """The stream is ready."""
        self._open = True
        self._wake()

    def arrived(self) -> None:
        """Input came or ended."""
        self._wake()

    def drained(self) -> None:
        """There is room again."""
        self._wake()

    def near(self) -> None:
        """Nearly as much is pending as may be: a server's session tells of that."""

    def idled(self) -> None:
        """Nothing moved for `Timeouts.idle`."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """The stream is gone."""
        self._wake()

    def _wake(self) -> None:
        self._calls += 1
        for sleeper in self._sleepers:
            sleeper.set()

    # -- waiting ---------------------------------------------------------------------------------------

    def _pause(self, timeout: float | None, what: str, over: Callable[[], object]) -> None:
        """Wait for the next call of the sink; on a thread of its own, sleep unless the wait is `over` by then."""
        if self.stream.reactor.on_thread:
            raise WouldBlock(
                f"{what} on the connection to {self.stream.peer} would block the reactor",
                hint='Use strategy="green", "threads" or "async" for handlers that wait.',
            )
        sleeper = threading.Event()
        with _sleeping:
            self._sleepers = (*self._sleepers, sleeper)
        self.stream.telling = True
        try:
            # What happened between the caller's look and this line has found no sleeper, so it is looked for here.
            if not over() and not sleeper.wait(timeout):
                raise self._late(timeout, what)
        finally:
            with _sleeping:
                self._sleepers = tuple(other for other in self._sleepers if other is not sleeper)

    def _late(self, timeout: Any, what: str) -> OSError:
        """The error for a wait that was in vain; one of no time at all is none, as on a socket that does not block."""
        if timeout == 0:
            return BlockingIOError(EAGAIN, f"{what} on the connection to {self.stream.peer} takes time; settimeout(0)")
        return ReadTimeout(f"{what} on the connection to {self.stream.peer}: nothing in {timeout:g} s")

    def wait_input(self, timeout: float | None) -> None:
        """Return once more input came or the stream ended.

        Raises:
            ReadTimeout: a deadline passed.
            BlockingIOError: without any time to wait, there is nothing.
            ClosedError: the connection was closed on our side.
            WouldBlock: on the reactor itself.
        """
        stream = self.stream
        if stream.state in ("closing", "closed"):
            raise stream.failure()
        if timeout == 0 and stream.reactor.on_thread:
            # What the kernel has is there, though the reactor has not read it yet.
            before = stream.received
            stream.take_arrived()
            if stream.received != before or stream.input.ended:
                return
        self._on_reactor(stream.want_input, True)
        try:
            self._pause(timeout, "waiting for input", lambda: self._calls != self._seen)
        finally:
            self._on_reactor(stream.want_input, False)
        self._seen = self._calls
        # Another stream may have taken its place, and there the wait goes on.
        if stream.state in ("closing", "closed") and not stream.input.size and stream is self.stream:
            raise stream.failure()

    @property
    def handled(self) -> int:
        """Messages that the stream itself has handed to a handler."""
        return self.stream.messages

    @property
    def pending(self) -> int:
        """Bytes written that the kernel has not taken."""
        return self.stream.pending + self._posted

    @property
    def socket(self) -> Socket:
        """The socket, for its options and names; reading it would lose what is buffered."""
        return self.stream.socket

    @property
    def tls_object(self) -> Any:
        """The `ssl` object, or None."""
        return None if self.stream.tls is None else self.stream.tls.object

    # -- output ----------------------------------------------------------------------------------------

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Queue `data`; then wait until no more than `max_pending_bytes` are pending.

        Raises:
            LimitExceeded: the limit was exceeded before, and this caller cannot wait.
            LongshoreError, OSError: the connection has ended.
        """
        if self.output.offer(data):
            return
        stream = self.stream
        limit = stream.limits.max_pending_bytes
        if self.pending > limit:
            self._wait_room(timeout, limit)
        if stream.reactor.on_thread:
            stream.write(data)
        else:
            self._post_write(data)
        if self.pending > limit and timeout != 0 and self._may_wait():
            self._wait_room(timeout, limit)

    def _may_wait(self) -> bool:
        return not self.stream.reactor.on_thread

    def _wait_room(self, timeout: float | None, limit: int) -> None:
        stream = self.stream
        if not self._may_wait():
            raise LimitExceeded(
                f"{stream.peer} has left {self.pending} bytes untaken (Limits.max_pending_bytes={limit})",
                hint="Send less to it, or use a strategy whose handlers can wait.",
            )

        def over() -> bool:
            return self.pending <= limit // 2 or stream.state != "open"

        while not over():
            self._pause(timeout, "waiting for room", over)
        if stream.state != "open":
            raise stream.failure()

    def _post_write(self, data: bytes) -> None:
        if self.stream.state != "open":
            raise self.stream.failure()
        self._posted += len(data)
        self.stream.reactor.post(self._write_posted, data)

    def _write_posted(self, data: bytes) -> None:
        self._posted -= len(data)
        try:
            self.stream.write(data)
        except (LongshoreError, OSError):
            # The connection ended between the call and now; its closing event says so, with the unsent bytes.
            return
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether nothing can be written any more."""
        return self.stream.state != "open"

    def try_write(self, data: bytes) -> bool:
        """Queue `data` unless the limit is exceeded already."""
        stream = self.stream
        if stream.state != "open" or self.pending > stream.limits.max_pending_bytes:
            return False
        if stream.reactor.on_thread:
            try:
                stream.write(data)
            except (LongshoreError, OSError):
                return False
        else:
            self._post_write(data)
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Send what was put off, and where the caller may wait, wait until the kernel has it."""
        stream = self.stream
        if stream.reactor.on_thread:
            stream.flush()
        if self._may_wait():
            while self.pending and stream.state == "open":
                self._pause(timeout, "flushing", lambda: not self.pending or stream.state != "open")
        if stream.state == "closed" and stream.error is not None:
            raise stream.error

    # -- verbs that any thread may call ----------------------------------------------------------------

    def _on_reactor(self, function: Callable[..., object], *args: Any) -> None:
        if self.stream.reactor.on_thread:
            function(*args)
        else:
            self.stream.reactor.post(function, *args)

    def end_output(self) -> None:
        """Send the end of our side, after what is pending."""
        self._on_reactor(self.stream.shutdown_output)

    def end_input(self) -> None:
        """Take no more from the peer."""
        self._on_reactor(self.stream.end_input)

    def close(self, cause: str = "finished", error: BaseException | None = None) -> None:
        """End in order: flush, end our side, linger."""
        self._on_reactor(self._close, cause, error)

    def _close(self, cause: str, error: BaseException | None) -> None:
        self.stream.close(cause, error)
        self.input.discard()
        self._wake()

    def abort(self, cause: str = "aborted", error: BaseException | None = None) -> None:
        """End with a reset."""
        self._on_reactor(self.stream.abort, cause, error)

    def detach(self) -> tuple[Socket, bytes]:
        """Give the socket away, in blocking mode, with the bytes read and not consumed.

        Raises:
            ClosedError: the connection has ended.
            LongshoreError: it speaks TLS.
        """
        if self.stream.state == "closed":
            # Its reactor may have ended, too, and would take no post.
            raise closed(self.stream.peer)
        outcome: list[Any] = []

        def take_out() -> None:
            try:
                outcome.append(self.stream.detach())
            except Exception as error:
                outcome.append(error)
            self._wake()

        self._on_reactor(take_out)
        while not outcome:
            self._pause(None, "detaching", lambda: outcome)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        sock, unread = outcome[0]
        sock.setblocking(True)
        return sock, unread

    def start_tls(self, context: Any, *, server_side: bool, hostname: str | None, timeout: float | None) -> None:
        """Speak TLS from the next byte on, and wait for the handshake where the caller may wait.

        Raises:
            LimitExceeded: there are `Limits.max_handshakes` already, and the connection ends.
        """
        from longshore.tls import Session

        if self.session is not None:
            self.session.handshake_begins(self)
        self._open = False
        self._on_reactor(self.stream.start_tls, Session(context, server_side=server_side, hostname=hostname))
        self.wait_open(timeout)

    def wait_open(self, timeout: float | None = None) -> None:
        """Return once a TLS handshake is over, at once where the caller may not wait.

        Raises:
            LongshoreError, OSError: what ended the connection instead.
        """

        def over() -> bool:
            # Still open is what begins on the reactor's thread in a moment.
            return self._open or self.stream.state not in ("open", "opening")

        while self._may_wait() and not over():
            self._pause(timeout, "the TLS handshake", over)
        if self.stream.state in ("closing", "closed"):
            raise self.stream.failure()
