"""Events as numbers: what a server has done since it began, in cells that another process can read.

The only place that turns events into counts.  A count is a cell of eight aligned bytes, so whoever shares the memory
reads it at any moment, also while its writer is busy, and after its writer was killed.  Counts only ever rise; what
goes up and down is a gauge, and stands behind the counts.

It publishes nothing: `longshore.control.metrics` makes text of it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import fields
from typing import TYPE_CHECKING

from longshore import events
from longshore.config import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableSequence
    from typing import Any

    from longshore.events import Event

__all__ = ("COUNTS", "DURATIONS", "GAUGES", "INDEX", "LAGS", "LIMITS", "SIZE", "Meter", "sums")

#: Upper bounds of the buckets of connections' durations, in seconds.
DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
#: Upper bounds of the buckets of the reactor's lag, in seconds.
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: What may turn a connection away; "other" is what is not known here, such as a strategy's own bound.
LIMITS = (*(item.name for item in fields(Limits) if not item.name.startswith("_")), "other")

Cell = tuple[str, str]
"""What is counted, and the one of its kinds that it is ("" where there are none)."""


def _histogram(name: str, bounds: Iterable[float]) -> list[Cell]:
    return [*((name, repr(bound)) for bound in bounds), (name, "+Inf"), (name, "sum")]


#: Every count, in the order of the cells.  Sums of seconds are in microseconds, as cells are whole numbers.
COUNTS: tuple[Cell, ...] = (
    ("accepted", ""),
    ("received", ""),
    ("sent", ""),
    ("messages", ""),
    ("datagrams", ""),
    *(("closed", cause) for cause in events.ConnectionClosed.CAUSES),
    *(("rejected", limit) for limit in LIMITS),
    *(("near", limit) for limit in LIMITS),
    ("unsent", ""),
    ("failed", ""),
    ("blocked", ""),
    ("accept failed", ""),
    ("datagrams dropped", ""),
    ("slow", "drop"),
    ("slow", "close"),
    *_histogram("duration", DURATIONS),
    *_histogram("lag", LAGS),
)
#: What goes up and down, in the cells behind those: never added to what dead workers have left.
GAUGES: tuple[Cell, ...] = (("connections", ""),)
#: How many cells a worker has.
SIZE = len(COUNTS) + len(GAUGES)
#: Where each stands.
INDEX: dict[Cell, int] = {cell: place for place, cell in enumerate(COUNTS + GAUGES)}

_DURATION = INDEX["duration", repr(DURATIONS[0])]
_LAG = INDEX["lag", repr(LAGS[0])]


class Meter:
    """Counts events: `server.subscribe(Meter(cells))`; from any thread.

    Args:
        cells: `SIZE` whole numbers, such as a `memoryview` of shared memory cast to "q"; a list if None.
    """

    def __init__(self, cells: MutableSequence[int] | None = None) -> None:
        self.cells: MutableSequence[int] = [0] * SIZE if cells is None else cells
        # Handlers fail on threads of their own, and adding to a cell takes a read and a write.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count one event."""
        counted = _COUNTED.get(type(event))
        if counted is not None:
            with self._lock:
                counted(self, event)

    def put(self, name: str, value: int, kind: str = "") -> None:
        """Set a count that is kept elsewhere, or a gauge; a count never falls."""
        place = INDEX[name, kind]
        if value > self.cells[place] or place >= len(COUNTS):
            self.cells[place] = value

    def total(self, name: str) -> int:
        """A count over all its kinds."""
        return sum(self.cells[place] for (counted, _), place in INDEX.items() if counted == name)

    def lagged(self, seconds: float) -> None:
        """The reactor came `seconds` later to what was due than it should have."""
        with self._lock:
            self._observe(_LAG, LAGS, seconds)

    def _add(self, name: str, kind: str = "", count: int = 1) -> None:
        self.cells[INDEX[name, kind]] += count

    def _observe(self, first: int, bounds: tuple[float, ...], seconds: float) -> None:
        # Each bucket has its own share; whoever shows them adds them up.
        self.cells[first + bisect_left(bounds, seconds)] += 1
        self.cells[first + len(bounds) + 1] += int(seconds * 1e6)

    def _closed(self, event: Any) -> None:
        self._add("closed", event.cause)
        self._add("unsent", count=event.unsent)
        self._observe(_DURATION, DURATIONS, event.duration)

    def _limited(self, name: str, limit: str) -> None:
        self._add(name, limit if limit in LIMITS else "other")


_COUNTED: dict[type[Event], Callable[[Meter, Any], object]] = {
    events.ConnectionClosed: Meter._closed,
    events.ConnectionRejected: lambda meter, event: meter._limited("rejected", event.limit),
    events.LimitNear: lambda meter, event: meter._limited("near", event.limit),
    events.HandlerFailed: lambda meter, event: meter._add("failed"),
    events.HandlerBlocked: lambda meter, event: meter._add("blocked"),
    events.AcceptFailed: lambda meter, event: meter._add("accept failed"),
    events.DatagramDropped: lambda meter, event: meter._add("datagrams dropped"),
    events.SlowReceiver: lambda meter, event: meter._add("slow", event.action),
}


def sums(workers: Iterable[MutableSequence[int]]) -> Mapping[Cell, int]:
    """What several workers have counted together."""
    totals = [0] * SIZE
    for cells in workers:
        for place in range(SIZE):
            totals[place] += cells[place]
    return dict(zip(COUNTS + GAUGES, totals, strict=True))
