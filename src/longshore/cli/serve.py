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
    from longshore.observers.logs import LogFile, LogObserver
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

    printer = _Printer(config)
    with made_pool(config.pool) as pool:
        server = _build(arguments.target, config, handover.listeners if handover else _addresses(config), pool)
        server.subscribe(printer)
        if server.strategy_name == "processes":
            # Its children are forked from the memory of this moment, and live longer than a start.
            gc.enable()
        if handover:
            server.subscribe(handover.tell)

        def reload() -> None:
            now = Config.load(arguments.config, arguments=arguments.values)
            with printer.adopting(now):
                _reconfigure(server, config, now)

        serve_until_signalled(server, interrupt=not handover, reload=reload)
    return 0


#: Fields of `Config` that a process can change while it serves.
_CHANGEABLE = {"limits", "timeouts", "tls", "log_format", "log_level", "log_file"}


def _reconfigure(server: Server, before: Config, now: Config) -> None:
    """Have a server of one process serve with what is configured now.

    Raises:
        ConfigError: that takes another process, or cannot be used; everything is as before.
    """
    changed = [
        item.name
        for item in dataclasses.fields(Config)
        if item.name not in _CHANGEABLE and getattr(now, item.name) != getattr(before, item.name)
    ]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} cannot change in a process that serves",
            hint="Start it anew; with --workers or --pid-file a reload changes everything, the code too.",
        )
    server.reconfigure(limits=now.limits, timeouts=now.timeouts, tls=now.tls if server.tls else None)


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
    from longshore.cli.directory import Directory
    from longshore.serving import made_share, supervise
    from longshore.supervisor.plans import Plan, refuse_processes
    from longshore.supervisor.workforce import staff

    directory = Directory()
    directory.enter()
    config = Config.load(arguments.config, arguments=arguments.values)
    printer = _Printer(config)

    def load() -> Plan:
        directory.enter()
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

        with printer.adopting(config):
            return Plan(_addresses(config), workers, config.timeouts.drain, build)

    # What every worker needs is imported once, before they are forked.
    import longshore.observers.logs
    import longshore.server  # noqa: F401
    from longshore import shared
    from longshore.shared.joining import join_for
    from longshore.supervisor.privileges import Identity

    # Nobody knows yet whether the target uses shared primitives: if it does, its workers must find one place.
    identity = Identity.of(config.prefork.user, config.prefork.group)
    join_for(None if identity is None else identity.numbers)
    try:
        supervise(load, printer, config.metrics, config.control)
    finally:
        shared.leave()
    return 0


class _Printer:
    """Prints the first line; logs everything else, and only after that line.

    Logging is imported when there is something to log, so that it does not stand between start and accepting.
    """

    def __init__(self, config: Config, *, announces: bool = True) -> None:
        self._lock = threading.Lock()
        self._announces = announces
        self._early: list[Event] | None = []
        with self.adopting(config):
            pass

    @contextlib.contextmanager
    def adopting(self, config: Config) -> Iterator[None]:
        """Log as `config` says once the block has been left without an error.

        Raises:
            ConfigError: the log file cannot be written; the block is not entered, and everything is as before.
        """
        file = _log_file(config)
        try:
            yield
        except BaseException:
            if file is not None:
                file.close()
            raise
        with self._lock:
            self._config = config
            self._observer = None if file is None else _observer(config, file)
            self._rank = _RANKS[config.log_level.upper()]

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
        if self._config.log_format == "json" and self._config.log_file is None:
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
            if self._config.log_file is not None:
                self._observe().log(event)
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
                self._observer = _observer(self._config)
            return self._observer


def _observer(config: Config, file: LogFile | None = None) -> LogObserver:
    """What logs as `config` says, to its file, or to standard error."""
    from longshore.observers.logs import LogObserver, configure

    return LogObserver(configure(config.log_format, config.log_level, file))


def _log_file(config: Config) -> LogFile | None:
    """The log file that `config` names, opened.

    Raises:
        ConfigError: it cannot be written.
    """
    if config.log_file is None:
        return None
    from longshore.observers.logs import LogFile

    try:
        return LogFile(config.log_file, _owner(config))
    except OSError as error:
        raise ConfigError(
            f"--log-file {config.log_file}: {error.strerror}",
            hint="It has to be a file that this user may write, in a directory that is there.",
        ) from error


def _owner(config: Config) -> tuple[int, int]:
    """To whom a log file is given, so that workers can open it once they are somebody else."""
    if os.geteuid() != 0 or (config.prefork.user is None and config.prefork.group is None):
        return -1, -1
    from longshore.supervisor.privileges import Identity

    identity = Identity.of(config.prefork.user, config.prefork.group)
    if identity is None:
        return -1, -1
    return -1 if identity.uid is None else identity.uid, -1 if identity.gid is None else identity.gid
