"""`serve`: a server as a program of its own, with the signals that programs get.

The only place that touches signal handlers.  An embedded `Server` never does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.events import ControlOpened, Reloaded, ReloadFailed, Reloading, ServerStarted
from longshore.server import Server
from longshore.subscribers import log_failure

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from longshore.config import Workers
    from longshore.events import Event
    from longshore.listeners import Listener
    from longshore.reports import DrainReport
    from longshore.supervisor.plans import Plan

__all__ = ("describe_service", "made_pool", "made_share", "serve", "serve_until_signalled", "supervise")


def serve(
    handler: Any,
    *addresses: str | socket.socket,
    workers: int | str | Workers = 1,
    pool: Any = None,
    metrics: str | None = None,
    control: str | None = None,
    shared: Any = None,
    **options: Any,
) -> DrainReport | None:
    """Serve until a signal ends it: `Server` with its arguments, and the signals of `serve_until_signalled`.

    Args:
        workers: more than 1, "auto" (one for each CPU) or `Workers(...)`: that many processes, forked from this one
            and kept by it; see `longshore.supervisor` for its signals.  Each has a server of its own, and all accept
            on the same sockets.
        pool: as `Server` takes it; or a number of processes, "auto", or the URL of a Dask scheduler: then the pool is
            made here, and ends with the server.  With workers, each makes one with its share of the processes.
        metrics: an address for Prometheus (`/metrics`), `/ready` and `/live`, such as "http://127.0.0.1:9100"; needs
            the extra `longshore[metrics]`.
        control: the file of a control socket for `longshore ctl` and `longshore top`; "default" is where they look.
            Either of the two makes it run as with workers, also if it is one.
        shared: as `Server` takes it; or the URL of the place that this program and its workers are joined to,
            `local://` for one of its own, which workers have anyhow where this program has imported `longshore.shared`.

    Raises:
        ConfigError: this combination cannot work.
        AddressError: an address cannot be bound.
        LongshoreError: workers could not start.
    """
    supervised = workers != 1 or metrics is not None or control is not None
    if isinstance(shared, str) or (supervised and shared is None and "longshore.shared" in sys.modules):
        # Before the first worker, which finds it in its environment, as its successor after a reload does.
        from longshore.shared.joining import join_for

        shared = join_for(_becoming(workers), shared)
    options["shared"] = shared
    if supervised:
        return _serve_with_workers(handler, addresses, workers, pool, options, (metrics, control))
    with made_pool(pool) as made:
        server = Server(handler, *addresses, pool=made, **options)
        server.subscribe(_announce)
        return serve_until_signalled(server)


def _becoming(workers: Any) -> tuple[int, int] | None:
    """The user and group that workers become, by number; None if they stay who they are."""
    from longshore.supervisor.privileges import Identity

    identity = Identity.of(getattr(workers, "user", None), getattr(workers, "group", None))
    return None if identity is None else identity.numbers


@contextlib.contextmanager
def made_pool(given: Any) -> Iterator[Any]:
    """A pool of that size, or in that place, which ends with the block; anything else as it is.

    Raises:
        ConfigError: there is no such place.
    """
    if not isinstance(given, (int, str)):
        yield given
        return
    from longshore.shared import Pool

    size = _size(given)
    pool = Pool(None if size == "auto" else size)
    try:
        yield pool
    finally:
        # Whoever waited for a task has ended, or was abandoned.
        pool.terminate()
        pool.join()


def made_share(given: Any, place: int, workers: int) -> AbstractContextManager[Any]:
    """As `made_pool`, for the worker at `place` (from 0) of `workers`, whose pools are one together."""
    size = _size(given)
    if size != "auto" and not isinstance(size, int):
        return made_pool(given)
    from longshore.machine import usable_cpus
    from longshore.shared.pool.contract import share

    total = max(workers, usable_cpus()) if size == "auto" else int(size)
    return made_pool(share(total, workers, place))


def _size(given: Any) -> Any:
    """What `pool` means where text is a number, as on a command line; anything else as it is."""
    text = given.strip() if isinstance(given, str) else given
    return int(text) if isinstance(text, str) and text.lstrip("-").isdecimal() else text


def _serve_with_workers(
    handler: Any,
    addresses: tuple[Any, ...],
    workers: int | str | Workers,
    pool: Any,
    options: dict[str, Any],
    watched: tuple[str | None, str | None],
) -> DrainReport:
    from longshore.supervisor.plans import Plan, refuse_processes
    from longshore.supervisor.workforce import staff

    if pool is not None and not isinstance(pool, (int, str)):
        raise ConfigError(
            "a pool with workers: what was made before they are forked cannot be theirs",
            hint="Pass a number of processes, 'auto' or a URL; each worker makes its share.",
        )
    # What is wrong is told here, once, and not by each worker.
    example = Server(handler, *addresses, **options)
    refuse_processes(example.strategy_name)

    @contextlib.contextmanager
    def build(listeners: Sequence[Listener], place: int, count: int) -> Iterator[Server]:
        with made_share(pool, place, count) as made:
            server = Server(handler, *listeners, pool=made, **options)
            server.subscribe(log_failure)
            yield server

    crew = staff(workers)
    made_share(pool, 0, crew.count)
    plan = Plan(addresses, crew, example.timeouts.drain, build)
    return supervise(lambda: plan, _announce, *watched)


def supervise(
    load: Callable[[], Plan], observer: Callable[[Event], object], metrics: str | None, control: str | None
) -> DrainReport:
    """Run a supervisor, and a control process if there are doors for one; tell systemd of it.

    It keeps the broker of the shared primitives, too, if that is this program's own.

    `observer` hears the supervisor's events, and where the doors are once it serves.
    """
    from longshore.supervisor.supervisor import Supervisor

    station = broker = None
    if "longshore.shared.joining" in sys.modules:
        from longshore.shared.joining import own_broker

        broker = own_broker()
    if metrics is not None or control is not None:
        from longshore.control.station import Station

        station = Station(metrics, control)
    try:
        supervisor = Supervisor(load, None if station is None else station.control, broker)
        supervisor.subscribe(observer)
        if station is not None:
            opened = station.opened
            supervisor.subscribe(lambda event: supervisor.emit(opened) if isinstance(event, ServerStarted) else None)
        _tell_systemd(supervisor, supervisor.chores.add)
        return supervisor.run()
    finally:
        if station is not None:
            station.close()


def _tell_systemd(server: Any, repeat: Callable[[float, Callable[[], object]], object]) -> None:
    """Tell systemd what happens to a server or supervisor, if it is systemd that has started this process.

    `repeat(seconds, function)` calls it again and again on what has to be alive: the reactor, or the loop.
    """
    if not os.environ.get("NOTIFY_SOCKET"):
        return
    from longshore.systemd import Herald, Notifier, stored, watchdog_interval

    notifier = Notifier()
    server.subscribe(Herald(notifier, lambda: stored(server.listeners)))
    interval = watchdog_interval()
    if interval is not None:
        repeat(interval, notifier.alive)


def _on_reactor(server: Server) -> Callable[[float, Callable[[], object]], None]:
    def repeat(seconds: float, function: Callable[[], object]) -> None:
        def again() -> None:
            function()
            server.reactor.call_later(seconds, again)

        # The event comes on the reactor's thread.
        server.subscribe(lambda event: again() if isinstance(event, ServerStarted) else None)

    return repeat


def _announce(event: Event) -> None:
    """Say on stderr where it serves; failures still go to the logger."""
    if isinstance(event, ServerStarted):
        where = " and ".join(event.addresses)
        how = describe_service(event)
        sys.stderr.write(f"longshore: serving {event.handler} on {where} ({how})\n")
        sys.stderr.flush()
    elif isinstance(event, ControlOpened):
        sys.stderr.write(f"longshore: watched by {', '.join((*event.metrics, *event.control))}\n")
        sys.stderr.flush()
    else:
        log_failure(event)


def describe_service(event: ServerStarted) -> str:
    """By what means it serves, for the first line."""
    workers = f", {event.workers} worker{'' if event.workers == 1 else 's'}" if event.workers else ""
    return f"{event.strategy}, {event.reactor} reactor{workers}"


def serve_until_signalled(
    server: Server, *, interrupt: bool = True, reload: Callable[[], object] | None = None
) -> DrainReport | None:
    """Run `server` on this thread, with the signals that a program gets.

    SIGTERM or SIGINT drains it, a second one stops it at once.  SIGHUP calls `reload` on the reactor's thread; without
    one it loads the certificate anew.  Where it comes because the terminal was closed, it drains.  SIGUSR1 opens log
    files anew.

    SIGINT is left alone unless `interrupt`: on a terminal it also reaches the process that commands this one.
    Signals are only taken on the main thread, where Python allows it, and given back at the end.
    """
    import signal

    from longshore.supervisor.signalling import Hangup

    _tell_systemd(server, _on_reactor(server))
    reloads = _Reloads(server, reload)
    hangup = Hangup()
    asked = False

    def end(_number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            server.stop()
        else:
            asked = True
            server.drain()

    def post(function: Callable[[], object]) -> None:
        # Before the start there is nothing that would be old already.
        if server.reactor is not None:
            server.reactor.post(function)

    def on_hangup(number: int, frame: object) -> None:
        if hangup.is_end:
            end(number, frame)
        else:
            post(reloads.reload)

    handlers: dict[signal.Signals, Any] = {
        signal.SIGTERM: end,
        signal.SIGHUP: on_hangup,
        signal.SIGUSR1: lambda *_: post(_reopen_logs),
    }
    if interrupt:
        handlers[signal.SIGINT] = end
    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            previous[number] = signal.signal(number, handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
    return server.report


def _reopen_logs() -> None:
    from longshore.logfiles import reopen_logs

    reopen_logs()


class _Reloads:
    """The reloads of a server that is one process: the code stays, what is configured changes."""

    def __init__(self, server: Server, reload: Callable[[], object] | None) -> None:
        self._server = server
        self._reload = self._renew if reload is None else reload
        self._generation = 1

    def reload(self) -> None:
        """Change everything or nothing, and tell how it went."""
        emit, began = self._server.emit, time.monotonic()
        emit(Reloading(generation=self._generation + 1))
        try:
            self._reload()
        except Exception as error:
            from longshore.supervisor.plans import words

            emit(ReloadFailed(reason=words(error)))
            return
        self._generation += 1
        emit(Reloaded(generation=self._generation, seconds=time.monotonic() - began))

    def _renew(self) -> None:
        if self._server.tls is not None:
            self._server.reconfigure(tls=self._server.tls)
