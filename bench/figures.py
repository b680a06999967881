"""What is computed from samples: medians, quartiles, and ratios within a round.

Pure: numbers in, numbers out.  A ratio compares two servers of the *same* round, which ran within seconds of each
other, so that a machine that is slower for a while is slower for both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ("Spread", "ratios", "spread")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles on both sides of it."""

    median: float
    low: float
    high: float
    count: int

    @property
    def noise(self) -> float:
        """Half the distance of the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def spread(values: Iterable[float]) -> Spread | None:
    """Median and quartiles, or None of nothing."""
    known = sorted(values)
    if not known:
        return None
    if len(known) == 1:
        return Spread(known[0], known[0], known[0], 1)
    low, median, high = statistics.quantiles(known, n=4, method="inclusive")
    return Spread(median, low, high, len(known))


def ratios(samples: Mapping[int, float], reference: Mapping[int, float]) -> Sequence[float]:
    """Each sample divided by the reference of the same round; rounds that one of them lacks are left out."""
    return [value / reference[number] for number, value in samples.items() if reference.get(number)]
