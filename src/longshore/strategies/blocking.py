"""A session whose handler owns a thread and waits in the kernel: what `threads` and `inline` have in common.

The only place where a handler blocks a thread of its own.  While the handler runs, the socket is the
thread's, and the reactor acts through its guard; afterwards the reactor takes it over as a stream, to end
the connection in order.  Which thread it is, others decide.
"""

from __future__ import annotations

import math
import selectors
import socket
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.connection import Connection
from longshore.errors import ClosedError, HandshakeTimeout, LimitExceeded, LongshoreError, WriteTimeout
from longshore.guard import Guard
from longshore.limits import Watch, overdue
from longshore.links.packets import PacketLink
from longshore.links.sockets import SocketLink
from longshore.packets import are_packets
from longshore.sockets import guarded
from longshore.strategies import Session, client_address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.clock import Timer
    from longshore.reactor.stream import Stream
    from longshore.strategies import Host

__all__ = ("BlockingSession",)


class _Tail:
    """The sink of a stream that only flushes, lingers and closes."""

    def __init__(self, session: BlockingSession) -> None:
        self._session = session

    def opened(self) -> None:
        """It is closed right after it was opened."""

    def arrived(self) -> None:
        """What comes now is dropped."""

    def drained(self) -> None:
        """Nobody waits for room."""

    def near(self) -> None:
        """The handler has said all that it will."""

    def idled(self) -> None:
        """Nobody waits for input."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """Tell the session."""
        self._session.gone(cause, error)


class BlockingSession(Session):
    """One connection whose handler runs in `run()`, on whatever thread `submit(session)` lets call that."""

    def __init__(
        self,
        host: Host,
        sock: socket.socket,
        peer: str,
        local: str,
        tls: Any,
        submit: Callable[[BlockingSession], object],
    ) -> None:
        super().__init__(host, peer, local)
        self._submit = submit
        self.client_address: Any = client_address_of(sock, peer)
        self.guard = self.make_guard()
        self.guard.on_deadline = self._deadline_nearer
        self.guard.on_release = self._released_by_handler
        self._tls = tls is not None
        self._timer: Timer | None = None
        self._stream: Stream | None = None
        self._unsent = 0
        self._watched: socket.socket | None = None
        self._released = False
        request = guarded(sock, self.guard, tls)
        self.link = self.make_link(request)
        self.link.finish_later = self._finish_later
        self.link.session = self
        self.connection = self.connection_class(self.link, peer=peer, local=local, server=host.facade)

    #: Exceptions with which a handler may end that are no failure of it.
    quiet: tuple[type[BaseException], ...] = (SystemExit,)
    #: What the handler sees.
    connection_class = Connection

    def make_link(self, request: Any) -> SocketLink:
        """What that stands on."""
        kind = PacketLink if are_packets(request) else SocketLink
        return kind(request, self.peer, self.host.framing, max_pending=self.host.limits.max_pending_bytes)

    def make_guard(self) -> Guard:
        """What the two threads will know together."""
        now = self.host.reactor.now
        return Guard(self.peer, Watch(self.host.timeouts, now()), now)

    @property
    def label(self) -> str:
        """What runs here, for whoever must name it."""
        return f"{self.host.handler.name} for {self.peer}"

    def introduce(self, header: Any, via: str) -> None:
        """It came through a proxy."""
        super().introduce(header, via)
        self.client_address = header.source or self.client_address

    def begin(self) -> None:
        """Have the handler run; the time for a handshake counts from now, whenever its thread comes to it."""
        self.handler_running = True
        if self._tls:
            self.guard.watch.begin_handshake(self.host.reactor.now())
            self._arm()
        self._submit(self)

    # -- on the handler's thread ---------------------------------------------------------------------------

    def run(self) -> BaseException | None:
        """Handshake, run the handler, hand the socket over.

        Returns:
            The `KeyboardInterrupt` or `SystemExit` that the handler ended with: its thread's business.
        """
        post = self.host.reactor.post
        error: BaseException | None = None
        # The user may have detached or upgraded the request, so the link knows which socket it is now.
        try:
            if self._tls:
                self._handshake()
            post(self.begun, str(self.link.tls_object.version()) if self._tls else None)
            self.host.context().run(self._call)
        except BaseException as caught:
            error = caught
        if runs.touched:
            runs.over()
        sock = self._surrender()
        post(self._returned, error, sock)
        if sock is not None and self.host.reactor.closed:
            # The handler had been abandoned, and whoever would have ended the connection in order is gone.
            sock.close()
        return error if isinstance(error, (KeyboardInterrupt, SystemExit)) else None

    def _handshake(self) -> None:
        try:
            self.link.socket.do_handshake()  # type: ignore[attr-defined]
        except OSError as error:
            with self.guard.lock:
                if self.guard.failure is None:
                    self.guard.failure = ("handshake", error)
            raise

    def _call(self) -> None:
        host = self.host
        with host.calling():
            if host.handler.kind == "class":
                host.handler.target(self.link.socket, self.client_address, host.facade)
            else:
                host.handler.target(self.connection)

    def _surrender(self) -> socket.socket | None:
        surrender = getattr(self.link.socket, "surrender", None)
        return None if surrender is None else surrender()

    def _released_by_handler(self, sock: socket.socket) -> None:
        self.host.reactor.post(self._end_in_order, sock, "finished", None)

    def _deadline_nearer(self) -> None:
        self.host.reactor.post(self._arm)

    # -- on the reactor's thread ---------------------------------------------------------------------------

    def _returned(self, error: BaseException | None, sock: socket.socket | None) -> None:
        self._disarm()
        self.host.handler_freed()
        failure: tuple[str, BaseException | None] | None = self.guard.failure
        if failure is not None and self.link.cause is not None and self.link.cause[0] == failure[0]:
            # Closed by its user: what later calls raise is not why it ended.
            failure = self.link.cause
        if error is not None and not isinstance(error, self.quiet):
            if failure is None or not isinstance(error, (OSError, LongshoreError)):
                self.failed(error)
                failure = failure or self._failure
        elif failure is None and self.guard.input_ended:
            failure = ("drained", None)
        cause, reason = failure or ("finished", None)
        if sock is not None:
            self._end_in_order(sock, cause, reason)
        elif not self._released:
            # The handler has detached the socket: it is no business of ours any more.
            self.gone(cause, reason)
        self.handler_returned()

    def _end_in_order(self, sock: socket.socket, cause: str, error: BaseException | None) -> None:
        """Take the socket over: flush, linger, close."""
        self._released = True
        reactor = self.host.reactor
        self._unwatch()
        stream = self._stream = reactor.stream(
            sock, self.peer, sink=_Tail(self), limits=self.host.limits, timeouts=self.host.timeouts
        )
        stream.start()
        behind = self.link.take_behind()
        unsent = self.link.take_unsent()
        reset = cause in ("aborted", "slow receiver", "limit") or isinstance(error, WriteTimeout)
        if behind and not reset:
            stream.write(behind)
        if unsent and self.link.tls_object is None and not reset:
            stream.write(unsent)
        else:
            self._unsent += len(unsent)
        if reset:
            stream.abort(cause, error)
        elif cause == "handshake" and isinstance(error, HandshakeTimeout):
            stream.fail(cause, error)
        else:
            # A peer that is owed nothing when the server drains is not sending, so there is nothing to wait for.
            stream.close(cause, error, linger=cause != "drained" or self.guard.owing)

    def _finish_later(self, link: SocketLink) -> None:
        """Send what a broadcast could not send at once, when the kernel has room."""
        reactor = self.host.reactor
        if reactor.on_thread:
            self._watch_output()
        else:
            reactor.post(self._watch_output)

    def _watch_output(self) -> None:
        sock = self.link.socket
        # Under the lock, as the handler may be giving the descriptor away right now.
        with self.guard.lock:
            if not self._released and sock.fileno() >= 0:
                self._watched = sock
                self.host.reactor.watch(sock, selectors.EVENT_WRITE, self._output_ready)

    def _output_ready(self, _events: int) -> None:
        try:
            done = self.link.send_unsent()
        except OSError:
            # The handler meets the same error at its next call.
            done = True
        if done:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched is not None:
            self.host.reactor.watch(self._watched, 0, self._output_ready)
            self._watched = None

    # -- deadlines -----------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if not self.handler_running or self.guard.failure is not None:
            return
        # Said before looking: a handler that begins to wait meanwhile sees it and asks again, or is seen here.
        self.guard.armed = math.inf if self._timer is None else self._timer.when
        when, _ = self.guard.watch.deadline()
        if when == math.inf or (self._timer is not None and self._timer.when <= when):
            return
        self._disarm()
        self.guard.armed = when
        self._timer = self.host.reactor.call_at(when, self._on_deadline)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_deadline(self) -> None:
        self._timer = None
        self.guard.armed = math.inf
        when, name = self.guard.watch.deadline()
        if when > self.host.reactor.now():
            self._arm()
            return
        cause = "handshake" if name == "handshake" else "timeout"
        self.guard.interrupt(cause, overdue(name, self.guard.watch.timeouts, self.peer))

    # -- the server's side ---------------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """End the input as soon as the handler waits for it and owes nothing."""
        self.connection.draining = True
        if self.guard.watch.handshaking:
            self.guard.interrupt("drained", self._stopping())
        else:
            self.guard.drain()

    def overdrawn(self, error: LimitExceeded) -> None:
        """Let every wait of the handler raise, and reset."""
        if self._stream is None:
            self.guard.interrupt("limit", error)
        else:
            self._stream.abort("limit", error)

    def held(self) -> int:
        """Bytes pending, both ways."""
        pending = self.link.pending if self._stream is None else self._stream.pending
        return pending + self.link.input.size

    def cut(self) -> None:
        """Let every wait of the handler raise; a connection that only lingers ends."""
        if self._stream is None:
            self.guard.interrupt("cut", self._stopping())
        else:
            self._stream.flush()
            self._stream.fail("cut", self._stopping())

    def evict(self) -> None:
        """Let the handler's wait for input raise; nothing is owed to an idle peer."""
        self.guard.interrupt("evicted", ClosedError(f"{self.peer} was idle, and its place was needed"))

    def destroy(self) -> None:
        """Close what only lingers; a handler that still runs keeps its socket, and is named."""
        if self._stream is not None:
            self._stream.fail("cut", self._stopping())

    def _stopping(self) -> ClosedError:
        return ClosedError(f"the connection to {self.peer} was cut: the server is stopping")

    @property
    def is_closing(self) -> bool:
        """Whether the handler has given the socket back."""
        return self._stream is not None or super().is_closing

    def idle_since(self) -> float | None:
        """When the last byte moved, while the handler waits for input and owes nothing."""
        guard = self.guard
        return guard.watch.last_byte if guard.waiting and not guard.owing else None

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, sent, unsent."""
        guard = self.guard
        sent, unsent = guard.sent, self._unsent + self.link.pending
        if self._stream is not None:
            sent += self._stream.sent
            unsent += self._stream.pending
        return guard.received, sent, unsent
