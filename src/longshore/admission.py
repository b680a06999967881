"""Admission: who comes in, and how many.

The only place that accepts connections into a server: it counts them, makes room or turns them away when
there is none, and hands the others to the strategy.  It begins and ends nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING, Any

from longshore.addresses import format_peer
from longshore.errors import LongshoreError
from longshore.events import AcceptFailed, ConnectionRejected, LimitNear, LimitsAdjusted
from longshore.limits import Gate
from longshore.networks import Networks, packed, who_is
from longshore.owners import credentials_of
from longshore.policy import QUIET, Policy, Sparing
from longshore.prologue import Prologue, Suspected
from longshore.thrift import Thrift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.config import Limits, Proxy
    from longshore.listeners import Listener
    from longshore.networks import Who
    from longshore.policy import PeerGate
    from longshore.proxy import Header
    from longshore.reactor.acceptor import Acceptor
    from longshore.strategies import Host, Session, Strategy

__all__ = ("Admission",)

#: Descriptors that a server needs beside its connections.
SPARE_DESCRIPTORS = 64
#: Seconds until a full server whose connections were all busy looks again for an idle one to evict.
EVICT_AGAIN = 0.05
_UNIX = getattr(socket, "AF_UNIX", None)
#: Strategies with a bound of their own that users set: its name in `Limits`.
_BOUNDS = {"threads": "max_threads", "processes": "max_processes"}


class Admission:
    """The gates of one server and what has passed them."""

    def __init__(self, host: Host, strategy_name: str, proxy: Proxy | None = None) -> None:
        self._host = host
        #: Everything that is at work.
        self.sessions: set[Session] = set()
        self._proxy = proxy
        self._trusted = Networks(() if proxy is None else proxy.trusted, "Proxy.trusted")
        #: Who may come at all, how many of each, and how fast.
        self.policy = Policy(host.limits, self._near, self._present)
        #: Whether it matters who comes: else nobody looks.
        self._asks = proxy is not None or self.policy.asks
        self._refusals = Sparing()
        self._thrift = Thrift(host, self.sessions, self._near)
        self._telling: Any = None
        #: When `max_pending_bytes` may be told of again, if no connection comes near it before.
        self._quiet_at = 0.0
        self.accepted = 0
        self.rejected = 0
        #: Of those that are over: bytes both ways, and messages.
        self.received = self.sent = self.messages = 0
        self._strategy: Strategy
        #: The `ssl.SSLContext` of connections to come.
        self.tls_context: Any = None
        self._doors: list[_Door] = []
        self._accepting = False
        #: Whether a door may be shut for want of room.
        self._stalled = False
        #: Which of the processes on the same sockets this is.  A session with a datagram peer is only whole where all
        #: of its datagrams come to one of them, so that is the first; connections come to all.
        self.place = 0
        #: Whether others go on accepting on the same sockets, so that what is queued is theirs.
        self.leaves_queue = False
        #: Whoever is let in once somebody has gone who was idle: how to do it, and how not to.
        self._successor: _Newcomer | None = None
        # Handlers begin handshakes too (`start_tls`), on threads of their own.
        self._handshakes = Gate("max_handshakes", host.limits.max_handshakes, self._near)
        self._handshakes_lock = threading.Lock()
        self._places = Gate("max_connections", host.limits.max_connections, self._near)
        # Only a bound that users set is worth a warning, so `inline`, whose bound is its nature, gives none.
        named = _BOUNDS.get(strategy_name)
        self._handlers = Gate(named or strategy_name, None, self._near if named else None)
        #: Whether the strategy may have a bound at all.
        self._bounded = True

    # -- begin and end -----------------------------------------------------------------------------------

    def open(self, listeners: list[Listener], strategy: Strategy, tls_context: Any) -> None:
        """Accept on all listening sockets from now on."""
        self._strategy = strategy
        self._bounded = not strategy.on_streams
        self.tls_context = tls_context
        self._fit_descriptors()
        self._handlers.maximum = strategy.capacity(self._host.limits)
        self._thrift.begin()
        self._accepting = True
        # Options, users and proxies' headers are a socket object's.
        bare = self._proxy is None and strategy.on_streams
        self._doors = [
            _Door(self, self._host, item, bare=bare and item.hands_down and item.family != _UNIX) for item in listeners
        ]

    def share(
        self,
        make: Callable[[str, int, Callable[[str, int, int], None]], Gate],
        make_for_peers: Callable[..., PeerGate],
        place: int,
    ) -> Gate:
        """Count connections, also of each peer, by gates by which other processes count too; before `open`.

        `place` is which of these processes this is.
        """
        self.policy.share(make_for_peers)
        self.place = place
        self._places = places = make("max_connections", self._host.limits.max_connections, self._near)
        self.leaves_queue = True
        return places

    def look_again(self) -> None:
        """Another process may have made room."""
        self._room()

    def pause(self) -> None:
        """Accept nothing until `resume`."""
        self._accepting = False
        self._stalled = True
        for door in self._doors:
            door.acceptor.pause()

    def resume(self) -> None:
        """Accept again."""
        self._accepting = True
        self._room()

    def close(self, *, queued: bool = False) -> None:
        """Accept nothing any more; `queued` takes in first what the kernel has accepted for us alone already."""
        for door in self._doors:
            if queued and not self.leaves_queue:
                door.acceptor.accept_queued()
            door.acceptor.close()
        self._accepting = False
        successor, self._successor = self._successor, None
        if successor is not None and successor.prologue is not None:
            successor.prologue.cut()
        elif successor is not None:
            self._release(successor, self._places.name)

    def reconfigure(self, limits: Limits) -> None:
        """Count by other limits."""
        self.policy.reconfigure(limits)
        self._asks = self._proxy is not None or self.policy.asks
        self._places.maximum = limits.max_connections
        self._handshakes.maximum = limits.max_handshakes
        if self._doors:
            self._handlers.maximum = self._strategy.capacity(limits)
            self._host.reactor.post(self._room)
            self._host.reactor.post(self._thrift.begin)

    @property
    def figures(self) -> dict[str, int]:
        """What it counts, as `Statistics` names it."""
        return {
            "connections": len(self.sessions),
            "accepted": self.accepted,
            "rejected": self.rejected,
            "received": self.received,
            "sent": self.sent,
            "messages": self.messages,
        }

    @property
    def connections(self) -> tuple[Any, ...]:
        """The connections of what is at work."""
        return tuple(item.connection for item in tuple(self.sessions) if item.connection is not None)

    @property
    def descriptors(self) -> set[int]:
        """Those of the connections that this process has itself."""
        found = set()
        for connection in self.connections:
            with contextlib.suppress(LongshoreError):
                found.add(connection.fileno())
        return found - {-1}

    def cut(self) -> None:
        """End everything that is at work."""
        for session in tuple(self.sessions):
            session.was_cut = True
            session.cut()

    def destroy(self) -> None:
        """Close the sockets of what did not end, each of them, whatever another one raises."""
        with contextlib.ExitStack() as steps:
            for session in tuple(self.sessions):
                steps.callback(session.destroy)

    # -- places ------------------------------------------------------------------------------------------

    def _present(self) -> Iterator[Who]:
        """Who is counted: those that are let in; nobody has looked at who came while that did not matter."""
        if self._successor is not None and not self._successor.trusted:
            yield self._successor.who
        for session in self.sessions:
            if session.who is None and self._proxy is None:
                session.who = who_is(session.peer)
            yield session.who

    def leave(self, session: Session) -> bool:
        """A session is over; False if it had never come in."""
        try:
            self.sessions.remove(session)
        except KeyError:
            if self._successor is not None and self._successor.prologue is session:
                self._successor = None
                self._room()
            return False
        received, sent, _unsent = session.traffic()
        self.received += received
        self.sent += sent
        connection = session.connection
        if connection is not None:
            self.messages += connection.messages
        self._places.leave()
        if session.who is not None:
            self.policy.leave(session.who)
        if self._stalled or self._successor is not None:
            self._room()
        return True

    def take_place(self) -> bool:
        """Take a place of the strategy's own bound; False if there is none."""
        return self._handlers.enter()

    def handler_freed(self) -> None:
        """A place of the strategy's own bound is free."""
        self._handlers.leave()
        self._room()

    def take_handshake(self) -> bool:
        """A TLS handshake is about to begin; False if it must not.  From any thread."""
        with self._handshakes_lock:
            return self._handshakes.enter()

    def handshake_over(self) -> None:
        """A TLS handshake is through.  From any thread."""
        with self._handshakes_lock:
            self._handshakes.leave()

    def _room(self) -> None:
        if not self._accepting and self._successor is None:
            return
        if self._places.full or self._handlers.full:
            return
        if self._successor is not None:
            successor, self._successor = self._successor, None
            self._welcome(successor)
            if self._places.full or self._handlers.full:
                return
        if self._accepting:
            self._stalled = False
            for door in self._doors:
                door.acceptor.resume()

    def _near(self, name: str, value: int, maximum: int) -> None:
        self._host.emit(LimitNear(limit=name, value=value, maximum=maximum))

    def near_pending(self, count: int) -> None:
        """A connection has `count` bytes pending, nearly as many as it may.  From any thread."""
        now = self._host.reactor.now()
        was_quiet, self._quiet_at = now >= self._quiet_at, now + QUIET
        if was_quiet:
            self._near("max_pending_bytes", count, self._host.limits.max_pending_bytes)

    # -- one connection ----------------------------------------------------------------------------------

    def may_accept(self, door: _Door, knocking: bool) -> bool:
        """Whether one more connection may be accepted now; `knocking` says that one waits for sure."""
        if not self._accepting:
            return False
        if (not self._bounded or self._handlers.hold()) and self._places.hold():
            return True
        self._stalled = True
        reactor, overflow = self._host.reactor, self._host.limits.overflow
        if not (self._places.full or self._handlers.full):
            # There is room, and another process is to have it.
            if knocking and self._places.retry_in is not None:
                reactor.call_later(self._places.retry_in, self._look_again, door.acceptor)
            return False
        if overflow == "reject":
            return True
        if overflow != "evict-idle" or not knocking or self._successor is not None:
            return False
        # Who it is shows only once it is accepted, and nobody is evicted for somebody who may not come.
        if self._idlest() is not None:
            return True
        reactor.call_later(EVICT_AGAIN, self._look_again, door.acceptor)
        return False

    def settle(self) -> None:
        """A burst is over: nobody comes for what was held."""
        self._places.settle()

    def _look_again(self, acceptor: Acceptor) -> None:
        """Let the kernel tell again of who waits, as somebody may have become idle."""
        if self._accepting:
            acceptor.resume()

    def _idlest(self) -> Session | None:
        """The connection that has been idle for the longest; None if all are busy, as those never are evicted."""
        found: tuple[float, Session] | None = None
        for session in self.sessions:
            since = session.idle_since()
            if since is not None and (found is None or since < found[0]):
                found = since, session
        return None if found is None else found[1]

    def admit(self, listener: Listener, sock: Any, address: Any) -> None:
        """Take an accepted connection, or turn it away; one that comes without its address knows it."""
        family = listener.family
        peer = sock.peer if address is None else format_peer(family, address)
        # A Unix peer's user is written nowhere, so whoever asks later could not learn it.
        who = _who(family, sock, address) if self._asks or family == _UNIX else None
        if not (self._asks or listener.is_tls or self._thrift.full) and self._take_places() is None:
            self.accepted += 1
            if not listener.hands_down:
                _set_options(sock, listener)
            session = self._strategy.open(sock, peer, listener.url, None)
            session.who = who
            self.sessions.add(session)
            session.begin()
            return
        newcomer = _Newcomer(listener, sock, peer, who)
        # A trusted proxy is not judged, its clients are, each when it is known.
        newcomer.trusted = self._proxy is not None and newcomer.who in self._trusted
        limit = None if newcomer.trusted else self._judge(newcomer)
        if limit is None:
            self._welcome(newcomer)
        else:
            self._turn_away(newcomer, limit)

    def _judge(self, newcomer: _Newcomer) -> str | None:
        """The name of the limit by which it must stay out, or None: then it counts for its peer."""
        if newcomer.listener.is_tls and self._handshakes.full:
            return self._handshakes.name
        if self._thrift.full:
            return self._thrift.name
        # Limits may have changed since somebody looked at who it is.
        return self.policy.enter(newcomer.who, self._host.reactor.now()) if self._asks else None

    def _welcome(self, newcomer: _Newcomer) -> None:
        """Let somebody in who may come, if there is a place, or one can be made."""
        limit = self._take_places()
        if limit is not None:
            idle = self._idlest() if self._may_evict else None
            if idle is None:
                self._release(newcomer, limit)
                return
            self._successor = newcomer
            if newcomer.trusted:
                # Whom it brings may not be let in, so nobody goes before that one is known.
                newcomer.prologue = self._prologue(newcomer)
                newcomer.prologue.begin()
            else:
                idle.evict()
            return
        self.accepted += 1
        listener, sock = newcomer.listener, newcomer.sock
        if not listener.hands_down:
            _set_options(sock, listener)
        if newcomer.prologue is not None:
            newcomer.prologue.has_place = True
            self.sessions.add(newcomer.prologue)
        elif self._proxy is None or newcomer.introduction is not None:
            self._open(newcomer)
        elif newcomer.trusted:
            prologue = self._prologue(newcomer)
            prologue.has_place = True
            self._begin(prologue, None)
        else:
            newcomer.sock = Suspected.over(sock, newcomer.peer)
            self._open(newcomer)

    @property
    def _may_evict(self) -> bool:
        return self._accepting and self._successor is None and self._host.limits.overflow == "evict-idle"

    def _prologue(self, newcomer: _Newcomer) -> Prologue:
        assert self._proxy is not None
        listener, introduce = newcomer.listener, functools.partial(self.introduced, newcomer.listener)
        return Prologue(self._host, newcomer.sock, newcomer.peer, listener.url, self._proxy, introduce)

    def introduced(self, listener: Listener, prologue: Prologue, sock: socket.socket, header: Header) -> None:
        """A proxy has said whose connection it is: let that one in, or turn it away."""
        if prologue.has_place:
            self.sessions.discard(prologue)
        else:
            self._successor = None
        newcomer = _Newcomer(listener, sock, prologue.peer, None)
        newcomer.introduction = header, prologue.peer
        if header.family is not None:
            newcomer.peer = format_peer(header.family, header.source)
            newcomer.who = None if header.family == _UNIX else packed(header.source[0])
            limit = self._judge(newcomer)
            if limit is not None:
                self._turn_away(newcomer, limit)
                if prologue.has_place:
                    self._leave_places()
                else:
                    self._room()
                return
        if prologue.has_place:
            self._open(newcomer)
        else:
            self._welcome(newcomer)

    def _open(self, newcomer: _Newcomer) -> None:
        """Begin a session of somebody who has its places."""
        listener, sock, peer = newcomer.listener, newcomer.sock, newcomer.peer
        if listener.is_tls and not self.take_handshake():
            self._leave_places()
            self._release(newcomer, self._handshakes.name)
            return
        session = self._strategy.open(sock, peer, listener.url, self.tls_context if listener.is_tls else None)
        session.handshaking = listener.is_tls
        if newcomer.introduction is not None and session.connection is not None:
            session.introduce(*newcomer.introduction)
        self._begin(session, newcomer.who)

    def _begin(self, session: Session, who: Who) -> None:
        session.who = who
        self.sessions.add(session)
        session.begin()

    def _take_places(self) -> str | None:
        """Take the places that any connection needs; the name of the limit if one is missing."""
        if not self._places.enter():
            return self._places.name
        if self._bounded and not self._handlers.enter():
            self._places.leave()
            return self._handlers.name
        return None

    def _leave_places(self) -> None:
        self._places.leave()
        self._handlers.leave()
        self._room()

    def _release(self, newcomer: _Newcomer, limit: str) -> None:
        """Turn somebody away who counts for its peer."""
        if not newcomer.trusted:
            self.policy.leave(newcomer.who)
        self._turn_away(newcomer, limit)

    def _turn_away(self, newcomer: _Newcomer, limit: str) -> None:
        sock, peer, local = newcomer.sock, newcomer.peer, newcomer.listener.url
        self.rejected += 1
        with contextlib.suppress(OSError):
            if self._host.limits.farewell:
                sock.send(self._host.limits.farewell)
        sock.close()
        count = self._refusals.count(self._host.reactor.now())
        if count:
            self._host.emit(ConnectionRejected(peer=peer, local=local, limit=limit, count=count))
        elif self._telling is None:
            self._telling = self._host.reactor.call_later(1.0, self._tell_rest, peer, local, limit)

    def _tell_rest(self, peer: str, local: str, limit: str) -> None:
        """Tell of those refusals that were kept, once nobody else comes to be told of with them."""
        self._telling = None
        count = self._refusals.take()
        if count:
            self._host.emit(ConnectionRejected(peer=peer, local=local, limit=limit, count=count))

    # -- the system's limit ------------------------------------------------------------------------------

    def _fit_descriptors(self) -> None:
        """Raise the soft descriptor limit to what `max_connections` needs, or clamp the latter."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        maximum = self._host.limits.max_connections
        wanted = maximum + SPARE_DESCRIPTORS
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        actual = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if actual > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (actual, hard))
            self._adjusted("RLIMIT_NOFILE", wanted, actual, f"the soft limit was {soft}")
        if actual < wanted:
            self._places.clamp(allowed := max(1, actual - SPARE_DESCRIPTORS))
            self._adjusted("max_connections", maximum, allowed, f"the hard limit of descriptors is {hard}")

    def _adjusted(self, limit: str, wanted: int, actual: int, reason: str) -> None:
        self._host.emit(LimitsAdjusted(limit=limit, wanted=wanted, actual=actual, reason=reason))


class _Newcomer:
    """Somebody who was accepted and is not in yet."""

    __slots__ = ("introduction", "listener", "peer", "prologue", "sock", "trusted", "who")

    def __init__(self, listener: Listener, sock: Any, peer: str, who: Who) -> None:
        self.listener = listener
        self.sock = sock
        self.peer = peer
        self.who = who
        #: Whether it is a proxy, which only brings somebody.
        self.trusted = False
        #: What reads that proxy's header while there is no place for it yet.
        self.prologue: Prologue | None = None
        #: What a proxy has said of it, and that proxy's address.
        self.introduction: tuple[Header, str] | None = None


class _Door:
    """One listening socket and its acceptor."""

    def __init__(self, admission: Admission, host: Host, listener: Listener, *, bare: bool) -> None:
        self._host = host
        self._listener = listener
        self.may_accept = functools.partial(admission.may_accept, self)
        self.accepted = functools.partial(admission.admit, listener)
        self.settled = admission.settle
        self.acceptor = host.reactor.accept(listener.socket, self, listener.accept, burst=listener.burst, bare=bare)

    def accept_failed(self, error: OSError, retry_in: float) -> None:
        self._host.emit(AcceptFailed(local=self._listener.url, error=error, retry_in=retry_in))


def _who(family: int, sock: Any, address: Any) -> Who:
    """Who the peer is, as `networks` has it."""
    if family in (socket.AF_INET, socket.AF_INET6):
        return packed((sock.address if address is None else address)[0])
    if family != _UNIX:
        return None
    told = credentials_of(getattr(sock, "request", sock))
    return None if told is None else told[1]


def _set_options(sock: socket.socket, listener: Listener) -> None:
    """Switch Nagle's algorithm off: whoever coalesces writes itself loses by the kernel doing it again."""
    options = listener.options
    if options.nodelay and listener.socket.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
