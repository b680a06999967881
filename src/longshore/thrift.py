"""The memory budget: what all connections of a server hold together, and what happens where that is too much.

The only place that adds up.  It looks from a timer of the reactor, and only where `Limits.memory_budget` is set: a
budget is for floods, which last, so a look four times a second costs less than counting at every byte.  What a single
connection may hold is bounded by `max_pending_bytes` all the time, without this.

Two steps, the milder first:

1. At the budget nobody is let in, and nothing more is read from those that hold anything: who holds nothing is served
   as before.  Handlers and peers go on taking what is there, and below nine tenths of the budget all is as it was.
2. Whoever holds the most is ended, if that has helped nothing by the next look, or has not been enough after some.

What handlers hold themselves is not seen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.errors import LimitExceeded
from longshore.limits import Brink

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.strategies import Host, Session

__all__ = ("Thrift",)

#: Seconds between two looks.
LOOK = 0.25
#: The share of the budget below which all goes on, and down to which connections are ended.
ENOUGH = 0.9
#: Looks above the budget after which connections are ended though what is held becomes less.
PATIENCE = 8


class Thrift:
    """Keeps what the sessions of one server hold within its budget."""

    name = "memory_budget"

    def __init__(self, host: Host, sessions: set[Session], near: Callable[[str, int, int], None]) -> None:
        self._host = host
        self._sessions = sessions
        self._near = near
        self._brink = Brink()
        self._looking = False
        #: Whether the budget is used up.
        self.full = False
        #: Those of which nothing is read meanwhile.
        self._still: set[Session] = set()
        self._last = self._looks = 0

    def begin(self) -> None:
        """Look from now on, if there is a budget; again does nothing."""
        if not self._looking and self._host.limits.memory_budget is not None:
            self._looking = True
            self._host.reactor.call_later(LOOK, self._look)

    def _look(self) -> None:
        self._looking = False
        budget = self._host.limits.memory_budget
        if budget is None:
            self._let_go()
            return
        total = sum(session.held() for session in self._sessions)
        if self._brink.reached(total, budget):
            self._near(self.name, total, budget)
        if total >= (ENOUGH if self.full else 1.0) * budget:
            self._hold_still(total, budget)
        elif self.full:
            self._let_go()
        self.begin()

    def _hold_still(self, total: int, budget: int) -> None:
        """Take in nothing more; where that was done before and did not help, end some."""
        if self.full and total > budget and (total >= self._last or self._looks >= PATIENCE):
            self._cut_down(total, budget)
        self._looks = self._looks + 1 if self.full else 0
        self.full = True
        self._last = total
        for session in tuple(self._sessions):
            if session not in self._still and session.held():
                self._still.add(session)
                session.hold(True)
        self._still &= self._sessions

    def _let_go(self) -> None:
        self.full = False
        still, self._still = self._still, set()
        for session in still & self._sessions:
            session.hold(False)

    def _cut_down(self, total: int, budget: int) -> None:
        """End those that hold the most: it is they who do not keep up."""
        for count, session in sorted(
            ((session.held(), session) for session in self._sessions), key=lambda item: item[0], reverse=True
        ):
            if total <= ENOUGH * budget:
                return
            session.overdrawn(
                LimitExceeded(
                    f"{session.peer} held {count} of {total} bytes pending on all connections, which are more than "
                    f"Limits.memory_budget={budget}",
                    hint="Read faster at the other end, or lower Limits.max_pending_bytes.",
                )
            )
            total -= count
