"""What is measured: each scenario is a value, and the only place that lists them is here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("SCENARIOS", "Scenario", "find")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question to every server that can answer it.

    `way` is a way of the load generator: "closed" keeps messages in flight, "open" sends at half of what the server
    can do, "churn" opens short connections, "ingest" sends datagrams one way, "idle" holds connections; and
    "startup" measures how long a program takes until it accepts.
    """

    key: str
    title: str
    way: str
    scheme: str = "tcp"
    behaviour: str = "lines"
    connections: int = 50
    depth: int = 1
    size: int = 64
    """Bytes of a message, the line feed included."""
    burst: int = 0
    """Datagrams that come while the server is stopped; a flood if there is none."""
    only: tuple[str, ...] = ()
    """The contenders that are asked; all that can serve it if there is none."""
    quick: bool = False
    """Whether it belongs to the short run."""

    @property
    def metric(self) -> str:
        """What servers are compared by; the limit speaks no TLS, so there it is processor time itself."""
        if self.scheme == "tls":
            return "cpu"
        return {"idle": "bytes", "startup": "seconds", "open": "p99"}.get(self.way, "ratio")


_SOME = (
    "limit",
    "longshore reactor",
    "longshore green",
    "longshore async",
    "asyncio streams",
    "asyncio Protocol",
    "uvloop streams",
    "uvloop Protocol",
    "gevent",
    "Go bufio",
)

_ONE = (*_SOME, "longshore threads", "longshore inline", "longshore processes", "socketserver")

SCENARIOS = (
    Scenario(key="line-echo-50-1", title="Line echo, 50 connections, 1 in flight", way="closed", quick=True),
    Scenario(
        key="line-echo-50-32", title="Line echo, 50 connections, 32 in flight", way="closed", depth=32, quick=True
    ),
    Scenario(key="line-echo-1-1", title="Line echo, 1 connection, 1 in flight", way="closed", connections=1, only=_ONE),
    Scenario(
        key="line-echo-1-32", title="Line echo, 1 connection, 32 in flight", way="closed", connections=1, depth=32
    ),
    Scenario(
        key="line-echo-500-1",
        title="Line echo, 500 connections, 1 in flight",
        way="closed",
        connections=500,
        only=_SOME,
    ),
    Scenario(
        key="line-echo-2000-1",
        title="Line echo, 2,000 connections, 1 in flight",
        way="closed",
        connections=2000,
        only=_SOME,
        quick=True,
    ),
    Scenario(key="line-echo-1k", title="Line echo, 50 connections, 1 KiB", way="closed", size=1024, only=_SOME),
    Scenario(key="echo-64", title="Echo, 50 connections, 64 B", way="closed", behaviour="raw", only=_SOME),
    Scenario(
        key="echo-64-32",
        title="Echo, 50 connections, 64 B, 32 in flight",
        way="closed",
        behaviour="raw",
        depth=32,
        only=_SOME,
    ),
    Scenario(key="echo-1k", title="Echo, 50 connections, 1 KiB", way="closed", behaviour="raw", size=1024, only=_SOME),
    Scenario(
        key="echo-64k", title="Echo, 50 connections, 64 KiB", way="closed", behaviour="raw", size=65536, only=_SOME
    ),
    Scenario(
        key="unix-line-echo",
        title="Line echo over a Unix socket, 50 connections",
        way="closed",
        scheme="unix",
        only=_ONE,
    ),
    Scenario(
        key="tls-line-echo-1",
        title="Line echo over TLS, 50 connections, 1 in flight",
        way="closed",
        scheme="tls",
        quick=True,
    ),
    Scenario(
        key="tls-line-echo-32",
        title="Line echo over TLS, 50 connections, 32 in flight",
        way="closed",
        scheme="tls",
        depth=32,
        quick=True,
    ),
    Scenario(
        key="udp-echo",
        title="UDP echo, 64 in flight",
        way="closed",
        scheme="udp",
        behaviour="raw",
        connections=1,
        depth=64,
        quick=True,
    ),
    Scenario(
        key="udp-ingest",
        title="UDP, one way, bursts of 256 that have come",
        way="ingest",
        scheme="udp",
        behaviour="ingest",
        connections=1,
        burst=256,
        quick=True,
    ),
    Scenario(
        key="udp-flood",
        title="UDP, one way, as fast as one core sends",
        way="ingest",
        scheme="udp",
        behaviour="ingest",
        connections=1,
    ),
    Scenario(
        key="churn", title="Connect, one line, its answer, close; 16 at a time", way="churn", connections=16, quick=True
    ),
    Scenario(key="half-load", title="Line echo at half load, 50 connections, open loop", way="open", only=_SOME),
    Scenario(
        key="idle-memory",
        title="Memory of an idle connection, 10,000 connections",
        way="idle",
        connections=10_000,
        only=(*_SOME, "longshore green function", "Twisted", "AnyIO", "EasyNetwork"),
        quick=True,
    ),
    Scenario(key="startup", title="From start to accepting", way="startup", quick=True),
)


def find(keys: tuple[str, ...], quick: bool = False) -> tuple[Scenario, ...]:
    """The scenarios with these keys, or all of the long or short run.

    Raises:
        KeyError: there is no such scenario.
    """
    known = {scenario.key: scenario for scenario in SCENARIOS}
    if keys:
        return tuple(known[key] for key in keys)
    return tuple(scenario for scenario in SCENARIOS if scenario.quick or not quick)
