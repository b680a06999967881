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
    from collections.abc import Iterator

    from longshore.events import Event
    from longshore.reports import DrainReport

__all__ = ("made_pool", "serve", "serve_until_signalled")


def serve(
    handler: Any, *addresses: str | socket.socket, pool: Any = None, shared: Any = None, **options: Any
) -> DrainReport | None:
    """Serve until a signal ends it: `Server` with its arguments, and the signals of `serve_until_signalled`.

    Args:
        pool: as `Server` takes it; or a number of processes, "auto", or the URL of a Dask scheduler: then the pool is
            made here, and ends with the server.
        shared: as `Server` takes it; or the URL of the place that this program is joined to, `local://` for its own.

    Raises:
        ConfigError: this combination cannot work.
        AddressError: an address cannot be bound.
    """
    if isinstance(shared, str):
        from longshore.shared import join

        shared = join(shared)
    with made_pool(pool) as made:
        server = Server(handler, *addresses, pool=made, shared=shared, **options)
        server.subscribe(_announce)
        return serve_until_signalled(server)


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

    text = str(given).strip()
    pool = Pool(None if text == "auto" else int(text) if text.lstrip("-").isdecimal() else text)
    try:
        yield pool
    finally:
        # Whoever waited for a task has ended, or was abandoned.
        pool.terminate()
        pool.join()


def _announce(event: Event) -> None:
    """Say on stderr where it serves; failures still go to the logger."""
    if isinstance(event, ServerStarted):
        where = " and ".join(event.addresses)
        sys.stderr.write(f"longshore: serving {event.handler} on {where} ({event.strategy}, {event.reactor} reactor)\n")
        sys.stderr.flush()
    else:
        log_failure(event)


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
