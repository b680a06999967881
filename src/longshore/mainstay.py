"""The mainstay: a process that all workers depend on, which the supervisor starts again when it has ended.

The only place that decides when.  What it is, is its owner's affair: the broker of the shared primitives, of which the
supervisor knows no more than `Source` says.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from longshore.brake import Brake
from longshore.errors import LongshoreError
from longshore.events import BrokerEnded
from longshore.plans import words

if TYPE_CHECKING:
    from longshore.supervisor import Supervisor

__all__ = ("Mainstay", "Source")

#: One that lived shorter than this, in seconds, is not started again at once.
YOUNG = 1.0


class Source(Protocol):
    """Where the process comes from."""

    @property
    def pid(self) -> int:
        """The process."""

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended; another one after each `restart`."""

    def restart(self) -> None:
        """Start it again, once it has ended.

        Raises:
            LongshoreError: it did not come up.
        """


class Mainstay:
    """Keeps one such process, for as long as there are workers."""

    def __init__(self, supervisor: Supervisor, source: Source) -> None:
        self._supervisor = supervisor
        self._source = source
        self._brake = Brake()
        self._since = time.monotonic()
        #: When the next one starts, if there is none.
        self.not_before: float | None = None

    def watch(self) -> None:
        """Hear of its end."""
        self._supervisor.watch(self._source, self._ended)

    def mend(self) -> None:
        """Start it if it is missing and its time has come."""
        now = time.monotonic()
        if self.not_before is None or now < self.not_before:
            return
        try:
            self._source.restart()
        except (LongshoreError, OSError) as error:
            self._missing(words(error), early=True)
            return
        self.not_before = None
        self._since = time.monotonic()
        self.watch()

    def _ended(self) -> None:
        self._supervisor.forget(self._source)
        self._missing("its process is gone", early=time.monotonic() - self._since < YOUNG)

    def _missing(self, reason: str, *, early: bool) -> None:
        now = time.monotonic()
        pause = self._brake.died(now, early=early)
        self.not_before = now + pause
        self._supervisor.emit(BrokerEnded(pid=self._source.pid, reason=reason, retry_in=pause))
