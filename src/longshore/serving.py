"""`serve`: a server as a program of its own, with the signals that programs get.

The only place that touches signal handlers.  An embedded `Server` never does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from longshore.events import ServerStarted
from longshore.server import Server
from longshore.subscribers import log_failure

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from longshore.config import Workers
    from longshore.events import Event
    from longshore.listeners import Listener
    from longshore.reports import DrainReport

__all__ = ("describe_service", "serve", "serve_until_signalled")


def serve(
    handler: Any, *addresses: str | socket.socket, workers: int | str | Workers = 1, **options: Any
) -> DrainReport | None:
    """Serve until a signal ends it: `Server` with its arguments, and the signals of `serve_until_signalled`.

    Args:
        workers: more than 1, "auto" (one for each CPU) or `Workers(...)`: that many processes, forked from this one
            and kept by it; see `longshore.supervisor` for its signals.  Each has a server of its own, and all accept
            on the same sockets.

    Raises:
        ConfigError: this combination cannot work.
        AddressError: an address cannot be bound.
        LongshoreError: workers could not start.
    """
    server = Server(handler, *addresses, **options)
    if workers != 1:
        return _serve_with_workers(handler, addresses, workers, options, server)
    server.subscribe(_announce)
    return serve_until_signalled(server)


def _serve_with_workers(
    handler: Any, addresses: tuple[Any, ...], workers: int | str | Workers, options: dict[str, Any], example: Server
) -> DrainReport:
    from longshore.supervisor import Plan, Supervisor, refuse_processes
    from longshore.workforce import staff

    refuse_processes(example.strategy_name)

    def build(listeners: Sequence[Listener]) -> Server:
        server = Server(handler, *listeners, **options)
        server.subscribe(log_failure)
        return server

    plan = Plan(addresses, staff(workers), example.timeouts.drain, build)
    supervisor = Supervisor(lambda: plan)
    supervisor.subscribe(_announce)
    return supervisor.run()


def _announce(event: Event) -> None:
    """Say on stderr where it serves; failures still go to the logger."""
    if isinstance(event, ServerStarted):
        where = " and ".join(event.addresses)
        how = describe_service(event)
        sys.stderr.write(f"longshore: serving {event.handler} on {where} ({how})\n")
        sys.stderr.flush()
    else:
        log_failure(event)


def describe_service(event: ServerStarted) -> str:
    """By what means it serves, for the first line."""
    workers = f", {event.workers} worker{'' if event.workers == 1 else 's'}" if event.workers else ""
    return f"{event.strategy}, {event.reactor} reactor{workers}"


def serve_until_signalled(server: Server, *, interrupt: bool = True) -> DrainReport | None:
    """Run `server` on this thread; SIGTERM or SIGINT drains it, a second one stops it at once.

    SIGINT is left alone unless `interrupt`: on a terminal it also reaches the process that commands this one.
    Signals are only taken on the main thread, where Python allows it, and given back at the end.
    """
    import signal

    asked = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            server.stop()
        else:
            asked = True
            server.drain()

    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT) if interrupt else (signal.SIGTERM,):
            previous[number] = signal.signal(number, on_signal)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
    return server.report
