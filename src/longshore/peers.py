"""Datagram peers: what a handler sees as the connection of a datagram.

A message function is stateless, so its peer lives for one call.  A `MessageHandler` has a session per
peer: the table of them is here, bounded, with the oldest idle one evicted.  This file sends and receives
through a reactor's `Datagrams` and knows no strategy.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import OrderedDict, deque
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from longshore.addresses import format_peer
from longshore.buffers import octets
from longshore.errors import FramingError
from longshore.events import DatagramDropped, HandlerFailed
from longshore.networks import packed
from longshore.policy import Sparing

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from longshore.framing import Framing
    from longshore.reactor.datagrams import Datagrams
    from longshore.strategies import Strategy

__all__ = ("DatagramService", "Peer")

#: Seconds after which a peer that sends nothing has no session any more.
SESSION_IDLE = 60.0
#: Datagrams of one peer that may wait for the one that its session has to do with.
WAITING = 64

_ids = itertools.count(1)


class Peer:
    """The other end of a datagram, in the shape of a connection: `send` replies to it.

    What is asked of few is made when it is asked for; what a handler leaves in it is told to the datagrams, which else
    may give it again.
    """

    __slots__ = (
        "_framing",
        "_id",
        "_info",
        "_peer",
        "_service",
        "_state",
        "busy",
        "client_address",
        "seen",
        "session",
        "waiting",
    )

    via: str | None = None
    tls: None = None

    def __init__(self, service: DatagramService, address: Any, info: Any) -> None:
        self._service = service
        self._info = info
        #: The address as the socket gives it.
        self.client_address: Any = address
        self._framing: Framing | None = service.host.framing
        self._id = 0
        self._peer: str | None = None
        self._state: dict[Any, Any] | None = None
        self.session: Any = None
        self.seen = 0.0
        #: Whether a datagram is with its session, and which ones wait for that: they are handled one at a time.
        self.busy = False
        self.waiting: deque[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.peer} of {self.local}>"

    @property
    def id(self) -> int:
        """A number that no other peer of this process has."""
        if not self._id:
            self._id = next(_ids)
            self._service.keep()
        return self._id

    @property
    def peer(self) -> str:
        """The address as text."""
        if self._peer is None:
            self._peer = format_peer(self._service.socket.family, self.client_address)
        return self._peer

    @property
    def local(self) -> str:
        """Our own address, as a URL."""
        return self._service.local

    @property
    def server(self) -> Any:
        """The server."""
        return self._service.host.facade

    @property
    def framing(self) -> Framing | None:
        """What encodes replies and cuts each datagram; None: a datagram is a message."""
        return self._framing

    @framing.setter
    def framing(self, framing: Framing | None) -> None:
        self._framing = framing
        self._service.keep()

    @property
    def state(self) -> dict[Any, Any]:
        """Whatever the handler wants to keep with the peer, as long as there is one."""
        if self._state is None:
            self._state = {}
            self._service.keep()
        return self._state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self._state = state
        self._service.keep()

    @property
    def draining(self) -> bool:
        """Whether the server has asked its handlers to finish."""
        return bool(self._service.host.draining)

    def send(self, message: Any) -> None:
        """Send one message; it leaves from the address that was asked."""
        self.sendall(octets(message) if self._framing is None else self._framing.encode(message))

    def sendall(self, data: bytes) -> None:
        """Send one datagram; one that the kernel cannot take now is dropped, with an event."""
        self._service.send(data, self.client_address, self._info)

    def close(self) -> None:
        """Forget the peer's session; its next datagram starts another."""
        self._service.forget(self.client_address)
        # Nothing is delivered after this, what is left of a datagram included.
        self.session = None

    def handled(self) -> None:
        """The strategy is through with a datagram that it has taken; from any thread."""
        self._service.handled(self)

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
            self._peer.sendall(octets(data))
            return len(data)
        sent: int = self._peer._service.socket.sendto(data, *flags_and_address)
        return sent


class DatagramService:
    """One datagram address of a server: sessions, and what goes wrong."""

    def __init__(self, host: Any, sock: socket.socket, local: str, strategy: Strategy) -> None:
        self.host = host
        self.socket = sock
        self.local = local
        self._strategy = strategy
        self._sessions: OrderedDict[Any, Peer] = OrderedDict()
        handler = host.handler
        self._keeps_sessions = handler.kind == "session"
        #: Whether a datagram is through once the strategy has taken it.
        self._at_once = strategy.name == "reactor"
        self._takes_batches = handler.takes_batches and self._at_once
        #: Datagrams and hooks that are being handled.
        self.busy = 0
        self._on_quiet: Callable[[], object] | None = None
        self._datagrams: Datagrams = host.reactor.datagrams(sock, self)
        self.keep = self._datagrams.keep
        self._expiry: Any = None
        self._refusals = Sparing()
        self.reconfigure()

    def reconfigure(self) -> None:
        """Hear as the limits want it now."""
        host, strategy = self.host, self._strategy
        direct = strategy.name == "reactor" and host.handler.kind == "message" and host.framing is None
        if direct and not host.policy.judges_datagrams:
            # Nothing of ours is needed for a datagram, but what is unusual.
            self._datagrams.dispatch(host.handler.target)
        else:
            self._datagrams.dispatch(batches=self._takes_batches)

    @property
    def count(self) -> int:
        """Datagrams that have come."""
        return self._datagrams.count

    # -- the reactor's side ----------------------------------------------------------------------------

    def received(self, batch: list[bytes], address: Any, info: Any) -> None:
        """Datagrams of one peer."""
        if self.host.policy.judges_datagrams:
            batch = [data for data in batch if self._may_come(address, len(data))]
        if self._takes_batches and batch:
            peer = self._known(address, info)
            try:
                self.host.handler.call_datagrams(batch, peer, address, self.host.facade)
            except Exception as error:
                self.failed(peer, error, sum(map(len, batch)))
            return
        for data in batch:
            # A session may end with each of them.
            peer = self._known(address, info) if self._keeps_sessions else Peer(self, address, info)
            if not peer.busy:
                self._hand_over(data, peer)
            elif peer.waiting is not None and len(peer.waiting) >= WAITING:
                self._dropped(peer.peer, "its session is busy", len(data))
            else:
                peer.waiting = peer.waiting or deque()
                peer.waiting.append(data)

    def _hand_over(self, data: bytes, peer: Peer) -> None:
        if not self._at_once:
            self.busy += 1
            peer.busy = self._keeps_sessions
        try:
            if self._strategy.datagram(data, peer.peer, peer, peer.client_address):
                return
            self._dropped(peer.peer, "the strategy is full", len(data))
        except Exception as error:
            self.failed(peer, error, len(data))
        if not self._at_once:
            self._handled(peer)

    def handled(self, peer: Peer) -> None:
        """The strategy is through with a datagram of `peer`; from any thread."""
        if not self.host.reactor.on_thread:
            self.host.reactor.post(self._handled, peer)
        elif peer.waiting or self._on_quiet is not None:
            # In a turn of its own: what goes on there is not for the end of a greenlet.
            self.host.reactor.again(functools.partial(self._handled, peer))
        else:
            self._handled(peer)

    def _handled(self, peer: Peer) -> None:
        peer.busy = False
        if peer.waiting:
            self._hand_over(peer.waiting.popleft(), peer)
        self._ended()

    def _ended(self) -> None:
        """A datagram or a hook is through."""
        self.busy -= 1
        if not self.busy and self._on_quiet is not None:
            self._on_quiet()

    def truncated(self, size: int, address: Any) -> None:
        """A datagram that is longer than any that can be sent over IP."""
        self._dropped(format_peer(self.socket.family, address), "truncated", size)

    def receive_failed(self, error: OSError) -> None:
        """An earlier reply found nobody: that peer's affair, and it is not known which."""
        self._dropped("unknown", "a reply found nobody", 0, error)

    def send_failed(self, size: int, address: Any, error: OSError) -> None:
        """The system refuses a reply."""
        self._dropped(format_peer(self.socket.family, address), "the reply could not be sent", size, error)

    def peer(self, address: Any, info: Any) -> Peer:
        """A peer for one call."""
        return Peer(self, address, info)

    # -- the server's side -----------------------------------------------------------------------------

    def pause(self) -> None:
        """Read nothing more."""
        self._datagrams.pause()

    def resume(self) -> None:
        """Read again."""
        self._datagrams.resume()

    def finish(self, deadline: float | None, on_quiet: Callable[[], object]) -> None:
        """Take what has come, tell the sessions, read no more; call `on_quiet` once none is `busy` any more."""
        self._on_quiet = on_quiet
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
            self.send_failed(len(data), address, error)

    def forget(self, address: Any) -> None:
        """End the session of one peer."""
        peer = self._sessions.pop(address, None)
        if peer is None:
            return
        if self.host.reactor.on_thread:
            self._drop_waiting(peer)
        else:
            # A handler ends its session on a thread of its own, while the reactor may be putting something behind.
            self.host.reactor.post(self._drop_waiting, peer)
        if peer.session is not None:
            self._hook(peer, peer.session.disconnected, None)

    def _drop_waiting(self, peer: Peer) -> None:
        while peer.waiting:
            self._dropped(peer.peer, "its session has ended", len(peer.waiting.popleft()))

    def failed(self, peer: Peer, error: BaseException, size: int = 0) -> None:
        """What left the handler: the peer's fault is a dropped datagram, anything else a failure."""
        if isinstance(error, FramingError):
            self._dropped(peer.peer, "malformed", size, error)
        else:
            self.host.emit(HandlerFailed(handler=self.host.handler.name, peer=peer.peer, error=error))

    def _may_come(self, address: Any, size: int) -> bool:
        """Whether a datagram may be handled; a session counts once for its peer's rate, else each datagram does."""
        if self.socket.family not in (AF_INET, AF_INET6):
            # Unix datagrams come without their sender's user: its file's mode says who may send.
            return True
        policy, who, now = self.host.policy, packed(address[0]), self.host.reactor.now()
        limit = policy.forbids(who)
        if limit is None and address not in self._sessions:
            limit = policy.rushes(who, now)
        if limit is None:
            return True
        count = self._refusals.count(now)
        if count:
            others = f", and {count - 1} more" if count > 1 else ""
            self._dropped(format_peer(self.socket.family, address), f"Limits.{limit}{others}", size)
        return False

    # -- sessions --------------------------------------------------------------------------------------

    def _known(self, address: Any, info: Any) -> Peer:
        """The peer with the session of this address."""
        now = self.host.reactor.now()
        try:
            self._sessions.move_to_end(address)
            peer = self._sessions[address]
        except KeyError:
            self._make_room()
            peer = self._sessions[address] = Peer(self, address, info)
        peer.arrived(info, now)
        if self._expiry is None:
            self._expiry = self.host.reactor.call_later(SESSION_IDLE, self._expire)
        return peer

    def _make_room(self) -> None:
        """End the session that was idle for the longest, or the oldest if all are busy, where there is none left.

        A handler ends its own on a thread of its own, maybe just now: then we look again.
        """
        while len(self._sessions) >= self.host.limits.max_connections:
            try:
                oldest = next(iter(self._sessions))
                address = next((known for known, peer in self._sessions.items() if not peer.busy), oldest)
            except (RuntimeError, StopIteration):
                continue
            self.forget(address)

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
            result = hook(*args)
        except Exception as error:
            self.failed(peer, error)
            return
        if inspect.isawaitable(result):
            self.busy += 1
            self._strategy.call(lambda: self._finish_hook(peer, result))

    async def _finish_hook(self, peer: Peer, result: Awaitable[Any]) -> None:
        try:
            await result
        except Exception as error:
            self.failed(peer, error)
        finally:
            # Not as a datagram: one may be with the session still.
            self._ended()

    def _dropped(self, peer: str, reason: str, size: int, error: BaseException | None = None) -> None:
        self.host.emit(DatagramDropped(peer=peer, local=self.local, reason=reason, size=size, error=error))
