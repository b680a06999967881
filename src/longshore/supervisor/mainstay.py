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
        """A descriptor that is readable once the process has ended, or, after `begin`, once `complete` has an answer.

        It is another one after each of the two.
        """

    def begin(self) -> float:
        """Start it again, once it has ended, and wait for nothing; the seconds that it may take to come up.

        Raises:
            LongshoreError, OSError: it could not be started.
        """

    def complete(self) -> None:
        """Take note that it is up.

        Raises:
            LongshoreError: it is not, and was ended.
        """


class Mainstay:
    """Keeps one such process, or none, for as long as there are workers."""

    def __init__(self, supervisor: Supervisor, source: Source | None) -> None:
        self._supervisor = supervisor
        self._source = source
        self._brake = Brake()
        self._since = time.monotonic()
        self._is_starting = False
        #: When the next one starts, where one is missing; or until when one that is starting must be up.
        self.due: list[float] = []

    def watch(self) -> None:
        """Hear of its end."""
        source = self._source
        if source is not None:
            self._supervisor.watch(source, lambda: self._ended(source))

    def mend(self) -> None:
        """Start it if it is missing and its time has come; give it up if it does not come up in time.

        The supervisor goes on meanwhile: it hears when it is up.
        """
        source = self._source
        if source is None or not self.due or time.monotonic() < self.due[0]:
            return
        if self._is_starting:
            self._settle(source)
            return
        try:
            patience = source.begin()
        except (LongshoreError, OSError) as error:
            self._missing(source, words(error), early=True)
            return
        self._is_starting = True
        self.due = [time.monotonic() + patience]
        self._supervisor.watch(source, lambda: self._settle(source))

    def _settle(self, source: Source) -> None:
        """It is up, or it has failed, or its time is over."""
        self._supervisor.forget(source)
        self._is_starting = False
        try:
            source.complete()
        except (LongshoreError, OSError) as error:
            self._missing(source, words(error), early=True)
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
