"""Strategies: how handlers run.

A folder with one contract, `Strategy`, and an implementation per file.  The server decides *whether* a
connection comes in; a strategy decides on what its handler runs, and owns a `Session` for each.  All
methods of both are called on the reactor's thread unless they say otherwise.

A session ends when two things are over, in either order: its socket is closed, and its handler has
returned.  Only then does the server hear of it, so that a count of sessions is a count of everything that
is still at work.
"""

from __future__ import annotations

import functools
from socket import AF_INET6
from socket import socket as Socket
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import ConfigError, FramingError, HandshakeTimeout, LimitExceeded, PeerError, Timeout
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.handlers import NAMES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from longshore.config import Limits, Timeouts
    from longshore.events import Event
    from longshore.framing import Framing
    from longshore.handlers import Handler
    from longshore.links import Link
    from longshore.reactor.portable import PortableReactor
    from longshore.strategies.lineage import Lineage

__all__ = ("IN_ORDER", "Host", "Session", "Strategy", "cause_of", "client_address_of", "create", "prepare")

#: The causes of an end at which nothing went wrong.
IN_ORDER = frozenset({"finished", "peer closed", "drained"})


class Host(Protocol):
    """The server, as strategies see it."""

    handler: Handler
    framing: Framing | None
    reactor: PortableReactor
    draining: bool

    @property
    def limits(self) -> Limits:
        """The limits, as they are now."""

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of connections to come."""

    @property
    def facade(self) -> Any:
        """The `Server` object that handlers see as `server`."""

    def emit(self, event: Event) -> None:
        """Tell the subscribers; from any thread."""

    def wants(self, kind: type[Event]) -> bool:
        """Whether somebody would hear of an event of this kind."""

    def session_ended(self, session: Session) -> None:
        """A session is over: its place is free."""

    def handler_freed(self) -> None:
        """A place of the strategy's own bound is free."""

    def take_place(self) -> bool:
        """Take a place of the strategy's own bound for something that is no connection; False if there is none."""

    def take_handshake(self) -> bool:
        """A TLS handshake is about to begin; False if it must not.  From any thread."""

    def handshake_over(self) -> None:
        """A TLS handshake is through.  From any thread."""

    def near_pending(self, count: int) -> None:
        """A connection has `count` bytes pending, nearly as many as it may.  From any thread."""

    def calling(self) -> Any:
        """A context manager: on this thread, what runs inside is one of the server's own calls."""

    def context(self) -> Any:
        """A fresh copy of the contextvars context that the server was started in."""


class Session:
    """One accepted connection, from accept(2) to its closing event."""

    # What most sessions never change is the class's, as a short connection costs little else than its objects.

    #: Who is counted for it; None: nobody, or nobody has looked.
    who: Any = None
    #: The address by which a proxy has introduced it; None without a proxy.
    introduced: Any = None
    handler_running = False
    #: Whether a TLS handshake is counted for it.
    handshaking = False
    #: Whether the connection has been ready for its handler.
    is_open = False
    #: Whether the server has ended it.
    was_cut = False
    #: The TLS version; None on plain connections.
    tls: str | None = None
    connection: Any = None
    _failure: tuple[str, BaseException | None] | None = None
    _gone: tuple[str, BaseException | None] | None = None
    _ended = False

    def __init__(self, host: Host, peer: str, local: str) -> None:
        self.host = host
        self.peer = peer
        self.local = local
        self._opened_at: float = host.reactor.now()

    @property
    def opened_at(self) -> float:
        """When it was accepted, in seconds on the reactor's clock."""
        return self._opened_at

    def introduce(self, header: Any, via: str) -> None:
        """It came through a proxy: `header` is a `proxy.Header`, `via` the proxy's address; called before `begin`."""
        connection = self.connection
        connection.via, connection.proxied = via, header
        self.introduced = header.source

    # -- for the server; each strategy's sessions know how -------------------------------------------------

    def begin(self) -> None:
        """Start: the connection is counted, and may call back from now on."""
        raise NotImplementedError

    def drain(self, deadline: float | None) -> None:
        """Finish what is owed, then end; `deadline` in seconds on the reactor's clock."""
        raise NotImplementedError

    def cut(self) -> None:
        """End now: waits raise `ClosedError`, and what is written is still flushed as far as it goes."""
        raise NotImplementedError

    def evict(self) -> None:
        """End now, because another connection needs the place."""
        self.cut()

    def hold(self, held: bool) -> None:
        """Read nothing for now, or read again; where the handler itself reads, that is its affair."""

    def overdrawn(self, error: LimitExceeded) -> None:
        """End now, and give back what it holds, because all together hold too much."""
        self.was_cut = True
        self.cut()

    def held(self) -> int:
        """Bytes pending: written and not taken, and whole messages that wait."""
        return self.traffic()[2]

    def destroy(self) -> None:
        """Close the socket at once, whatever is pending."""

    def idle_since(self) -> float | None:
        """When the last byte moved, if nothing is owed to this peer now; else None."""
        raise NotImplementedError

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, bytes sent, bytes unsent."""
        raise NotImplementedError

    @property
    def is_closing(self) -> bool:
        """Whether it only flushes and lingers, or its handler only has to return."""
        return self._gone is not None

    # -- for strategies ------------------------------------------------------------------------------------

    def begun(self, tls: str | None = None) -> None:
        """The connection is ready for its handler."""
        self.is_open = True
        if tls is not None:
            self.tls = tls
            self.handshake_over()
        if self.host.wants(ConnectionOpened):
            connection = self.connection
            self.host.emit(
                ConnectionOpened(id=connection.id, peer=self.peer, local=self.local, tls=tls, via=connection.via)
            )

    def failed(self, error: BaseException) -> None:
        """The handler, or a hook, ended with `error`; what the peer or a limit caused is not the handler's fault."""
        cause = cause_of(error, self._gone[0] if self._gone else None)
        if cause in ("timeout", "framing", "peer closed", "reset") and not self.has_raised(error):
            cause = "handler failed"
        if self._failure is None:
            self._failure = (cause, error)
        if cause == "handler failed":
            self.host.emit(HandlerFailed(handler=self.host.handler.name, peer=self.peer, error=error))

    def has_raised(self, error: BaseException) -> bool:
        """Whether an error came out of this connection, and not out of another one that its handler has.

        One that the peer has caused names it; one of the system's has come through a call of the connection, or of the
        socket that a class handler has.
        """
        if isinstance(error, PeerError) and self.peer:
            # Whole: one address may be a part of another.  A pattern for each peer would stay in the cache of `re`.
            before, found, after = str(error).partition(self.peer)
            if found and not before[-1:].isdigit() and not after[:1].isdigit():
                return True
        guard = getattr(self, "guard", None)
        callers = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
        return any(
            caller is self.connection or (isinstance(caller, Socket) and getattr(caller, "guard", self) is guard)
            for caller in callers
            if caller is not None
        )

    def handler_returned(self) -> None:
        """The handler is through."""
        self.handler_running = False
        if self._gone is not None:
            self._conclude()

    def gone(self, cause: str, error: BaseException | None) -> None:
        """The socket is closed."""
        if self._gone is None:
            self._gone = (cause, error)
            if not self.handler_running:
                self._conclude()

    @property
    def over(self) -> bool:
        """Whether both have ended."""
        return self._ended

    def handshake_begins(self, link: Link) -> None:
        """The handler asks for a TLS handshake on its `link` (`start_tls`): count it; from any thread.

        Raises:
            LimitExceeded: there are too many, and the connection ends.
        """
        if self.handshaking:
            return
        if not self.host.take_handshake():
            error = LimitExceeded(
                f"{self.peer} was to begin a TLS handshake while "
                f"Limits.max_handshakes={self.host.limits.max_handshakes} others went on",
                hint="Raise it where the processor is not what is short.",
            )
            link.close("limit", error)
            raise error
        self.handshaking = True

    def handshake_over(self) -> None:
        """It is through, or the connection has ended."""
        if self.handshaking:
            self.handshaking = False
            self.host.handshake_over()

    def _conclude(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self.handshaking:
            self.handshake_over()
        host = self.host
        if host.wants(ConnectionClosed):
            self._tell_closed()
        host.session_ended(self)

    def _tell_closed(self) -> None:
        assert self._gone is not None
        cause, error = self._gone
        if self._failure is not None and (cause == "finished" or error is None):
            cause, error = self._failure
        if cause in IN_ORDER:
            # What told the handler of the end, as `receive` does by raising, is nothing that went wrong.
            error = None
        received, sent, unsent = self.traffic()
        connection = self.connection
        self.host.emit(
            ConnectionClosed(
                id=0 if connection is None else connection.id,
                peer=self.peer,
                local=self.local,
                cause=cause,
                error=error,
                received=received,
                sent=sent,
                unsent=unsent,
                messages=0 if connection is None else connection.messages,
                duration=self.host.reactor.now() - self.opened_at,
            )
        )


class Strategy(Protocol):
    """How handlers run."""

    name: str

    #: Whether its sessions stand on streams of the reactor, so that a connection may come to `open` without a socket
    #: object, as `reactor.stream` takes it.
    on_streams: bool

    def capacity(self, limits: Limits) -> int | None:
        """How many connections may be with their handler at once, by this strategy's own bound."""

    def run(self) -> None:
        """Turn the reactor until it is stopped; on the server's thread."""

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session for a connection, to be begun once it is counted; `tls` is an `ssl.SSLContext` or None."""

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Take a datagram of `reply`, a `peers.Peer`; False if the strategy is full and it is dropped.

        Once the handler is through, `reply.handled()` is called, unless that is so when this returns (`reactor`).
        """

    def call(self, function: Callable[[], Any]) -> None:
        """Run a function of the user's in this strategy's manner (`Server.every`)."""

    def close(self) -> tuple[str, ...]:
        """Give back threads and loops; the names of what cannot be ended."""


def prepare(name: str, host: Host, tls: Any, holders: Iterable[Any]) -> Lineage | None:
    """What the strategy called `name` needs from before there is any thread, reactor or listener.

    `tls` is an `ssl.SSLContext` or None; `holders` have `descriptors` that no process may keep which is forked here.

    Raises:
        OSError: the system refuses it.
    """
    if name != "processes":
        return None
    from longshore.strategies import child
    from longshore.strategies.lineage import Lineage

    foreign = set[int]().union(*(holder.descriptors for holder in holders))
    return Lineage(functools.partial(child.serve, host, tls), host.emit, foreign)


def create(name: str, host: Host, prepared: Lineage | None = None) -> Strategy:
    """The strategy called `name`; `prepared` is what `prepare` gave.

    Raises:
        ConfigError: there is none of this name.
    """
    if name == "reactor":
        from longshore.strategies.reactor import ReactorStrategy

        return ReactorStrategy(host)
    if name == "threads":
        from longshore.strategies.threads import ThreadsStrategy

        return ThreadsStrategy(host)
    if name == "green":
        from longshore.strategies.green import GreenStrategy

        return GreenStrategy(host)
    if name == "async":
        from longshore.strategies.aio import AsyncStrategy

        return AsyncStrategy(host)
    if name == "inline":
        from longshore.strategies.inline import InlineStrategy

        return InlineStrategy(host)
    if name == "processes" and prepared is not None:
        from longshore.strategies.processes import ProcessesStrategy

        return ProcessesStrategy(host, prepared)
    raise ConfigError(f"strategy={name!r}: there is no such strategy", hint=f"There are {', '.join(NAMES)}.")


def cause_of(error: BaseException, gone: str | None) -> str:
    """The cause of `ConnectionClosed` that an exception leaving a handler stands for."""
    from longshore.errors import BrokerLost, ClosedError, PeerClosed
    from longshore.proxy import ProxyError
    from longshore.tls import TLSError

    if gone is not None and isinstance(error, (OSError, ClosedError, Timeout)):
        return gone
    if isinstance(error, ProxyError):
        return "proxy"
    if isinstance(error, (HandshakeTimeout, TLSError)):
        return "handshake"
    if isinstance(error, Timeout):
        return "timeout"
    if isinstance(error, FramingError):
        return "framing"
    if isinstance(error, PeerClosed):
        return "peer closed"
    if isinstance(error, ConnectionError) and not isinstance(error, BrokerLost):
        return "reset"
    return "handler failed"


def client_address_of(sock: socket.socket, peer: str) -> Any:
    """The peer's address as the standard library's servers give it; IPv4 peers of an IPv6 socket as IPv4."""
    try:
        address = sock.getpeername()
    except OSError:
        # The peer has reset the connection before anybody looked.
        host, _, port = peer.rpartition(":")
        return (host.strip("[]"), int(port)) if port.isdigit() else peer
    if sock.family == AF_INET6 and address[0].startswith("::ffff:") and "." in address[0]:
        return address[0][7:], address[1]
    return address
