"""Memory that the supervisor, all workers and the control process share, and what is counted in it.

The only place that knows where a figure lies.  Three rules, because any process may be killed between any two of its
instructions, and a lock that it held would stay locked:

* One cell has one writer: a worker writes its own column, the supervisor the rest.  A cell is an aligned number of 8
  bytes, which is written whole or not at all.
* A sum may be read at any time by anybody.
* What a worker held is given back by the supervisor, once it is dead and can write no more.

When a worker ends, its counters are added to those of the dead, so that totals never go back; meanwhile readers
wait for an even `sequence`, as with a seqlock.

The region is anonymous and inherited by fork(2): there is no file to clean up, and no other program can reach it.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ("SLOTS", "Column", "Histogram", "Region", "SharedCounters")

_T = TypeVar("_T")
#: Workers that may live at once, those that drain included.
SLOTS = 256

_CELL = 8
#: Rows of one cell for each worker.
_ROWS = ("pid", "generation", "held", "accepts", "waiting", "accepting", "beat")
#: Cells before them: how many slots have ever been used, the sequence number, and room.
_HEADER = 8
#: How often a reader begins anew before it takes what it gets.
_PATIENCE = 1000
#: Sums of seconds are kept as whole microseconds.
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a value was at most each of `bounds`, and above the last; `sum` is of all values, in seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than there are bounds; each counts its own range only."""
    sum: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Region:
    """Shared memory for `SLOTS` workers; to be made before they are forked.

    Args:
        counters: names of what only grows.
        gauges: names of what comes and goes, and ends with its worker.
        histograms: bounds in seconds, by name.
    """

    def __init__(
        self,
        counters: Iterable[str] = (),
        gauges: Iterable[str] = (),
        histograms: Mapping[str, tuple[float, ...]] | None = None,
    ) -> None:
        self.counters = tuple(counters)
        self.gauges = tuple(gauges)
        self.histograms = dict(histograms or {})
        #: Where in a column's figures each one begins.
        self.places: dict[str, int] = {}
        size = 0
        for name in (*self.counters, *self.gauges):
            self.places[name] = size
            size += 1
        for name, bounds in self.histograms.items():
            self.places[name] = size
            size += len(bounds) + 2
        self.width = max(size, 1)
        self._figures = _HEADER + len(_ROWS) * SLOTS
        # One column more, for the dead.
        self._memory = mmap.mmap(-1, (self._figures + (SLOTS + 1) * self.width) * _CELL)
        self.cells = memoryview(self._memory).cast("q")
        self.rows = {name: _HEADER + number * SLOTS for number, name in enumerate(_ROWS)}

    # -- for all ---------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Slots from this one on have never had a worker."""
        return self.cells[0]

    def row(self, name: str) -> memoryview:
        """The cells of one row, by slot: a live view."""
        start = self.rows[name]
        return self.cells[start : start + SLOTS]

    def column(self, slot: int) -> Column:
        """What one worker writes."""
        return Column(self, slot)

    def begin_of(self, slot: int) -> int:
        """The number of the first cell of a slot's figures; `SLOTS` is the dead."""
        return self._figures + slot * self.width

    # -- for the supervisor ----------------------------------------------------------------------------------

    def take_slot(self, generation: int) -> int:
        """A free slot for a worker to be forked.

        Raises:
            ConfigError: all are taken.
        """
        pids = self.row("pid")
        for slot in range(SLOTS):
            if not pids[slot]:
                break
        else:
            raise ConfigError(f"more than {SLOTS} workers at once", hint="Use fewer, or let old ones drain first.")
        # Taken from now on, also before there is a pid.
        pids[slot] = -1
        self.row("generation")[slot] = generation
        self.cells[0] = max(self.cells[0], slot + 1)
        return slot

    def free_slot(self, slot: int) -> None:
        """Its worker is dead: fold its counters into those of the dead, and give back what it held."""
        cells = self.cells
        mine, dead = self.begin_of(slot), self.begin_of(SLOTS)
        gauges = {self.places[name] for name in self.gauges}
        cells[1] += 1
        for offset in range(self.width):
            if offset not in gauges:
                cells[dead + offset] += cells[mine + offset]
            cells[mine + offset] = 0
        cells[1] += 1
        for name in _ROWS:
            self.row(name)[slot] = 0


class Column:
    """What one worker writes: its figures, and that it lives."""

    __slots__ = ("_beat", "_begin", "_cells", "_region", "slot")

    def __init__(self, region: Region, slot: int) -> None:
        self.slot = slot
        self._region = region
        self._cells = region.cells
        self._begin = region.begin_of(slot)
        self._beat = region.rows["beat"] + slot

    def set(self, name: str, value: int) -> None:
        """A counter or gauge has this value in this process."""
        self._cells[self._begin + self._region.places[name]] = value

    def add(self, name: str, count: int = 1) -> None:
        """A counter of which this process keeps no figure of its own grows."""
        self._cells[self._begin + self._region.places[name]] += count

    def observe(self, name: str, seconds: float) -> None:
        """One value of a histogram."""
        bounds = self._region.histograms[name]
        first = self._begin + self._region.places[name]
        self._cells[first + bisect_left(bounds, seconds)] += 1
        self._cells[first + len(bounds) + 1] += int(seconds * _MICRO)

    def set_histogram(self, name: str, counts: Sequence[int], seconds: float) -> None:
        """A histogram has these counts, one for each bucket and one beyond the last, and this sum in this process."""
        first = self._begin + self._region.places[name]
        last = first + len(self._region.histograms[name]) + 1
        for place, count in zip(range(first, last), counts, strict=True):
            self._cells[place] = count
        self._cells[last] = int(seconds * _MICRO)

    def beat(self) -> None:
        """Say that this worker's reactor turns; on CLOCK_MONOTONIC, which all processes of a system share."""
        self._cells[self._beat] = time.monotonic_ns()


class SharedCounters:
    """The figures of all workers, of now and before: read by whoever shares the region, at any time.

    `total` never goes back in a counter or histogram, whichever workers end.  Figures of a living worker are as old
    as its last heartbeat, at most a second; a worker that is killed takes what it had not yet written with it.
    """

    def __init__(self, region: Region) -> None:
        self._region = region

    def total(self) -> dict[str, int | Histogram]:
        """By name: counters and histograms of all workers that ever were, gauges of those that live."""
        region = self._region

        def add() -> list[int]:
            sums = [0] * region.width
            for slot in (*range(region.used), SLOTS):
                begin = region.begin_of(slot)
                for offset, value in enumerate(region.cells[begin : begin + region.width]):
                    sums[offset] += value
            return sums

        return self._named(self._steady(add))

    def per_worker(self) -> dict[int, dict[str, int | Histogram]]:
        """By worker number (from 1 on): the figures of each that lives, and its `pid` and `generation`."""
        region = self._region

        def read() -> dict[int, list[int]]:
            pids = region.row("pid")
            begins = {slot: region.begin_of(slot) for slot in range(region.used) if pids[slot] > 0}
            return {slot: list(region.cells[begin : begin + region.width]) for slot, begin in begins.items()}

        pids, generations = region.row("pid"), region.row("generation")
        return {
            slot + 1: {**self._named(values), "pid": pids[slot], "generation": generations[slot]}
            for slot, values in self._steady(read).items()
        }

    def _steady(self, read: Callable[[], _T]) -> _T:
        """What `read` returns while no worker's figures are on their way to those of the dead."""
        cells = self._region.cells
        for _ in range(_PATIENCE):
            before = cells[1]
            found = read()
            if before == cells[1] and before % 2 == 0:
                break
            time.sleep(0)
        # A supervisor that was killed in the middle will not finish, and this process is about to end as well.
        return found

    def _named(self, values: list[int]) -> dict[str, int | Histogram]:
        region = self._region
        named: dict[str, int | Histogram] = {
            name: values[region.places[name]] for name in (*region.counters, *region.gauges)
        }
        for name, bounds in region.histograms.items():
            first = region.places[name]
            last = first + len(bounds) + 1
            named[name] = Histogram(bounds, tuple(values[first:last]), values[last] / _MICRO)
        return named
