"""Handlers that are asked about the process that they run in, and what the system tells of it."""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import os
import threading
from pathlib import Path
from typing import Any

from longshore.testing import Client

__all__ = (
    "answering",
    "ask",
    "children_of",
    "descriptors",
    "eventually",
    "parent_of",
    "pid_of",
    "spawners",
    "state_of",
)


def answering(**answers: Any) -> Any:
    """A handler that answers the line `name` with what `answers[name](connection)` returns, as its repr."""

    def handler(connection):
        for message in connection:
            connection.send(repr(answers[message.decode()](connection)).encode())

    return handler


def ask(client: Client, question: str) -> Any:
    return ast.literal_eval(client.request(question.encode()).decode())


def pid_of(connection):
    # pytest's own would print the stack of a child that is sent SIGSEGV.
    faulthandler.disable()
    return os.getpid()


def descriptors(connection):
    """Everything that this process has open, but for the listing itself."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def state_of(pid: int) -> str:
    """R, S, Z, … as ps(1) has it; "" once the process is no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def eventually(holds, what: str = "") -> None:
    """Return once `holds()`: the kernel tells nobody when somebody else's process has changed."""
    pause = threading.Event()
    for _ in range(3000):
        if holds():
            return
        pause.wait(0.001)
    raise AssertionError(f"never: {what or holds}")


def spawners(server) -> tuple[int, ...]:
    """The elder and the younger, once there are both."""
    lineage = server._strategy.lineage
    eventually(lambda: len(lineage.pids) == 2, "two spawners")
    return lineage.pids
