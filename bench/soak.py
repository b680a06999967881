"""Does memory grow: a million short connections and ten million messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.memory import memory_of
from bench.processes import Server, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contenders import Contender
    from bench.processes import Cores
    from bench.programs import Programs

__all__ = ("ALLOWED", "Soak", "soak")

#: Bytes by which a server may grow.
ALLOWED = 2_000_000
_CONNECTIONS = 1_000_000
_MESSAGES = 10_000_000
#: The part of the whole that is done before the first look, so that allocators and caches have their size.
_BEFORE = 0.1
#: Each step is shown; nothing else depends on their number.
_STEPS = 10


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak found: resident bytes before and after."""

    name: str
    reactor: str
    connections: int
    messages: int
    before: int
    after: int

    @property
    def growth(self) -> int:
        """Bytes."""
        return self.after - self.before

    @property
    def holds(self) -> bool:
        """Whether it stayed within what is allowed."""
        return self.growth < ALLOWED


def soak(programs: Programs, cores: Cores, contender: Contender, scale: float, step: Callable[[str], None]) -> Soak:
    """Soak one server; `scale` below 1 does only so much of the whole.

    Raises:
        Failed: the server gave a wrong answer, or none.
    """

    def spend(part: float) -> None:
        options = ("--warmup", 0, "--duration", 3600, "--connections", 16)
        step(f"{contender.name}: short connections")
        load(programs.load, cores, "churn", server.url, *options, "-n", int(_CONNECTIONS * part), patience=3600)
        step(f"{contender.name}: messages")
        load(
            programs.load,
            cores,
            "closed",
            server.url,
            *options,
            "--depth",
            32,
            "-n",
            int(_MESSAGES * part),
            patience=3600,
        )

    with Server(contender.command(programs, "lines", "tcp://127.0.0.1:0", None), cores) as server:
        spend(_BEFORE)
        before = memory_of(server.pid)["rss"]
        for _ in range(_STEPS):
            spend(scale / _STEPS)
        after = memory_of(server.pid)["rss"]
        return Soak(contender.name, server.reactor, int(_CONNECTIONS * scale), int(_MESSAGES * scale), before, after)
