"""What a scenario's samples say: one row for each server.

Pure: takes what `rounds.py` wrote, or what was read back from a file.  Tables, pictures and claims all stand on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.figures import Spread, ratios, spread

__all__ = ("Row", "compare", "row_of", "times")

#: A load generator that used more of its core than this was, or nearly was, what held the server back.
SATURATED = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A server in one scenario; what was not measured there is None."""

    name: str
    family: str
    reactor: str
    metric: str
    figure: Spread | None
    """What servers are compared by: a ratio to the limit, bytes, seconds, nanoseconds at the 99th percentile, or
    nanoseconds of processor time where there is no limit."""
    cpu: Spread | None
    """Nanoseconds of the server's processor time for a message."""
    rate: Spread | None
    """Messages a second."""
    p50: Spread | None
    p99: Spread | None
    p999: Spread | None
    lost: int
    is_load_saturated: bool
    left_out: str = ""


def compare(entry: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of a scenario: the limit, then from best to worst, then who was left out."""
    names = list(dict.fromkeys([*entry["families"], *entry["samples"], *entry["left_out"]]))
    rows = [_row(entry, name) for name in names]
    last = float("inf")

    def place(row: Row) -> tuple[bool, float]:
        return row.family != "limit", row.figure.median if row.figure else last

    return tuple(sorted(rows, key=place))


def row_of(entry: Mapping[str, Any], name: str) -> Row | None:
    """The row of one server, if it has any sample."""
    return _row(entry, name) if entry["samples"].get(name) else None


def times(entry: Mapping[str, Any], peer: str, subject: str) -> Spread | None:
    """How many times the processor time of `subject` a message takes `peer`."""
    return spread(ratios(*(_by_round(entry["samples"].get(name, [])) for name in (peer, subject))))


def _row(entry: Mapping[str, Any], name: str) -> Row:
    samples = entry["samples"].get(name, [])
    return Row(
        name=name,
        family=entry["families"].get(name, "peer"),
        reactor=entry["reactors"].get(name, ""),
        metric=entry["metric"],
        figure=_figure(entry, samples),
        cpu=spread(_known(samples, "server_cpu_ns_per_message")),
        rate=spread(_known(samples, "rate")),
        p50=spread(_latency(samples, "p50")),
        p99=spread(_latency(samples, "p99")),
        p999=spread(_latency(samples, "p99.9")),
        lost=sum(int(value) for value in _known(samples, "lost")),
        is_load_saturated=_is_saturated(samples),
        left_out=entry["left_out"].get(name, ""),
    )


def _figure(entry: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Spread | None:
    match entry["metric"]:
        case "ratio":
            return spread(ratios(_by_round(samples), _by_round(_limit(entry))))
        case "p99":
            return spread(_latency(samples, "p99"))
        case "cpu":
            return spread(_known(samples, "server_cpu_ns_per_message"))
        case metric:
            return spread(_known(samples, metric))


def _limit(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return next((entry["samples"].get(name, []) for name, kind in entry["families"].items() if kind == "limit"), [])


def _by_round(samples: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    key = "server_cpu_ns_per_message"
    return {sample["round"]: sample[key] for sample in samples if sample.get(key)}


def _known(samples: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [sample[key] for sample in samples if sample.get(key) is not None]


def _latency(samples: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [sample["latency_ns"][key] for sample in samples if sample.get("latency_ns")]


def _is_saturated(samples: Sequence[Mapping[str, Any]]) -> bool:
    busy = spread(sample["load_cpu_ns"] / 1e9 / sample["seconds"] for sample in samples if sample.get("load_cpu_ns"))
    return busy is not None and busy.median > SATURATED
