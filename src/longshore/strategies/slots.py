"""What a child tells all the time: a few numbers in memory that it shares with the serving process.

How many bytes came and went, and whether the handler waits and owes nothing, is asked for at any moment: when a
place is needed, for figures, and after a child was killed, which leaves no time to say anything.  A message for each
change would wake the serving process for every read of every handler.  So each child has a slot of cells, which it
alone writes; a cell is eight aligned bytes, which no reader sees half written.

The memory is made before anything is forked, for as many children as there may ever be: pages that nobody has
touched cost nothing.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.guard import Guard
from longshore.limits import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.config import Timeouts

__all__ = ("CHILDREN", "SharedGuard", "Slot", "Slots")

#: As many children as one server may have, whatever `max_processes` says.
CHILDREN = 65_536
_CELLS = 8
_RECEIVED, _SENT, _WAITING, _OWING, _DONE, _LAST_BYTE = range(6)


def _count(cell: int) -> Any:
    """An attribute that lives in a cell: a count, or whether something holds."""

    def get(self: Slot | SharedGuard) -> int:
        return self._counts[self._at + cell]

    def put(self: Slot | SharedGuard, value: int) -> None:
        self._counts[self._at + cell] = value

    return property(get, put)


class Slot:
    """The cells of one child."""

    __slots__ = ("_at", "_counts", "_times", "index")

    def __init__(self, counts: memoryview, times: memoryview[float], index: int) -> None:
        self._counts = counts
        self._times = times
        self._at = index * _CELLS
        self.index = index

    received = _count(_RECEIVED)
    sent = _count(_SENT)
    waiting = _count(_WAITING)
    owing = _count(_OWING)
    #: Bytes that the serving process gave the child for its peer, and that the peer's kernel has taken.
    done = _count(_DONE)

    def clear(self) -> None:
        """Begin anew."""
        for cell in range(self._at, self._at + _CELLS):
            self._counts[cell] = 0

    @property
    def last_byte(self) -> float:
        """When the last byte moved, in seconds on the reactor's clock."""
        time: float = self._times[self._at + _LAST_BYTE]
        return time

    @last_byte.setter
    def last_byte(self, value: float) -> None:
        self._times[self._at + _LAST_BYTE] = value


class Slots:
    """All slots of one server."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, CHILDREN * _CELLS * 8)
        self._counts = memoryview(self._memory).cast("Q")
        self._times = memoryview(self._memory).cast("d")
        #: Those that were used before come first, so that no more pages are touched than need be.
        self._free: deque[int] = deque()
        self._next = 0

    def take(self) -> Slot:
        """A cleared slot; the serving process's affair, as is `give_back`."""
        if self._free:
            index = self._free.popleft()
        else:
            index = self._next
            self._next += 1
        slot = self.at(index)
        slot.clear()
        return slot

    def at(self, index: int) -> Slot:
        """The slot number `index`, as the child finds it."""
        return Slot(self._counts, self._times, index)

    def give_back(self, slot: Slot) -> None:
        """Its child is gone, and its figures are taken."""
        self._free.append(slot.index)

    def close(self) -> None:
        """Give the memory back; slots are of no use afterwards."""
        self._counts.release()
        self._times.release()
        self._memory.close()


class _SharedWatch(Watch):
    """A watch whose last byte the serving process sees."""

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot, timeouts: Timeouts, now: float) -> None:
        self._slot = slot
        super().__init__(timeouts, now)

    @property
    def last_byte(self) -> float:
        return self._slot.last_byte

    @last_byte.setter
    def last_byte(self, value: float) -> None:
        self._slot.last_byte = value


class SharedGuard(Guard):
    """A guard whose counts the serving process sees."""

    __slots__ = ("_at", "_counts")

    def __init__(self, slot: Slot, peer: str, timeouts: Timeouts, now: Callable[[], float]) -> None:
        self._counts = slot._counts
        self._at = slot._at
        super().__init__(peer, _SharedWatch(slot, timeouts, now()), now)

    received = _count(_RECEIVED)
    sent = _count(_SENT)
    waiting = _count(_WAITING)
    owing = _count(_OWING)
