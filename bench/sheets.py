"""One measurement of two libraries: what is asked of it, and how it is told, kept and drawn.

`pool.py`, `shared.py` and `shared_redis.py` say what is done; both libraries do it in the same round, one after the
other, so that a slow moment of the machine meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import results
from bench.figures import ratios, spread

__all__ = ("Rates", "Sheet")

#: What a second brings, by way and library, for every round.
Rates = Mapping[str, Mapping[str, list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What two libraries are compared in."""

    name: str
    """Of the module, the results and the picture."""
    names: tuple[str, str]
    """The libraries, ours first."""
    unit: str
    """What is counted in a second."""
    asked: Mapping[str, float]
    """How many times the other one's rate is asked, by way; of a way that is not here, nothing."""
    quick: tuple[int, int]
    whole: tuple[int, int]
    """Rounds, and how often something is done in each."""

    def holds(self, rates: Rates) -> bool:
        """Print the medians and their ratio, way by way; whether all that is asked holds."""
        verdict = True
        for way, found in rates.items():
            ratio = statistics.median(ratios(*(dict(enumerate(found[name])) for name in self.names)))
            for name in self.names:
                print(f"{way}, {name}: {statistics.median(found[name]):,.0f} {self.unit} a second")
            asked = self.asked.get(way)
            if asked is None:
                print(f"  ratio {ratio:.2f}")
                continue
            print(f"  ratio {ratio:.2f}, at least {asked:g} is asked: {'holds' if ratio >= asked else 'does not hold'}")
            verdict = verdict and ratio >= asked
        return verdict

    def draw(self, rates: Rates) -> None:
        """Draw the medians, with their quartiles."""
        import matplotlib as mpl

        mpl.use("svg")
        from matplotlib import pyplot

        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.65 * len(rates)), layout="constrained")
            for row, (way, found) in enumerate(rates.items()):
                for offset, (name, colour) in enumerate(zip(self.names, ("#0b6e8a", "#d9a441"), strict=True)):
                    known = spread(found[name])
                    if known is None:
                        continue
                    place = row * 3 + offset
                    error = [[known.median - known.low], [known.high - known.median]]
                    axes.barh(place, known.median, color=colour, xerr=error, ecolor="#444444")
                    said = f"  {name}, {way}: {known.median:,.0f}"
                    axes.annotate(said, (known.high, place), va="center", fontsize=8)
            axes.set_yticks([])
            axes.set_xscale("log")
            axes.set_xlim(right=axes.get_xlim()[1] * 30)
            axes.invert_yaxis()
            axes.set_xlabel(f"{self.unit} a second; line = quartiles")
            figure.savefig(results.FOLDER / f"{self.name}.svg", metadata={"Date": None})
            pyplot.close(figure)

    def main(
        self, measure: Callable[[int, int], dict[str, Any]], also: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        """Measure, print, write and draw; the exit status is 1 if a bound does not hold and `--check` is given.

        Args:
            measure: called with rounds and count; returns the `rates`, and whatever else was found.
            also: prints whatever else was found; returns whether it holds.
        """
        parser = argparse.ArgumentParser(prog=f"python -m bench.{self.name}")
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--check", action="store_true")
        arguments = parser.parse_args()
        found = measure(*(self.quick if arguments.quick else self.whole))
        holds = self.holds(found["rates"])
        if also is not None:
            holds = also(found) and holds
        if not arguments.quick:
            results.FOLDER.mkdir(parents=True, exist_ok=True)
            (results.FOLDER / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")
            with contextlib.suppress(ImportError):
                self.draw(found["rates"])
        sys.exit(arguments.check and not holds)
