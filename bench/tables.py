"""Rows as people read them: on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.claims import Verdict
from bench.comparison import Row, compare
from bench.figures import Spread

__all__ = ("markdown", "print_entry", "print_verdicts")

_HEADS = {"ratio": "x limit", "bytes": "bytes", "seconds": "ms", "p99": "p99 us", "cpu": "CPU us"}
_SCALES = {"seconds": 1e3, "p99": 1e-3, "cpu": 1e-3}
_SIGNS = {True: "[green]holds[/green]", False: "[red]does not[/red]", None: "not measured"}


def print_entry(console: Console, entry: Mapping[str, Any]) -> None:
    """A scenario as a table, and who was left out and why."""
    table = Table(title=entry["title"], title_justify="left", title_style="bold")
    table.add_column("server")
    for head in _columns(entry["metric"]):
        table.add_column(head, justify="right")
    rows = compare(entry)
    for row in rows:
        if row.figure:
            style = {"longshore": "bold cyan", "limit": "dim"}.get(row.family, "")
            table.add_row(row.name, *(cell(row) for cell in _columns(entry["metric"]).values()), style=style)
    console.print(table)
    for row in rows:
        if row.left_out:
            console.print(f"  {row.name} is left out: {row.left_out}", style="dim", highlight=False)
    if any(row.is_load_saturated for row in rows):
        console.print("  + the load generator was at its own limit, so the server could do more", style="dim")
    console.print()


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Which claims hold."""
    table = Table(title="Claims", title_justify="left", title_style="bold")
    for head in ("server", "scenario", "claim", "measured", "verdict"):
        table.add_column(head, no_wrap=True)
    for verdict in verdicts:
        measured = "" if verdict.measured is None else f"{verdict.measured:.3g}"
        aim = {True: ", and the aim", False: ", not the aim", None: ""}[verdict.reaches_aim if verdict.holds else None]
        claim = verdict.claim
        table.add_row(claim.subject, claim.scenario, verdict.bound, measured, _SIGNS[verdict.holds] + aim)
    console.print(table)


def markdown(entries: Iterable[Mapping[str, Any]]) -> str:
    """Scenarios as tables for a page."""
    parts = []
    for entry in entries:
        columns = _columns(entry["metric"])
        lines = [
            f"**{entry['title']}**",
            "",
            f"| server | {' | '.join(columns)} |",
            "| --- |" + " ---: |" * len(columns),
        ]
        for row in compare(entry):
            if row.figure:
                name = f"**{row.name}**" if row.family == "longshore" else row.name
                lines.append(f"| {name} | {' | '.join(cell(row) for cell in columns.values())} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _columns(metric: str) -> dict[str, Callable[[Row], str]]:
    scale = _SCALES.get(metric, 1)
    columns: dict[str, Callable[[Row], str]] = {
        _HEADS[metric]: lambda row: _number(row.figure, scale),
        "quartiles": lambda row: _quartiles(row.figure, scale),
    }
    if metric in ("bytes", "seconds"):
        return columns
    if metric != "cpu":
        columns["CPU us"] = lambda row: _number(row.cpu, 1e-3)
    columns["messages/s"] = lambda row: f"{_number(row.rate, 1)}{'+' if row.is_load_saturated else ''}"
    columns["p50 us"] = lambda row: _number(row.p50, 1e-3)
    if metric != "p99":
        columns["p99 us"] = lambda row: _number(row.p99, 1e-3)
    columns["p99.9 us"] = lambda row: _number(row.p999, 1e-3)
    return columns


def _number(value: Spread | None, scale: float) -> str:
    return _digits(value.median * scale) if value else ""


def _quartiles(value: Spread | None, scale: float) -> str:
    return f"{_digits(value.low * scale)} to {_digits(value.high * scale)}" if value and value.count > 1 else ""


def _digits(number: float) -> str:
    """Three digits that count, and thousands apart."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) < 1 else f"{number:.{1 if abs(number) >= 10 else 2}f}"
