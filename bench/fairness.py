"""Do flooding clients delay others: the answer to a quiet client, and a timer of the server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.figures import spread
from bench.processes import Failed, Server, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.contenders import Contender
    from bench.processes import Cores
    from bench.programs import Programs

__all__ = ("ALLOWED", "FLOODS", "Delay", "Flood", "is_fair", "measure", "typical")

#: Seconds by which a flood may delay an answer or a timer.
ALLOWED = 0.010
_ROUNDS = 5
_SECONDS = 2
_PERIOD = 0.005
_RATE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """Clients that always have much in flight."""

    title: str
    connections: int
    depth: int
    size: int


FLOODS = (
    Flood(title="no flood", connections=0, depth=0, size=0),
    Flood(title="one client, 4,000 lines in flight", connections=1, depth=4000, size=64),
    Flood(title="50 clients, 1,000 lines in flight", connections=50, depth=1000, size=64),
    Flood(title="8 clients, 64 lines of 32 KiB in flight", connections=8, depth=64, size=32768),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """What one round found, in seconds; the worst of all answers and of all ticks."""

    answer: float
    timer: float
    flood_rate: float


def measure(
    programs: Programs, cores: Cores, contender: Contender, flood: Flood, step: Callable[[str], None]
) -> list[Delay]:
    """Several rounds of one flood against a server of its own each.

    Raises:
        Failed: the server gave a wrong answer, or none.
    """
    found = []
    for _ in range(_ROUNDS):
        step(f"{contender.name}: {flood.title}")
        found.append(_round(programs, cores, contender, flood))
    return found


def typical(delays: list[Delay]) -> tuple[float, float]:
    """The medians of the rounds' worst delays, of answers and of the timer.

    The worst of one round may be the machine's doing, when it runs something else on the server's core; what the
    server does shows in most rounds.
    """
    answer, timer = (spread(values) for values in zip(*((each.answer, each.timer) for each in delays), strict=True))
    if answer is None or timer is None:
        raise ValueError("no round was measured")
    return answer.median, timer.median


def is_fair(flooded: tuple[float, float], quiet: tuple[float, float]) -> bool:
    """Whether a flood delayed answers and timer by no more than is allowed; `quiet` is what they take without one."""
    return all(with_flood - without <= ALLOWED for with_flood, without in zip(flooded, quiet, strict=True))


def _round(programs: Programs, cores: Cores, contender: Contender, flood: Flood) -> Delay:
    command = contender.command(programs, "lines", "tcp://127.0.0.1:0", None)
    server = Server([*command[:-1], "--timer", str(_PERIOD), command[-1]], cores)
    try:
        with _flooding(programs, cores, server, flood) as rate, _first_in_line():
            options = ("--rate", _RATE, "--duration", _SECONDS, "--warmup", 0.3)
            probe = load(programs.load, cores, "open", server.url, *options)
    finally:
        rest = server.stop()
    delays = json.loads(rest.splitlines()[-1])["delays"] if rest.strip() else []
    if not delays:
        raise Failed("the server's timer never ticked")
    return Delay(answer=probe["latency_ns"]["max"] / 1e9, timer=max(delays), flood_rate=rate[0] if rate else 0.0)


@contextlib.contextmanager
def _flooding(programs: Programs, cores: Cores, server: Server, flood: Flood) -> Iterator[list[float]]:
    """Flood the server meanwhile; afterwards the list holds how many messages a second it answered."""
    rates: list[float] = []
    if not flood.connections:
        yield rates
        return
    options: list[Any] = ["--connections", flood.connections, "--depth", flood.depth, "--size", flood.size]
    with cores.on(cores.load):
        process = subprocess.Popen(
            [str(programs.load), "closed", server.url, *map(str, options), "--duration", str(_SECONDS + 1)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    try:
        yield rates
    finally:
        output, errors = process.communicate(timeout=60)
    if process.returncode:
        raise Failed(errors.decode(errors="replace").strip())
    rates.append(json.loads(output.splitlines()[-1])["rate"])


@contextlib.contextmanager
def _first_in_line() -> Iterator[None]:
    """Let the probe run as soon as its answer comes, before the flood with which it shares a core, where we may."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
