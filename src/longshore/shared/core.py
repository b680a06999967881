"""The broker's core: requests in, replies out, with the time as an argument.

The only file that knows clients, holders and deadlines together.  It is pure: no socket, thread or clock; each object
is a machine of `machines/`.  `effects` are the replies that came of a call, with the client each is for, in order; the
host takes them.

A client is any object that can be hashed: one connection.  An owner is a holder of a client; what it holds is noted
there, so that its end gives back everything in one place.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from longshore.shared.ledger import PlainLedger
from longshore.shared.lending import Lending
from longshore.shared.machines.locks import ConditionMachine, LockMachine, SemaphoreMachine
from longshore.shared.machines.queues import PipeMachine, QueueMachine
from longshore.shared.machines.signals import BarrierMachine, EventMachine
from longshore.shared.machines.topics import TopicMachine
from longshore.shared.machines.values import CounterMachine, DictMachine
from longshore.shared.places import FENCE_BITS, MAX_ITEM, MAX_NAME, Status, Verb
from longshore.shared.wire import ABSORB, BORROW, CANCEL, END, Request, encode_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.errors import FramingError
    from longshore.shared.conduit import Conduit
    from longshore.shared.journal import Journal
    from longshore.shared.ledger import Ledger
    from longshore.shared.machines import Line, Machine

__all__ = ("MACHINES", "MAX_NAMES", "Core", "Owner")

#: Names that a place may have.
MAX_NAMES = 1_000_000

#: What keeps the objects of a key that begins so.
MACHINES: dict[int, type[Machine]] = {
    ord("L"): LockMachine,
    ord("R"): LockMachine,
    ord("S"): SemaphoreMachine,
    ord("E"): EventMachine,
    ord("C"): ConditionMachine,
    ord("B"): BarrierMachine,
    ord("Q"): QueueMachine,
    ord("T"): TopicMachine,
    ord("P"): PipeMachine,
    ord("D"): DictMachine,
    ord("N"): CounterMachine,
}
#: Which fields a verb must bring; others may bring any.
_FIELDS = {
    Verb.PUT: 1,
    Verb.UNGET: 1,
    Verb.PUBLISH: 1,
    Verb.READ: 1,
    Verb.WRITE_IF: 2,
    Verb.TAKE: 1,
    Verb.SEND: 1,
    Verb.UNSEND: 1,
}


class Owner:
    """A holder: what it holds, by machine."""

    __slots__ = ("client", "held", "number", "waits")

    def __init__(self, client: object, number: int) -> None:
        self.client = client
        self.number = number
        self.held: dict[Machine, Any] = {}
        self.waits: dict[Request, None] = {}


class _Client:
    """What the core knows of a client."""

    __slots__ = ("number", "owners", "waits", "watchers")

    def __init__(self, number: int) -> None:
        #: What it is called in the ledger.
        self.number = number
        self.owners: dict[int, Owner] = {}
        self.waits: dict[int, Request] = {}
        self.watchers: dict[Machine, None] = {}


class Core:
    """All objects of one place.

    Args:
        ledger: the words that are shared with the clients; None: nothing is lent.
        journals: makes a journal for the client of a number; None: only locks are lent.
    """

    def __init__(
        self,
        epoch: int,
        max_item: int = MAX_ITEM,
        max_names: int = MAX_NAMES,
        ledger: Ledger | None = None,
        conduits: Callable[[], Conduit] | None = None,
        journals: Callable[[int], Journal | None] | None = None,
    ) -> None:
        self.epoch = epoch
        self.max_item = max_item
        self.max_names = max_names
        #: Replies that have not been taken: the client, and the message; or why it must be let go.
        self.effects: list[tuple[Any, bytes | FramingError]] = []
        self.ledger: Ledger = PlainLedger(epoch << FENCE_BITS) if ledger is None else ledger
        #: What makes the way between the ends of a pipe; None where messages go through here.
        self.conduits = conduits
        self.lending = Lending(self, lends=ledger is not None, journals=journals)
        self._came = 0
        self._number = 0
        self._clients: dict[object, _Client] = {}
        self._machines: dict[bytes, Machine] = {}
        self._late: list[tuple[float, int, Request]] = []
        self._waiting = 0
        self._now = 0.0
        self._verbs: dict[int, tuple[str, int]] = {
            int(verb): (verb.name.lower(), _FIELDS.get(verb, -1)) for verb in Verb if verb is not Verb.DECLARE
        }
        #: Bound methods by verb and key, made when they are first needed.
        self._calls: dict[tuple[int, bytes], tuple[Callable[[Request], None], int]] = {}

    # -- the host's side -----------------------------------------------------------------------------------

    def client_came(self, client: object) -> int:
        """There is a new client; its number in the ledger."""
        self._came += 1
        self._clients[client] = _Client(self._came)
        return self._came

    def client_gone(self, client: object) -> None:
        """A client is gone: what it held is released, what it waited for is left."""
        known = self._clients.get(client)
        if known is None:
            return
        self.lending.gone(client)
        del self._clients[client]
        waiting = [request for request in known.waits.values() if request.line is not None]
        for request in waiting:
            self._take_out(request)
        for request in waiting:
            request.machine.left(request, None)  # type: ignore[attr-defined]
        for owner in known.owners.values():
            self._release(owner)
        for watcher in known.watchers:
            watcher.client_gone(client)

    @property
    def figures(self) -> tuple[int, int, int]:
        """How many clients, names and waiting requests there are."""
        return len(self._clients), len(self._machines), self._waiting_now()

    def receive(self, client: object, message: bytes, now: float) -> None:
        """Take one message of a client.

        Raises:
            FramingError: it is no request; the client should be let go.
        """
        self._now = now
        request = Request(client, message)
        known = self._calls.get((request.verb, request.key))
        if known is None:
            self._receive_rare(request)
        elif known[1] in (-1, len(request.fields)):
            known[0](request)
        else:
            self.reply(request, Status.UNKNOWN)

    def expire(self, now: float) -> None:
        """Answer those whose time is over."""
        self._now = now
        while self._late and self._late[0][0] <= now:
            _, _, request = heapq.heappop(self._late)
            if request.line is not None and 0 < request.deadline <= now:
                self._take_out(request)
                request.machine.left(request, Status.LATE)  # type: ignore[attr-defined]

    @property
    def deadline(self) -> float | None:
        """When `expire` must be called next; it may find nothing to do."""
        return self._late[0][0] if self._late else None

    # -- the machines' side --------------------------------------------------------------------------------

    def reply(self, request: Request, status: int, number: int = 0, fields: Sequence[bytes] = ()) -> None:
        """Answer a request, unless no answer is wanted."""
        if request.machine is not None:
            # It has waited, and does no more.
            request.machine = None
            client = self._clients.get(request.client)
            if client is not None:
                client.waits.pop(request.id, None)
                owner = client.owners.get(request.holder)
                if owner is not None:
                    owner.waits.pop(request, None)
                    self.let_go(owner)
        if request.id:
            self.effects.append((request.client, encode_reply(request.id, status, number, fields)))

    def wait(self, request: Request, machine: Machine, line: Line) -> None:
        """Let a request wait in `line`, or let it leave at once if it must not wait."""
        if request.timeout == 0 or not request.id:
            machine.left(request, Status.LATE)
        else:
            self.move(request, machine, line)

    def move(self, request: Request, machine: Machine, line: Line) -> None:
        """Let a request wait in `line`, whether it waited before or not."""
        line[request] = None
        request.line = line
        request.machine = machine
        client = self._clients[request.client]
        client.waits[request.id] = request
        self.owner(request).waits[request] = None
        if request.timeout > 0:
            request.deadline = self._now + request.timeout
            self._number += 1
            heapq.heappush(self._late, (request.deadline, self._number, request))
            if len(self._late) > 64 and len(self._late) > 4 * self._waiting_now():
                self._late = [entry for entry in self._late if entry[2].line is not None and entry[2].deadline]
                heapq.heapify(self._late)
        else:
            request.deadline = 0.0

    def owner(self, request: Request) -> Owner:
        """The holder who asks."""
        owners = self._clients[request.client].owners
        owner = owners.get(request.holder)
        if owner is None:
            owner = owners[request.holder] = Owner(request.client, request.holder)
        return owner

    def known_owner(self, request: Request) -> Owner | None:
        """The holder who asks, if it holds or waits for anything."""
        return self._clients[request.client].owners.get(request.holder)

    def let_go(self, owner: Owner) -> None:
        """Forget a holder that holds and waits for nothing; it may come again."""
        if not owner.held and not owner.waits:
            client = self._clients.get(owner.client)
            if client is not None:
                client.owners.pop(owner.number, None)

    def watch(self, client: object, machine: Machine) -> None:
        """Tell `machine` when the client is gone."""
        self._clients[client].watchers[machine] = None

    def machine(self, key: bytes) -> Machine | None:
        """The object of this key."""
        return self._machines.get(key)

    def number_of(self, client: object) -> int:
        """What a client is called in the ledger."""
        return self._clients[client].number

    def owner_of(self, client: object, holder: int) -> Owner | None:
        """A holder of a client, if it holds or waits for anything."""
        return self._clients[client].owners.get(holder)

    def new_owner(self, client: object, holder: int) -> Owner:
        """A holder of a client, which may be known."""
        return self._clients[client].owners.setdefault(holder, Owner(client, holder))

    def call(self, machine: Machine | None, verb: int) -> tuple[Callable[[Request], None], int] | None:
        """How `machine` does `verb`, and the fields that it needs, -1: any; None if it cannot."""
        name, fields = self._verbs.get(verb, ("", -1))
        call = getattr(machine, name, None) if name else None
        return None if call is None else (call, fields)

    def forget_calls(self, key: bytes) -> None:
        """Look at the next request for an object."""
        for verb in self._verbs:
            self._calls.pop((verb, key), None)

    def next_number(self) -> int:
        """A number that no other has."""
        self._number += 1
        return self._number

    # -- inside ----------------------------------------------------------------------------------------------

    def _receive_rare(self, request: Request) -> None:
        verb, key = request.verb, request.key
        if verb == END:
            self._end(request)
        elif verb == CANCEL:
            self._cancel(request)
        elif verb == Verb.DECLARE:
            self._declare(request)
        elif verb == BORROW:
            self.lending.borrow(request)
        elif verb == ABSORB:
            self.lending.absorb(request)
        else:
            machine = self._machines.get(key)
            known = self.call(machine, verb)
            if machine is None or known is None or known[1] not in (-1, len(request.fields)):
                self.reply(request, Status.UNKNOWN)
                return
            if not self.lending.look(machine, request.client):
                self._calls[verb, key] = known
            known[0](request)

    def _declare(self, request: Request) -> None:
        key = request.key
        parameters = request.fields[0] if request.fields else b""
        machine = self._machines.get(key)
        if machine is None:
            kind = MACHINES.get(key[0]) if key else None
            if kind is None:
                self.reply(request, Status.UNKNOWN)
                return
            if len(key) > MAX_NAME + 1 or len(self._machines) >= self.max_names:
                what = f"max_names={self.max_names}" if len(key) <= MAX_NAME + 1 else f"a name has {MAX_NAME} bytes"
                self.reply(request, Status.TOO_LARGE, 0, (what.encode(),))
                return
            try:
                machine = kind(self, parameters)
            except ValueError:
                self.reply(request, Status.UNKNOWN)
                return
            self._machines[key] = machine
        if machine.parameters == parameters:
            self.reply(request, Status.OK)
        else:
            self.reply(request, Status.CONFLICT, 0, (machine.parameters,))

    def _cancel(self, request: Request) -> None:
        waiting = self._clients[request.client].waits.get(request.number)
        if waiting is not None and waiting.line is not None:
            self._take_out(waiting)
            waiting.machine.left(waiting, Status.CANCELLED)  # type: ignore[attr-defined]

    def _end(self, request: Request) -> None:
        known = self._clients[request.client]
        self.lending.ending(request.client, request.holder)
        owner = known.owners.pop(request.holder, None)
        if owner is not None:
            waiting = [other for other in owner.waits if other.line is not None]
            for other in waiting:
                self._take_out(other)
            for other in waiting:
                other.machine.left(other, None)  # type: ignore[attr-defined]
                self.reply(other, Status.CANCELLED)
            self._release(owner)

    def _release(self, owner: Owner) -> None:
        self.lending.releasing(owner)
        # Taken out first: what a machine hands on may end with the same owner.
        held, owner.held = owner.held, {}
        for machine, what in held.items():
            machine.released(owner, what)

    def _take_out(self, request: Request) -> None:
        """Out of the line; who goes to another, waits again."""
        del request.line[request]  # type: ignore[attr-defined]
        request.line = None

    def _waiting_now(self) -> int:
        return sum(len(client.waits) for client in self._clients.values())
