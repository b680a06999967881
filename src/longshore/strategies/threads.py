"""Blocking handlers on threads of their own, and message handlers on a pool of threads.

Connections whose handler waits by itself have a thread each.  Connections of message handlers are streams
of the reactor, and each message is one job of the pool: a connection has at most one job at a time, so its
messages stay in order, and an idle connection holds no thread.  Nothing here reads a socket.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.buffers import octets
from longshore.errors import LongshoreError, PeerClosed
from longshore.events import HandlerFailed
from longshore.framing import NEED_MORE
from longshore.handlers import MessageHandler
from longshore.limits import overdue
from longshore.links.streams import StreamLink
from longshore.reactor.dispatch import LARGE_BATCH
from longshore.strategies import IN_ORDER, Session
from longshore.strategies.blocking import BlockingSession
from longshore.strategies.crew import Crew
from longshore.strategies.streams import StreamSession, tls_version

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.config import Limits
    from longshore.strategies import Host

__all__ = ("Refused", "ThreadsStrategy", "guarded_call", "handle_datagram")

#: Jobs of those who always have another one whose end the reactor sees to in one turn.
SETTLED = 32
#: Datagrams that may wait for each thread of the pool.
DATAGRAMS_PER_THREAD = 16


class Refused(Session):
    """A connection that ended before its TLS handshake could begin."""

    def __init__(self, host: Host, peer: str, local: str, error: OSError) -> None:
        super().__init__(host, peer, local)
        self._error = error

    def begin(self) -> None:
        """Give the places back."""
        self.host.handler_freed()
        self.gone("handshake", self._error)

    def drain(self, deadline: float | None) -> None:
        """It is over."""

    def cut(self) -> None:
        """It is over."""

    def idle_since(self) -> float | None:
        """It is over."""
        return None

    def traffic(self) -> tuple[int, int, int]:
        """Nothing went through."""
        return 0, 0, 0


def guarded_call(
    host: Host, name: str, peer: str | None, function: Callable[[], object]
) -> KeyboardInterrupt | SystemExit | None:
    """Call `function` in the server's context, and report what it raises.

    Returns:
        The `KeyboardInterrupt` or `SystemExit` that it ended with: its thread's business.
    """
    try:
        host.context().run(_inside, host, function)
    except (KeyboardInterrupt, SystemExit) as error:
        return error
    except Exception as error:
        host.emit(HandlerFailed(handler=name, peer=peer, error=error))
    finally:
        if runs.touched:
            runs.over()
    return None


def handle_datagram(host: Host, data: bytes, reply: Any, address: Any) -> None:
    """Run the handler for one datagram; what is malformed is the peer's fault and no failure of the handler."""
    try:
        host.handler.call_datagram(data, reply, address, host.facade)
    except Exception as error:
        reply.failed(error, len(data))
    finally:
        reply.handled()


def _inside(host: Host, function: Callable[..., Any], *args: Any) -> Any:
    with host.calling():
        return function(*args)


class _Finished:
    """Jobs that the pool has done, on their way to the reactor's thread.

    There too a flood of those who always have another one must not delay the others: they come after them, and some a
    turn, so that the reactor looks at its sockets between.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._first: deque[Callable[[], object]] = deque()
        self._behind: deque[Callable[[], object]] = deque()
        self._posted = False

    def add(self, settle: Callable[[], object], *, behind: bool) -> None:
        """Have `settle()` called; from any thread."""
        # Before it is looked whether the reactor comes anyway: whoever clears that looks here afterwards.
        (self._behind if behind else self._first).append(settle)
        if not self._posted:
            self._post()

    def _post(self) -> None:
        self._posted = True
        self._host.reactor.post(self._settle)

    def _settle(self) -> None:
        self._posted = False
        try:
            while self._first:
                self._first.popleft()()
            for _ in range(min(SETTLED, len(self._behind))):
                self._behind.popleft()()
        finally:
            if (self._first or self._behind) and not self._posted:
                self._post()


class _PooledSession(StreamSession):
    """One connection of a message handler; its state belongs to the reactor's thread, its jobs to the pool."""

    def __init__(
        self, host: Host, sock: socket.socket, peer: str, local: str, tls: Any, pool: tuple[Crew, _Finished]
    ) -> None:
        link = StreamLink()
        super().__init__(host, sock, peer, local, tls, link)
        # A reply is sent when it is there: the next message is another thread's, and may take its time.
        self.stream.coalescing = False
        self._link = link
        self._crew, self._finished = pool
        self._handler: Any = None
        self._started = False
        self._busy = False
        self._hooks: list[tuple[str, tuple[Any, ...]]] = []
        self._lost = 0

    # -- told by the stream ----------------------------------------------------------------------------

    def opened(self) -> None:
        """Begin, or go on after a change to TLS."""
        super().opened()
        if not self._started:
            self._started = True
            self.handler_running = True
            self.begun(tls_version(self._link))
            self._submit(self._begin)
        else:
            self.go_on()

    def arrived(self) -> None:
        """Input came or ended."""
        super().arrived()
        self.go_on()

    def drained(self) -> None:
        """There is room again."""
        super().drained()
        self.go_on()

    def idled(self) -> None:
        """Let the handler send something, if it wants the connection to live on."""
        if self._busy or type(self._handler).idle is MessageHandler.idle:
            return
        # The hook runs on another thread, so the stream must not look at its deadline again before that is done.
        self.stream.want_input(False)
        self._submit(self._run_hook, "idle", (), then=self._after_idle(self._written))

    @property
    def _written(self) -> int:
        return self.stream.sent + self.stream.pending

    def _after_idle(self, before: int) -> Callable[[], None]:
        def look() -> None:
            if self.stream.state == "open" and self._written == before:
                self.stream.close("timeout", overdue("idle", self.stream.watch.timeouts, self.peer))
            self.go_on()

        return look

    def closed(self, cause: str, error: BaseException | None) -> None:
        """Tell the handler, once no message is with it."""
        self._hooks.append(("disconnected", (None if cause in IN_ORDER else error,)))
        super().closed(cause, error)
        self.go_on()

    # -- one job after the other -------------------------------------------------------------------------

    def go_on(self, *, behind: bool = False) -> None:
        """Give the pool the next thing to do for this connection, unless it has one; `behind` what others wait for."""
        if self._busy or not self.handler_running:
            return
        if self._hooks:
            name, args = self._hooks.pop(0)
            self._submit(
                self._run_hook, name, args, then=self.handler_returned if name == "disconnected" else self.go_on
            )
            return
        found = self._next()
        if found:
            self.connection.messages += len(found)
            self._submit(self._handle, found, behind=behind)
        elif self.stream.state == "open" and self.connection.draining and not self.is_owed:
            self.stream.close("drained", linger=self.stream.owing)

    @property
    def is_owed(self) -> bool:
        """Whether a message is partial or being handled, or output is pending; no reply is a reply too."""
        return bool(self._busy or self.stream.pending or self.stream.input.unread)

    def _next(self) -> list[Any]:
        """The messages that may be handled now: one, or a batch for a handler that takes batches."""
        stream = self.stream
        found: list[Any] = []
        wanted = LARGE_BATCH if self.host.handler.takes_batches else 1
        if stream.state != "open":
            return found
        if self._link.pending > stream.limits.max_pending_bytes:
            stream.want_input(False)
            return found
        try:
            while len(found) < wanted and (message := stream.input.take_message()) is not NEED_MORE:
                found.append(message)
        except Exception as error:
            # A decoder says the same again when it is asked again: what came before it is handled first.
            if not found:
                self._no_message(error)
                return found
        stream.want_input(not found)
        return found

    def _no_message(self, error: Exception) -> None:
        if isinstance(error, PeerClosed):
            self.stream.close("drained" if self.connection.draining else "peer closed")
        elif isinstance(error, LongshoreError):
            self.stream.close("framing", error)
        else:
            self._fail(error)

    def _submit(
        self, job: Callable[..., None], *args: Any, then: Callable[[], None] | None = None, behind: bool = False
    ) -> None:
        self._busy = True
        name = f"{self.host.handler.name} for {self.peer}"
        # Whoever has sent the next message before it got its answer can wait rather than whoever asks and waits.
        self._crew.submit(name, lambda: self._run(job, args, then or self._go_on_behind, behind), behind=behind)

    def _go_on_behind(self) -> None:
        self.go_on(behind=True)

    def _run(self, job: Callable[..., None], args: tuple[Any, ...], then: Callable[[], None], behind: bool) -> None:
        """On a thread of the pool: do it, and post what came of it."""
        replies: list[bytes] = []
        error: BaseException | None = None
        try:
            self.host.context().run(_inside, self.host, job, replies, *args)
        except BaseException as caught:
            error = caught
        if runs.touched:
            runs.over()
        self._finished.add(lambda: self._done(replies, error, then), behind=behind)

    def _begin(self, replies: list[bytes]) -> None:
        self._handler = self.host.handler.session_for(self.connection, self.host.facade, self.client_address)
        self._handler.connected()

    def _run_hook(self, replies: list[bytes], name: str, args: tuple[Any, ...]) -> None:
        if self._handler is not None:
            getattr(self._handler, name)(*args)

    def _handle(self, replies: list[bytes], found: list[Any]) -> None:
        if self.host.handler.takes_batches:
            answers = self._handler.messages(found) or ()
        else:
            answers = (self._handler.message(found[0]),)
        for answer in answers:
            if answer is not None:
                # Encoded here, so that a reply which the framing refuses is the handler's failure.
                framing = self.connection.framing
                replies.append(octets(answer) if framing is None else framing.encode(answer))

    def _done(self, replies: list[bytes], error: BaseException | None, then: Callable[[], None]) -> None:
        """On the reactor's thread: send the replies, and go on."""
        for reply in replies:
            try:
                self.stream.write(reply)
            except (LongshoreError, OSError):
                self._lost += len(reply)
        # Not before: a write that leaves at once calls the sink, which would go on with what comes after them.
        self._busy = False
        if isinstance(error, SystemExit):
            # As in any thread, it ends quietly what is the thread's: here, this connection.
            self.stream.close()
        elif error is not None:
            self._fail(error)
        then()

    def _fail(self, error: BaseException) -> None:
        stream = self.stream
        if stream.state in ("closing", "closed") and isinstance(error, (LongshoreError, OSError)):
            # The connection ended under the handler; its end is reported already.
            return
        self.failed(error)
        if stream.state in ("open", "opening"):
            stream.close("handler failed", error)

    # -- the server's side ---------------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """Call the hook, then end as soon as nothing is owed."""
        self.stream.take_arrived()
        self.stream.telling = True
        self.connection.draining = True
        if not self._started:
            self.stream.close("drained")
        else:
            self._hooks.append(("draining", (deadline,)))
            self.go_on()

    def cut(self) -> None:
        """Flush what goes, and end."""
        self.stream.close("cut", self.stopping(), linger=bool(self.stream.pending))

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, sent, unsent."""
        received, sent, unsent = super().traffic()
        return received, sent, unsent + self._lost


class ThreadsStrategy:
    """A thread for each connection of a handler that waits; a pool for handlers that take messages."""

    name = "threads"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._crew = Crew(lambda: host.limits.max_threads)
        self._finished = _Finished(host)
        # Not the pool: with every place taken by connections, nothing else would ever run there.  Their number
        # is bounded before open() is called.
        self._handlers = Crew(lambda: None)
        self.on_streams = host.handler.takes_messages

    def capacity(self, limits: Limits) -> int | None:
        """`max_threads`, for handlers that hold a thread."""
        return None if self._host.handler.takes_messages else limits.max_threads

    def run(self) -> None:
        """Turn the reactor."""
        self._host.reactor.run()

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session on a stream, or one with a thread of its own."""
        if self._host.handler.takes_messages:
            return _PooledSession(self._host, sock, peer, local, tls, (self._crew, self._finished))
        try:
            return BlockingSession(self._host, sock, peer, local, tls, self._submit)
        except OSError as error:
            return Refused(self._host, peer, local, error)

    def _submit(self, session: BlockingSession) -> None:
        self._handlers.submit(session.label, session.run, name=f"longshore-{session.connection.id}")

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram in the pool."""
        host = self._host
        bound = host.limits.max_threads
        if bound is not None and self._crew.waiting >= bound * DATAGRAMS_PER_THREAD:
            return False
        name = host.handler.name
        self._crew.submit(
            f"{name} for {peer}",
            lambda: self._call(name, peer, lambda: handle_datagram(host, data, reply, address)),
        )
        return True

    def _call(self, name: str, peer: str | None, function: Callable[[], Any]) -> None:
        leaving = guarded_call(self._host, name, peer, function)
        if isinstance(leaving, KeyboardInterrupt):
            # Raised in a thread it is no interrupt of the user's, but a failure like any other.
            self._host.emit(HandlerFailed(handler=name, peer=peer, error=leaving))

    def call(self, function: Callable[[], Any]) -> None:
        """Call it in the pool."""
        name = str(getattr(function, "__qualname__", repr(function)))
        self._crew.submit(name, lambda: self._call(name, None, function))

    def close(self) -> tuple[str, ...]:
        """End the threads, waiting for at most a second; the names of those that still run."""
        return Crew.close_all(self._handlers, self._crew)
