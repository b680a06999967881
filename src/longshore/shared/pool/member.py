"""One process of a local pool as its pool sees it, and how it has ended.

Data, and what the system tells about a process.  What is done with it stands in `local.py`.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from longshore.shared.pool.frames import Inbox

if TYPE_CHECKING:
    import socket

    from longshore.reactor.clock import Timer
    from longshore.shared.pool.contract import Call
    from longshore.shared.pool.nursery import Nursery

__all__ = ("Member", "advice", "ending")


class Member:
    """One process, at the other end of its socket; what it is at is for `Local` to say, and to change."""

    __slots__ = (
        "born",
        "call",
        "deadline",
        "descriptor",
        "ended",
        "inbox",
        "is_dead",
        "leaving",
        "number",
        "nursery",
        "outbox",
        "pid",
        "ready",
        "sock",
        "tasks",
    )

    def __init__(self, number: int, sock: socket.socket, nursery: Nursery) -> None:
        self.number = number
        self.sock = sock
        self.nursery: Nursery | None = nursery
        self.pid = 0
        #: A pidfd, where the system has them: kills this process and no other that got its number.
        self.descriptor = -1
        self.inbox = Inbox()
        self.outbox = b""
        self.call: Call | None = None
        self.deadline: Timer | None = None
        self.ready = self.leaving = self.ended = self.is_dead = False
        self.tasks = 0
        self.born = time.monotonic()


def ending(status: int | None) -> str:
    """How a process has ended, from its status: negative for a signal, None if nobody knows."""
    if status is None:
        return "died, nobody knows how, because the process that would know is dead too,"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def advice(status: int | None) -> str:
    """What whoever reads of such an end may want to know."""
    if status == -signal.SIGKILL:
        return "If nobody has killed it, the system was out of memory: see dmesg."
    return "Only this task is lost; the pool has another process by now."
