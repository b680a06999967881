"""`longshore serve`: options, a target, a server, and its first line.

The only place that turns a command line into a `Server`.  What is printed before the server accepts is an
error and nothing else, so the first line that comes says what is served, where, and how; notices follow it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from longshore.cli.handover import receive
from longshore.cli.targets import load_framing, load_target
from longshore.errors import ConfigError
from longshore.events import ServerAnnounced, ServerDraining, ServerStarted, ServerStopped
from longshore.settings import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from longshore.cli.options import ServeArguments
    from longshore.events import Event
    from longshore.listeners import Listener
    from longshore.observers.logs import LogObserver
    from longshore.server import Server

__all__ = ("serve",)

_RANKS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


def serve(arguments: ServeArguments) -> int:
    """Serve until a signal ends it; the exit status.

    Raises:
        LongshoreError: it cannot be served.
    """
    config = Config.load(arguments.config, arguments=arguments.values)
    if not config.bind:
        raise ConfigError(
            "no address to serve on", hint=f"Say longshore serve {arguments.target} --bind tcp://127.0.0.1:5000"
        )
    if config.is_supervised:
        return _serve_with_workers(arguments)
    handover = receive()
    from longshore.serving import made_pool, serve_until_signalled

    with made_pool(config.pool) as pool:
        server = _build(arguments.target, config, handover.listeners if handover else _addresses(config), pool)
        server.subscribe(_Printer(config))
        if server.strategy_name == "processes":
            # Its children are forked from the memory of this moment, and live longer than a start.
            gc.enable()
        if handover:
            server.subscribe(handover.tell)
        serve_until_signalled(server, interrupt=not handover)
    return 0


def _addresses(config: Config) -> tuple[str, ...]:
    """Where to serve: on sockets that were left with systemd before a restart, where there are some."""
    if "LISTEN_FDS" not in os.environ:
        return config.bind
    from longshore.systemd import Notifier, forget_others, taken_back

    forget_others(config.bind, Notifier())
    return taken_back(config.bind)


def _build(target: str, config: Config, addresses: Sequence[str | Listener], pool: Any) -> Server:
    """Import the target, and make its server."""
    handler = load_target(target)
    framing = load_framing(config.framing)
    from longshore.server import Server

    return Server(
        handler,
        *addresses,
        framing=framing,
        strategy=config.strategy,
        limits=config.limits,
        timeouts=config.timeouts,
        tls=config.tls,
        proxy=config.proxy,
        pool=pool,
    )


def _serve_with_workers(arguments: ServeArguments) -> int:
    """Keep workers, of which each imports the target itself; nothing of it is imported here."""
    from longshore.plans import Plan, refuse_processes
    from longshore.serving import made_share, supervise
    from longshore.workforce import staff

    def load() -> Plan:
        config = Config.load(arguments.config, arguments=arguments.values)
        refuse_processes(config.strategy)
        workers = dataclasses.replace(config.prefork, count=staff(config.workers).count)
        # A pool that cannot be divided is refused here, once, and not by each worker.
        made_share(config.pool, 0, workers.count)

        @contextlib.contextmanager
        def build(listeners: Sequence[Listener], place: int, count: int) -> Iterator[Server]:
            with made_share(config.pool, place, count) as pool:
                server = _build(arguments.target, config, listeners, pool)
                # A worker's own start is the supervisor's to tell.
                server.subscribe(_Printer(config, announces=False))
                yield server

        return Plan(_addresses(config), workers, config.timeouts.drain, build)

    config = Config.load(arguments.config, arguments=arguments.values)
    # What every worker needs is imported once, before they are forked.
    import longshore.server  # noqa: F401
    from longshore import shared

    # Nobody knows yet whether the target uses shared primitives: if it does, its workers must find one place.
    shared.join()
    try:
        supervise(load, _Printer(config), config.metrics, config.control)
    finally:
        shared.leave()
    return 0


class _Printer:
    """Prints the first line; logs everything else, and only after that line.

    Logging is imported when there is something to log, so that it does not stand between start and accepting.
    """

    def __init__(self, config: Config, *, announces: bool = True) -> None:
        self._format = config.log_format
        self._level = config.log_level
        self._rank = _RANKS[config.log_level.upper()]
        self._lock = threading.Lock()
        self._announces = announces
        self._early: list[Event] | None = []
        self._observer: LogObserver | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, ServerAnnounced):
            self._release()
            return
        if not self._announces and isinstance(event, (ServerStarted, ServerDraining, ServerStopped)):
            # Told once, by the supervisor.
            return
        if isinstance(event, ServerStarted):
            self._start(event)
            return
        if _RANKS.get(event.level, 0) < self._rank:
            return
        with self._lock:
            if self._early is not None:
                self._early.append(event)
                return
        self._log(event)

    def _start(self, event: ServerStarted) -> None:
        gc.enable()
        if self._format == "json":
            # In one format or the other, never both: whoever reads JSON reads the first line as well.  It is
            # printed at every level, because it is what says that the server accepts.
            self._observe().log(event)
        else:
            from longshore.serving import describe_service

            # A full disk must not keep a server from serving.
            with contextlib.suppress(OSError):
                print(
                    f"longshore: serving {event.handler} on {' and '.join(event.addresses)} "
                    f"({describe_service(event)}), Ctrl-C drains",
                    file=sys.stderr,
                    flush=True,
                )
        self._release()

    def _release(self) -> None:
        with self._lock:
            early, self._early = self._early or [], None
        for each in early:
            self._log(each)

    def _log(self, event: Event) -> None:
        self._observe()(event)

    def _observe(self) -> LogObserver:
        with self._lock:
            if self._observer is None:
                from longshore.observers.logs import LogObserver, configure

                self._observer = LogObserver(configure(self._format, self._level))
            return self._observer
