"""A reload: other workers in the place of those that are there, or everything as it was.

The only place that changes what a supervisor serves.  It has three ends: the new configuration cannot be used, a new
worker cannot start, or all new ones accept and the old ones accept no more; only the last one changes anything.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from longshore.events import Reloaded, ReloadFailed, Reloading
from longshore.supervisor.plans import Before, Plan, words
from longshore.supervisor.privileges import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.supervisor.supervisor import Supervisor

__all__ = ("Reload",)

REASON = "reload"


class Reload:
    """The reloads of one supervisor, one after the other."""

    def __init__(self, supervisor: Supervisor, load: Callable[[], Plan]) -> None:
        self._supervisor = supervisor
        self._load = load
        self._before: Before | None = None
        #: When the reload began whose new workers accept, while old ones do as well.
        self._closing_since = 0.0
        #: Why the last one failed.
        self.why_not = ""

    @property
    def is_open(self) -> bool:
        """Whether new workers are on their way."""
        return self._before is not None

    def begin(self) -> bool:
        """Start new workers with what is configured now; False if that cannot be used."""
        supervisor = self._supervisor
        if self._before is not None:
            self.fail("another reload was asked for before this one was over")
        # Before anything is read: whoever has asked waits for this, and for the end that always follows.
        supervisor.emit(Reloading(generation=supervisor.generation + 1))
        before = Before(supervisor.plan, supervisor.wanted, supervisor.listeners, supervisor.identity, time.monotonic())
        plan = None
        try:
            plan = self._load()
            supervisor.identity = Identity.of(plan.workers.user, plan.workers.group)
            # What is not asked for any more stays bound until nobody serves it.
            supervisor.listeners = supervisor.anchorage.bind(plan.targets)
        except Exception as error:
            supervisor.identity = before.identity
            if plan is not None:
                plan.settle(False)
            self.why_not = words(error)
            supervisor.emit(ReloadFailed(reason=self.why_not))
            return False
        if plan.workers.count != before.plan.workers.count:
            supervisor.wanted = plan.workers.count
        supervisor.plan = plan
        self._before = before
        supervisor.generation += 1
        supervisor.brake.release()
        for worker in supervisor.workers.values():
            worker.leaving = worker.leaving or REASON
        supervisor.tell("state", state="reloading")
        return True

    def fail(self, reason: str) -> None:
        """Have everything as it was."""
        before, self._before = self._before, None
        assert before is not None
        supervisor = self._supervisor
        supervisor.plan.settle(False)
        supervisor.plan, supervisor.wanted = before.plan, before.wanted
        supervisor.listeners, supervisor.identity = before.listeners, before.identity
        supervisor.anchorage.keep(before.plan.targets)
        for worker in supervisor.workers.values():
            # Numbers of generations are never used twice, so what is left of this one is told from the next.
            if worker.generation == supervisor.generation:
                worker.leaving = "its reload failed"
                if worker.state == "starting":
                    worker.signal(signal.SIGKILL)
            elif worker.leaving == REASON:
                worker.leaving = ""
        supervisor.brake.release()
        self.why_not = reason
        supervisor.emit(ReloadFailed(reason=reason))
        supervisor.tell("state", state="serving")
        if supervisor.steward is not None:
            supervisor.steward.reloaded(reason)

    def all_ready(self) -> None:
        """The new workers accept, so the old ones may go."""
        if self._before is not None:
            self._closing_since, self._before = self._before.since, None
            self._supervisor.anchorage.keep(self._supervisor.plan.targets)
            self._supervisor.plan.settle(True)

    def announce(self) -> None:
        """Tell of it once the old workers accept no more: whoever connects from now on meets the new ones."""
        supervisor = self._supervisor
        if self._closing_since and not any(item.accepts for item in supervisor.workers.values() if item.leaving):
            seconds, self._closing_since = time.monotonic() - self._closing_since, 0.0
            supervisor.emit(Reloaded(generation=supervisor.generation, seconds=seconds))
            supervisor.tell("state", state="serving")
            if supervisor.steward is not None:
                supervisor.steward.reloaded()

    def abandon(self) -> None:
        """The server ends before it is over."""
        if self._before is not None:
            self._supervisor.plan.settle(False)
        self._before, self._closing_since = None, 0.0
