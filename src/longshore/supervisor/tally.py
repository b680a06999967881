"""The tally: how many connections each peer has at all workers together, in memory that they share.

The only place that counts peers between processes.  A table of open addressing has an entry for each peer of each
worker: whose connections they are, and which worker has how many of them.

**Exact.**  One more connection of a peer is counted under the record lock of `places.py`, while the sum of its entries
is below the maximum, so no two workers see the same last place.  One less takes no lock: its worker alone writes an
entry that counts something, and a number that is late is too large, never too small.

**A dead worker's** entries are set to zero by the supervisor; it may have been killed between any two writes, so what
makes an entry count is the second of its two cells, which is written last, and whole.

**No growth.**  An entry that counts nothing may be anybody's next one, and those at the end of a chain are cleared by
whoever comes along.  A peer for whom the table has no room is refused, as it could not be counted.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from longshore.policy import PeerGate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.networks import Who
    from longshore.supervisor.places import Places

__all__ = ("PEERS", "SharedPeerGate", "Tally")

#: Which of the locks of `places.Places` is for it.
PEERS = 1

#: Entries: peers that may be connected at once, times the workers that they are connected to.  Memory is taken as it
#: is used, at most 4 MiB.
ENTRIES = 1 << 18
#: Where in an entry's second cell the worker stands, above the count.
_OWNER = 32
_COUNT = (1 << _OWNER) - 1
#: What tells kinds of peers apart in 8 bytes of which an IPv6 /64 needs all: networks of 0100::/16, where nobody is.
_IPV4, _USER = 0x0100_0000 << 32, 0x0101_0000 << 32


class Tally:
    """The table; to be made before the workers are forked."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries = entries
        self._memory = mmap.mmap(-1, (2 * entries + 1) * 8)
        #: Two for each entry: the peer; and the worker's slot plus one, and its count.  The last one says whether any
        #: was ever written: a table that is only looked at would take all its memory.
        self.cells = memoryview(self._memory).cast("q")
        # Who knew where an address stands could choose many that stand in one place.
        self._secret = int.from_bytes(os.urandom(7), "big")

    def add(self, slot: int, key: int, maximum: int | None) -> tuple[int, int] | None:
        """One more of `key` at `slot`, under the lock: its entry, and how many it has now; None if it may not come."""
        cells, mine = self.cells, (slot + 1) << _OWNER
        first = place = hash((self._secret, key)) % self._entries
        total, found, free = 0, -1, -1
        while state := cells[2 * place + 1]:
            if not state & _COUNT:
                free = place if free < 0 else free
            elif cells[2 * place] == key:
                total += state & _COUNT
                if state & ~_COUNT == mine:
                    found = place
            place = (place + 1) % self._entries
            if place == first:
                break
        else:
            self._clear_before(place)
            free = place if free < 0 else free
        if maximum is not None and total >= maximum:
            return None
        if found < 0:
            if free < 0:
                return None
            found = free
            cells[-1] = 1
            cells[2 * found], cells[2 * found + 1] = key, mine
        cells[2 * found + 1] += 1
        return found, total + 1

    def subtract(self, entry: int) -> int:
        """One less in an entry of the caller's own; how many it has left."""
        self.cells[2 * entry + 1] -= 1
        return self.cells[2 * entry + 1] & _COUNT

    def bury(self, slot: int) -> None:
        """A worker is dead: what it counted is gone."""
        if not self.cells[-1]:
            return
        owner = slot + 1
        for entry, state in enumerate(self.cells[1:-1:2].tolist()):
            # One that counts nothing may have become another worker's meanwhile.
            if state >> _OWNER == owner and state & _COUNT:
                self.cells[2 * entry + 1] = owner << _OWNER

    def _clear_before(self, place: int) -> None:
        """No chain goes on here, so what counts nothing right before it ends none."""
        while True:
            place = (place - 1) % self._entries
            state = self.cells[2 * place + 1]
            if not state or state & _COUNT:
                return
            self.cells[2 * place + 1] = 0


class SharedPeerGate(PeerGate):
    """A `PeerGate` whose counts are those of all workers; to be used by one thread of one worker."""

    __slots__ = ("_entry_of", "_places", "_slot")

    def __init__(
        self,
        places: Places,
        slot: int,
        name: str,
        near: Callable[[str, int, int], None] | None,
        present: Callable[[], Iterable[Who]],
    ) -> None:
        super().__init__(name, None, near, present)
        self._places = places
        self._slot = slot
        #: Where this worker counts whom.
        self._entry_of: dict[Who, int] = {}

    def _add(self, key: Who, maximum: int | None) -> int | None:
        places = self._places
        if not places.lock(PEERS, patient=True):
            return None
        try:
            added = places.tally.add(self._slot, _as_number(key), maximum)
        finally:
            places.unlock(PEERS)
        if added is None:
            return None
        self._entry_of[key] = added[0]
        return added[1]

    def _subtract(self, key: Who) -> int:
        entry = self._entry_of.get(key)
        if entry is None:
            return 0
        left = self._places.tally.subtract(entry)
        if not left:
            del self._entry_of[key]
        return left

    def _clear(self) -> None:
        for entry in self._entry_of.values():
            while self._places.tally.subtract(entry):
                pass
        self._entry_of.clear()

    def __len__(self) -> int:
        return len(self._entry_of)


def _as_number(key: Who) -> int:
    if isinstance(key, bytes):
        number = int.from_bytes(key, "big")
        return _IPV4 | number if len(key) == 4 else number - (1 << 64) * (number >> 63)
    return _USER | (key or 0)
