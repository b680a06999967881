"""Taking turns: in each round every server of a scenario is loaded once, one after the other.

All servers of a scenario run from its beginning to its end; those that are not asked wait for the kernel and take no
time.  What is kept of a turn is the load generator's report, whole; what is said of it is computed later.
"""

from __future__ import annotations

import compileall
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contenders import contenders_of
from bench.memory import hold_idle
from bench.processes import Cores, Failed, Server, load
from bench.startup import PROGRAMS, start_once

if TYPE_CHECKING:
    from bench.contenders import Contender
    from bench.programs import Programs
    from bench.scenarios import Scenario

__all__ = ("LONG", "QUICK", "Pace", "Rounds", "issue_certificate")


#: Who takes turns, and what a turn of each is.
Turns = list[tuple[str, Callable[[], dict[str, Any]]]]

_SOURCE = Path(__file__).resolve().parent.parent / "src"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long everything takes; times in seconds."""

    rounds: int
    seconds: float
    warmup: float
    open_seconds: float
    few_rounds: int
    """Rounds of what takes long and varies little: memory and the open loop."""

    def rounds_of(self, scenario: Scenario) -> int:
        """How many rounds a scenario has."""
        return self.few_rounds if scenario.way in ("idle", "open") else self.rounds


LONG = Pace(rounds=5, seconds=0.3, warmup=0.1, open_seconds=1.0, few_rounds=2)
QUICK = Pace(rounds=3, seconds=0.2, warmup=0.05, open_seconds=0.5, few_rounds=1)


def issue_certificate(folder: Path) -> tuple[Path, Path]:
    """Files for TLS on localhost: the server's key and chain, and whom the load trusts."""
    import trustme

    authority = trustme.CA()
    server, trusted = folder / "server.pem", folder / "authority.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
    authority.cert_pem.write_to_path(str(trusted))
    return server, trusted


@dataclass(slots=True)
class Rounds:
    """Runs scenarios; `step` is called with a text before each turn, and `folder` holds what servers need."""

    programs: Programs
    cores: Cores
    pace: Pace
    step: Callable[[str], None]
    folder: Path
    _certificates: tuple[Path, Path] | None = None

    def turns_of(self, scenario: Scenario) -> int:
        """How many turns a scenario is planned to have."""
        askable = PROGRAMS if scenario.way == "startup" else contenders_of(scenario)
        return len(askable) * self.pace.rounds_of(scenario)

    def run(self, scenario: Scenario) -> dict[str, Any]:
        """All rounds of a scenario, as it is written to the results."""
        entry: dict[str, Any] = {
            "title": scenario.title,
            "way": scenario.way,
            "metric": scenario.metric,
            "connections": scenario.connections,
            "depth": scenario.depth,
            "size": scenario.size,
            "samples": {},
            "reactors": {},
            "families": {},
            "left_out": {},
        }
        prepare = {"startup": self._start_ups, "idle": self._idlers}.get(scenario.way, self._servers)
        with contextlib.ExitStack() as stack:
            turns = prepare(scenario, entry, stack)
            for number in range(self.pace.rounds_of(scenario)):
                for name, take in turns:
                    self.step(f"{scenario.title}: {name}")
                    if name in entry["left_out"]:
                        continue
                    try:
                        entry["samples"].setdefault(name, []).append({"round": number, **take()})
                    except Failed as error:
                        entry["left_out"][name] = str(error)
        return entry

    def _start_ups(self, scenario: Scenario, entry: dict[str, Any], _stack: contextlib.ExitStack) -> Turns:
        # A machine that writes no bytecode would compile all of Longshore at every start, and nobody else's package.
        compileall.compile_dir(_SOURCE, quiet=2)
        turns: Turns = []
        for program in PROGRAMS:
            entry["families"][program.name] = program.family
            if reason := program.missing():
                entry["left_out"][program.name] = reason
                continue
            # The first start reads files from the disk.
            with contextlib.suppress(Failed):
                start_once(program, self.cores)
            turns.append((program.name, lambda program=program: start_once(program, self.cores)))
        return turns

    def _idlers(self, scenario: Scenario, entry: dict[str, Any], _stack: contextlib.ExitStack) -> Turns:
        """Every turn has a server of its own: one that has held connections before keeps memory of them."""

        def hold(contender: Contender) -> dict[str, Any]:
            with self._start(contender, scenario, entry) as server:
                return hold_idle(self.programs, self.cores, server, scenario)

        return [
            (contender.name, lambda contender=contender: hold(contender))
            for contender in self._present(scenario, entry)
        ]

    def _servers(self, scenario: Scenario, entry: dict[str, Any], stack: contextlib.ExitStack) -> Turns:
        turns: Turns = []
        rates: dict[str, float] = {}
        for contender in self._present(scenario, entry):
            try:
                server = stack.enter_context(self._start(contender, scenario, entry))
            except Failed as error:
                entry["left_out"][contender.name] = str(error)
                continue
            name = contender.name
            turns.append((name, lambda name=name, server=server: self._turn(scenario, server, rates, name)))
        return turns

    def _present(self, scenario: Scenario, entry: dict[str, Any]) -> list[Contender]:
        """Who is asked and can take part; the entry tells why others cannot."""
        present = []
        for contender in contenders_of(scenario):
            entry["families"][contender.name] = contender.family
            if reason := contender.missing(self.programs):
                entry["left_out"][contender.name] = reason
            else:
                present.append(contender)
        return present

    def _start(self, contender: Contender, scenario: Scenario, entry: dict[str, Any]) -> Server:
        url = {
            "unix": f"unix://{self.folder}/{re.sub('[^a-z]', '-', contender.name.lower())}.sock",
            "udp": "udp://127.0.0.1:0",
            "tls": "tls://127.0.0.1:0",
            "tcp": "tcp://127.0.0.1:0",
        }[scenario.scheme]
        certificate = self._certificate()[0] if scenario.scheme == "tls" else None
        server = Server(contender.command(self.programs, scenario.behaviour, url, certificate), self.cores)
        if server.reactor:
            entry["reactors"][contender.name] = server.reactor
        return server

    def _certificate(self) -> tuple[Path, Path]:
        if self._certificates is None:
            self._certificates = issue_certificate(self.folder)
        return self._certificates

    def _turn(self, scenario: Scenario, server: Server, rates: dict[str, float], name: str) -> dict[str, Any]:
        if scenario.way == "open":
            if name not in rates:
                rates[name] = self._load(scenario, server, "closed")["rate"]
            return self._load(scenario, server, "open", "--rate", rates[name] / 2)
        more: tuple[object, ...] = ("--depth", scenario.depth) if scenario.way == "closed" else ()
        if scenario.burst:
            more = ("--burst", scenario.burst)
        return self._load(scenario, server, scenario.way, *more)

    def _load(self, scenario: Scenario, server: Server, way: str, *more: object) -> dict[str, Any]:
        trust = ("--ca", self._certificate()[1]) if scenario.scheme == "tls" else ()
        framing = "lines" if scenario.behaviour == "lines" else "raw"
        return load(
            self.programs.load,
            self.cores,
            way,
            server.url,
            *("--connections", scenario.connections, "--size", scenario.size, "--framing", framing),
            *("--duration", self.pace.open_seconds if way == "open" else self.pace.seconds),
            *("--warmup", self.pace.warmup, "--pid", server.pid),
            *trust,
            *more,
        )
