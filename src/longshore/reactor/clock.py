"""Time as a reactor sees it, and what falls due.

`Clock` is real time; tests give the reactor one that they turn by hand.  `Timers` is a heap that forgets
cancelled entries lazily.  Neither waits.
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Clock", "Timer", "Timers")


class Clock:
    """Monotonic seconds."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def wait_for(self, deadline: float) -> float | None:
        """How many real seconds a reactor may sleep until `deadline`; None: until it is woken."""
        return max(0.0, deadline - time.monotonic())

    def attach(self, wake: Callable[[], None]) -> None:
        """Tell the clock whom to wake when it jumps; real time never does."""

    def detach(self, wake: Callable[[], None]) -> None:
        """Undo `attach`."""


class Timer:
    """One call that is due at `when`; `cancel` may be called at any time, twice too."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Never call it."""
        self.callback = None
        self.args = ()


class Timers:
    """What falls due, the nearest first, equal times in the order they were added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def add(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` at `when`."""
        timer = Timer(when, callback, args)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def next(self) -> float | None:
        """When the nearest one is due."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Timer]:
        """Take out all that are due."""
        found = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            if timer.callback is not None:
                found.append(timer)
        return found

    def clear(self) -> None:
        """Forget them all."""
        self._heap.clear()
