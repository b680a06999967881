"""Connections as handlers and clients see them: one blocking, one async, the same names.

The only public face of a connection.  Each waits through its link and cuts through its input buffer, so
neither knows how bytes come in, nor does one copy the other's logic.  Nothing here accepts, binds or
decides when a connection ends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from typing import TYPE_CHECKING, Any

from longshore.buffers import octets
from longshore.errors import ConfigError, PeerClosed, WouldBlock
from longshore.files import make_file
from longshore.framing import NEED_MORE
from longshore.shortcuts import shortened

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from longshore.config import TLS
    from longshore.framing import Framing
    from longshore.links import Link, Output

__all__ = ("AsyncConnection", "Connection")

_ids = itertools.count(1)
#: Held while one is given.
_numbering = threading.Lock()


class _Named:
    """What both kinds of connection have and nobody waits for."""

    # One slot, where native code looks.
    __slots__ = ("__dict__", "__weakref__", "_direct")

    #: Who takes output and gives input while nothing is in between: no cork, and no timeout of the connection's own.
    _direct: Output | None

    # Of the class, as few connections have one, and each place in all of them costs memory.
    #: The proxy's address where there is one in between.
    via: str | None = None
    #: What that proxy has said (`longshore.proxy.Header`), TLS and names included; None without a proxy.
    proxied: Any = None
    #: Whether the server has asked its handlers to finish.
    draining: bool = False
    _id = 0
    _messages = 0
    _timeout: float | None = None
    #: What is written inside of `corked`.
    _cork: bytearray | None = None

    def __init__(self, link: Any, peer: str, local: str, server: Any = None, timeout: float | None = None) -> None:
        self._link: Link = link
        #: The peer's address as text.
        self.peer: str = peer
        #: Our own address as text.
        self.local: str = local
        #: The server that accepted it; None on a client.
        self.server: Any = server
        if timeout is not None:
            self._timeout = timeout
        self._straighten()

    def _straighten(self) -> None:
        self._direct = self._link.output if self._cork is None and self._timeout is None else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.local} with {self.peer}>"

    @property
    def id(self) -> int:
        """A number that no other connection of this process has; given when it is first asked for."""
        with _numbering:
            if not self._id:
                self._id = next(_ids)
        return self._id

    @id.setter
    def id(self, number: int) -> None:
        self._id = number

    @property
    def state(self) -> dict[Any, Any]:
        """Whatever the handler wants to keep with the connection; made when first asked for."""
        state: dict[Any, Any] = self.__dict__.setdefault("_state", {})
        return state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self.__dict__["_state"] = state

    @property
    def messages(self) -> int:
        """Messages received so far, by the handler or for it."""
        return self._messages + self._link.handled

    @messages.setter
    def messages(self, count: int) -> None:
        self._messages = count - self._link.handled

    @property
    def framing(self) -> Framing | None:
        """What cuts and encodes messages; assigning takes effect at the byte after the current message."""
        return self._link.input.framing

    @framing.setter
    def framing(self, framing: Framing | None) -> None:
        self._link.input.framing = framing

    @property
    def tls(self) -> Any:
        """The `ssl` object (`version()`, `cipher()`, `getpeercert()`, `selected_alpn_protocol()`); None if plain."""
        return self._link.tls_object

    @property
    def autoflush(self) -> bool:
        """Whether every write leaves at once, where writes could be coalesced."""
        stream = getattr(self._link, "stream", None)
        return stream is None or not stream.coalescing

    @autoflush.setter
    def autoflush(self, value: bool) -> None:
        stream = getattr(self._link, "stream", None)
        if stream is not None:
            stream.coalescing = not value

    def _encoded(self, message: Any) -> bytes:
        framing = self.framing
        return octets(message) if framing is None else framing.encode(message)

    @contextlib.contextmanager
    def corked(self) -> Iterator[None]:
        """Send all that is written inside as one piece; where each write is a packet, as these packets.

        Ending the connection inside ends the piece, too.
        """
        if self._cork is not None or self._link.input.in_packets:
            yield
            return
        self._cork = bytearray()
        self._straighten()
        try:
            yield
        finally:
            self._uncork()

    def _uncork(self) -> None:
        cork, self._cork = self._cork, None
        self._straighten()
        if cork:
            self._put(bytes(cork))

    def _put(self, data: bytes) -> Any:
        """Send or queue `data`."""
        self._link.write(data, self._timeout)

    def close(self) -> None:
        """End in order: what was written is sent, the peer may read it; from any thread."""
        try:
            if self._cork:
                self._uncork()
        finally:
            self._link.close()

    def abort(self) -> None:
        """End with a reset; what is pending is lost; from any thread."""
        self._link.abort()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Take the socket out, in blocking mode, with the bytes that were read and not consumed.

        Raises:
            ClosedError: it is closed.
            LongshoreError: it speaks TLS on a reactor.
        """
        return self._link.detach()

    def shutdown(self, how: int) -> None:
        """End one or both sides (`socket.SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`), after what is pending.

        Raises:
            ValueError: `how` is none of them.
        """
        if how not in (0, 1, 2):
            raise ValueError(f"shutdown({how!r}): must be SHUT_RD, SHUT_WR or SHUT_RDWR of the socket module")
        if how in (1, 2):
            if self._cork:
                self._uncork()
            self._link.end_output()
        if how in (0, 2):
            self._link.end_input()

    def getpeername(self) -> Any:
        """As `socket.socket.getpeername`."""
        return self._link.socket.getpeername()

    def getsockname(self) -> Any:
        """As `socket.socket.getsockname`."""
        return self._link.socket.getsockname()

    def fileno(self) -> int:
        """The descriptor, -1 once closed; reading or writing it loses what is buffered."""
        return self._link.socket.fileno()

    def setsockopt(self, *args: Any) -> None:
        """As `socket.socket.setsockopt`."""
        self._link.socket.setsockopt(*args)

    def getsockopt(self, *args: Any) -> Any:
        """As `socket.socket.getsockopt`."""
        return self._link.socket.getsockopt(*args)

    def settimeout(self, timeout: float | None) -> None:
        """Seconds that each wait of this connection may take; None: no deadline of its own.

        With 0 a blocking connection waits for nothing: as with a socket, what would take time is a `BlockingIOError`.

        Raises:
            ValueError: it is less than none.
        """
        if timeout is not None and timeout < 0:
            raise ValueError(f"settimeout({timeout!r}): must be a number of seconds, at least 0, or None")
        self._timeout = timeout
        self._straighten()

    def gettimeout(self) -> float | None:
        """What `settimeout` set."""
        return self._timeout


@shortened
class Connection(_Named):
    """A blocking connection: plain calls that wait.

    Under `green` they park the greenlet, on a thread of its own they block the thread; the handler is the
    same.  `send`, `sendall`, `flush`, `close` and `abort` may be called from anywhere.

    Example:
        >>> def echo(connection):
        ...     while data := connection.recv(65536):
        ...         connection.sendall(data)
    """

    def _take(self, attempt: Callable[..., Any], *args: Any) -> Any:
        piece = attempt(*args)
        return self._wait_and_take(attempt, *args) if piece is NEED_MORE else piece

    def _wait_and_take(self, attempt: Callable[..., Any], *args: Any) -> Any:
        """Go on after a first attempt that found too little; whoever is called often makes that one himself."""
        piece, link = NEED_MORE, self._link
        source = link.input
        while piece is NEED_MORE:
            link.wait_input(self._timeout)
            if link.input is not source:
                # Somebody else has begun TLS, or a framing of his own, and the stream is another one now.
                source = link.input
                attempt = getattr(source, attempt.__name__)
            piece = attempt(*args)
        return piece

    def recv(self, count: int, flags: int = 0) -> bytes:
        """Up to `count` bytes, at least one; b"" at the end of the stream.

        Raises:
            ReadTimeout: nothing came in time.
            ClosedError: the connection was closed on this side.
            ConnectionResetError: the peer reset it.
        """
        if flags:
            raise ValueError("recv() of a connection takes no flags")
        data = self._link.input.take_some(count)
        if data is NEED_MORE:
            data = self._wait_and_take(self._link.input.take_some, count)
        return data  # type: ignore[no-any-return]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `recv`, into `buffer`; returns the number of bytes, 0 at the end of the stream."""
        view = _room(buffer, nbytes)
        data = self.recv(len(view), flags)
        view[: len(data)] = data
        return len(data)

    def readline(self, limit: int = 65_536) -> bytes:
        """A line with its end; the rest at the end of the stream, then b"".

        Raises:
            MessageTooLarge: no line end within `limit` bytes.
        """
        line = self._link.input.take_line(limit)
        if line is NEED_MORE:
            line = self._wait_and_take(self._link.input.take_line, limit)
        return line  # type: ignore[no-any-return]

    def _lines(self, limit: int) -> Iterator[bytes]:
        """The lines up to the end."""
        return iter(functools.partial(self.readline, limit), b"")

    def read_exactly(self, count: int) -> bytes:
        """Just `count` bytes.

        Raises:
            PeerClosed: the stream ended before the first of them.
            IncompleteMessage: the stream ended in the middle.
        """
        return self._take(self._link.input.take_exactly, count)  # type: ignore[no-any-return]

    def read_until(self, separator: bytes, limit: int = 65_536) -> bytes:
        """Bytes up to and with `separator`.

        Raises:
            MessageTooLarge: it is not within `limit` bytes.
            PeerClosed, IncompleteMessage: the stream ended before it.
        """
        return self._take(self._link.input.take_until, separator, limit)  # type: ignore[no-any-return]

    def receive(self) -> Any:
        """The next message of the framing.

        Raises:
            PeerClosed: the stream has ended.
            FramingError: what came is no message.
        """
        message = self._link.input.take_message()
        if message is NEED_MORE:
            message = self._wait_and_take(self._link.input.take_message)
        self._messages += 1
        return message

    def __iter__(self) -> Iterator[Any]:
        with contextlib.suppress(PeerClosed):
            while True:
                yield self.receive()

    def sendall(self, data: Any) -> None:
        """Send all of `data`, waiting while more than `max_pending_bytes` are pending.

        Raises:
            WriteTimeout: the peer took nothing in time.
            LimitExceeded: too much is pending already, where the caller cannot wait.
            ClosedError, ConnectionError: the connection has ended.
        """
        if self._cork is not None:
            self._cork += data
        elif not self._link.output.offer(data):
            self._link.write(octets(data), self._timeout)

    def send(self, message: Any) -> int:
        """Send one message, encoded by the framing; bytes as they are where there is none.

        Returns:
            The number of bytes, as `socket.send` does for handlers that look at it.

        Raises:
            ValueError: the framing cannot express it.
            As `sendall`.
        """
        data = self._encoded(message)
        self.sendall(data)
        return len(data)

    def request(self, message: Any) -> Any:
        """Send one message and receive one."""
        self.send(message)
        return self.receive()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send `count` bytes (None: all) of a binary file from `offset`; returns how many were sent."""
        if offset:
            file.seek(offset)
        total = 0
        while count is None or total < count:
            data = file.read(65_536 if count is None else min(65_536, count - total))
            if not data:
                break
            self.sendall(data)
            total += len(data)
        return total

    def flush(self) -> None:
        """Return once the kernel has everything that was written; where one cannot wait, send what goes."""
        self._link.flush(self._timeout)

    def start_tls(self, tls: TLS | None = None, hostname: str | None = None) -> None:
        """Speak TLS from here on: as the server that accepted this connection, or as its client.

        Raises:
            TLSError, HandshakeTimeout: the handshake failed.
            LimitExceeded: a server has `Limits.max_handshakes` of them already; this connection ends.
        """
        from longshore import tls as layer

        server_side = self.server is not None
        context = layer.server_context(_required(tls)) if server_side else layer.client_context(tls)
        self._link.start_tls(context, server_side=server_side, hostname=hostname, timeout=self._timeout)

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """A file over this connection, as `socket.makefile` makes one.

        A binary file has no buffer for what is written, unless `buffering` is its size (bytes, above 1); a text file
        has that of `io.TextIOWrapper`, to be flushed.

        Raises:
            ValueError: there is no such mode.
        """
        return make_file(self, mode, buffering, **text)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@shortened
class AsyncConnection(_Named):
    """The same with `await`; `send` and `sendall` queue at the call, and the await only waits for room."""

    def _take(self, attempt: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        link: Any = self._link
        return link.stream.taking(link, self._timeout, attempt, *args)  # type: ignore[no-any-return]

    def recv(self, count: int) -> Coroutine[Any, Any, bytes]:
        """As `Connection.recv`."""
        link: Any = self._link
        return link.stream.taking_some(link, self._timeout, count)  # type: ignore[no-any-return]

    async def recv_into(self, buffer: Any, nbytes: int = 0) -> int:
        """As `Connection.recv_into`."""
        view = _room(buffer, nbytes)
        data = await self.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def readline(self, limit: int = 65_536) -> Coroutine[Any, Any, bytes]:
        """As `Connection.readline`."""
        link: Any = self._link
        return link.stream.taking_line(link, self._timeout, limit)  # type: ignore[no-any-return]

    def read_exactly(self, count: int) -> Coroutine[Any, Any, bytes]:
        """As `Connection.read_exactly`."""
        return self._take(self._link.input.take_exactly, count)

    def read_until(self, separator: bytes, limit: int = 65_536) -> Coroutine[Any, Any, bytes]:
        """As `Connection.read_until`."""
        return self._take(self._link.input.take_until, separator, limit)

    async def receive(self) -> Any:
        """As `Connection.receive`."""
        message = await self._take(self._link.input.take_message)
        self._messages += 1
        return message

    async def __aiter__(self) -> AsyncIterator[Any]:
        with contextlib.suppress(PeerClosed):
            while True:
                yield await self.receive()

    def sendall(self, data: Any) -> Awaitable[None]:
        """Queue `data` now; the await returns once no more than `max_pending_bytes` are pending."""
        link: Any = self._link
        if self._cork is not None:
            self._cork += data
        elif not link.output.offer(data):
            return self._put(octets(data))
        return link.done  # type: ignore[no-any-return]

    def _put(self, data: bytes) -> Awaitable[None]:
        link: Any = self._link
        return link.queue(data, self._timeout)  # type: ignore[no-any-return]

    def send(self, message: Any) -> Awaitable[None]:
        """Queue one message now, as `sendall`."""
        return self.sendall(self._encoded(message))

    async def request(self, message: Any) -> Any:
        """Send one message and receive one."""
        await self.send(message)
        return await self.receive()

    async def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `Connection.sendfile`; the file is read in pieces on the loop's thread."""
        if offset:
            file.seek(offset)
        total = 0
        while count is None or total < count:
            data = file.read(65_536 if count is None else min(65_536, count - total))
            if not data:
                break
            await self.sendall(data)
            total += len(data)
        return total

    async def flush(self) -> None:
        """Return once the kernel has everything that was written."""
        link: Any = self._link
        await link.flushed(self._timeout)

    async def start_tls(self, tls: TLS | None = None, hostname: str | None = None) -> None:
        """As `Connection.start_tls`."""
        from longshore import tls as layer

        link: Any = self._link
        server_side = self.server is not None
        context = layer.server_context(_required(tls)) if server_side else layer.client_context(tls)
        await link.tls_started(context, server_side=server_side, hostname=hostname, timeout=self._timeout)

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """There is no file over an async connection, as the methods of a file wait.

        Raises:
            WouldBlock: always.
        """
        raise WouldBlock(
            f"makefile() over the connection to {self.peer} would block the loop: the methods of a file wait",
            hint="Await readline(), read_exactly() and sendall(); or give a blocking handler, "
            'with strategy="green" or "threads", its file.',
        )

    async def __aenter__(self) -> AsyncConnection:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        link: Any = self._link
        self.close()
        await link.gone()


def _room(buffer: Any, nbytes: int) -> memoryview:
    """The part of `buffer` that `recv_into` may fill."""
    view = memoryview(buffer).cast("B")
    if not 0 <= nbytes <= len(view):
        raise ValueError(f"recv_into() of {nbytes} bytes, into a buffer of {len(view)}")
    return view[:nbytes] if nbytes else view


def _required(tls: TLS | None) -> TLS:
    if tls is None:
        raise ConfigError("start_tls() on a server needs tls=TLS(certfile=..., keyfile=...)")
    return tls
