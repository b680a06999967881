"""What stands behind a `socketserver`: the loop, the limits and the connections that its hooks do not see.

The only place that knows in which order the hooks of a server are called, and on which thread: all that the standard
library calls on the thread of `serve_forever` are called there.  The hooks themselves, and what users override, are in
`socketserver.py`; how a connection is kept is `strategies/hooked.py`'s business.

Two reactors, because a handler may hold the serving thread for as long as it likes.  The *loop* turns inside of
`serve_forever` and `handle_request`, accepts, and counts.  The *keeper* has a thread of its own and keeps what must go
on meanwhile: greenlets, deadlines, connections that end.  A server that needs neither (one request after the other, no
timeouts) has no keeper, so an unchanged program has no thread that it did not start.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.addresses import format_peer
from longshore.admission import Admission
from longshore.dropin.children import Children
from longshore.dropin.entrances import Front, Hatch
from longshore.dropin.keeper import Keeper
from longshore.dropin.manners import THREADS, Attributes
from longshore.events import HandlerFailed
from longshore.reactor.portable import PortableReactor
from longshore.reports import DrainReport
from longshore.strategies.hooked import Arrival, BareRequest, GreenRequest, SocketRequest
from longshore.subscribers import Subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.config import Limits
    from longshore.dropin.manners import Manner
    from longshore.events import Event
    from longshore.reactor.clock import Clock
    from longshore.strategies import Session

__all__ = ("Hosting",)

#: Seconds that a closing server waits for a handler whose client owes it something, where no `Timeouts.drain` is set.
PATIENCE = 15.0
#: Seconds that cut handlers have to end before they are left behind.
GRACE = 1.0
#: What `_context_of` says of a request that stays as it is.
_NOT_OURS = object()


class Hosting:
    """The host of one server; made with it, and costing nothing until it serves."""

    #: Real time; tests put a clock here that they turn by hand.
    clock: Clock | None = None

    def __init__(self, server: Any, manner: Manner) -> None:
        self.server = server
        self.manner = manner
        self.attributes = Attributes(server, manner)
        self.url = ""
        self.context = contextvars.copy_context()
        self.draining = False
        self._process = os.getpid()
        self._subscribers = Subscribers()
        self._asked_to_stop = False
        self._not_serving = threading.Event()
        self._not_serving.set()
        #: The thread that serves now.
        self.thread: int | None = None
        self._loop: PortableReactor | None = None
        self._keeper: Keeper | None = None
        self._admission: Admission | None = None
        self._arrivals: dict[int, Arrival] = {}
        #: The threads that are with a handler of ours.
        self.handler_threads: set[int] = set()
        self._children = Children()
        self._inherited: tuple[object, ...] = ()
        #: Whether `handle_request` waits for just one, and whether it has come.
        self._only_one = False
        self._one_came = False
        self._close_when_served = False
        self._ending = False
        #: Seconds until handlers are cut when the server closes; None: `Timeouts.drain`.
        self.drain_timeout: float | None = None
        self.report: DrainReport | None = None
        self._emptied: Callable[[], object] | None = None
        self._finished = self._cut = 0

    @property
    def limits(self) -> Limits:
        """The server's, as they are now."""
        return self.attributes.limits

    def capacity(self, limits: Limits) -> int | None:
        """How many requests may be with their handlers at once; None where that is not bounded."""
        return self.attributes.capacity(limits)

    # -- events --------------------------------------------------------------------------------------------

    def subscribe(self, observer: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call `observer(event)` for every event (of `kinds`); returns how to stop that."""
        return self._subscribers.add(observer, *kinds)

    def emit(self, event: Event) -> None:
        """Tell the subscribers; a warning that nobody wants is logged, unless `handle_error` has shown it already."""
        if not isinstance(event, HandlerFailed) or self.wants(HandlerFailed):
            self._subscribers.emit(event)

    def wants(self, kind: type[Event]) -> bool:
        """Whether somebody would hear of an event of this kind."""
        return self._subscribers.wants(kind)

    # -- serving -------------------------------------------------------------------------------------------

    def serve_forever(self, poll_interval: float) -> None:
        """Accept and call hooks on this thread until `shutdown`."""
        self._not_serving.clear()
        try:
            with self._serving() as loop:
                if self._asked_to_stop:
                    loop.stop()
                if self.attributes.has_service_actions():
                    loop.call_later(poll_interval, self._tick, loop, poll_interval)
                loop.run()
        finally:
            self._asked_to_stop = False
            self._not_serving.set()
            if self._close_when_served:
                self.close(wait=False)

    def handle_request(self, timeout: float | None) -> bool:
        """Accept one request and call its hooks on this thread; False if none came within `timeout` seconds."""
        self._only_one, self._one_came = True, False
        try:
            with self._serving() as loop:
                timer = None if timeout is None else loop.call_later(timeout, loop.stop)
                loop.run()
                if timer is not None:
                    timer.cancel()
        finally:
            self._only_one = False
        return self._one_came

    def shutdown(self) -> None:
        """End `serve_forever`, and wait for that where one can; before it, the next one ends at once."""
        self._asked_to_stop = True
        loop = self._loop
        if loop is not None and not self._not_serving.is_set():
            loop.stop()
        self._free_thread()
        if self._is_own_thread():
            return
        timeout = self.attributes.timeouts.drain
        if self.manner.holds_loop and not self._not_serving.wait(PATIENCE if timeout is None else timeout):
            for arrival in tuple(self._arrivals.values()):
                if arrival.session is not None and (timeout is not None or arrival.session.waits()):
                    self._cut_one(arrival.session)
        self._not_serving.wait()

    def _free_thread(self) -> None:
        """Once asked to stop, let a handler that has the serving thread wait no more for a client that is owed nothing.

        Called after the wish was noted, and after an arrival was: whichever comes second sees the other.
        """
        if self._asked_to_stop and self.manner.holds_loop and not self._only_one:
            for arrival in tuple(self._arrivals.values()):
                if arrival.session is not None:
                    arrival.session.drain(None)

    def _is_own_thread(self) -> bool:
        """Whether this thread is one that serving needs, so that it must not wait for the end of that."""
        keeper = self._keeper
        here = threading.get_ident()
        return self._process != os.getpid() or here == self.thread or (keeper is not None and keeper.reactor.on_thread)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[PortableReactor]:
        server = self.server
        if self._process != os.getpid():
            self._forget()
        if server.fileno() < 0:
            raise ValueError("this server is closed: a new one is needed to serve again")
        self.attributes.tls_context()
        loop = self._loop
        if loop is None:
            loop = self._loop = PortableReactor(self.clock)
        self.context = contextvars.copy_context()
        self.thread = threading.get_ident()
        closing = contextlib.ExitStack()
        try:
            with closing:
                self._open_door(loop, closing)
                yield loop
            # What the hooks have closed in the last turn.
            loop.run_ready()
        finally:
            self.thread = None
            self._release_if_empty()

    def _open_door(self, loop: PortableReactor, closing: contextlib.ExitStack) -> None:
        sock = getattr(self.server, "socket", None)
        if not isinstance(sock, socket.socket) or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            closing.callback(Hatch(self, loop).close)
            return
        # As many as there are, and no wait for one that has vanished again.
        timeout = sock.gettimeout()
        sock.setblocking(False)
        closing.callback(_restore, sock, timeout)
        if hasattr(sock, "do_handshake_on_connect"):
            # A handshake made by accept() keeps everybody waiting for one silent client.
            sock.do_handshake_on_connect = False
        if self._admission is None:
            self._admission = Admission(self, "threads" if self.manner is THREADS else "children")  # type: ignore[arg-type]
        self._admission.reconfigure(self.limits)
        closing.callback(self._admission.close)
        self._admission.open([Front(self, sock)], self, None)  # type: ignore[arg-type, list-item]

    @runs.turned_by(None)
    def _tick(self, loop: PortableReactor, poll_interval: float) -> None:
        loop.call_later(poll_interval, self._tick, loop, poll_interval)
        self.server.service_actions()

    #: Admission hands requests to `open`, never streams.
    on_streams = False

    @property
    def reactor(self) -> PortableReactor:
        """The loop, for admission."""
        assert self._loop is not None
        return self._loop

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it when the loop next turns; from any thread."""
        loop = self._loop
        if loop is not None:
            loop.post(callback, *args)

    # -- one request: the hooks, in the standard library's order --------------------------------------------

    @runs.turned_by(None)
    def next_arrival(self) -> Arrival:
        """Call `get_request`.

        Raises:
            OSError: there is no request, or none that this `serve_forever` takes any more.
        """
        if self._asked_to_stop and not self._only_one:
            raise BlockingIOError
        request, client_address = self.server.get_request()
        return self._arrivals.get(id(request)) or self._adopt(request, client_address, self.manner.requests)

    def adopt(self, request: Any, client_address: Any) -> Any:
        """Take over what accept(2) gave; what handlers are to see in its place.

        Raises:
            OSError: it ended before its TLS handshake could begin.
        """
        if self.thread != threading.get_ident() or self._process != os.getpid():
            return request
        return self._adopt(request, client_address, self.manner.requests).request

    def _adopt(self, request: Any, client_address: Any, kind: str | None) -> Arrival:
        arrival = Arrival(request, client_address, self.server.shutdown_request)
        context = self._context_of(request)
        if kind is not None and context is not _NOT_OURS:
            timeout = request.gettimeout()
            plain = socket.socket(request.family, request.type, request.proto, fileno=request.detach())
            peer = format_peer(plain.family, client_address)
            keeper = self._keep()
            if kind == "connection":
                plain.setblocking(False)
                arrival.session = GreenRequest(keeper, arrival, plain, peer, self.url, context)
            else:
                arrival.session = SocketRequest(keeper, arrival, plain, peer, self.url, context)
            if timeout is not None:
                arrival.request.settimeout(timeout)
        self._arrivals[id(arrival.request)] = arrival
        return arrival

    def _context_of(self, request: Any) -> Any:
        """The TLS context with which a request begins, or None; `_NOT_OURS` for what cannot be taken over."""
        if not isinstance(request, socket.socket) or request.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            return _NOT_OURS
        if type(request) is socket.socket:
            return self.attributes.tls_context()
        unshaken: Any = request
        if hasattr(request, "do_handshake") and unshaken.version() is None:
            # Nothing of the handshake has been read, so another object can make it.
            return unshaken.context
        return _NOT_OURS

    def _keep(self) -> Keeper:
        """The keeper, or the loop in its place where nothing has to go on while a handler runs."""
        if self._keeper is None:
            alone = self.manner.holds_loop and not self.attributes.has_deadlines()
            self._keeper = Keeper(self, self._loop if alone else None)
        return self._keeper

    def open(self, arrival: Arrival, peer: str, local: str, tls: Any) -> Session:
        """The session of a request that admission has let in."""
        session = arrival.session
        if session is None:
            session = arrival.session = BareRequest(self._keep(), arrival, peer, local)
        admission = self._admission
        assert admission is not None
        arrival.take_place(lambda: self.post(admission.handler_freed))
        arrival.welcome = self.welcome
        return session

    @runs.turned_by(None)
    def welcome(self, arrival: Arrival) -> None:
        """Call the hooks of one request, from `verify_request` on; they may block this thread."""
        self.attempted()
        self._free_thread()
        server, request, client_address = self.server, arrival.request, arrival.client_address
        try:
            if not server.verify_request(request, client_address):
                server.shutdown_request(request)
                return
            try:
                server.process_request(request, client_address)
            except Exception:
                server.handle_error(request, client_address)
                server.shutdown_request(request)
            except BaseException:
                server.shutdown_request(request)
                raise
        finally:
            if not arrival.is_claimed:
                self.done(arrival)
            if self.attributes.has_service_actions() and not self._only_one:
                server.service_actions()

    def attempted(self) -> None:
        """`get_request` was called, with or without success: all that `handle_request` waits for."""
        if self._only_one:
            self._one_came = True
            if self._admission is not None:
                self._admission.pause()
            self.reactor.stop()

    def claim(self, request: Any) -> Arrival:
        """Something beyond `process_request` has the request, until it calls `done`."""
        arrival = self._arrivals.get(id(request))
        if arrival is None:
            # Nobody else has counted it: the user has called a hook by hand.
            return Arrival(request, None, self.server.shutdown_request)
        arrival.is_claimed = True
        return arrival

    def done(self, arrival: Arrival) -> None:
        """Nothing of ours runs for the request any more; from any thread."""
        arrival.leave_place()
        if arrival.session is not None:
            arrival.session.settle()
        else:
            self._arrivals.pop(id(arrival.request), None)

    @contextlib.contextmanager
    def handling(self, request: Any) -> Iterator[None]:
        """On a thread of its own, a claimed request is handled inside, and is done with at the end."""
        arrival = self.claim(request)
        here = threading.get_ident()
        self.handler_threads.add(here)
        try:
            yield
        finally:
            self.handler_threads.discard(here)
            self.done(arrival)

    def handshake(self, request: Any) -> None:
        """Make the TLS handshake that `get_request` has left out, where the handler runs.

        Raises:
            OSError: it failed.
        """
        arrival = self._arrivals.get(id(request))
        session = None if arrival is None else arrival.session
        try:
            if isinstance(session, (SocketRequest, GreenRequest)):
                session.handshake()
            elif hasattr(request, "do_handshake") and request.version() is None:
                timeout = request.gettimeout()
                request.settimeout(self.attributes.timeouts.handshake)
                request.do_handshake()
                request.settimeout(timeout)
        except OSError as error:
            if arrival is not None:
                arrival.fault = error
            raise

    def launch(self, function: Callable[[Any, Any], object], request: Any, client_address: Any) -> None:
        """Call `function(request, client_address)` in a greenlet; in a thread, if it would block the others."""
        arrival = self.claim(request)

        def job() -> None:
            try:
                function(request, client_address)
            finally:
                self.done(arrival)

        session = arrival.session
        if isinstance(session, GreenRequest):
            session.launch(job)
        elif isinstance(session, BareRequest):
            threading.Thread(target=job, daemon=True).start()
        else:
            keeper = self._keep()
            keeper.reactor.post(lambda: keeper.parking.spawn(job, context=keeper.context()))

    def lost_client(self, request: Any, error: BaseException | None) -> bool:
        """Note why a handler has failed; True, and one line in the log, if that was its client's doing."""
        arrival = self._arrivals.get(id(request)) or Arrival(request, None, self.server.shutdown_request)
        session = arrival.session
        if error is None or not arrival.is_clients_doing(error):
            if error is not None and isinstance(session, (SocketRequest, GreenRequest)):
                session.failed(error)
            return False
        peer = session.peer if session is not None and session.peer else "of this request"
        logging.getLogger("longshore").info("the client %s has gone: %s", peer, error)
        return True

    # -- forks ---------------------------------------------------------------------------------------------

    def parent_of(self, child: int, request: Any) -> None:
        """A child has the request, and this process is its parent."""
        arrival = self.claim(request)

        def ended() -> None:
            self.server.active_children.discard(child)
            self.done(arrival)

        self._children.watch(child, self.reactor, ended)

    def in_child(self, request: Any, client_address: Any) -> Any:
        """What the handler in a child that was just forked gets: `request`, guarded if there are deadlines to keep."""
        self._forget()
        context = self._context_of(request)
        if context is _NOT_OURS or not (context or self.attributes.has_deadlines()):
            return request
        arrival = self._adopt(request, client_address, "socket")
        session = arrival.session
        assert isinstance(session, SocketRequest)
        # The child ends with its request, so nobody could end the connection later than close() does.
        session.guard.on_release = None
        arrival.welcome = lambda _arrival: None
        session.begin()
        return arrival.request

    def _forget(self) -> None:
        """This process is a fork: loop, keeper and connections are the parent's, and stay untouched."""
        self._inherited = (self._loop, self._keeper, self._admission, self._arrivals, self._children)
        self._loop = self._keeper = self._admission = None
        self._arrivals, self._children = {}, Children()
        self._process = os.getpid()
        self._not_serving.set()
        self.thread = threading.get_ident()

    # -- the end -------------------------------------------------------------------------------------------

    def ended(self, session: Any) -> None:
        """A connection is over."""
        self._arrivals.pop(id(session.arrival.request), None)
        assert self._admission is not None
        if self._admission.leave(session):
            if session.was_cut:
                self._cut += 1
            else:
                self._finished += 1
        if self._emptied is not None and not self._admission.sessions:
            self._emptied()

    def near_pending(self, count: int) -> None:
        """A connection has `count` bytes pending, nearly as many as it may.  From any thread."""
        if self._admission is not None:
            self._admission.near_pending(count)

    def stop_serving(self) -> None:
        """Accept nothing any more, before the listening socket is closed."""
        if not self._not_serving.is_set():
            self.shutdown()

    def close(self, *, wait: bool) -> None:
        """End every connection: those whose client is owed nothing at once, the others when their handler is through.

        `wait` says whether to return only then; otherwise they end in the background.  `report` is set where they were
        awaited.
        """
        if self._process != os.getpid():
            return
        if not self._not_serving.is_set() and self._is_own_thread():
            self._close_when_served = True
            return
        timeout = self.attributes.timeouts.drain if self.drain_timeout is None else self.drain_timeout
        loop = self._loop
        if loop is None or self._ending:
            self.report = self.report or DrainReport(0, 0, (), 0.0)
            return
        self._ending = True
        if wait and threading.get_ident() not in self.handler_threads and not self._is_own_thread():
            self.report = self._end(loop, timeout)
        else:
            threading.Thread(target=self._end, args=(loop, timeout), name="longshore-closing", daemon=True).start()

    def _end(self, loop: PortableReactor, timeout: float | None) -> DrainReport:
        began = loop.now()
        self._finished = self._cut = 0
        loop.run_ready()
        sessions = set() if self._admission is None else self._admission.sessions
        for session in tuple(sessions):
            if session.is_lingering():  # type: ignore[attr-defined]
                session.destroy()
            else:
                session.drain(None if timeout is None else began + timeout)
        loop.run_ready()
        if sessions:
            self._emptied = loop.stop
            if timeout is None:
                loop.call_later(PATIENCE, self._cut_those_who_wait)
            else:
                loop.call_later(timeout, self._cut_all)
            loop.run()
        report = DrainReport(
            self._finished,
            self._cut + len(sessions),
            tuple(sorted(f"the handler of {session.peer}" for session in sessions)),
            loop.now() - began,
        )
        self._release()
        self._ending = False
        return report

    def _cut_those_who_wait(self) -> None:
        assert self._admission is not None
        for session in tuple(self._admission.sessions):
            if session.waits():  # type: ignore[attr-defined]
                self._cut_one(session)

    def _cut_all(self) -> None:
        assert self._admission is not None
        assert self._loop is not None
        for session in tuple(self._admission.sessions):
            self._cut_one(session)
        self._loop.call_later(GRACE, self._loop.stop)

    def _cut_one(self, session: Session) -> None:
        session.was_cut = True
        session.cut()

    def _release_if_empty(self) -> None:
        if not self._arrivals and not (self._admission and self._admission.sessions):
            self._release()

    def _release(self) -> None:
        """Give everything back."""
        keeper, self._keeper = self._keeper, None
        loop, self._loop = self._loop, None
        self._admission = None
        self._emptied = None
        self._arrivals.clear()
        self._children.release()
        if keeper is not None:
            keeper.close()
        if loop is not None:
            loop.close()


def _restore(sock: socket.socket, timeout: float | None) -> None:
    """Give a listening socket back as it was, unless it was closed meanwhile."""
    if sock.fileno() >= 0:
        sock.settimeout(timeout)
