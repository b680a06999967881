"""How fast Longshore says it is, as data, and whether a run bears it out.

The sources are the rows of the project's own goal; each number in them is one bound here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.comparison import row_of, times

__all__ = ("CLAIMS", "Claim", "Verdict", "judge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One bound on one server in one scenario.

    `at_most` bounds its figure (a ratio to the limit, or bytes); `better` names peers whose processor time for a
    message must be at least so many times its own.
    """

    source: str
    scenario: str
    subject: str
    at_most: float | None = None
    aim: float | None = None
    better: tuple[tuple[str, float], ...] = ()


_LINES = (
    "Message handler, Lines(): at most 1.15 / 1.75 (1 / 32 in flight), aim for 1.05 / 1.45; uvloop streams 2x / 20x, "
    "uvloop Protocol 1.2x / 1.3x"
)
_MANY = "Message handler, 2,000 active connections: at most 1.25; uvloop Protocol 1.2x"
_CLASS = (
    "The standard library's StreamRequestHandler class, unchanged, green: at most 1.5 / 3.0, aim for 1.2 / 2.0; "
    "ThreadingTCPServer 1.5x / 12x, gevent 2x / 12x"
)
_ASYNC = "async handler with readline: at most 1.8 / 4.0; uvloop streams 1.3x / 10x"
_UDP = "UDP echo, 64 in flight: at most 1.3; a bare Python recvfrom/sendto loop 1.5x"
_INGEST = "UDP one-way ingest with messages(batch): at most 1.5; bare Python recvfrom 3x"
_TLS = "TLS line echo: uvloop TLS streams 1.3x / 5x"
_IDLE = "Idle connection, 10,000 of them: message handler 1.2 KB, green 8 KB (aim for 5)"
_CHURN = "Connection churn: at most 1.4; uvloop Protocol 1.2x"

CLAIMS = (
    Claim(
        source=_LINES,
        scenario="line-echo-50-1",
        subject="longshore reactor",
        at_most=1.15,
        aim=1.05,
        better=(("uvloop streams", 2), ("uvloop Protocol", 1.2)),
    ),
    Claim(
        source=_LINES,
        scenario="line-echo-50-32",
        subject="longshore reactor",
        at_most=1.75,
        aim=1.45,
        better=(("uvloop streams", 20), ("uvloop Protocol", 1.3)),
    ),
    Claim(
        source=_MANY,
        scenario="line-echo-2000-1",
        subject="longshore reactor",
        at_most=1.25,
        better=(("uvloop Protocol", 1.2),),
    ),
    Claim(
        source=_CLASS,
        scenario="line-echo-50-1",
        subject="longshore green",
        at_most=1.5,
        aim=1.2,
        better=(("socketserver", 1.5), ("gevent", 2)),
    ),
    Claim(
        source=_CLASS,
        scenario="line-echo-50-32",
        subject="longshore green",
        at_most=3.0,
        aim=2.0,
        better=(("socketserver", 12), ("gevent", 12)),
    ),
    Claim(
        source=_ASYNC,
        scenario="line-echo-50-1",
        subject="longshore async",
        at_most=1.8,
        better=(("uvloop streams", 1.3),),
    ),
    Claim(
        source=_ASYNC,
        scenario="line-echo-50-32",
        subject="longshore async",
        at_most=4.0,
        better=(("uvloop streams", 10),),
    ),
    Claim(
        source=_UDP, scenario="udp-echo", subject="longshore reactor", at_most=1.3, better=(("Python recvfrom", 1.5),)
    ),
    Claim(
        source=_INGEST,
        scenario="udp-ingest",
        subject="longshore reactor",
        at_most=1.5,
        better=(("Python recvfrom", 3),),
    ),
    Claim(source=_TLS, scenario="tls-line-echo-1", subject="longshore reactor", better=(("uvloop streams", 1.3),)),
    Claim(source=_TLS, scenario="tls-line-echo-32", subject="longshore reactor", better=(("uvloop streams", 5),)),
    Claim(source=_IDLE, scenario="idle-memory", subject="longshore reactor", at_most=1200),
    Claim(source=_IDLE, scenario="idle-memory", subject="longshore green", at_most=8000, aim=5000),
    Claim(
        source=_CHURN, scenario="churn", subject="longshore reactor", at_most=1.4, better=(("uvloop Protocol", 1.2),)
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One bound of a claim, what was measured, and whether it holds; None where it was not measured."""

    claim: Claim
    bound: str
    measured: float | None
    holds: bool | None
    reaches_aim: bool | None = None


def judge(results: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Every bound of every claim against a run."""
    return tuple(verdict for claim in CLAIMS for verdict in _judge(claim, results["scenarios"].get(claim.scenario)))


def _judge(claim: Claim, entry: Mapping[str, Any] | None) -> list[Verdict]:
    verdicts = []
    own = row_of(entry, claim.subject) if entry else None
    figure = own.figure.median if own and own.figure else None
    if claim.at_most is not None:
        verdicts.append(
            Verdict(
                claim=claim,
                bound=f"at most {claim.at_most:g}",
                measured=figure,
                holds=None if figure is None else figure <= claim.at_most,
                reaches_aim=None if figure is None or claim.aim is None else figure <= claim.aim,
            )
        )
    for peer, factor in claim.better:
        measured = times(entry, peer, claim.subject) if entry else None
        verdicts.append(
            Verdict(
                claim=claim,
                bound=f"{factor:g}x below {peer}",
                measured=measured.median if measured else None,
                holds=measured.median >= factor if measured else None,
            )
        )
    return verdicts
