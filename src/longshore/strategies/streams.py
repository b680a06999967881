"""A session over a stream of the reactor: what `reactor`, `green` and others have in common.

It opens the stream, is told of its end, and knows when a peer is owed nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.connection import Connection
from longshore.errors import ClosedError, LimitExceeded
from longshore.links.streams import StreamLink
from longshore.packets import are_packets
from longshore.strategies import Session, client_address_of

if TYPE_CHECKING:
    from longshore.connection import AsyncConnection
    from longshore.reactor.stream import Stream
    from longshore.strategies import Host

__all__ = ("StreamSession", "tls_version")


def tls_version(link: Any) -> str | None:
    """The TLS version that a link speaks."""
    return None if link.tls_object is None else str(link.tls_object.version())


class StreamSession(Session):
    """A session whose socket the reactor owns: the sink of its stream.

    `sock` is a socket, or what `reactor.stream` takes as one.  Bases are named here, and in sessions of this kind:
    `super()` would cost a short connection as much as all that they do.
    """

    #: What its handler sees.
    connection_class: type[Connection | AsyncConnection] = Connection

    def __init__(self, host: Host, sock: Any, peer: str, local: str, tls: Any, link: StreamLink) -> None:
        # As that of `Session`, but when it was accepted is the stream's to know.
        self.host = host
        self.peer = peer
        self.local = local
        self.link = link
        link.session = self
        if tls is not None:
            from longshore.tls import Session as TLSSession

            tls = TLSSession(tls, server_side=True)
        stream = host.reactor.stream(
            sock,
            peer,
            sink=self,
            limits=host.limits,
            timeouts=host.timeouts,
            framing=host.framing,
            tls=tls,
            packets=are_packets(sock),
        )
        stream.coalescing = True
        link.attach(stream)
        self.connection = self.connection_class(link, peer, local, host.facade)

    # -- told by the stream ----------------------------------------------------------------------------

    def attach(self, stream: Stream) -> None:
        """Another stream takes the place of the one before."""
        self.link.attach(stream)

    def opened(self) -> None:
        """The stream is ready: for the first time, or again after `start_tls`."""
        if self.handshaking:
            self.handshake_over()
        self.link.opened()

    def arrived(self) -> None:
        """Input came or ended."""
        self.link.arrived()

    def drained(self) -> None:
        """There is room again."""
        self.link.drained()

    def near(self) -> None:
        """Nearly as much is pending as may be."""
        self.host.near_pending(self.link.pending)

    def idled(self) -> None:
        """Nothing moved for `Timeouts.idle`."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """The stream is gone."""
        self.link.closed(cause, error)
        self.gone(cause, error)

    # -- what the server asks --------------------------------------------------------------------------

    @property
    def opened_at(self) -> float:
        """When it was accepted, in seconds on the reactor's clock."""
        return self.link.stream.watch.opened

    @property
    def stream(self) -> Stream:
        """The stream: another one once `start_tls` has taken it where the native reactor does not go."""
        return self.link.stream

    @property
    def client_address(self) -> Any:
        """The peer's address as the socket gives it; not kept, as most handlers never ask."""
        return self.introduced or client_address_of(self.stream.socket, self.peer)

    @property
    def is_closing(self) -> bool:
        """Whether the stream only flushes and lingers, or is closed."""
        return self.stream.state in ("closing", "closed")

    def begin(self) -> None:
        """Let the stream read: its handshake, if there is one, and then the handler."""
        self.link.stream.start()

    def idle_since(self) -> float | None:
        """When the last byte moved, if nothing is owed to this peer now."""
        stream = self.stream
        return stream.watch.last_byte if stream.watch.waiting and not self.is_owed else None

    @property
    def is_owed(self) -> bool:
        """Whether the peer has sent something that has no answer yet, or has not taken its answer."""
        stream = self.stream
        return bool(stream.owing or stream.pending or stream.input.unread)

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, sent, unsent."""
        return self.link.stream.traffic()

    def evict(self) -> None:
        """End now; nothing is owed to an idle peer."""
        self.stream.close("evicted", ClosedError(f"{self.peer} was idle, and its place was needed"), linger=False)
        self.link.arrived()

    def hold(self, held: bool) -> None:
        """Read nothing for now, or read again as before."""
        self.link.hold(held)

    def overdrawn(self, error: LimitExceeded) -> None:
        """End at once: what it holds will not be taken."""
        self.stream.abort("limit", error)
        self.link.arrived()

    def held(self) -> int:
        """Bytes pending, both ways."""
        return self.stream.pending + self.stream.input.size

    def destroy(self) -> None:
        """Close the socket at once."""
        self.stream.fail("cut", self.stopping())

    def stopping(self) -> ClosedError:
        """The error of whoever still waits when the server ends."""
        return ClosedError(f"the connection to {self.peer} was cut: the server is stopping")
