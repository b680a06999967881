"""Datagram peers: what a handler sees as the connection of a datagram.

A message function is stateless, so its peer lives for one call.  A `MessageHandler` has a session per
peer: the table of them is here, bounded, with the oldest idle one evicted.  This file sends and receives
through a reactor's `Datagrams` and knows no strategy.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from longshore.addresses import format_peer
from longshore.errors import FramingError
from longshore.events import DatagramDropped, HandlerFailed
from longshore.networks import packed
from longshore.policy import Sparing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.framing import Framing
    from longshore.reactor.datagrams import Datagrams

__all__ = ("DatagramService", "Peer")

#: Seconds after which a peer that sends nothing has no session any more.
SESSION_IDLE = 60.0

_ids = itertools.count(1)


class Peer:
    """The other end of a datagram, in the shape of a connection: `send` replies to it."""

    def __init__(self, service: DatagramService, address: Any, info: Any) -> None:
        self._service = service
        self._info = info
        #: A number that no other peer of this process has.
        self.id: int = next(_ids)
        #: The address as the socket gives it.
        self.client_address: Any = address
        #: The address as text.
        self.peer: str = format_peer(service.socket.family, address)
        #: Our own address, as a URL.
        self.local: str = service.local
        self.server: Any = service.host.facade
        #: What encodes replies and cuts each datagram; None: a datagram is a message.
        self.framing: Framing | None = service.host.framing
        self.state: dict[Any, Any] = {}
        self.via: str | None = None
        self.tls: None = None
        self.session: Any = None
        self.seen = 0.0

    @property
    def draining(self) -> bool:
        """Whether the server has asked its handlers to finish."""
        return bool(self._service.host.draining)

    def send(self, message: Any) -> None:
        """Send one message; it leaves from the address that was asked."""
        self.sendall(bytes(message) if self.framing is None else self.framing.encode(message))

    def sendall(self, data: bytes) -> None:
        """Send one datagram; one that the kernel cannot take now is dropped, with an event."""
        self._service.send(data, self.client_address, self._info)

    def close(self) -> None:
        """Forget the peer's session; its next datagram starts another."""
        self._service.forget(self.client_address)

    def failed(self, error: BaseException, size: int = 0) -> None:
        """Report what left the handler, which had a datagram of `size` bytes."""
        self._service.failed(self, error, size)

    def socket_for_handler(self) -> Any:
        """The second half of `request`, as the standard library's datagram handlers take it."""
        return _ReplySocket(self)

    def arrived(self, info: Any, now: float) -> None:
        """Another datagram came."""
        self._info = info
        self.seen = now


class _ReplySocket:
    """The server's socket, but replies to the peer leave from the address that the peer has asked."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer._service.socket, name)

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """As `socket.socket.sendto`."""
        if flags_and_address == (self._peer.client_address,):
            self._peer.sendall(bytes(data))
            return len(data)
        sent: int = self._peer._service.socket.sendto(data, *flags_and_address)
        return sent


class DatagramService:
    """One datagram address of a server: sessions, and what goes wrong."""

    def __init__(self, host: Any, sock: socket.socket, local: str, dispatch: Callable[..., bool]) -> None:
        self.host = host
        self.socket = sock
        self.local = local
        self._dispatch = dispatch
        self._sessions: OrderedDict[Any, Peer] = OrderedDict()
        self._keeps_sessions = host.handler.kind == "session"
        self._datagrams: Datagrams = host.reactor.datagrams(sock, self)
        self._expiry: Any = None
        self._refusals = Sparing()
        self.count = 0

    # -- the reactor's side ----------------------------------------------------------------------------

    def received(self, data: bytes, address: Any, info: Any, *, truncated: bool) -> None:
        """One datagram."""
        self.count += 1
        limit = self._forbidden(address)
        if limit is not None:
            self._refuse(format_peer(self.socket.family, address), limit, len(data))
            return
        peer = self._peer(address, info)
        if truncated:
            self._dropped(peer.peer, "truncated", len(data))
            return
        try:
            if not self._dispatch(data, peer.peer, peer, address):
                self._dropped(peer.peer, "the strategy is full", len(data))
        except Exception as error:
            self.failed(peer, error, len(data))

    def receive_failed(self, error: OSError) -> None:
        """An earlier reply found nobody: that peer's affair, and it is not known which."""
        self._dropped("unknown", "a reply found nobody", 0, error)

    # -- the server's side -----------------------------------------------------------------------------

    def pause(self) -> None:
        """Read nothing more."""
        self._datagrams.pause()

    def resume(self) -> None:
        """Read again."""
        self._datagrams.resume()

    def finish(self, deadline: float | None) -> None:
        """Take what has come, tell the sessions, read no more."""
        self._datagrams.receive_queued()
        self._datagrams.pause()
        for peer in list(self._sessions.values()):
            self._hook(peer, peer.session and peer.session.draining, deadline)

    def close(self) -> None:
        """End every session."""
        self._datagrams.pause()
        if self._expiry is not None:
            self._expiry.cancel()
        for address in list(self._sessions):
            self.forget(address)

    def send(self, data: bytes, address: Any, info: Any) -> None:
        """Send one datagram."""
        if not address:
            self._dropped("an unnamed peer", "it has no address to reply to", len(data))
            return
        try:
            self._datagrams.send(data, address, info)
        except OSError as error:
            self._dropped(format_peer(self.socket.family, address), "the reply could not be sent", len(data), error)

    def forget(self, address: Any) -> None:
        """End the session of one peer."""
        peer = self._sessions.pop(address, None)
        if peer is not None and peer.session is not None:
            self._hook(peer, peer.session.disconnected, None)

    def failed(self, peer: Peer, error: BaseException, size: int = 0) -> None:
        """What left the handler: the peer's fault is a dropped datagram, anything else a failure."""
        if isinstance(error, FramingError):
            self._dropped(peer.peer, "malformed", size, error)
        else:
            self.host.emit(HandlerFailed(handler=self.host.handler.name, peer=peer.peer, error=error))

    def _forbidden(self, address: Any) -> str | None:
        """The limit by which a peer may not be heard; a session counts once for its rate, else each datagram does."""
        policy = self.host.policy
        who = packed(address[0]) if self.socket.family in (AF_INET, AF_INET6) else None
        if who is None:
            # Unix datagrams come without their sender's user (it would have to be asked for with each).
            return None
        limit: str | None = policy.forbids(who)
        if limit is None and address not in self._sessions:
            limit = policy.rushes(who, self.host.reactor.now())
        return limit

    def _refuse(self, peer: str, limit: str, size: int) -> None:
        count = self._refusals.count(self.host.reactor.now())
        if count:
            others = f", with {count - 1} others" if count > 1 else ""
            self._dropped(peer, f"Limits.{limit}{others}", size)

    # -- sessions --------------------------------------------------------------------------------------

    def _peer(self, address: Any, info: Any) -> Peer:
        if not self._keeps_sessions:
            return Peer(self, address, info)
        now = self.host.reactor.now()
        peer = self._sessions.get(address)
        if peer is None:
            if len(self._sessions) >= self.host.limits.max_connections:
                self.forget(next(iter(self._sessions)))
            peer = self._sessions[address] = Peer(self, address, info)
        self._sessions.move_to_end(address)
        peer.arrived(info, now)
        if self._expiry is None:
            self._expiry = self.host.reactor.call_later(SESSION_IDLE, self._expire)
        return peer

    def _expire(self) -> None:
        self._expiry = None
        now = self.host.reactor.now()
        while self._sessions:
            address, peer = next(iter(self._sessions.items()))
            due = peer.seen + SESSION_IDLE
            if due > now:
                self._expiry = self.host.reactor.call_at(due, self._expire)
                return
            if peer.session is not None:
                self._hook(peer, peer.session.idle)
            self.forget(address)

    def _hook(self, peer: Peer, hook: Any, *args: Any) -> None:
        if hook is None:
            return
        try:
            hook(*args)
        except Exception as error:
            self.failed(peer, error)

    def _dropped(self, peer: str, reason: str, size: int, error: BaseException | None = None) -> None:
        self.host.emit(DatagramDropped(peer=peer, local=self.local, reason=reason, size=size, error=error))
