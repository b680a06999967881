"""The brake: how long to wait before a process is started in the place of one that could not stay.

Pure: deaths and "now" go in.  One that dies in its work is replaced at once; one that dies again and again before it
has done any, later each time.
"""

from __future__ import annotations

__all__ = ("Brake",)

#: Seconds until the start after the second death in a row, and at most until any.
FIRST, LONGEST = 0.1, 30.0


class Brake:
    """Counts early deaths in a row; `not_before` is when the next start may be, on the clock of its caller."""

    def __init__(self) -> None:
        self.deaths = 0
        self.not_before = 0.0

    def died(self, now: float, *, early: bool) -> float:
        """One has died, `early` or in its work; the seconds until another may start."""
        self.deaths = self.deaths + 1 if early else 0
        pause = min(LONGEST, FIRST * 2.0 ** min(self.deaths - 2, 20)) if self.deaths > 1 else 0.0
        self.not_before = now + pause
        return pause

    def release(self) -> None:
        """All is well."""
        self.deaths = 0
        self.not_before = 0.0
