"""The mainstay: a process that all workers depend on, which the supervisor starts again when it has ended.

The only place that decides when.  What it is, is its owner's affair: the broker of the shared primitives, of which the
supervisor knows no more than `Source` says.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from longshore.errors import LongshoreError
from longshore.events import BrokerEnded
from longshore.supervisor.brake import Brake
from longshore.supervisor.plans import words

if TYPE_CHECKING:
    from longshore.supervisor.supervisor import Supervisor

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
    """Keeps one such process, or none, for as long as there are workers."""

    def __init__(self, supervisor: Supervisor, source: Source | None) -> None:
        self._supervisor = supervisor
        self._source = source
        self._brake = Brake()
        self._since = time.monotonic()
        #: When the next one starts, where one is missing.
        self.due: list[float] = []

    def watch(self) -> None:
        """Hear of its end."""
        source = self._source
        if source is not None:
            self._supervisor.watch(source, lambda: self._ended(source))

    def mend(self) -> None:
        """Start it if it is missing and its time has come."""
        if self._source is None or not self.due or time.monotonic() < self.due[0]:
            return
        try:
            self._source.restart()
        except (LongshoreError, OSError) as error:
            self._missing(self._source, words(error), early=True)
            return
        self.due = []
        self._since = time.monotonic()
        self.watch()

    def _ended(self, source: Source) -> None:
        self._supervisor.forget(source)
        self._missing(source, "its process is gone", early=time.monotonic() - self._since < YOUNG)

    def _missing(self, source: Source, reason: str, *, early: bool) -> None:
        now = time.monotonic()
        pause = self._brake.died(now, early=early)
        self.due = [now + pause]
        self._supervisor.emit(BrokerEnded(pid=source.pid, reason=reason, retry_in=pause))
