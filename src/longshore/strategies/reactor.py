"""Message handlers on the reactor itself: no thread, no task, one call per message.

The stream itself hands its messages to the handler (`reactor/dispatch.py`), natively where it can.  Here is what is
left: hooks, failures, and the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.errors import LongshoreError
from longshore.events import HandlerFailed
from longshore.links.streams import StreamLink
from longshore.strategies import IN_ORDER
from longshore.strategies.streams import StreamSession, tls_version

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.config import Limits
    from longshore.strategies import Host, Session

__all__ = ("ReactorStrategy",)


class _MessageSession(StreamSession):
    """One connection and its message handler; the receiver of what is unusual about its messages."""

    #: The `MessageHandler`; None for a function, which has no hooks.
    _handler: Any = None

    # -- told by the stream, which needs not tell of messages, as it dispatches them -------------------------

    def opened(self) -> None:
        StreamSession.opened(self)
        stream = self.link.stream
        if self.is_open:
            stream.go_on()
            return
        self.begun(None if stream.tls is None else tls_version(self.link))
        handler = self.host.handler
        if handler.kind != "session":
            stream.dispatch(handler.target, self.connection, self)
            return
        session = self._handler = handler.session_for(self.connection, self.host.facade, self.client_address)
        self._guarded(session.connected)
        # Another one, where the hook has chosen a framing that the native one does not know.
        stream = self.link.stream
        if handler.takes_batches:
            stream.dispatch(session.messages, None, self, batches=True)
        else:
            stream.dispatch(session.message, None, self)

    def idled(self) -> None:
        if self._handler is not None:
            self._guarded(self._handler.idle)

    def closed(self, cause: str, error: BaseException | None) -> None:
        link = self.link
        link.closed(cause, error)
        # They would keep each other alive until the garbage collector comes.
        link.session = None
        try:
            if self._handler is not None:
                self._guarded(self._handler.disconnected, None if cause in IN_ORDER else error)
        finally:
            self.gone(cause, error)

    # -- told by the stream's dispatch -----------------------------------------------------------------

    def send(self, reply: Any) -> None:
        """Send a reply that takes more than encoding it."""
        self.connection.send(reply)

    def input_ended(self) -> None:
        """There will be no further message: the peer has closed."""
        self.link.stream.close("drained" if self.connection.draining else "peer closed")

    def input_failed(self, error: Exception) -> None:
        """There will be no further message: what came is none."""
        if isinstance(error, LongshoreError):
            self.stream.close("framing", error)
        else:
            # A framing of the user's own that raises anything else.
            self.handler_failed(error)

    def ran_dry(self) -> None:
        """All that has come was handled: while the server drains, that is the end."""
        if self.connection.draining and not self.is_owed:
            self.stream.close("drained", linger=False)

    def handler_failed(self, error: BaseException) -> None:
        """The handler raised something."""
        stream = self.stream
        if stream.state in ("closing", "closed") and isinstance(error, (LongshoreError, OSError)):
            # The connection ended under the handler; its end is reported already.
            return
        self.failed(error)
        if stream.state in ("open", "opening"):
            stream.close("handler failed", error)

    def _guarded(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self.handler_failed(error)

    # -- the server's side -----------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """Call the hook, then end as soon as nothing is owed."""
        # What has come before the drain is owed an answer, also if the kernel still has it.
        self.stream.take_arrived()
        self.connection.draining = True
        self.stream.telling = True
        if self._handler is not None:
            self._guarded(self._handler.draining, deadline)
        if self.stream.state == "opening":
            self.stream.close("drained")
        else:
            self.stream.go_on()

    def cut(self) -> None:
        """Flush what goes, and end."""
        self.stream.close("cut", self.stopping(), linger=bool(self.stream.pending))


class ReactorStrategy:
    """Runs message handlers on the reactor's own thread."""

    name = "reactor"
    on_streams = True

    def __init__(self, host: Host) -> None:
        self._host = host

    def capacity(self, limits: Limits) -> int | None:
        """No bound but `max_connections`."""
        return None

    def run(self) -> None:
        """Turn the reactor, in the context that all its handlers see."""
        self._host.context().run(self._host.reactor.run)

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session on a stream."""
        return _MessageSession(self._host, sock, peer, local, tls, StreamLink())

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
