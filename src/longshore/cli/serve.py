"""`longshore serve`: options, a target, a server, and its first line.

The only place that turns a command line into a `Server`.  What is printed before the server accepts is an
error and nothing else, so the first line that comes says what is served, where, and how; notices follow it.
"""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

from longshore.cli.handover import receive
from longshore.cli.targets import load_framing, load_target
from longshore.errors import ConfigError
from longshore.events import ServerStarted
from longshore.settings import Config

if TYPE_CHECKING:
    from longshore.cli.options import ServeArguments
    from longshore.events import Event
    from longshore.observers.logs import LogObserver

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
    handover = receive()
    handler = load_target(arguments.target)
    framing = load_framing(config.framing)
    from longshore.server import Server
    from longshore.serving import made_pool, serve_until_signalled

    with made_pool(config.pool) as pool:
        server = Server(
            handler,
            *(handover.listeners if handover else config.bind),
            framing=framing,
            strategy=config.strategy,
            workers=config.workers,
            limits=config.limits,
            timeouts=config.timeouts,
            tls=config.tls,
            pool=pool,
        )
        server.subscribe(_Printer(config))
        if server.strategy_name == "processes":
            # Its children are forked from the memory of this moment, and live longer than a start.
            gc.enable()
        if handover:
            server.subscribe(handover.tell)
        serve_until_signalled(server, interrupt=not handover)
    return 0


class _Printer:
    """Prints the first line; logs everything else, and only after that line.

    Logging is imported when there is something to log, so that it does not stand between start and accepting.
    """

    def __init__(self, config: Config) -> None:
        self._format = config.log_format
        self._level = config.log_level
        self._rank = _RANKS[config.log_level.upper()]
        self._lock = threading.Lock()
        self._early: list[Event] | None = []
        self._observer: LogObserver | None = None

    def __call__(self, event: Event) -> None:
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
            print(
                f"longshore: serving {event.handler} on {' and '.join(event.addresses)} "
                f"({event.strategy}, {event.reactor} reactor), Ctrl-C drains",
                file=sys.stderr,
                flush=True,
            )
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
