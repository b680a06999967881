"""What comes before a session where proxies are in front: their header, read before anything else knows the connection.

The only place that reads PROXY headers from sockets.  A trusted proxy's connection is a `Prologue` until its header
is whole; then admission judges it again, by who it really is.  Whoever is not trusted goes on at once, as its server
may have to speak first, on a socket that notices a header (`Suspected`).  What a header means is for `proxy.py`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from typing import TYPE_CHECKING, Any

from longshore.errors import ClosedError
from longshore.proxy import ProxyError, Suspicion, parse
from longshore.strategies import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.config import Proxy
    from longshore.proxy import Header
    from longshore.strategies import Host

__all__ = ("Prologue", "Suspected")


class Suspected(socket.socket):
    """A connection whose peer must not send a PROXY header: reading one raises `ProxyError`."""

    suspicion: Suspicion

    @classmethod
    def over(cls, sock: socket.socket, peer: str) -> Suspected:
        """Take over `sock`, which is detached."""
        timeout = sock.gettimeout()
        taken = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        taken.settimeout(timeout)
        taken.suspicion = Suspicion(peer)
        return taken

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`."""
        data = super().recv(bufsize, flags)
        self.suspicion.look(data)
        return data


class Prologue(Session):
    """A connection of which nothing is known yet but its proxy."""

    #: Whether it holds its place meanwhile, or waits for one that another has to leave.
    has_place = False

    def __init__(
        self,
        host: Host,
        sock: socket.socket,
        peer: str,
        local: str,
        proxy: Proxy,
        introduce: Callable[[Prologue, socket.socket, Header], None],
    ) -> None:
        super().__init__(host, peer, local)
        self._socket = sock
        self._proxy = proxy
        self._introduce = introduce
        self._data = b""
        self._timer: Any = None
        sock.setblocking(False)

    def begin(self) -> None:
        """Wait for the header."""
        reactor = self.host.reactor
        self._timer = reactor.call_later(self._proxy.timeout, self._late)
        reactor.watch(self._socket, selectors.EVENT_READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            # Looked at first, as what follows the header is not ours.
            data = self._socket.recv(self._proxy.max_header - len(self._data), socket.MSG_PEEK)
            found = parse(self._data + data, self._proxy.max_header) if data else None
            if found is None:
                # Then all of it belongs to the header.
                self._data += self._socket.recv(len(data)) if data else b""
            else:
                self._socket.recv(found[1] - len(self._data))
        except (BlockingIOError, InterruptedError):
            return
        except ProxyError as error:
            self._end("proxy", ProxyError(f"{self.peer} is a trusted proxy, but {error}"))
            return
        except OSError as error:
            self._end("reset" if isinstance(error, ConnectionError) else "error", error)
            return
        if found is not None:
            self._release()
            self._introduce(self, self._socket, found[0])
        elif not data:
            what = f"after {len(self._data)} bytes of its PROXY header" if self._data else "without a PROXY header"
            self._end("proxy", ProxyError(f"{self.peer} closed the connection {what}"))

    def _late(self) -> None:
        self._timer = None
        text = (
            f"{self.peer} is a trusted proxy, and sent no PROXY header in time (Proxy.timeout={self._proxy.timeout:g})"
        )
        self._end("proxy", ProxyError(text))

    def _release(self) -> None:
        self.host.reactor.watch(self._socket, 0, self._ready)
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, cause: str, error: BaseException | None) -> None:
        if self.over:
            return
        self._release()
        with contextlib.suppress(OSError):
            self._socket.close()
        if self.has_place:
            self.host.handler_freed()
        self.gone(cause, error)

    def drain(self, deadline: float | None) -> None:
        """Nothing is owed to it."""
        self._end("drained", None)

    def cut(self) -> None:
        """End now."""
        self._end("cut", ClosedError(f"the connection to {self.peer} was cut: the server is stopping"))

    def destroy(self) -> None:
        """End now."""
        self.cut()

    def idle_since(self) -> float | None:
        """It has a deadline of its own."""
        return None

    def traffic(self) -> tuple[int, int, int]:
        """Bytes of its header."""
        return len(self._data), 0, 0
