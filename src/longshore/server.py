"""The server: addresses, limits and a lifecycle around one handler and one strategy.

The only place that decides whether a connection comes in and when a server ends.  Everything in it happens
on the reactor's thread; a verb that is called elsewhere (or in a signal handler) posts a request and, where
it may, waits for the outcome.  It never logs and never forks; how a handler runs is its strategy's affair.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from longshore import reactor as reactors
from longshore import strategies
from longshore.admission import Admission
from longshore.broadcasting import broadcast
from longshore.config import Limits, Timeouts, check_kinds
from longshore.ending import GRACE, Ending
from longshore.errors import ClosedError, ConfigError
from longshore.events import (
    HandlerFailed,
    ServerPaused,
    ServerResumed,
    ServerStarted,
    ServerStopped,
)
from longshore.handlers import Handler, check_addresses, understand
from longshore.latches import Inside, Latch
from longshore.lifecycle import SERVER, Machine
from longshore.lifespan import Lifespan
from longshore.peers import DatagramService
from longshore.renewal import Renewal
from longshore.reports import DrainReport, Statistics
from longshore.subscribers import Subscribers
from longshore.targets import Targets, check_parts
from longshore.watchdog import Watchdog

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from longshore.config import TLS, Proxy, Workers
    from longshore.connection import AsyncConnection, Connection
    from longshore.events import Event
    from longshore.framing import Framing
    from longshore.listeners import Listener
    from longshore.reactor.clock import Clock
    from longshore.reactor.portable import PortableReactor
    from longshore.strategies import Session, Strategy

__all__ = ("DrainReport", "Server", "Statistics")

#: Seconds that a handler may keep the reactor's thread to itself before whoever waits for the end gives up.
BLOCKED = 5.0


class TaskPool(Protocol):
    """What handlers give work to that needs a processor; `longshore.shared.Pool` is one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `fn(*args, **kwargs)` elsewhere; what returns is a future."""


class SharedPlace(Protocol):
    """Where the shared primitives of the handlers are; `longshore.shared.join()` returns one."""

    url: str


class Server:
    """Serves one handler on any number of addresses.

    Args:
        handler: a class, a function or a `MessageHandler`; see `longshore.handlers`.
        *addresses: URLs, or sockets, which belong to the server from then on.
        framing: what cuts messages.
        strategy: one of `longshore.strategies.NAMES`; None takes the handler's default.
        workers: 1: a `Server` is one process; `serve` and `longshore serve` run more.
        limits, timeouts, tls, proxy: see `longshore.config`.
        lifespan: a context manager, or a function that returns one (given the server if it takes an argument),
            entered before the first accept; its value becomes `state`.
        shared: the place of the shared primitives, as `longshore.shared.join()` returns it, which handlers find as
            `server.shared`; they are joined to it without this, too.
        pool: a `longshore.shared.Pool`, or another executor; handlers have it as `server.pool`.

    Raises:
        ConfigError: this combination cannot work.

    Example:
        >>> def echo(connection):
        ...     while data := connection.recv(65536):
        ...         connection.sendall(data)
        >>> with Server(echo, "tcp://127.0.0.1:0") as server:
        ...     print(server.addresses)
    """

    #: Real time; tests put a clock here that they turn by hand.
    clock: Clock | None = None
    _all: ClassVar[WeakValueDictionary[int, Server]] = WeakValueDictionary()

    def __init__(
        self,
        handler: Any,
        *addresses: str | socket.socket | Listener,
        framing: Framing | None = None,
        strategy: str | None = None,
        workers: int | Workers = 1,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        tls: TLS | None = None,
        proxy: Proxy | None = None,
        lifespan: Any = None,
        shared: SharedPlace | None = None,
        pool: TaskPool | None = None,
    ) -> None:
        check_parts(workers, shared, pool)
        check_kinds(limits=limits, timeouts=timeouts, tls=tls, proxy=proxy)
        #: The place that was given as `shared`.
        self.shared = shared
        #: The executor that was given as `pool`, for what needs a processor; whoever made it ends it.
        self.pool: TaskPool | None = pool
        self.handler: Handler = understand(handler)
        self.limits, self.timeouts = limits or Limits(), timeouts or Timeouts()
        self.framing = framing if framing is not None else self.handler.framing
        self.strategy_name = self.handler.strategy(strategy)
        self.draining = self._running = False
        self.facade = self
        #: What `lifespan` gave.
        self.state: Any = None
        self._targets = Targets(addresses, self.handler, self.framing, tls)
        self._lifespan = Lifespan(lifespan, self.strategy_name)
        self._context = contextvars.copy_context()
        self._machine, self._inside = Machine(SERVER), Inside()
        self._ready, self._stopped = Latch(), Latch()
        self._start_error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._subscribers = Subscribers()
        self.emit: Callable[[Event], None] = self._subscribers.emit
        self._listeners: list[Listener] = []
        self.services: list[DatagramService] = []
        self._repeating: list[tuple[float, Callable[[], Any]]] = []
        self.reactor: PortableReactor = None  # type: ignore[assignment]  # made by start, with its descriptors
        self._reactor_reason = ""
        self._strategy: Strategy = None  # type: ignore[assignment]
        self._admission = admission = Admission(self, self.strategy_name, proxy)
        self.policy, self.wants = admission.policy, self._subscribers.wants
        self.take_place, self.handler_freed = admission.take_place, admission.handler_freed
        self.take_handshake, self.handshake_over = admission.take_handshake, admission.handshake_over
        self.near_pending = admission.near_pending
        certificates = self._targets.certificates
        #: What keeps the certificate fresh; None where nothing speaks TLS.
        self.renewal = None if certificates is None else Renewal(self, admission, certificates)
        self._ending = Ending(self, self._machine, admission)
        self._on_end: Callable[[], object] | None = None
        self._watchdog: Watchdog | None = None
        # Last: others read what stands above, from other threads and after an __init__ that failed.
        Server._all[id(self)] = self

    # -- what users ask ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Server {self.handler.name} on {', '.join(self.addresses) or 'nothing yet'} ({self.status})>"

    @property
    def report(self) -> DrainReport | None:
        """How it ended; None before."""
        return self._ending.report

    @property
    def status(self) -> str:
        """One of `lifecycle.SERVER`."""
        return self._machine.state

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """What it has bound, for whoever keeps sockets over its end."""
        return tuple(self._listeners)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound URLs, with real ports; empty before `start`."""
        return tuple(listener.url for listener in self._listeners)

    @property
    def tls(self) -> TLS | None:
        """What the certificate is made from; None where nothing speaks TLS."""
        return None if self._targets.certificates is None else self._targets.certificates.tls

    @property
    def connections(self) -> tuple[Connection | AsyncConnection, ...]:
        """The connections that are open now."""
        return self._admission.connections

    @property
    def admission(self) -> Admission:
        """Who decides what comes in, for what runs this server in its place."""
        return self._admission

    def statistics(self) -> Statistics:
        """The server's figures."""
        return Statistics(
            state=self.status,
            failed=self._subscribers.failures,
            certificate_expires=None if self.renewal is None else self.renewal.expires,
            datagrams=sum(service.count for service in self.services),
            **self._admission.figures,
        )

    def subscribe(self, observer: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call `observer(event)` for events (of `kinds`), on the thread where they happen; returns how to stop that."""
        return self._subscribers.add(observer, *kinds)

    def every(self, seconds: float, function: Callable[[], Any]) -> None:
        """Call `function` every `seconds` while the server runs, in its strategy's manner.

        Raises:
            ConfigError: that is no time.
        """
        if not seconds > 0:
            raise ConfigError(f"every({seconds!r}, ...): must be a number of seconds above 0")
        self._repeating.append((seconds, function))
        if self.status in ("serving", "paused"):
            self.reactor.post(self._repeat, seconds, function)

    def broadcast(self, message: Any, to: Iterable[Any] | None = None, slow: str = "drop") -> int:
        """Send `message` to every connection, or to those of `to`, without waiting for any.

        Args:
            slow: what happens to a connection that does not keep up: it misses this message ("drop") or is
                closed ("close").

        Returns:
            How many took it.
        """
        return broadcast(self.connections if to is None else to, message, slow, self.emit)

    def reconfigure(
        self, *, limits: Limits | None = None, timeouts: Timeouts | None = None, tls: TLS | None = None
    ) -> None:
        """Use other limits, or other timeouts and another certificate for connections to come, from now on.

        `tls=server.tls` reads the files again.

        Raises:
            ConfigError: the certificate cannot be used, or nothing here speaks TLS; everything stays as it was.
        """
        check_kinds(limits=limits, timeouts=timeouts, tls=tls)
        if tls is not None:
            if self.renewal is None:
                raise ConfigError("reconfigure(tls=...): no address of this server speaks TLS")
            self.renewal.renew(tls)
        if limits is not None:
            self.limits = limits
            self._admission.reconfigure(limits)
            for service in self.services:
                self._request(service.reconfigure)
        if timeouts is not None:
            self.timeouts = timeouts

    # -- lifecycle verbs ---------------------------------------------------------------------------------

    def start(self) -> Server:
        """Bind, and serve in the background; returns once it accepts.

        Raises:
            AddressError: an address cannot be bound; nothing was started.
            ClosedError: the server was stopped before.
        """
        if self.status == "new":
            self._prepare()
            self._thread = threading.Thread(target=self._run_in_background, name="longshore-server", daemon=True)
            self._thread.start()
        if self.status == "stopped" and self._start_error is None:
            raise ClosedError("this server was stopped", hint="Make a new Server.")
        self._ready.wait()
        if self._start_error is not None:
            self._join()
            raise self._start_error
        return self

    def serve_forever(self) -> None:
        """Serve on this thread until stopped; after `start`, wait for the end."""
        if self.status == "new":
            self._prepare()
            self._run()
            if self._start_error is not None:
                raise self._start_error
        else:
            self.wait_stopped()

    def wait_stopped(self) -> None:
        """Return once the server has ended; at once on a thread that is inside one of its own calls."""
        if not self._is_inside():
            with self.calling():
                self._stopped.wait()
                self._join()

    def pause(self) -> None:
        """Accept nothing until `resume`; what is open goes on."""
        self._request(self._pause)

    def resume(self) -> None:
        """Accept again."""
        self._request(self._resume)

    def drain(self, timeout: float | None = None) -> DrainReport | None:
        """Let everybody finish, for at most `timeout` seconds (None: `Timeouts.drain`), and end.

        Returns:
            The report; None on a thread that is inside one of the server's own calls, where nothing is awaited.
        """
        return self._end(self._ending.drain, self.timeouts.drain if timeout is None else timeout)

    def stop(self) -> DrainReport | None:
        """End now: connections are cut after what is written has left."""
        return self._end(self._stop)

    def _end(self, function: Callable[..., object], *args: Any) -> DrainReport | None:
        if self.status == "new":
            self._machine.to("stopped")
            self._ending.report = DrainReport(0, 0, (), 0.0)
            self._ready.open()
            self._stopped.open()
            return self.report
        self._request(function, *args)
        if self._is_inside():
            return None
        with self.calling():
            while not self._stopped.wait(GRACE):
                if self.reactor.blocked_for > BLOCKED:
                    # Not even the deadline can be kept on that thread; what is there goes on when it lets go.
                    return self._ending.summary((f"{self.handler.name}, which blocks the reactor",))
            self._join()
        return self.report

    def _request(self, function: Callable[..., object], *args: Any) -> None:
        if not self._stopped.is_open and self.reactor is not None:
            self.reactor.post(function, *args)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Server:
        import asyncio

        from longshore.links.tasks import embed

        if self.status != "new":
            raise ClosedError(f"async with {self!r}: it was started before", hint="Make a new Server.")
        self._prepare()
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self.reactor.thread = threading.get_ident()
        attach = getattr(self._strategy, "attach", None)
        embedding = attach(loop) if attach is not None else embed(self.reactor, loop)

        def end() -> None:
            embedding.close()
            self._close()
            if not ended.done():
                ended.set_result(None)

        self._on_end = lambda: loop.call_soon(end)
        self._ended = ended
        await self._begin_async() if self._lifespan.is_async else self._begin()
        if self._start_error is not None:
            await ended
            raise self._start_error
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._request(self._stop)
        await self._ended

    # -- the host's side, for strategies -------------------------------------------------------------------

    def context(self) -> contextvars.Context:
        """A copy of the context that the server was made in."""
        return self._context.copy()

    @contextlib.contextmanager
    def calling(self) -> Any:
        """On this thread, what runs inside is one of the server's own calls."""
        inside = self._inside
        inside.depth += 1
        try:
            yield
        finally:
            inside.depth -= 1

    def _is_inside(self) -> bool:
        return self._inside.depth > 0 or (self.reactor is not None and self.reactor.on_thread and self._running)

    def session_ended(self, session: Session) -> None:
        """A session is over."""
        if self._admission.leave(session) and self.draining:
            self._ending.session_ended(session)

    # -- start -------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Bind everything; after an error nothing is left."""
        from longshore.listeners import bind

        self._machine.to("starting")
        prepared = None
        try:
            if self.strategy_name == "processes":
                # Handlers find its value in the memory that they are forked with.
                self._lifespan.prepare(self)
                self.state = self._lifespan.enter()
            # `valuerefs` copies at once, so another thread may make a server meanwhile.
            servers = [server for ref in Server._all.valuerefs() if (server := ref()) is not None]
            holders = [self._targets, *(holder for server in servers for holder in server._holders)]
            prepared = strategies.prepare(self.strategy_name, self, self._targets.tls_context, holders)
            for target in self._targets.items:
                self._listeners += bind(target)
            check_addresses(self.handler, self.framing, [(item.kind, item.url) for item in self._listeners])
            self.reactor, self._reactor_reason = reactors.create(self.clock)
            self._strategy = strategies.create(self.strategy_name, self, prepared)
            self._lifespan.prepare(self)
        except BaseException as error:
            self._start_error = error
            if prepared is not None:
                prepared.close()
            self._lifespan.exit()
            self._release()
            raise

    @property
    def _holders(self) -> list[Any]:
        """What has descriptors that no other process may keep."""
        return [self._admission, *self._listeners] + ([] if self.reactor is None else [self.reactor])

    def _run_in_background(self) -> None:
        try:
            self._run()
        except BaseException as error:
            # KeyboardInterrupt and SystemExit of a handler: on a thread of our own they end the server only.
            if not isinstance(error, (KeyboardInterrupt, SystemExit)):
                self.emit(HandlerFailed(handler=self.handler.name, peer=None, error=error))

    def _run(self) -> None:
        if self._lifespan.is_async:
            self.reactor.post(self._strategy.call, self._begin_async)
        else:
            self.reactor.post(self._begin)
        try:
            with self.calling():
                self._strategy.run()
        finally:
            self._close()

    def _begin(self) -> None:
        try:
            self.state = self._lifespan.enter()
            self._open_doors()
        except BaseException as error:
            self._fail_start(error)

    async def _begin_async(self) -> None:
        try:
            self.state = await self._lifespan.aenter()
            self._open_doors()
        except BaseException as error:
            self._fail_start(error)

    def _fail_start(self, error: BaseException) -> None:
        self._start_error = error
        self._machine.to("stopping")
        self._ending.finish()

    def _open_doors(self) -> None:
        self._running = True
        for listener in self._listeners:
            if listener.kind == "datagram" and (self._admission.place == 0 or self.handler.kind != "session"):
                self.services.append(DatagramService(self, listener.socket, listener.url, self._strategy))
        listening = [listener for listener in self._listeners if listener.kind != "datagram"]
        self._admission.open(listening, self._strategy, self._targets.tls_context)
        if self.renewal is not None:
            self._admission.tls_context = self._targets.certificates.context  # type: ignore[union-attr]
            self.renewal.begin()
        for seconds, function in self._repeating:
            self._repeat(seconds, function, first=True)
        self._watchdog = Watchdog(self) if self.strategy_name in ("reactor", "green", "async") else None
        self._machine.to("serving")
        self.emit(
            ServerStarted(
                handler=self.handler.name,
                addresses=self.addresses,
                strategy=self.strategy_name,
                reactor=self.reactor.name,
                reason=self._reactor_reason,
            )
        )
        self._ready.open()

    def _repeat(self, seconds: float, function: Callable[[], Any], first: bool = False) -> None:
        if self.status in ("draining", "stopping", "stopped"):
            return
        # Armed before it is called, so that whoever sees a call may count on the next one.
        self.reactor.call_later(seconds, self._repeat, seconds, function)
        if not first:
            self._strategy.call(function)

    def _pause(self) -> None:
        if self.status == "serving":
            self._machine.to("paused")
            self._admission.pause()
            for service in self.services:
                service.pause()
            self.emit(ServerPaused())

    def _resume(self) -> None:
        if self.status == "paused":
            self._machine.to("serving")
            self._admission.resume()
            for service in self.services:
                service.resume()
            self.emit(ServerResumed())

    # -- the end -----------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self.status == "starting":
            self._fail_start(ClosedError("the server was stopped while it started"))
        else:
            self._ending.stop()

    def close_doors(self, *, queued: bool) -> None:
        """Accept no more; `queued` takes in first what the kernel has accepted for us already."""
        self._admission.close(queued=queued)
        for listener in self._listeners:
            if listener.kind != "datagram":
                listener.close()

    def let_go(self) -> None:
        """End the reactor, after the lifespan if that needs it."""
        if self._lifespan.is_async:
            self._strategy.call(self._let_go_async)
        else:
            self._end_reactor()

    def _end_reactor(self) -> None:
        self.reactor.stop()
        if self._on_end is not None:
            self._on_end()

    async def _let_go_async(self) -> None:
        try:
            await self._lifespan.aexit()
        finally:
            self._end_reactor()

    def _close(self) -> None:
        """The last thing that happens on the server's thread: every step, whatever one raises, the first named last."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._release)
            steps.callback(self._admission.close)
            steps.callback(lambda: self._ending.close(self._strategy.close()))
            if self._watchdog is not None:
                steps.callback(self._watchdog.stop)
            steps.callback(self._exit_lifespan)
            steps.callback(self._admission.destroy)
            if self.status != "stopping":
                # An exception left the loop: cut what is open, so that nothing outlives it.
                self._machine.to("stopping")
                self._admission.cut()

    def _exit_lifespan(self) -> None:
        try:
            self._lifespan.exit()
        except Exception as error:
            self.emit(HandlerFailed(handler="lifespan", peer=None, error=error))

    def _release(self) -> None:
        for listener in self._listeners:
            listener.close()
        if self.reactor is not None:
            self.reactor.close()
        self._running = False
        self._machine.to("stopped")
        if self.report is not None and self._start_error is None:
            self.emit(ServerStopped(**asdict(self.report)))
        self._ready.open()
        self._stopped.open()

    def _join(self) -> None:
        self._ending.join()
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join()
