"""The standard library's `socketserver`, with the same names and the same hooks, on Longshore's reactor.

    from longshore import socketserver

and nothing else changes.  Every class is a subclass of the standard one, every hook is called in the standard order and
on the standard thread.  What is better: `shutdown` works from anywhere and at once, threads are bounded, finished
requests leave nothing behind, a silent client of a TLS server stops nobody, a vanished one is one line in the log, and
three class attributes give any server `limits`, `timeouts` and `tls`.  `GreenMixIn` runs each request in a greenlet.

The mixins work on any server built on the standard module too: `class Fast(GreenMixIn, http.server.HTTPServer)`.

The only place that subclasses `socketserver`; what stands behind the hooks is `dropin/hosting.py`'s business.
"""

from __future__ import annotations

import os
import socket
import socketserver as standard
import sys
import threading
from socketserver import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar

from longshore import runs
from longshore.config import TLS, Limits, Timeouts
from longshore.dropin.hosting import Hosting
from longshore.dropin.manners import CHILDREN, GREEN, INLINE, THREADS, UNLIMITED, Manner
from longshore.listeners import BACKLOG
from longshore.reactor.datagrams import BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.events import Event
    from longshore.reports import DrainReport

__all__: tuple[str, ...] = (
    "BaseRequestHandler",
    "BaseServer",
    "DatagramRequestHandler",
    "GreenMixIn",
    "GreenTCPServer",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "UDPServer",
)

#: Defaults of the standard library that lose what users send, and what stands in their place: a backlog of 5 drops
#: bursts of connections, a buffer of 8,192 bytes cuts datagrams.  What a class has set itself stays.
_BETTER = {"request_queue_size": BACKLOG, "max_packet_size": BUFFER}


class BaseServer(standard.BaseServer):
    """As `socketserver.BaseServer`; the attributes and methods that are named here are Longshore's.

    Attributes:
        limits: bounds of this server; `max_threads` (256) bounds `ThreadingMixIn`.
        timeouts: deadlines of its connections, in seconds; all of them None unless set.
        tls: certificates; the server speaks TLS, and the handshake is made where the handler runs.
    """

    limits: Limits = Limits()
    timeouts: Timeouts = UNLIMITED
    tls: TLS | None = None

    _longshore_manner: ClassVar[Manner] = INLINE
    _longshore: Hosting

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Not `__init__`, which servers of others may never call."""
        self = super().__new__(cls)
        self._longshore = Hosting(self, cls._longshore_manner)
        for name, value in _BETTER.items():
            owner = next((each for each in cls.__mro__ if name in vars(each)), None)
            if owner is not None and owner.__module__ == standard.__name__:
                setattr(self, name, value)
        return self

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve on this thread until `shutdown`; a `service_actions` of yours is called every `poll_interval` seconds.

        Raises:
            ConfigError: `tls` is no `TLS`.
        """
        self._longshore.serve_forever(poll_interval)

    def shutdown(self) -> None:
        """End `serve_forever`; from any thread, a handler or a signal handler too.

        Returns once it has ended, but on the thread that serves, where it ends as soon as this one is let go.  Before
        `serve_forever`, that one will return at once.
        """
        self._longshore.shutdown()

    def handle_request(self) -> Any:
        """Serve one request, or call `handle_timeout` if none comes within `timeout` seconds."""
        sock = getattr(self, "socket", None)
        known = [each for each in (self.timeout, sock and sock.gettimeout()) if each is not None]
        if not self._longshore.handle_request(min(known) if known else None):
            return self.handle_timeout()
        return None

    def get_request(self) -> Any:
        """The request and its client's address, as the class above has it; a stream becomes one of Longshore's."""
        request, client_address = super().get_request()
        return self._longshore.adopt(request, client_address), client_address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the TLS handshake, if there is one, and run the handler."""
        self._longshore.handshake(request)
        try:
            super().finish_request(request, client_address)
        finally:
            if runs.touched:
                runs.over()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show the traceback of what a handler raised; that its client has gone is one line in the log."""
        if not self._longshore.lost_client(request, sys.exception()):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Close the server, and end its connections: at once where the client is owed nothing.

        Handlers that are at work are awaited where the standard library does so (`block_on_close`), for at most
        `timeouts.drain` seconds; without that, one whose client does not go on is cut after 15 seconds.
        """
        self._longshore.stop_serving()
        super().server_close()
        self._longshore.close(wait=getattr(self, "block_on_close", True) and not getattr(self, "daemon_threads", False))

    def drain(self, timeout: float | None = None) -> DrainReport | None:
        """As `server_close`, but all handlers are cut after `timeout` seconds, and the report says what became of whom.

        Returns:
            The report; None on a thread that is inside of a handler or of `serve_forever`, where nothing is awaited.
        """
        self._longshore.drain_timeout = timeout
        self.server_close()
        return self._longshore.report

    def subscribe(self, observer: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call `observer(event)` for every event of `longshore.events` (of `kinds`); returns how to stop that."""
        return self._longshore.subscribe(observer, *kinds)


class TCPServer(BaseServer, standard.TCPServer):
    """As `socketserver.TCPServer`: one connection after the other."""

    request_queue_size = BACKLOG


class UDPServer(TCPServer, standard.UDPServer):
    """As `socketserver.UDPServer`, with datagrams of any size."""

    max_packet_size = BUFFER


class _Threads(set[threading.Thread]):
    """The threads that `server_close` waits for; each takes itself out when it ends."""

    def append(self, thread: threading.Thread) -> None:
        """Wait for `thread`, unless it is a daemon."""
        if not thread.daemon:
            self.add(thread)

    def join(self) -> None:
        """Return once all have ended, but the one that asks."""
        for thread in tuple(self):
            if thread is not threading.current_thread():
                thread.join()


class ThreadingMixIn(standard.ThreadingMixIn, BaseServer):
    """As `socketserver.ThreadingMixIn`: a thread per request, at most `limits.max_threads` at once (None: no bound).

    While all of them are busy, further connections wait in the kernel's queue.
    """

    _longshore_manner = THREADS
    _threads: Any

    def process_request(self, request: Any, client_address: Any) -> None:
        """Run `process_request_thread` in a new thread."""
        threads = vars(self).setdefault("_threads", _Threads()) if self.block_on_close else _Threads()
        thread = threading.Thread(target=self._run_request, args=(threads, request, client_address))
        thread.daemon = self.daemon_threads
        threads.append(thread)
        arrival = self._longshore.claim(request)
        try:
            thread.start()
        except BaseException:
            threads.discard(thread)
            arrival.is_claimed = False
            raise

    def _run_request(self, threads: _Threads, request: Any, client_address: Any) -> None:
        with self._longshore.handling(request):
            try:
                self.process_request_thread(request, client_address)
            finally:
                threads.discard(threading.current_thread())


class GreenMixIn(BaseServer):
    """A greenlet per request: blocking handlers, thousands at once, on one thread beside the serving one.

    `request` is a `longshore.Connection` with the methods of a socket that handlers use.  What waits for anything else
    blocks the others; see `longshore.sleep` and `longshore.to_thread`.
    """

    _longshore_manner = GREEN
    #: Whether `server_close` waits until all requests are done.
    block_on_close = True

    def process_request_green(self, request: Any, client_address: Any) -> None:
        """What runs in the greenlet, as `process_request_thread` does in a thread."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Run `process_request_green` in a greenlet."""
        self._longshore.launch(self.process_request_green, request, client_address)


class ThreadingTCPServer(ThreadingMixIn, TCPServer, standard.ThreadingTCPServer):
    """As `socketserver.ThreadingTCPServer`."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer, standard.ThreadingUDPServer):
    """As `socketserver.ThreadingUDPServer`."""


class GreenTCPServer(GreenMixIn, TCPServer):
    """A TCP server whose requests run in greenlets."""


if hasattr(os, "fork"):

    class ForkingMixIn(standard.ForkingMixIn, BaseServer):
        """As `socketserver.ForkingMixIn`: a child per request, at most `max_children` at once.

        A child that has ended is reaped at once.  While there are `max_children`, further connections wait in the
        kernel's queue, and the server can be shut down.
        """

        _longshore_manner = CHILDREN

        def process_request(self, request: Any, client_address: Any) -> None:
            """Run `finish_request` in a new child."""
            child = os.fork()
            if not child:
                self._longshore_in_child(request, client_address)
            if self.active_children is None:
                self.active_children = set()
            self.active_children.add(child)
            self._longshore.parent_of(child, request)
            self.close_request(request)

        def _longshore_in_child(self, request: Any, client_address: Any) -> None:
            """Handle the request, and end the child; never returns into what the parent was doing."""
            status = 1
            try:
                request = self._longshore.in_child(request, client_address)
                self.finish_request(request, client_address)
                status = 0
            except Exception:
                self.handle_error(request, client_address)
            finally:
                try:
                    self.shutdown_request(request)
                finally:
                    os._exit(status)

    class ForkingTCPServer(ForkingMixIn, TCPServer, standard.ForkingTCPServer):
        """As `socketserver.ForkingTCPServer`."""

    class ForkingUDPServer(ForkingMixIn, UDPServer, standard.ForkingUDPServer):
        """As `socketserver.ForkingUDPServer`."""

    __all__ += ("ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer")

if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer, standard.UnixStreamServer):
        """As `socketserver.UnixStreamServer`."""

    class UnixDatagramServer(UDPServer, standard.UnixDatagramServer):
        """As `socketserver.UnixDatagramServer`, with datagrams of any size."""

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer, standard.ThreadingUnixStreamServer):
        """As `socketserver.ThreadingUnixStreamServer`."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer, standard.ThreadingUnixDatagramServer):
        """As `socketserver.ThreadingUnixDatagramServer`."""

    class GreenUnixStreamServer(GreenMixIn, UnixStreamServer):
        """A Unix stream server whose requests run in greenlets."""

    __all__ += (
        "GreenUnixStreamServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
        "UnixDatagramServer",
        "UnixStreamServer",
    )

    if hasattr(os, "fork"):
        # The standard library has these since Python 3.12: who asks whether ours is one of them must hear yes.
        _Stream: Any = getattr(standard, "ForkingUnixStreamServer", standard.UnixStreamServer)
        _Datagram: Any = getattr(standard, "ForkingUnixDatagramServer", standard.UnixDatagramServer)

        class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer, _Stream):  # type: ignore[misc]
            """As `socketserver.ForkingUnixStreamServer`."""

        class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer, _Datagram):  # type: ignore[misc]
            """As `socketserver.ForkingUnixDatagramServer`."""

        __all__ += ("ForkingUnixDatagramServer", "ForkingUnixStreamServer")


def __getattr__(name: str) -> Any:
    """What the standard module has besides: programs reach through it for `socketserver.socket` and the like."""
    return getattr(standard, name)
