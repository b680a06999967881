"""What a loop does again and again, whatever else it does.

Pure: "now" goes in, and the functions are called.  No clock, no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Chores",)


class Chores:
    """Functions with their pauses."""

    def __init__(self) -> None:
        self._chores: list[tuple[float, Callable[[], object]]] = []
        #: When each is due next, in seconds on the loop's clock.
        self.due: list[float] = []

    def add(self, seconds: float, function: Callable[[], object]) -> None:
        """Call `function` in the next turn of the loop, and every `seconds` from then on."""
        self._chores.append((seconds, function))
        self.due.append(0.0)

    def do(self, now: float) -> None:
        """Call what is due."""
        for number, (seconds, function) in enumerate(self._chores):
            if self.due[number] <= now:
                self.due[number] = now + seconds
                function()
