"""Places that all workers share: exactly as many connections as `max_connections`, spread evenly.

The only place that decides, for a worker, whether it or another one takes the next connection.

**Exact.**  Each worker writes how many places it holds into its own cell; a place may be taken while the sum is below
the maximum.  Between looking and writing nobody else may do the same, so taking happens under a record lock
(fcntl(2)), which the kernel gives back however its holder ends.  A holder that is merely stopped keeps it, so nobody
waits for it: whoever does not get it looks again soon.  Giving a place back takes no lock, as it cannot make a sum
too large.  A dead worker's cell is set to zero by the supervisor.

**Before accept(2).**  What was accepted cannot be put back into the queue, so a place is taken first ("held"), and
given back if nobody was there any more.

**Woken.**  A worker that finds no place says so in its cell, and sleeps.  Whoever frees one wakes those (an eventfd
each).  The flag and the sum are different cells and Python promises no order between processes, so a sleeper also
looks again by itself from time to time.

**Spread.**  All workers wait on the same listening sockets, and whoever is fastest takes a connection: the busiest
last, which is right, but among idle ones always the same, which is not.  With long-lived connections one worker would
end up with nearly all of them.  So a worker that is ahead of the mean stands back for a moment, and takes one only if
nobody else has come for it.  A worker that gives no sign of life is not waited for.

Why not SO_REUSEPORT, one socket for each worker: what waits in the queue of a worker that ends is reset; what waits
in the queue of one that is blocked stays there; Unix sockets do not have it.  `docs/reliability.md` has the figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from longshore.limits import Gate
from longshore.machine import nameless
from longshore.supervisor.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.supervisor.region import Region

__all__ = ("LOOK_AGAIN", "Places", "SharedGate")

#: Seconds until a worker that stood back, or did not get the lock, looks again.
STAND_BACK = 0.002
#: Seconds between two looks of a worker that sleeps because there is no place.
LOOK_AGAIN = 0.05
#: Workers are waited for as long as their last sign of life is younger than this, in nanoseconds.
LIVELY = 2_500_000_000
#: A worker stands back when it is this many connections above the mean, or this share of it.
SLACK, SLACK_SHARE = 4, 1 / 16
#: Connections that a worker takes before it looks again whether others come, when it found that they do not.
ALONE = 16
#: Attempts to get the lock, which is held for some microseconds.
_TRIES = 50
#: Descriptors that wake workers: a worker beyond looks again by itself only.
_WAKES = 32
#: Which lock is for the places themselves.
_PLACES = 0


class Places:
    """What the gates of all workers stand on; to be made before they are forked."""

    def __init__(self, region: Region, workers: int) -> None:
        self.region = region
        #: How many connections each peer has.
        self.tally = Tally()
        #: A file of no size, each byte of which can be locked.
        self._file = nameless("longshore-places")
        self.wakes = [_wake() for _ in range(max(_WAKES, 2 * workers))]

    @property
    def descriptors(self) -> set[int]:
        """All that belong to it."""
        return {self._file, *(fd for pair in self.wakes for fd in pair)}

    def lock(self, byte: int, *, patient: bool = False) -> bool:
        """Take a record lock, which is mostly held for some microseconds; False if its holder seems to be stopped.

        Who is `patient` waits a quarter of a second for it.
        """
        for attempt in range(_TRIES * _TRIES if patient else _TRIES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):
                if attempt >= _TRIES:
                    time.sleep(0.0001)
            else:
                return True
        return False

    def unlock(self, byte: int) -> None:
        """Give a record lock back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def bury(self, dead: int) -> None:
        """The worker of slot `dead` has none any more."""
        self.tally.bury(dead)
        self.wake(dead)

    def wake(self, free: int) -> None:
        """Places of slot `free` are free: wake all others that wait."""
        waiting = self.region.row("waiting")
        for slot, (_, writer) in enumerate(self.wakes[: self.region.used]):
            if waiting[slot] and slot != free:
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, _ONE)

    def close(self) -> None:
        """Close the descriptors, in this process."""
        for fd in self.descriptors:
            os.close(fd)


class SharedGate(Gate):
    """A `Gate` whose count and maximum are those of all workers; to be used by one thread of one worker.

    Attributes:
        retry_in: seconds after which it is worth to look again, if `hold` was refused though there is room; else None.
    """

    __slots__ = (
        "_accepts",
        "_alone",
        "_beats",
        "_held",
        "_in_hand",
        "_mine",
        "_others_took",
        "_own_maximum",
        "_places",
        "_region",
        "_slot",
        "_waiting",
        "_willing",
        "retry_in",
    )

    def __init__(
        self,
        places: Places,
        slot: int,
        name: str,
        maximum: int | None,
        near: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__(name, maximum, near)
        self._places = places
        self._region = region = places.region
        self._slot = slot
        self._held = region.row("held")
        self._accepts = region.row("accepts")
        self._waiting = region.row("waiting")
        self._willing = region.row("accepting")
        self._beats = region.row("beat")
        self._mine = 0
        self._in_hand = False
        #: What this process itself can have, whatever the others do.
        self._own_maximum: int | None = None
        self._others_took = -1
        self._alone = 0
        self.retry_in: float | None = None

    @property
    def total(self) -> int:
        """Places that are taken, by all workers."""
        return sum(self._held[: self._region.used])

    @property
    def full(self) -> bool:
        """Whether nobody else may come in; this worker is woken once that changes."""
        if self._in_hand:
            return False
        if self._own_maximum is not None and self._mine >= self._own_maximum:
            return True
        if self.maximum is None or self.total < self.maximum:
            return False
        self._waiting[self._slot] = 1
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether it was found full and nobody has looked since."""
        return bool(self._waiting[self._slot])

    def look(self) -> bool:
        """Look again whether there is room, and wait on if not."""
        self._waiting[self._slot] = 0
        return not self.full

    def clamp(self, maximum: int) -> None:
        """This process can have no more than `maximum`."""
        self._own_maximum = maximum

    def hold(self) -> bool:
        """Take a place for whoever is accepted next; False if others are to take it, or there is none."""
        self.retry_in = None
        if self._in_hand:
            return True
        if self._others_first():
            self.retry_in = STAND_BACK
            return False
        self._in_hand = self._take(patient=False)
        return self._in_hand

    def settle(self) -> None:
        """Give back what was held for somebody who did not come."""
        if self._in_hand:
            self._in_hand = False
            self._give()

    def enter(self) -> bool:
        """Take the place that was held, or one; False if there is none."""
        if self._in_hand:
            self._in_hand = False
        elif not self._take(patient=True):
            return False
        self._accepts[self._slot] += 1
        if self.maximum is not None:
            self._look(self.total)
        return True

    def leave(self) -> None:
        """Give one place back, and wake who waits for one."""
        self._give()
        if self._brink.told:
            self._look(self.total)

    # -- the cells -------------------------------------------------------------------------------------------

    def _take(self, *, patient: bool) -> bool:
        if self._own_maximum is not None and self._mine >= self._own_maximum:
            return False
        if not self._places.lock(_PLACES, patient=patient):
            self.retry_in = STAND_BACK
            return False
        try:
            if self.maximum is not None and self.total >= self.maximum:
                self._waiting[self._slot] = 1
                return False
            self._mine += 1
            self._held[self._slot] = self._mine
        finally:
            self._places.unlock(_PLACES)
        return True

    def _give(self) -> None:
        self._mine -= 1
        self._held[self._slot] = self._mine
        if any(self._waiting[: self._region.used]):
            self._places.wake(self._slot)

    def _others_first(self) -> bool:
        """Whether another worker is to take the next connection."""
        used = self._region.used
        oldest = time.monotonic_ns() - LIVELY
        others = [
            slot
            for slot in range(used)
            if slot != self._slot and self._willing[slot] and self._beats[slot] >= oldest and not self._waiting[slot]
        ]
        if not others:
            return False
        mean = (self._mine + sum(self._held[slot] for slot in others)) / (len(others) + 1)
        if self._mine + 1 <= mean + max(SLACK, mean * SLACK_SHARE):
            self._others_took = -1
            return False
        took = sum(self._accepts[slot] for slot in others)
        if took != self._others_took:
            # For the first time, or they do come.
            self._others_took = took
            self._alone = ALONE
            return True
        if self._alone == 0:
            self._others_took = -1
            return True
        self._alone -= 1
        return False


_ONE = (1).to_bytes(8, "little")


def _wake() -> tuple[int, int]:
    """A descriptor to read from, and one to write to, for waking one worker."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer
