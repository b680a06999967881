"""How a worker is: whether it gives signs of life, and whether it has had its time.

The only place that judges a worker by what is seen from outside: the cells that it writes into shared memory, and what
the system tells of its process.  It kills nobody without a word: a worker that gives no sign of life is asked for its
stacks first (a signal that the C library answers, whatever Python does), unless it is stopped and cannot answer.

Times are seconds on the clock of `time.monotonic`.
"""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from longshore.events import WorkerBlocked
from longshore.machine import resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.config import Workers
    from longshore.events import Event
    from longshore.supervisor.region import Region
    from longshore.supervisor.workforce import ChildProcess

__all__ = ("Pulse",)

#: Seconds between two looks, at most.
TICK = 1.0
#: Seconds that a blocked worker has to write down its stacks.
LAST_WORDS = 0.5


class Pulse:
    """Looks at workers from time to time, by the rules of `options`."""

    def __init__(self, region: Region, emit: Callable[[Event], None]) -> None:
        self._region = region
        self._emit = emit
        self._looked = time.monotonic()

    def due(self, options: Workers) -> float | None:
        """When to look next; None if nothing is to be looked at."""
        if not any((options.max_age, options.max_connections, options.max_memory, options.heartbeat)):
            return None
        return self._looked + _tick(options)

    def set_ends(self, worker: ChildProcess, options: Workers) -> None:
        """Draw when it is to be replaced, so that workers that start together do not leave together."""

        def vary(value: float) -> float:
            return value * (1 + options.jitter * random.uniform(-1, 1))

        if options.max_age is not None:
            worker.expires_at = worker.ready_at + vary(options.max_age)
        if options.max_connections is not None:
            worker.max_connections = max(1, round(vary(options.max_connections)))

    def look(self, workers: Iterable[ChildProcess], options: Workers) -> ChildProcess | None:
        """Feel everybody's pulse if it is time; who is to be replaced by age or size, if anybody, with its `leaving`.

        One after the other: each is replaced before the next one leaves.
        """
        now = time.monotonic()
        due = self.due(options)
        if due is None or now < due:
            return None
        # Whoever was stopped itself, with its workers, has no right to judge them.
        late = now > due + 3 * _tick(options)
        self._looked = now
        workers = tuple(workers)
        for worker in workers:
            if worker.state in ("ready", "draining") and options.heartbeat is not None and not late:
                self._feel(worker, options.heartbeat, now)
        if any(worker.leaving for worker in workers):
            return None
        for worker in workers:
            if worker.state == "ready":
                worker.leaving = self._worn_out(worker, options.max_memory, now)
                if worker.leaving:
                    return worker
        return None

    def kill(self, worker: ChildProcess) -> None:
        """Its time is over."""
        worker.kill_at = None
        if worker.blocked_since is not None:
            seconds = time.monotonic() - worker.blocked_since
            stack = "it is stopped by a signal (SIGSTOP, or a debugger)" if worker.is_stopped() else worker.stack()
            self._emit(WorkerBlocked(worker=worker.number, pid=worker.pid, seconds=seconds, stack=stack))
        worker.signal(signal.SIGKILL)

    def _feel(self, worker: ChildProcess, heartbeat: float, now: float) -> None:
        if worker.blocked_since is not None:
            return
        last = self._region.row("beat")[worker.slot] / 1e9
        if now - last < heartbeat:
            return
        worker.blocked_since = last
        # Nobody waits for it any more: see `places.py`.
        self._region.row("accepting")[worker.slot] = 0
        if worker.is_stopped():
            worker.kill_at = now
        else:
            worker.signal(signal.SIGQUIT)
            worker.kill_at = now + LAST_WORDS

    def _worn_out(self, worker: ChildProcess, most: int | None, now: float) -> str:
        if worker.expires_at is not None and now >= worker.expires_at:
            return f"it is {now - worker.ready_at:.0f} s old (max_age)"
        served = self._region.row("accepts")[worker.slot]
        if worker.max_connections is not None and served >= worker.max_connections:
            return f"it has served {served} connections (max_connections)"
        if most is not None and (memory := resident(worker.pid)) > most:
            return f"it uses {memory >> 20} MiB (max_memory)"
        return ""


def _tick(options: Workers) -> float:
    return TICK if options.heartbeat is None else min(TICK, options.heartbeat / 4)
