"""Message handlers on the reactor itself: no thread, no task, one call per message.

A stream's messages are cut one by one, so nothing is delivered after `close()` and a new framing applies
from the next byte.  Replies are coalesced until the batch ends.  A batch is bounded, and a peer that does
not take its replies gets no further message handled, so neither flood nor sloth harms the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.errors import LongshoreError, PeerClosed
from longshore.events import HandlerFailed
from longshore.framing import NEED_MORE
from longshore.links import StreamLink
from longshore.strategies.streams import StreamSession, tls_version

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.config import Limits
    from longshore.strategies import Host, Session

__all__ = ("ReactorStrategy",)

#: Messages that one connection may have handled before the others get their turn.
BATCH = 64


class _MessageLink(StreamLink):
    """The sink of one stream: whatever happens to it may let the session's messages go on."""

    def __init__(self, session: _MessageSession) -> None:
        super().__init__(session.stream_closed)
        self._session = session

    def opened(self) -> None:
        super().opened()
        self._session.ready()

    def arrived(self) -> None:
        super().arrived()
        self._session.go_on()

    def drained(self) -> None:
        super().drained()
        self._session.go_on()

    def idled(self) -> None:
        self._session.idled()


class _MessageSession(StreamSession):
    """One connection and its message handler."""

    def __init__(self, host: Host, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        super().__init__(host, sock, peer, local, tls, _MessageLink(self))
        self._handler: Any = None
        self._busy = False
        self._scheduled = False

    def ready(self) -> None:
        """The stream can be used: for the first time, or again after `start_tls`."""
        if self._handler is None:
            self.opened(tls_version(self.link))
            self._handler = self.host.handler.session_for(self.connection, self.host.facade, self.client_address)
            self._guarded(self._handler.connected)
        self.go_on()

    def idled(self) -> None:
        """Let the handler do something about the silence."""
        self._guarded(self._handler.idle)

    def stream_closed(self, cause: str, error: BaseException | None) -> None:
        """The stream is gone."""
        if self._handler is not None:
            ended_in_order = cause in ("finished", "peer closed", "drained")
            self._guarded(self._handler.disconnected, None if ended_in_order else error)
        self.gone(cause, error)

    # -- messages --------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Handle what is there, unless that is being done already (a handler may cause more events)."""
        if self._busy or self._scheduled or self._handler is None:
            return
        self._busy = True
        self.host.reactor.current = self
        try:
            self._turn()
        finally:
            self._busy = False

    def _turn(self) -> None:
        stream = self.stream
        if self.host.handler.takes_batches:
            more = self._turn_batch()
        else:
            more = True
            for _ in range(BATCH):
                message = self._next()
                if message is NEED_MORE:
                    more = False
                    break
                self._guarded(self._handle, message)
        if more and stream.state == "open":
            self._scheduled = True
            self.host.reactor.again(self._resume)
        elif stream.state == "open" and self.connection.draining and not self.is_owed:
            stream.close("drained", linger=False)

    def _turn_batch(self) -> bool:
        batch: list[Any] = []
        while len(batch) < BATCH * 4 and (message := self._next(ending=not batch)) is not NEED_MORE:
            batch.append(message)
        if batch:
            self._guarded(self._handle_batch, batch)
        return bool(batch)

    def _resume(self) -> None:
        self._scheduled = False
        self.go_on()

    def _next(self, *, ending: bool = True) -> Any:
        """The next message that may be handled now.

        Where the input ends or is no message, the connection does, but not before the messages of a batch that
        has begun were handled: a decoder says the same again when it is asked again.
        """
        stream = self.stream
        if stream.state != "open":
            return NEED_MORE
        if stream.pending > stream.limits.max_pending_bytes:
            stream.want_input(False)
            return NEED_MORE
        try:
            message = stream.input.take_message()
        except Exception as error:
            if ending:
                self._end_input(error)
            return NEED_MORE
        if message is NEED_MORE:
            # All that came was handled, whether or not the handler had something to say to it.
            stream.owing = stream.input.unread
            stream.want_input(True)
        else:
            stream.want_input(False)
        return message

    def _end_input(self, error: Exception) -> None:
        if isinstance(error, PeerClosed):
            self.stream.close("drained" if self.connection.draining else "peer closed", error)
        elif isinstance(error, LongshoreError):
            self.stream.close("framing", error)
        else:
            # A framing of the user's own that raises anything else.
            self._failed(error)

    def _handle(self, message: Any) -> None:
        self.connection.messages += 1
        reply = self._handler.message(message)
        if reply is not None:
            self.connection.send(reply)

    def _handle_batch(self, batch: list[Any]) -> None:
        self.connection.messages += len(batch)
        with self.connection.corked():
            for reply in self._handler.messages(batch) or ():
                self.connection.send(reply)

    def _guarded(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        stream = self.stream
        if stream.state in ("closing", "closed") and isinstance(error, (LongshoreError, OSError)):
            # The connection ended under the handler; its end is reported already.
            return
        self.failed(error)
        if stream.state in ("open", "opening"):
            stream.close("handler failed", error)

    # -- the server's side -----------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """Call the hook, then end as soon as nothing is owed."""
        # What has come before the drain is owed an answer, also if the kernel still has it.
        self.stream.take_arrived()
        self.connection.draining = True
        if self._handler is not None:
            self._guarded(self._handler.draining, deadline)
        if self.stream.state == "opening":
            self.stream.close("drained")
        else:
            self.go_on()

    def cut(self) -> None:
        """Flush what goes, and end."""
        self.stream.close("cut", self.stopping(), linger=bool(self.stream.pending))


class ReactorStrategy:
    """Runs message handlers on the reactor's own thread."""

    name = "reactor"

    def __init__(self, host: Host) -> None:
        self._host = host

    def capacity(self, limits: Limits) -> int | None:
        """No bound but `max_connections`."""
        return None

    def run(self) -> None:
        """Turn the reactor."""
        self._host.reactor.run()

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session on a stream."""
        return _MessageSession(self._host, sock, peer, local, tls)

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram at once."""
        self._host.handler.call_datagram(data, reply, address, self._host.facade)
        return True

    def call(self, function: Callable[[], Any]) -> None:
        """Call it at once."""
        try:
            function()
        except Exception as error:
            name = getattr(function, "__qualname__", repr(function))
            self._host.emit(HandlerFailed(handler=name, peer=None, error=error))

    def close(self) -> tuple[str, ...]:
        """Nothing is left behind."""
        return ()
