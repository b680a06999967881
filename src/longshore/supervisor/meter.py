"""Events as numbers: what a server has done since it began, in cells that another process can read.

The only place that turns events into counts.  Who keeps them is a `Column` of `region.py`: memory that the
workers share with whoever publishes it, so figures can be read while their worker is busy, and outlive it.

It publishes nothing: `longshore.control.metrics` makes text of it.
"""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import TYPE_CHECKING

from longshore import events
from longshore.config import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from longshore.events import Event
    from longshore.supervisor.region import Column

__all__ = ("COUNTERS", "GAUGES", "HISTOGRAMS", "LIMITS", "Meter")

#: What may turn a connection away; "other" is what is not known here, such as a strategy's own bound.
LIMITS = (*(item.name for item in fields(Limits) if not item.name.startswith("_")), "other")

#: What only grows; behind a colon stands which of its kinds it is.
COUNTERS: tuple[str, ...] = (
    "accepted",
    "bytes_received",
    "bytes_sent",
    "bytes_unsent",
    "messages_received",
    "datagrams",
    "datagrams_dropped",
    "failures",
    "blockings",
    "accept_errors",
    "slow:drop",
    "slow:close",
    "tasks:done",
    "tasks:failed",
    "tasks:cancelled",
    "pool_deaths",
    *(f"closed:{cause}" for cause in events.ConnectionClosed.CAUSES),
    *(f"rejected:{limit}" for limit in LIMITS),
    *(f"near:{limit}" for limit in LIMITS),
)
#: What comes and goes, and ends with its worker.
GAUGES: tuple[str, ...] = ("connections", "bytes_pending", "tasks_waiting", "tasks_running", "pool_processes")
#: Upper bounds of buckets, in seconds.
HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "connection_seconds": (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
    # As the native reactor counts: each bound is twice the one before, from a microsecond on.
    "message_seconds": tuple(2**power / 1e6 for power in range(23)),
    "lag_seconds": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
}


class Meter:
    """Counts events: `server.subscribe(Meter(column))`; from any thread.

    Args:
        column: of a `Region` that has these `COUNTERS`, `GAUGES` and `HISTOGRAMS`.
    """

    def __init__(self, column: Column) -> None:
        self._column = column
        # Handlers fail on threads of their own, and adding to a cell takes a read and a write.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count one event."""
        count = _COUNT.get(type(event))
        if count is not None:
            with self._lock:
                count(self._column, event)

    def put(self, **figures: int) -> None:
        """Set what no event tells; a counter never falls, so what is set is what its server keeps itself."""
        for name, value in figures.items():
            self._column.set(name, value)

    def put_histogram(self, name: str, counts: Sequence[int], seconds: float) -> None:
        """Set a histogram that its server keeps itself: how many values are in each bucket, and their sum."""
        self._column.set_histogram(name, counts, seconds)

    def lagged(self, seconds: float) -> None:
        """The reactor came `seconds` later to what was due than it should have."""
        with self._lock:
            self._column.observe("lag_seconds", seconds)


def _closed(column: Column, event: Any) -> None:
    column.add(f"closed:{event.cause}")
    column.observe("connection_seconds", event.duration)
    if event.unsent:
        column.add("bytes_unsent", event.unsent)


def _limited(name: str) -> Callable[[Column, Any], object]:
    return lambda column, event: column.add(f"{name}:{event.limit if event.limit in LIMITS else 'other'}")


_COUNT: dict[type[Event], Callable[[Column, Any], object]] = {
    events.ConnectionClosed: _closed,
    events.ConnectionRejected: _limited("rejected"),
    events.LimitNear: _limited("near"),
    events.HandlerFailed: lambda column, event: column.add("failures"),
    events.HandlerBlocked: lambda column, event: column.add("blockings"),
    events.AcceptFailed: lambda column, event: column.add("accept_errors"),
    events.DatagramDropped: lambda column, event: column.add("datagrams_dropped"),
    events.SlowReceiver: lambda column, event: column.add(f"slow:{event.action}"),
}
