"""Locks, semaphores and conditions of the local broker: who holds, who waits, and which fence comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.shared.machines import Line, Machine
from longshore.shared.places import Status, Verb

if TYPE_CHECKING:
    from longshore.shared.core import Core, Owner
    from longshore.shared.wire import Request

__all__ = ("ConditionMachine", "LockMachine", "SemaphoreMachine")


class LockMachine(Machine):
    """One holder at a time; a `Lock` and an `RLock` alike, as nested holding is counted by the client.

    One that a client acquires twice in a row, with nobody waiting, is lent to it (`ledger.py`): who holds it stands in
    the ledger until it is taken back, which each verb does first.
    """

    can_be_lent = True

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        #: Its word in the ledger, 0 if it has none yet.
        self.slot = 0
        #: The client that it is lent to; then it has no owner, and nobody waits.
        self.lent: object = None
        #: Which client acquired it last; only a guess, so that its identity is enough.
        self._last = 0
        self.owner: Owner | None = None
        self.waiters = Line()
        #: Whether the holder before has ended without releasing.
        self.recovered = False

    def acquire(self, request: Request) -> None:
        """ACQUIRE."""
        if self.lent is not None:
            self.take_back()
        if self.owner is not None:
            self.core.wait(request, self, self.waiters)
        elif not (request.number and id(request.client) == self._last and self._lend(request)):
            self._grant(request)

    def release(self, request: Request) -> None:
        """RELEASE."""
        if self.lent is not None:
            self.take_back()
        owner = self.owner
        if owner is not None and owner is self.core.known_owner(request):
            del owner.held[self]
            self.core.let_go(owner)
            self._free(recovered=False)

    def locked(self, request: Request) -> None:
        """LOCKED."""
        held = self.owner is not None or (self.lent is not None and self.core.ledger.state(self.slot) > 0)
        self.core.reply(request, Status.OK, held)

    def take_back(self) -> None:
        """Lend it no more."""
        client, self.lent = self.lent, None
        owner = self.owner = self.core.lending.take_lock(client, self)
        if owner is not None:
            owner.held[self] = True

    def _lend(self, request: Request) -> bool:
        """Grant it to who asks, and lend it."""
        if not (self.can_be_lent and self.core.lending.lend_lock(request, self)):
            return False
        self.lent = request.client
        recovered = b"1" if self.recovered else b"0"
        self.recovered = False
        self.core.reply(request, Status.OK, self.core.ledger.next_fence(), (recovered, b"%d" % self.slot))
        return True

    def released(self, owner: Owner, held: Any) -> None:
        """The holder has ended."""
        self._free(recovered=True)

    def _free(self, *, recovered: bool) -> None:
        self.owner = None
        self.recovered = recovered
        self._pump()

    def _pump(self) -> None:
        if self.owner is None and self.waiters:
            self._grant(self.waiters.first())

    def _grant(self, request: Request) -> None:
        owner = self.owner = self.core.owner(request)
        owner.held[self] = True
        self._last = id(request.client)
        self.core.reply(request, Status.OK, self.core.ledger.next_fence(), self._fields(request))
        self.recovered = False

    def _fields(self, request: Request) -> tuple[bytes, ...]:
        return (b"1",) if self.recovered else ()


class ConditionMachine(LockMachine):
    """A lock, and those who let go of it until they are notified."""

    #: Who waits and notifies must be the holder, which the broker has to know.
    can_be_lent = False

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.sleepers = Line()

    def wait(self, request: Request) -> None:
        """WAIT."""
        owner = self.owner
        if owner is None or owner is not self.core.known_owner(request):
            self.core.reply(request, Status.NOT_HELD)
            return
        if request.timeout == 0:
            request.outcome = b"0"
            request.timeout = -1
            self.core.wait(request, self, self.waiters)
        else:
            self.core.wait(request, self, self.sleepers)
        del owner.held[self]
        self._free(recovered=False)

    def notify(self, request: Request) -> None:
        """NOTIFY."""
        owner = self.owner
        if owner is None or owner is not self.core.known_owner(request):
            self.core.reply(request, Status.NOT_HELD)
        else:
            self.core.reply(request, Status.OK, self._notify(request.number))

    def _notify(self, count: int) -> int:
        woken = 0
        while self.sleepers and woken != count:
            self._want_lock(self.sleepers.first(), b"1")
            woken += 1
        return woken

    def _want_lock(self, request: Request, outcome: bytes) -> None:
        request.outcome = outcome
        request.timeout = -1
        self.core.move(request, self, self.waiters)

    def left(self, request: Request, status: Status | None) -> None:
        """Whoever stops sleeping comes back with the lock; a notification that he has not used goes on."""
        if request.verb != Verb.WAIT:
            super().left(request, status)
            return
        notified = request.outcome == b"1"
        if status is not None:
            outcome = b"c" if status == Status.CANCELLED else b"0"
            self._want_lock(request, request.outcome if request.outcome == b"0" else outcome)
        if notified:
            self._notify(1)
        self._pump()

    def _fields(self, request: Request) -> tuple[bytes, ...]:
        if request.verb == Verb.WAIT:
            return (b"1" if self.recovered else b"", request.outcome)
        return super()._fields(request)


class SemaphoreMachine(Machine):
    """As many holders as it has slots, or for none a signal; its parameters are `value=` and their number."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.free = int(parameters.removeprefix(b"value="))
        #: Nobody holds what was signalled.
        self.is_signal = self.free == 0
        self.waiters = Line()

    def acquire(self, request: Request) -> None:
        """ACQUIRE."""
        if self.free > 0:
            self._grant(request)
        else:
            self.core.wait(request, self, self.waiters)

    def release(self, request: Request) -> None:
        """RELEASE."""
        if self.is_signal:
            self._free(1)
            return
        owner = self.core.known_owner(request)
        held = 0 if owner is None else owner.held.get(self, 0)
        if owner is not None and held:
            if held == 1:
                del owner.held[self]
                self.core.let_go(owner)
            else:
                owner.held[self] = held - 1
            self._free(1)

    def locked(self, request: Request) -> None:
        """LOCKED."""
        self.core.reply(request, Status.OK, self.free)

    def released(self, owner: Owner, held: Any) -> None:
        """The slots of a holder that has ended come back."""
        self._free(held)

    def _free(self, slots: int) -> None:
        self.free += slots
        while self.free > 0 and self.waiters:
            self._grant(self.waiters.first())

    def _grant(self, request: Request) -> None:
        self.free -= 1
        if not self.is_signal:
            held = self.core.owner(request).held
            held[self] = held.get(self, 0) + 1
        self.core.reply(request, Status.OK)
