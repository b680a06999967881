"""What an idle connection costs: the server's memory before and after many of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import Failed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.processes import Cores, Server
    from bench.programs import Programs
    from bench.scenarios import Scenario

__all__ = ("family", "hold_idle", "memory_of", "parse_children", "parse_rollup")

#: Opened and closed before, so that what the first connection makes the server import or build is not counted.
WARM = 200


def parse_rollup(text: str) -> dict[str, int]:
    """The fields of `/proc/PID/smaps_rollup` in bytes."""
    fields = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) * 1024
    return fields


def parse_children(texts: Iterable[str]) -> list[int]:
    """The processes that `/proc/PID/task/TID/children` lists."""
    return [int(word) for text in texts for word in text.split()]


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for process in found:
        files = Path(f"/proc/{process}/task").glob("*/children")
        found += parse_children(file.read_text() for file in files)
    return found


def memory_of(pid: int) -> dict[str, int]:
    """Resident (`rss`) and proportional (`pss`) memory of a process and its descendants, in bytes."""
    rollups = [parse_rollup(Path(f"/proc/{process}/smaps_rollup").read_text()) for process in family(pid)]
    return {"rss": sum(each["Rss"] for each in rollups), "pss": sum(each["Pss"] for each in rollups)}


def hold_idle(programs: Programs, cores: Cores, server: Server, scenario: Scenario) -> dict[str, Any]:
    """One sample: bytes for each of the scenario's connections."""
    _held(programs, cores, server, scenario, WARM)
    before = memory_of(server.pid)
    after = _held(programs, cores, server, scenario, scenario.connections)
    return {
        "bytes": (after["pss"] - before["pss"]) / scenario.connections,
        "rss_bytes": (after["rss"] - before["rss"]) / scenario.connections,
        "before": before,
        "after": after,
    }


def _held(programs: Programs, cores: Cores, server: Server, scenario: Scenario, connections: int) -> dict[str, int]:
    """The server's memory while so many connections are open."""
    options = ["--connections", str(connections), "--size", str(scenario.size), "--framing", scenario.behaviour]
    with cores.on(cores.load):
        process = subprocess.Popen(
            [str(programs.load), "idle", server.url, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if first and json.loads(first).get("event") == "ready":
            return memory_of(server.pid)
    finally:
        _, errors = process.communicate()
    raise Failed(errors.decode(errors="replace").strip() or "the load ended before it was ready")
