"""What a run took place on, so that its figures can be judged."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ("describe", "parse_steal")

_PACKAGES = ("uvloop", "gevent", "greenlet", "twisted", "anyio", "easynetwork")


def describe() -> dict[str, Any]:
    """The machine, the versions of everything that takes part, and the moment."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "rust": _output("rustc", "--version"),
        "go": _output("go", "version"),
        "packages": {name: _version(name) for name in _PACKAGES},
        "load_average": os.getloadavg()[0],
        "steal": parse_steal(Path("/proc/stat").read_text()),
    }


def parse_steal(stat: str) -> float:
    """The part of all processor time since the start that the hypervisor gave to others: the 8th field of `cpu`."""
    times = [int(word) for word in stat.splitlines()[0].split()[1:9]]
    return times[7] / sum(times) if len(times) == 8 and sum(times) else 0.0


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()
