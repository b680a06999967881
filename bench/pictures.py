"""Pictures of a run: one SVG for each scenario, bars from best to worst.

Colours say whose server it is and nothing else; bars are labelled, so that no colour has to be told apart.  The files
hold no date and no random names, so that the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot

from bench.comparison import Row, compare

__all__ = ("draw",)

_COLOURS = {"longshore": "#0b6e8a", "limit": "#9aa5ab", "peer": "#d9a441"}
_AXES = {
    "ratio": ("server's processor time per message; limit = 1", 1.0),
    "bytes": ("bytes of the server's memory per connection", 1.0),
    "seconds": ("milliseconds", 1e3),
    "p99": ("microseconds from when a message was due: bar = 99 %, line = 50 % to 99.9 %", 1e-3),
    "cpu": ("microseconds of the server's processor time per message", 1e-3),
}
#: From this distance of best and worst on, the axis is logarithmic.
_WIDE = 20


def draw(entry: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a scenario."""
    rows = [row for row in compare(entry) if row.figure]
    if not rows:
        return
    label, scale = _AXES[entry["metric"]]
    with mpl.rc_context({"svg.hashsalt": path.stem, "font.family": "sans-serif", "svg.fonttype": "path"}):
        figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
        values = [row.figure.median * scale for row in rows if row.figure]
        is_wide = max(values) > _WIDE * min(values)
        names = [row.name for row in rows]
        axes.barh(
            names, values, color=[_COLOURS[row.family] for row in rows], xerr=_whiskers(rows, scale), ecolor="#333"
        )
        axes.invert_yaxis()
        if is_wide:
            axes.set_xscale("log")
            axes.set_xlim(left=min(values) / 2, right=max(values) * 3)
        else:
            axes.set_xlim(left=0, right=max(values) * 1.18)
        for index, (row, value) in enumerate(zip(rows, values, strict=True)):
            end = max(value, (_reach(row)[1]) * scale)
            axes.annotate(
                _text(value), (end, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_title(entry["title"], loc="left", fontsize=11)
        axes.set_xlabel(label + (" (logarithmic)" if is_wide else ""), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _reach(row: Row) -> tuple[float, float]:
    """From where to where the thin line goes: the quartiles, or the median to the worst in a thousand."""
    assert row.figure is not None
    if row.metric == "p99" and row.p50 and row.p999:
        return min(row.p50.median, row.figure.median), max(row.p999.median, row.figure.median)
    return row.figure.low, row.figure.high


def _whiskers(rows: list[Row], scale: float) -> list[list[float]]:
    middle = [row.figure.median for row in rows if row.figure]
    ends = [_reach(row) for row in rows]
    return [
        [(value - low) * scale for value, (low, _) in zip(middle, ends, strict=True)],
        [(high - value) * scale for value, (_, high) in zip(middle, ends, strict=True)],
    ]


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
