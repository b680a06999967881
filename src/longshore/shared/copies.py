"""The copies of what a client has borrowed: a core of its own, for that client alone, whose replies are had at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.shared.core import MACHINES, Core
from longshore.shared.journal import LENDABLE
from longshore.shared.places import Reply
from longshore.shared.wire import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.shared.core import Owner
    from longshore.shared.machines import Line, Machine

__all__ = ("Copies",)

_DONE = Reply(0, 0, ())


class Copies(Core):
    """Objects that are lent, and who holds what of them: the only client is itself."""

    def __init__(self) -> None:
        super().__init__(0)
        self.client_came(self)
        #: What each verb is asked with, one after the other.
        self.request = Request.__new__(Request)
        self.request.client, self.request.id = self, 1
        self.request.line = self.request.machine = None
        #: What came of the last one; None if it would have to wait.
        self.answer: Reply | None = None

    def copied(
        self, key: bytes, parameters: bytes, parts: Sequence[bytes]
    ) -> dict[int, tuple[Callable[[Request], None], bool]]:
        """Make the copy that a snapshot tells of; what does each verb, and whether that may change anything."""
        machine = MACHINES[key[0]](self, parameters)
        machine.restore(parts, self._holder)
        found = ((verb, self.call(machine, verb), changes) for verb, changes in LENDABLE.items())
        return {verb: (call[0], changes) for verb, call, changes in found if call is not None}

    def holds(self, holder: int) -> bool:
        """Whether a holder has anything of what is lent."""
        return self.owner_of(self, holder) is not None

    def reply(self, request: Request, status: int, number: int = 0, fields: Sequence[bytes] = ()) -> None:
        """See `Core`."""
        self.answer = Reply(status, number, fields) if status or number or fields else _DONE

    def move(self, request: Request, machine: Machine, line: Line) -> None:
        """Whoever would have to wait asks the broker."""

    def _holder(self, number: int) -> Owner:
        self.request.holder = number
        return self.owner(self.request)
