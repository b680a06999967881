"""Requests of a `socketserver`: its own hooks decide on what a handler runs, and when its socket is closed.

What is left for a session is the connection: its guard or its stream, its deadlines, its end in order and its one
closing event.  So these sessions begin by handing an `Arrival` to the hooks, and end when somebody has closed the
request.  Nothing here accepts, and nothing here calls a hook.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from longshore.strategies import Session
from longshore.strategies.blocking import BlockingSession
from longshore.strategies.green import GreenSession
from longshore.strategies.streams import tls_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.errors import LimitExceeded
    from longshore.strategies import Host
    from longshore.strategies.green import Home

__all__ = ("Arrival", "BareRequest", "GreenRequest", "SocketRequest")

#: Seconds that a client whose answer has left while the server ends may take to end its side.
LAST_LINGER = 0.3


class Arrival:
    """One request, from `get_request` to its end, as whoever calls the hooks knows it."""

    __slots__ = ("_free", "_turn_away", "client_address", "fault", "is_claimed", "request", "session", "welcome")

    def __init__(self, request: Any, client_address: Any, turn_away: Callable[[Any], object]) -> None:
        self.request = request
        self.client_address = client_address
        #: What keeps the connection; None for a datagram.
        self.session: SocketRequest | GreenRequest | BareRequest | None = None
        #: Runs the hooks; set once the request has its place.
        self.welcome: Callable[[Arrival], object] | None = None
        #: Whether something beyond `process_request` (a thread, a greenlet, a child) has the request now.
        self.is_claimed = False
        #: What went wrong with the connection itself, not with its handler.
        self.fault: BaseException | None = None
        self._turn_away = turn_away
        self._free: Callable[[], object] | None = None

    def take_place(self, free: Callable[[], object]) -> None:
        """It holds a place of the bound on handlers, which `free` gives back."""
        self._free = free

    def leave_place(self) -> None:
        """Give the place back; from any thread, again does nothing."""
        free, self._free = self._free, None
        if free is not None:
            free()

    def is_clients_doing(self, error: BaseException) -> bool:
        """Whether a handler's error is about the connection to its client, and not about one of its own."""
        ended_by = None if self.session is None else self.session.ended_by()
        if error is self.fault or ended_by is not None:
            return error is self.fault or error is ended_by
        if isinstance(self.session, (SocketRequest, GreenRequest)):
            return isinstance(error, ConnectionError) and self.session.has_raised(error)
        return isinstance(error, ConnectionError) and isinstance(self.request, socket.socket) and _is_gone(self.request)

    # -- what admission asks of a socket that it turns away ------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send a farewell."""
        # A connection of the reactor that was never begun takes nothing; its socket does.
        session = self.session
        (session.stream.socket if isinstance(session, GreenRequest) else self.request).send(data)

    def close(self) -> None:
        """End the request by its hook."""
        self._turn_away(self.request)


def _is_gone(sock: socket.socket) -> bool:
    """Whether the other end of a connection has ended it."""
    try:
        sock.getpeername()
        return not socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def _begin(arrival: Arrival) -> None:
    assert arrival.welcome is not None
    arrival.welcome(arrival)


class SocketRequest(BlockingSession):
    """A request that is a socket: guarded, closed by its hooks, and ended in order by the reactor."""

    def __init__(self, host: Host, arrival: Arrival, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        super().__init__(host, sock, peer, local, tls, lambda _session: _begin(arrival))
        self._shaken = tls is None
        self.arrival = arrival
        arrival.request = self.link.socket

    def begin(self) -> None:
        """Hand the request to the hooks."""
        if self._shaken:
            self.begun()
        super().begin()

    def handshake(self) -> None:
        """Make the TLS handshake, on the handler's thread; again, and without TLS, nothing happens.

        Raises:
            OSError: it failed, or took too long.
        """
        if not self._shaken:
            self._shaken = True
            self._handshake()
            self.host.reactor.post(self.begun, str(self.link.tls_object.version()))

    def _released_by_handler(self, sock: socket.socket) -> None:
        if self.host.reactor.closed:
            sock.close()
        else:
            self.host.reactor.post(self._closed_by_hooks, sock)

    def _closed_by_hooks(self, sock: socket.socket) -> None:
        self._disarm()
        cause, error = (
            self.guard.failure or self._failure or ("drained" if self.guard.input_ended else "finished", None)
        )
        self._end_in_order(sock, cause, error)
        self.handler_returned()
        self._linger_no_longer()

    def _linger_no_longer(self) -> None:
        """Once the server ends, a client that has everything is not waited for."""
        if self.connection.draining and self.is_lingering():
            self.host.reactor.call_later(LAST_LINGER, super().destroy)

    def settle(self) -> None:
        """The hooks are through; a socket that they have detached is no business of ours any more."""
        if self.guard.socket is not None and self.guard.socket.fileno() < 0 and not self.guard.released:
            self.host.reactor.post(self._detached)

    def _detached(self) -> None:
        self._disarm()
        self.gone("finished", None)
        self.handler_returned()

    def ended_by(self) -> BaseException | None:
        """What has ended the connection under its handler."""
        return None if self.guard.failure is None else self.guard.failure[1]

    def waits(self) -> bool:
        """Whether the handler waits for its client."""
        return self.guard.waiting or self.guard.watch.pending

    def is_lingering(self) -> bool:
        """Whether everything was sent, and only the client's end of the stream is waited for."""
        return self._stream is not None and not self._stream.pending

    # -- the server's side, which is another thread's ------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """As every session; from any thread."""
        super().drain(deadline)
        self.host.reactor.post(self._linger_no_longer)

    def cut(self) -> None:
        """As every session; from any thread."""
        if self._stream is None:
            # At once, as the handler may have the reactor's own thread.
            super().cut()
        else:
            self.host.reactor.post(super().cut)

    def overdrawn(self, error: LimitExceeded) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().overdrawn, error)

    def destroy(self) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().destroy)


class GreenRequest(GreenSession):
    """A request that is a connection of the reactor; its handler runs where `launch` is told."""

    def __init__(self, home: Home, arrival: Arrival, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        super().__init__(home, sock, peer, local, tls)
        # An unchanged program may write on one connection what another one waits for.
        self.stream.coalescing = False
        self.arrival = arrival
        self._job: Callable[[], object] | None = None
        arrival.request = self.connection

    def begin(self) -> None:
        """Let the stream read, and hand the request to the hooks."""
        self.host.reactor.post(self.stream.start)
        _begin(self.arrival)

    def opened(self) -> None:
        """Count it; the hooks start the handler."""
        super(GreenSession, self).opened()
        if not self.is_open:
            self.begun(tls_version(self.link))

    def handshake(self) -> None:
        """Return once the TLS handshake is over.

        Raises:
            LongshoreError, OSError: it failed, or took too long.
        """
        self.link.wait_open()

    def settle(self) -> None:
        """The hooks are through; the stream knows by itself whether it is closed."""

    def handler_returned(self) -> None:
        """The handler is through."""
        super().handler_returned()
        self._linger_no_longer()

    def _linger_no_longer(self) -> None:
        """Once the server ends, a client that has everything is not waited for."""
        if self.connection.draining and self.is_lingering():
            self.host.reactor.call_later(LAST_LINGER, super().destroy)

    def launch(self, job: Callable[[], object]) -> None:
        """Run `job()` in a greenlet; from any thread."""
        self._job = job
        self.handler_running = True
        self.host.reactor.post(self._start)

    def _call(self) -> str:
        assert self._job is not None
        try:
            self._job()
        except SystemExit:
            # As in a thread of its own, it ends the request's handler, and quietly.
            pass
        except KeyboardInterrupt as error:
            # Nobody has interrupted this thread, so it is a failure like any other.
            self.failed(error)
        return "finished"

    def ended_by(self) -> BaseException | None:
        """What has ended the connection under its handler."""
        return self.stream.error

    def waits(self) -> bool:
        """Whether the handler waits for its client."""
        return bool(self.stream.watch.waiting or self.stream.pending)

    def is_lingering(self) -> bool:
        """Whether everything was sent, and only the client's end of the stream is waited for."""
        return self.stream.state == "closing" and not self.stream.pending and not self.handler_running

    # -- the server's side, which is another thread's ------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().drain, deadline)
        self.host.reactor.post(self._linger_no_longer)

    def cut(self) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().cut)

    def evict(self) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().evict)

    def overdrawn(self, error: LimitExceeded) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().overdrawn, error)

    def destroy(self) -> None:
        """As every session; from any thread."""
        self.host.reactor.post(super().destroy)


class BareRequest(Session):
    """A request that its hooks keep to themselves: a child has its socket, or it is no socket at all."""

    def __init__(self, host: Host, arrival: Arrival, peer: str, local: str) -> None:
        super().__init__(host, peer, local)
        self.arrival = arrival

    def begin(self) -> None:
        """Hand the request to the hooks."""
        _begin(self.arrival)

    def settle(self) -> None:
        """Nobody has it any more."""
        self.gone("finished", None)

    def is_lingering(self) -> bool:
        """It is not known, and nothing is waited for."""
        return True

    def destroy(self) -> None:
        """Forget it."""
        self.settle()

    def ended_by(self) -> BaseException | None:
        """It is not known."""
        return None

    def waits(self) -> bool:
        """It is not known."""
        return False

    def _end_if_over(self) -> None:
        # Bytes, cause and end are not seen from here, so there is no event that would make them up.
        if not self._ended:
            self._ended = True
            self.host.session_ended(self)

    def drain(self, deadline: float | None) -> None:
        """Its hooks see to its end."""

    def cut(self) -> None:
        """Its hooks see to its end."""

    def idle_since(self) -> float | None:
        """It is not known."""
        return None

    def traffic(self) -> tuple[int, int, int]:
        """It is not known."""
        return 0, 0, 0
