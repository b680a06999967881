"""Who is measured: each server is a value, and the only place that lists them is here."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.programs import Programs
    from bench.scenarios import Scenario

__all__ = ("CONTENDERS", "LIMIT", "Contender", "contenders_of")

_HERE = Path(__file__).resolve().parent
_STREAMS = frozenset((scheme, behaviour) for scheme in ("tcp", "unix", "tls") for behaviour in ("lines", "raw"))
_CLEAR = frozenset(pair for pair in _STREAMS if pair[0] != "tls")
_LINES = frozenset({("tcp", "lines")})
_DATAGRAMS = frozenset({("udp", "raw"), ("udp", "ingest")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server that takes part.

    `program` is its command, with the Python of this process where it is a Python file.  `serves` holds pairs of a
    scheme and a behaviour.
    """

    name: str
    program: tuple[str, ...]
    serves: frozenset[tuple[str, str]]
    family: str = "peer"
    needs: str = ""
    """The Python package without which it is left out."""
    capacity: int = 1_000_000
    """How many connections it serves at the same time, or at least without a thread for each of thousands."""

    def can_serve(self, scenario: Scenario) -> bool:
        """Whether it is asked."""
        if scenario.way == "startup" or (scenario.only and self.name not in scenario.only):
            return False
        if scenario.way == "idle" and self.family == "limit":
            return False
        return (scenario.scheme, scenario.behaviour) in self.serves and scenario.connections <= self.capacity

    def missing(self, programs: Programs) -> str:
        """Why it cannot take part on this machine, or nothing."""
        if self.program[0] == "go" and programs.go is None:
            return programs.go_missing
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"the package {self.needs} is not installed"
        return ""

    def command(self, programs: Programs, behaviour: str, url: str, certificate: Path | None) -> list[str]:
        """What starts it."""
        first, *rest = self.program
        if first == "limit":
            start = [str(programs.limit)]
        elif first == "go":
            start = [str(programs.go)]
        else:
            start = [sys.executable, str(_HERE / first), *rest]
        tls = ["--certificate", str(certificate)] if certificate else []
        return [*start, "--behaviour", behaviour, *tls, url]


def _longshore(name: str, shape: str, strategy: str, **more: object) -> Contender:
    return Contender(
        name=f"longshore {name}",
        program=("longshore_server.py", "--shape", shape, "--strategy", strategy),
        family="longshore",
        **{"serves": _STREAMS, **more},  # type: ignore[arg-type]
    )


LIMIT = Contender(name="limit", program=("limit",), serves=_CLEAR | _DATAGRAMS, family="limit")

CONTENDERS = (
    LIMIT,
    _longshore("reactor", "message", "reactor", serves=_STREAMS | _DATAGRAMS),
    _longshore("green", "class", "green"),
    _longshore("green function", "stream", "green", serves=_LINES),
    _longshore("async", "async", "async"),
    _longshore("threads", "class", "threads", capacity=250, serves=_CLEAR),
    _longshore("threads messages", "message", "threads", serves=_LINES, capacity=500),
    _longshore("inline", "class", "inline", capacity=1, serves=_CLEAR),
    _longshore("processes", "class", "processes", capacity=60, serves=_CLEAR),
    Contender(
        name="socketserver",
        program=("peers/socketserver_threads.py",),
        serves=_CLEAR | _DATAGRAMS,
        capacity=500,
    ),
    Contender(name="asyncio streams", program=("peers/asyncio_streams.py",), serves=_STREAMS),
    Contender(name="asyncio Protocol", program=("peers/asyncio_protocol.py",), serves=_STREAMS | _DATAGRAMS),
    Contender(name="uvloop streams", program=("peers/asyncio_streams.py", "--uvloop"), serves=_STREAMS, needs="uvloop"),
    Contender(
        name="uvloop Protocol",
        program=("peers/asyncio_protocol.py", "--uvloop"),
        serves=_STREAMS | _DATAGRAMS,
        needs="uvloop",
    ),
    Contender(name="gevent", program=("peers/gevent_server.py",), serves=_STREAMS | {("udp", "raw")}, needs="gevent"),
    Contender(name="Twisted", program=("peers/twisted_server.py",), serves=_CLEAR | {("udp", "raw")}, needs="twisted"),
    Contender(name="AnyIO", program=("peers/anyio_server.py",), serves=_CLEAR, needs="anyio"),
    Contender(name="EasyNetwork", program=("peers/easynetwork_server.py",), serves=_LINES, needs="easynetwork"),
    Contender(name="Python recvfrom", program=("peers/python_datagrams.py",), serves=_DATAGRAMS),
    Contender(name="Go bufio", program=("go",), serves=_STREAMS | _DATAGRAMS),
)


def contenders_of(scenario: Scenario) -> tuple[Contender, ...]:
    """Who is asked in this scenario, the limit first."""
    return tuple(contender for contender in CONTENDERS if contender.can_serve(scenario))
