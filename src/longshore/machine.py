"""The machine as its kernel tells of it, and this process on it.

Memory of processes, processors that may be used, files without a name, and what of the environment is this process's
alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile

__all__ = ("OWN", "nameless", "resident", "usable_cpus")

#: Variables of the environment that name what ends with this process: a program that takes its place finds out by
#: itself, as this one did.
OWN: set[str] = set()


def resident(pid: int) -> int:
    """The resident memory of a process in bytes (proc(5), statm); 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def usable_cpus() -> int:
    """CPUs that the system lets this process have: by affinity, and by the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return max(1, cpus)


def nameless(label: str) -> int:
    """The descriptor of a new file without a name; `label` is what /proc shows of it, where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
