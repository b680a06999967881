"""The memory budget: what all connections of a server hold together, and whose is the most where that is too much.

The only place that adds up.  It looks from a timer of the reactor, and only where `Limits.memory_budget` is set: a
budget is for floods, which last, so a look four times a second costs less than counting at every byte.  What a single
connection may hold is bounded by `max_pending_bytes` all the time, without this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.errors import LimitExceeded
from longshore.limits import NEAR

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.strategies import Host, Session

__all__ = ("Thrift",)

#: Seconds between two looks.
LOOK = 0.25
#: The share of the budget down to which connections are ended once it is exceeded.
ENOUGH = 0.9


class Thrift:
    """Keeps what the sessions of one server hold within its budget."""

    def __init__(self, host: Host, sessions: set[Session], near: Callable[[str, int, int], None]) -> None:
        self._host = host
        self._sessions = sessions
        self._near = near
        self._warned = self._looking = False

    def begin(self) -> None:
        """Look from now on, if there is a budget; again does nothing."""
        if not self._looking and self._host.limits.memory_budget is not None:
            self._looking = True
            self._host.reactor.call_later(LOOK, self._look)

    def _look(self) -> None:
        self._looking = False
        budget = self._host.limits.memory_budget
        if budget is None:
            return
        held = [(session.held(), session) for session in self._sessions]
        total = sum(count for count, _ in held)
        near = total >= NEAR * budget
        if near and not self._warned:
            self._near("memory_budget", total, budget)
        self._warned = near
        if total > budget:
            self._cut_down(held, total, budget)
        self.begin()

    def _cut_down(self, held: list[tuple[int, Session]], total: int, budget: int) -> None:
        """End those that hold the most: it is they who do not keep up."""
        held.sort(key=lambda item: item[0], reverse=True)
        for count, session in held:
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
