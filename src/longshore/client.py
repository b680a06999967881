"""Clients: `connect` for plain calls, `open_connection` for asyncio.

The only place that makes clients' connections: the same `Connection` (or `AsyncConnection`) that handlers
have, over any address and any framing.  It keeps no pool and never reconnects: `retry` is about the first
connection only, as nobody but the caller knows what may be sent twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshore.addresses import Address, Endpoint, format_peer, parse
from longshore.concurrency import current_parking, sleep
from longshore.config import Limits, Timeouts, check_kinds
from longshore.connection import AsyncConnection, Connection
from longshore.dialing import Refused, dial, dial_async, left
from longshore.errors import (
    AddressUnavailable,
    ConfigError,
    ConnectTimeout,
    HandshakeTimeout,
)
from longshore.framing.fields import check_framing
from longshore.links.packets import PacketLink
from longshore.links.sockets import SocketLink
from longshore.links.streams import StreamLink
from longshore.proxy import header
from longshore.tls import Session, TLSError, client_context, describe

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from longshore.config import TLS
    from longshore.framing import Framing
    from longshore.reactor.portable import PortableReactor
    from longshore.reactor.stream import Stream
    from longshore.strategies.green import Parking

__all__ = ("Refused", "Retry", "connect", "open_connection")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon to try again what may only be down for a moment; times in seconds.

    The pause before attempt n+1 is `initial * multiplier**(n-1)`, at most `maximum`, less a random share of up
    to `jitter` of it, so that clients which lost the same server do not come back at the same moment.

    Example:
        >>> Retry(attempts=3).attempts
        3
    """

    attempts: int = 5
    initial: float = 0.1
    maximum: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigError(f"Retry(attempts={self.attempts!r}): must be a whole number of at least 1")
        if self.initial < 0 or self.maximum < 0 or self.multiplier < 1 or not 0 <= self.jitter <= 1:
            raise ConfigError(
                f"{self!r}: must have initial and maximum of at least 0, multiplier of at least 1, jitter from 0 to 1"
            )

    def pauses(self) -> Iterator[float]:
        """The seconds to wait after each failure but the last."""
        pause = self.initial
        for _ in range(self.attempts - 1):
            yield min(pause, self.maximum) * (1 - self.jitter * random.random())
            pause = min(pause * self.multiplier, self.maximum)


def connect(
    url: str,
    framing: Framing | None = None,
    timeout: float | None = 10,
    tls: TLS | None = None,
    retry: Retry | int | None = None,
    proxy: int | bytes | None = None,
) -> Connection:
    """Connect to `url`, whatever its scheme.

    `timeout` (seconds) covers name lookup, connecting and TLS of one attempt; after that it is the connection's
    timeout for each wait, as with `socket.create_connection`.  On `tls://` certificate and name are verified.  On
    datagram addresses each `receive()` or `recv()` is one datagram.  A green handler lets the others run while it
    waits, here and on the connection.

    With `proxy` a PROXY header goes first: of that version (1 or 2), about this connection itself; or one that
    `longshore.proxy.header` has made, on behalf of somebody else.

    Raises:
        ConfigError: the URL or an option is no good.
        AddressUnavailable: nothing answers there (`Refused`: nobody listens).
        PermissionNeeded: the system does not let this user connect.
        ConnectTimeout, HandshakeTimeout: it took longer than `timeout`.
        TLSError: the TLS handshake failed.

    Example:
        >>> with connect("tcp://127.0.0.1:5000", framing=Lines()) as connection:  # doctest: +SKIP
        ...     connection.request(b"hello")
    """
    address, context, pauses = _plan(url, framing, timeout, tls, retry, proxy)
    parking = current_parking()
    while True:
        try:
            if parking is not None:
                return _connect_parked(parking, address, framing, timeout, context, proxy)
            return _connect(address, framing, timeout, context, proxy)
        except (AddressUnavailable, ConnectTimeout, HandshakeTimeout):
            pause = next(pauses, None)
            if pause is None:
                raise
            sleep(pause)


async def open_connection(
    url: str,
    framing: Framing | None = None,
    timeout: float | None = 10,
    tls: TLS | None = None,
    retry: Retry | int | None = None,
    proxy: int | bytes | None = None,
) -> AsyncConnection:
    """As `connect`, in the running asyncio loop.

    Raises:
        LongshoreError: as `connect`.

    Example:
        >>> async def main():
        ...     async with await open_connection("tcp://127.0.0.1:5000", framing=Lines()) as connection:
        ...         print(await connection.request(b"hello"))
    """
    import asyncio

    address, context, pauses = _plan(url, framing, timeout, tls, retry, proxy)
    while True:
        try:
            return await _open_connection(address, framing, timeout, context, proxy)
        except (AddressUnavailable, ConnectTimeout, HandshakeTimeout):
            pause = next(pauses, None)
            if pause is None:
                raise
            await asyncio.sleep(pause)


def _plan(
    url: str,
    framing: Framing | None,
    timeout: float | None,
    tls: TLS | None,
    retry: Retry | int | None,
    proxy: int | bytes | None,
) -> tuple[Address, Any, Iterator[float]]:
    address = parse(url)
    check_framing(framing)
    check_kinds(tls=tls)
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout={timeout!r}: must be a number of seconds above 0, or None")
    if tls is not None and not address.is_tls:
        raise ConfigError(
            f"{address}: tls=... is for addresses that speak TLS",
            hint="Write tls://HOST:PORT (unix:///PATH?tls=1), or call start_tls() on the connection.",
        )
    if proxy is not None and not isinstance(proxy, bytes) and proxy not in (1, 2):
        raise ConfigError(f"proxy={proxy!r}: must be 1, 2, or the bytes of a PROXY header")
    if proxy is not None and not address.is_stream:
        raise ConfigError(f"{address}: a PROXY header goes in front of a stream, and this is none")
    if retry is None:
        retry = Retry(attempts=1)
    elif not isinstance(retry, Retry):
        retry = Retry(attempts=retry)
    return address, client_context(tls) if address.is_tls else None, retry.pauses()


# -- blocking ----------------------------------------------------------------------------------------------


def _connect(address: Address, framing: Framing | None, timeout: float | None, context: Any, proxy: Any) -> Connection:
    deadline = None if timeout is None else time.monotonic() + timeout
    sock, endpoint = dial(address, deadline, timeout)
    try:
        peer, local = _prepared(address, sock, endpoint, proxy)
        if context is not None:
            sock = _handshaken(address, sock, context, deadline, timeout)
    except BaseException:
        sock.close()
        raise
    kind = _ClientPacketLink if address.is_datagram else _ClientLink
    return Connection(kind(sock, peer, framing), peer=peer, local=local, timeout=timeout)


def _prepared(address: Address, sock: socket.socket, endpoint: Endpoint, proxy: Any) -> tuple[str, str]:
    """Set what the address asks for, and send what goes before everything else; the names of both ends."""
    if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6) and address.options.nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Raw and TIPC sockets note where packets go, but getpeername(2) does not tell.
    quiet = sock.type in (socket.SOCK_RAW, socket.SOCK_RDM)
    peer = endpoint.sockaddr if quiet else sock.getpeername()
    if proxy is not None:
        # A socket that was never written to takes this at once.
        sock.send(proxy if isinstance(proxy, bytes) else header(sock.getsockname(), peer, proxy))
    return format_peer(sock.family, peer), format_peer(sock.family, sock.getsockname())


def _handshaken(
    address: Address, sock: socket.socket, context: Any, deadline: float | None, timeout: float | None
) -> socket.socket:
    """`sock` with TLS on it; closed where that fails."""
    from longshore.tls_sockets import TLSSocket

    taken = TLSSocket.over(sock, context, str(address), server_side=False, hostname=_server_name(address))
    # With no time left at all it would not wait for anything, so it gets the least that is a timeout.
    remaining = left(deadline)
    taken.settimeout(None if remaining is None else max(remaining, 0.001))
    try:
        with _explained(address, timeout):
            taken.do_handshake()
    except BaseException:
        taken.close()
        raise
    return taken


def _server_name(address: Address) -> str:
    """The name that the server's certificate must have; where the address has no host, it is this machine."""
    return (None if address.scheme == "vsock" else address.host) or "localhost"


class _ClientLink(SocketLink):
    """A blocking link that ends as a client should: TLS says goodbye, and a thread that reads is woken."""

    _readers = 0

    def wait_input(self, timeout: float | None) -> None:
        self._readers += 1
        try:
            super().wait_input(timeout)
        except OSError:
            # Closed by another thread meanwhile: then that is what happened, not what the kernel made of it.
            self._check()
            raise
        finally:
            self._readers -= 1

    def _wake_and_close(self) -> None:
        sock = self._socket
        say_goodbye = getattr(sock, "say_goodbye", None)
        if say_goodbye is not None and self.cause is not None and self.cause[0] == "finished":
            # Our close_notify; the peer's is not waited for.
            say_goodbye()
        if self._readers:
            # close(2) wakes nobody who waits on the descriptor, shutdown(2) does.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        sock.close()


class _ClientPacketLink(_ClientLink, PacketLink):
    """The same over packets."""

    def __init__(self, sock: socket.socket, peer: str, framing: Framing | None) -> None:
        super().__init__(sock, peer, framing)
        name = sock.getsockname() if sock.family == getattr(socket, "AF_UNIX", None) else ""
        self._file = name if isinstance(name, str) and name.startswith("/") and sys.platform != "linux" else None

    def _wake_and_close(self) -> None:
        super()._wake_and_close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._file)


# -- on a reactor --------------------------------------------------------------------------------------------


class _LeavingEarly(StreamLink):
    """A link that does not linger for a peer that is not sending, so that its reactor can end right after."""

    def _close(self, cause: str, error: BaseException | None) -> None:
        stream = self.stream
        lingers = self._lingers()
        super()._close(cause, error)
        if stream.state == "closing" and not stream.pending and not lingers:
            stream.fail(cause, error)

    def _lingers(self) -> bool:
        """Whether the peer may be sending, so that closing at once might reset what it has yet to read."""
        stream = self.stream
        return stream.socket.type != socket.SOCK_DGRAM and bool(stream.input.unread or stream.owing)


def _timeouts() -> Timeouts:
    """A client's deadlines are its own; only the end must not last."""
    return Timeouts(handshake=None, first_byte=None, idle=None, write=None, linger=2)


def _session(address: Address, context: Any) -> Session | None:
    return None if context is None else Session(context, server_side=False, hostname=_server_name(address))


# -- green -------------------------------------------------------------------------------------------------


def _stream(
    reactor: PortableReactor,
    link: StreamLink,
    sock: socket.socket,
    peer: str,
    address: Address,
    framing: Framing | None,
    session: Session | None,
) -> Stream:
    """Let `reactor` own `sock`, and put `link` on it."""
    stream = reactor.stream(
        sock,
        peer,
        sink=link,
        limits=Limits(),
        timeouts=_timeouts(),
        framing=framing,
        tls=session,
        packets=address.is_datagram,
    )
    link.attach(stream)
    return stream


def _connect_parked(
    parking: Parking, address: Address, framing: Framing | None, timeout: float | None, context: Any, proxy: Any
) -> Connection:
    """As `_connect`, in a green handler: over its own reactor, which turns meanwhile."""
    from longshore.strategies.green import GreenLink

    class ClientLink(_LeavingEarly, GreenLink):
        """A client's link in a green handler: it ends as a blocking one, not after a server that may stop before."""

        def _lingers(self) -> bool:
            return False

    deadline = None if timeout is None else time.monotonic() + timeout
    sock, endpoint = _dial_parked(parking, address, deadline, timeout)
    try:
        peer, local = _prepared(address, sock, endpoint, proxy)
        session = _session(address, context)
    except BaseException:
        sock.close()
        raise
    link = ClientLink()
    stream = _stream(parking.reactor, link, sock, peer, address, framing, session)
    try:
        stream.start()
        with _explained(address, timeout):
            while stream.state == "opening":
                link._pause(left(deadline), "the TLS handshake", lambda: stream.state != "opening")
            if stream.state != "open":
                raise stream.failure()
    except BaseException:
        stream.abort()
        raise
    return Connection(link, peer=peer, local=local, timeout=timeout)


def _dial_parked(
    parking: Parking, address: Address, deadline: float | None, timeout: float | None
) -> tuple[socket.socket, Endpoint]:
    """Dial in a thread; a handler that is ended meanwhile leaves no socket behind."""
    dialled: list[socket.socket] = []
    given_up = threading.Event()

    def work() -> tuple[socket.socket, Endpoint]:
        sock, endpoint = dial(address, deadline, timeout)
        dialled.append(sock)
        if given_up.is_set():
            sock.close()
        return sock, endpoint

    try:
        found: tuple[socket.socket, Endpoint] = parking.wait_for_thread(work, (), {})
    except BaseException:
        given_up.set()
        for each in dialled:
            each.close()
        raise
    return found


# -- asyncio -----------------------------------------------------------------------------------------------


async def _open_connection(
    address: Address, framing: Framing | None, timeout: float | None, context: Any, proxy: Any
) -> AsyncConnection:
    import asyncio

    from longshore.links.tasks import AsyncLink

    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else time.monotonic() + timeout
    sock, endpoint = await dial_async(address, timeout)
    try:
        peer, local = _prepared(address, sock, endpoint, proxy)
        session = _session(address, context)
    except BaseException:
        sock.close()
        raise

    shared = _Shared.of(loop)

    class ClientLink(_LeavingEarly, AsyncLink):
        """A client's link in an asyncio loop."""

        def closed(self, cause: str, error: BaseException | None) -> None:
            super().closed(cause, error)
            shared.leave(cause, error)

    link = ClientLink()
    stream = _stream(shared.reactor, link, sock, peer, address, framing, session)
    try:
        stream.start()
        with _explained(address, timeout):
            await link.ready(left(deadline))
    except BaseException:
        stream.abort()
        raise
    return AsyncConnection(link, peer=peer, local=local, timeout=timeout)


class _Shared:
    """The reactor that all client connections of one loop share; it ends with the last of them."""

    _by_loop: dict[asyncio.AbstractEventLoop, _Shared] = {}  # noqa: RUF012  # one registry for the process

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from longshore.links.tasks import embed
        from longshore.reactor import create

        self._loop = loop
        self.reactor, _ = create()
        self._embedding = embed(self.reactor, loop)
        self._count = 0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Shared:
        """The one of `loop`, with a place taken."""
        for other in [other for other in list(cls._by_loop) if other.is_closed()]:
            # Its connections were never closed; their sockets are the collector's, our descriptors are not.
            cls._by_loop.pop(other)._close()
        shared = cls._by_loop.get(loop)
        if shared is None:
            shared = cls._by_loop[loop] = cls(loop)
        shared._count += 1
        return shared

    def leave(self, _cause: str, _error: BaseException | None) -> None:
        """Give the place back; the last one ends the reactor, once its turn is over."""
        self._count -= 1
        if not self._count and not self._loop.is_closed():
            self._loop.call_soon(self._end_if_unused)

    def _end_if_unused(self) -> None:
        if not self._count and self._by_loop.get(self._loop) is self:
            del self._by_loop[self._loop]
            self._close()

    def _close(self) -> None:
        self._embedding.close()
        self.reactor.close()


# -- what went wrong ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(address: Address, timeout: float | None) -> Iterator[None]:
    """Turn what may go wrong in a handshake into errors that name the address and say what to do."""
    try:
        yield
    except TimeoutError as error:
        if timeout is None:
            # Not our deadline: the kernel has given up on the peer.
            raise _tls_failed(address, describe(error)) from error
        raise HandshakeTimeout(
            f"{address}: connected, but the TLS handshake was not finished within {timeout:g} s",
            hint="Does the server speak TLS on this port?",
        ) from None
    except TLSError as error:
        raise _tls_failed(address, str(error).rpartition("TLS handshake failed: ")[2]) from error
    except OSError as error:
        raise _tls_failed(address, describe(error)) from error


def _tls_failed(address: Address, why: str) -> TLSError:
    if any(word in why.lower() for word in ("certificate", "hostname", "ip address")):
        hint = (
            "If the server's authority is your own, pass tls=TLS(client_ca='authority.pem'), or say "
            "--cafile authority.pem on the command line; the name must match too."
        )
    else:
        hint = "Does the server speak TLS on this port, in a version that TLS(minimum=...) allows?"
    return TLSError(f"{address}: TLS handshake failed: {why}", hint=hint)
