"""What the broker lends, and takes back: what one client alone uses, by words of the ledger (`ledger.py`).

The only file that knows who has borrowed what.  A lock is lent by a word of its own, when its machine says so.  Other
objects are lent with a journal (`journal.py`), and who gets them is decided here.  A client that has asked for an
object some times wants to borrow it (BORROW): the first time it is *courted*, and from then on each request for it is
looked at; if nobody else has come before the same client asks again, it is lent.  So nothing is counted for objects
that nobody wants to borrow.  Whoever asks for an object that is lent, its borrower too, has it taken back first: what
the borrower did is done here, and then what was asked.  Pure, as the core.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from longshore.errors import FramingError
from longshore.shared.journal import LENDABLE, MASK, SIZE
from longshore.shared.ledger import SLOTS
from longshore.shared.places import Status
from longshore.shared.wire import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.core import Core, Owner
    from longshore.shared.journal import Journal
    from longshore.shared.machines import Machine
    from longshore.shared.machines.locks import LockMachine

__all__ = ("BORROWERS", "Lending")

#: Clients that may have a journal at one time, and bytes and parts that an object may have to be lent.
BORROWERS, BYTES, PARTS = 512, 1 << 18, 4096
#: What lies between the positions of what was taken back and what is lent afterwards.
_GAP = 1
_LENGTH = struct.Struct("<I")


class _Borrower:
    """A client that has a journal."""

    def __init__(self, client: object, number: int, slot: int, journal: Journal) -> None:
        self.client = client
        self.number = number
        #: Its word, behind which is that of what was absorbed.
        self.slot = slot
        self.journal = journal
        #: Up to where it was absorbed.
        self.head = 0
        #: What is lent to it, by key, and what its journal may do.
        self.machines: dict[bytes, Machine] = {}
        self.calls: dict[tuple[int, bytes], tuple[Callable[[Request], None], int]] = {}


class Lending:
    """What is lent of one core.

    Args:
        lends: whether anything is.
        journals: makes a journal for the client of a number; None: only locks are lent.
    """

    def __init__(self, core: Core, *, lends: bool, journals: Callable[[int], Journal | None] | None) -> None:
        self._core = core
        self._lends = lends
        self._journals = journals if lends else None
        #: Words of the ledger that have been given out.
        self._words = 0
        #: The locks that are lent, by client.
        self._locks: dict[object, dict[LockMachine, None]] = {}
        self._borrowers: dict[object, _Borrower] = {}
        self._lent: dict[Machine, _Borrower] = {}
        #: The number of the client that wants it, and has been alone with it since.
        self._courted: dict[Machine, int] = {}
        #: Words of clients that are gone.
        self._free: list[int] = []

    # -- locks -----------------------------------------------------------------------------------------------

    def lend_lock(self, request: Request, machine: LockMachine) -> bool:
        """Lend a lock to who asks, and holds it from now on; whether that can be done."""
        machine.slot = machine.slot or (self._word() if self._lends else 0)
        if not machine.slot:
            return False
        self._locks.setdefault(request.client, {})[machine] = None
        self._core.ledger.lend(machine.slot, self._core.number_of(request.client), request.holder)
        return True

    def take_lock(self, client: object, machine: LockMachine) -> Owner | None:
        """Lend a lock no more; who holds it."""
        del self._locks[client][machine]
        holder = self._core.ledger.take_back(machine.slot)
        return self._core.new_owner(client, holder) if holder else None

    def _word(self, count: int = 1) -> int:
        """The first of so many words of the ledger that nobody had before; 0 if there are no more."""
        first = self._words + 1
        if first + count > SLOTS:
            return 0
        self._words += count
        return first

    # -- what has a journal ----------------------------------------------------------------------------------

    def look(self, machine: Machine, client: object) -> bool:
        """Somebody asks for `machine`; whether the next request must be looked at, too."""
        borrower = self._lent.get(machine)
        if borrower is not None:
            self._take_back(borrower)
        elif machine in self._courted:
            if self._courted[machine] == self._core.number_of(client):
                return True
            del self._courted[machine]
        return False

    def borrow(self, request: Request) -> None:
        """BORROW."""
        core, key, client = self._core, request.key, request.client
        machine = core.machine(key)
        if machine is None or self._journals is None:
            core.reply(request, Status.LATE)
            return
        if machine in self._lent:
            self._take_back(self._lent[machine])
        number = core.number_of(client)
        if self._courted.get(machine) != number:
            self._courted[machine] = number
            core.forget_calls(key)
            core.reply(request, Status.LATE)
            return
        parts = machine.snapshot(client)
        borrower = None
        if parts is not None and len(parts) <= PARTS and sum(map(len, parts)) <= BYTES:
            borrower = self._borrower(client, number)
        if parts is None or borrower is None:
            core.reply(request, Status.LATE)
            return
        del self._courted[machine]
        self._absorb(borrower)
        if not borrower.machines:
            borrower.head = (borrower.head + _GAP) & MASK
            core.ledger.lend(borrower.slot + 1, number, borrower.head)
            core.ledger.lend(borrower.slot, number, borrower.head)
        borrower.machines[key] = machine
        for verb, changes in LENDABLE.items():
            call = core.call(machine, verb)
            if changes and call is not None:
                borrower.calls[verb, key] = call
        self._lent[machine] = borrower
        core.reply(request, Status.OK, borrower.head, (b"%d" % borrower.slot, machine.parameters, *parts))

    def absorb(self, request: Request) -> None:
        """ABSORB."""
        borrower = self._borrowers.get(request.client)
        if borrower is not None:
            self._absorb(borrower)
        self._core.reply(request, Status.OK, 0 if borrower is None else borrower.head)

    def ending(self, client: object, holder: int) -> None:
        """A holder of `client` is about to end."""
        for lock in list(self._locks.get(client, ())):
            if self._core.ledger.state(lock.slot) == holder:
                lock.take_back()
        borrower = self._borrowers.get(client)
        if borrower is not None and borrower.machines:
            self._absorb(borrower)
            owner = self._core.owner_of(client, holder)
            if owner is not None:
                self.releasing(owner)

    def releasing(self, owner: Owner) -> None:
        """What an owner holds is about to be released."""
        for borrower in {self._lent[machine] for machine in owner.held if machine in self._lent}:
            self._take_back(borrower)

    def gone(self, client: object) -> None:
        """`client` is about to be forgotten."""
        for lock in list(self._locks.get(client, ())):
            lock.take_back()
        self._locks.pop(client, None)
        borrower = self._borrowers.pop(client, None)
        if borrower is not None:
            self._take_back(borrower)
            borrower.journal.close()
            self._free.append(borrower.slot)

    def _borrower(self, client: object, number: int) -> _Borrower | None:
        borrower = self._borrowers.get(client)
        if borrower is None and self._journals is not None and len(self._borrowers) < BORROWERS:
            slot = self._free.pop() if self._free else self._word(2)
            journal = self._journals(number) if slot else None
            if journal is not None:
                borrower = self._borrowers[client] = _Borrower(client, number, slot, journal)
            elif slot:
                self._free.append(slot)
        return borrower

    def _take_back(self, borrower: _Borrower) -> None:
        """Lend a client nothing more, and do what it did."""
        if borrower.machines:
            self._replay(borrower, self._core.ledger.take_back(borrower.slot))
            self._forget(borrower)

    def _absorb(self, borrower: _Borrower) -> None:
        """Do what a client did so far, and let it go on."""
        if not borrower.machines:
            return
        ledger = self._core.ledger
        if self._replay(borrower, ledger.state(borrower.slot)):
            ledger.lend(borrower.slot + 1, borrower.number, borrower.head)
        else:
            ledger.take_back(borrower.slot)
            self._forget(borrower)

    def _forget(self, borrower: _Borrower) -> None:
        for machine in borrower.machines.values():
            del self._lent[machine]
        borrower.machines.clear()
        borrower.calls.clear()

    def _replay(self, borrower: _Borrower, tail: int) -> bool:
        """Do what the journal says up to `tail`; False if it says what no client of ours would."""
        size = (tail - borrower.head) & MASK
        try:
            if size > SIZE:
                raise FramingError(f"a journal of {size} bytes, where {SIZE} have room")
            self._do(borrower, borrower.journal.read(borrower.head, size), size)
        except FramingError as error:
            self._core.effects.append((borrower.client, error))
            return False
        finally:
            borrower.head = tail
        return True

    def _do(self, borrower: _Borrower, data: bytes, size: int) -> None:
        client, calls = borrower.client, borrower.calls
        if len(data) < size:
            raise FramingError(f"a journal whose file has lost {size - len(data)} bytes")
        at = 0
        while at < size:
            end = at + 4
            if end <= size:
                end += _LENGTH.unpack_from(data, at)[0]
            if end > size or end == at + 4:
                raise FramingError("an entry of a journal that is cut short")
            request = Request(client, data[at + 4 : end])
            call, fields = calls.get((request.verb, request.key), (None, 0))
            if call is None or fields not in (-1, len(request.fields)):
                raise FramingError(f"an entry of a journal for what is not lent: verb {request.verb}")
            # Nobody waits for a reply.
            request.id = 0
            call(request)
            at = end
