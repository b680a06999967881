"""Events and barriers of the local broker: many wait for one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.shared.machines import Line, Machine
from longshore.shared.places import Status

if TYPE_CHECKING:
    from longshore.shared.core import Core
    from longshore.shared.wire import Request

__all__ = ("BarrierMachine", "EventMachine")


class EventMachine(Machine):
    """A flag, and those who wait until it is set."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.is_set_now = False
        self.waiters = Line()

    def set(self, request: Request) -> None:
        """SET."""
        self.is_set_now = True
        while self.waiters:
            self.core.reply(self.waiters.first(), Status.OK)
        self.core.reply(request, Status.OK)

    def clear(self, request: Request) -> None:
        """CLEAR."""
        self.is_set_now = False
        self.core.reply(request, Status.OK)

    def is_set(self, request: Request) -> None:
        """IS_SET."""
        self.core.reply(request, Status.OK, self.is_set_now)

    def await_set(self, request: Request) -> None:
        """AWAIT_SET."""
        if self.is_set_now:
            self.core.reply(request, Status.OK)
        else:
            self.core.wait(request, self, self.waiters)


class BarrierMachine(Machine):
    """Lets its parties through together; its parameters are `parties=` and their number."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.parties = int(parameters.removeprefix(b"parties="))
        self.waiters = Line()
        self.broken = False

    def arrive(self, request: Request) -> None:
        """ARRIVE."""
        if self.broken:
            self.core.reply(request, Status.BROKEN)
        elif len(self.waiters) + 1 < self.parties:
            self.core.wait(request, self, self.waiters)
        else:
            for place in range(len(self.waiters)):
                self.core.reply(self.waiters.first(), Status.OK, place)
            self.core.reply(request, Status.OK, self.parties - 1)

    def abort(self, request: Request) -> None:
        """ABORT."""
        self._break()
        self.core.reply(request, Status.OK)

    def reset(self, request: Request) -> None:
        """RESET."""
        self._break()
        self.broken = False
        self.core.reply(request, Status.OK)

    def barrier_state(self, request: Request) -> None:
        """BARRIER_STATE."""
        self.core.reply(request, Status.OK, len(self.waiters), (b"1" if self.broken else b"0",))

    def left(self, request: Request, status: Status | None) -> None:
        """One who is late, or dead, will never come: the others need not wait for him."""
        super().left(request, status)
        if status != Status.CANCELLED:
            self._break()

    def _break(self) -> None:
        self.broken = True
        while self.waiters:
            self.core.reply(self.waiters.first(), Status.BROKEN)
