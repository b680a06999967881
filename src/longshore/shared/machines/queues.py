"""Queues and pipes of the local broker: items in order, from whoever puts to whoever gets."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.shared.machines import MOST_LENT, Line, Machine
from longshore.shared.places import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.shared.conduit import Conduit
    from longshore.shared.core import Core, Owner
    from longshore.shared.wire import Request

__all__ = ("PipeMachine", "QueueMachine")

#: Bytes that may lie in one direction of a pipe before its senders wait.
PIPE_ROOM = 1 << 20


class QueueMachine(Machine):
    """Items, first in, first out; its parameters are `maxsize=` and a number, 0 for no bound."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.maxsize = int(parameters.removeprefix(b"maxsize="))
        #: Each with the number of its deliveries so far.
        self.items: deque[tuple[bytes, int]] = deque()
        self.getters, self.putters, self.joiners = Line(), Line(), Line()
        self.unfinished = 0
        #: What was delivered and is not acknowledged: whose it is, the item, and how often it was delivered before.
        self.deliveries: dict[int, tuple[Owner, bytes, int]] = {}
        self._last_delivery = 0

    def put(self, request: Request) -> None:
        """PUT."""
        if self.maxsize and len(self.items) >= self.maxsize:
            self.core.wait(request, self, self.putters)
        else:
            self._accept(request)
            self._pump()

    def get(self, request: Request) -> None:
        """GET."""
        if self.items:
            self._hand(request)
            self._pump()
        else:
            self.core.wait(request, self, self.getters)

    def unget(self, request: Request) -> None:
        """UNGET."""
        self.items.appendleft((request.fields[0], 0))
        self._pump()
        self.core.reply(request, Status.OK)

    def ack(self, request: Request) -> None:
        """ACK."""
        if self._settle(request):
            self._done_one()

    def requeue(self, request: Request) -> None:
        """REQUEUE."""
        found = self._settle(request)
        if found is not None:
            self.items.appendleft(found)
            self._pump()

    def task_done(self, request: Request) -> None:
        """TASK_DONE."""
        if self.unfinished == 0:
            self.core.reply(request, Status.NOT_HELD)
        else:
            self.core.reply(request, Status.OK)
            self._done_one()

    def join(self, request: Request) -> None:
        """JOIN."""
        if self.unfinished == 0:
            self.core.reply(request, Status.OK)
        else:
            self.core.wait(request, self, self.joiners)

    def size(self, request: Request) -> None:
        """SIZE."""
        self.core.reply(request, Status.OK, len(self.items), (b"%d" % self.unfinished,))

    def released(self, owner: Owner, held: Any) -> None:
        """What the holder that has ended did not acknowledge goes back to the front, in the order it was in."""
        for number in sorted(held, reverse=True):
            _, item, count = self.deliveries.pop(number)
            self.items.appendleft((item, count + 1))
        self._pump()

    def snapshot(self, client: object) -> list[bytes] | None:
        """The counts, each item with its deliveries, and what was delivered to the client, with its holders."""
        own = [
            (b"%d" % number, b"%d" % owner.number, item, b"%d" % count)
            for number, (owner, item, count) in self.deliveries.items()
            if owner.client is client
        ]
        if self.getters or self.putters or self.joiners or len(self.items) + len(own) > MOST_LENT:
            return None
        counts = (b"%d" % self.unfinished, b"%d" % self._last_delivery, b"%d" % len(self.items))
        parts = [*counts, *(part for item, count in self.items for part in (item, b"%d" % count))]
        return [*parts, *(part for delivery in own for part in delivery)]

    def restore(self, parts: Sequence[bytes], owner: Callable[[int], Owner]) -> None:
        """See `Machine`."""
        self.unfinished, self._last_delivery, count = map(int, parts[:3])
        end = 3 + 2 * count
        self.items = deque((parts[at], int(parts[at + 1])) for at in range(3, end, 2))
        for at in range(end, len(parts), 4):
            number, holder = int(parts[at]), owner(int(parts[at + 1]))
            self.deliveries[number] = (holder, parts[at + 2], int(parts[at + 3]))
            holder.held.setdefault(self, set()).add(number)

    def _accept(self, request: Request) -> None:
        self.unfinished += 1
        self.items.append((request.fields[0], 0))
        self.core.reply(request, Status.OK)

    def _hand(self, request: Request) -> None:
        item, count = self.items.popleft()
        number = 0
        if request.number:
            number = self._last_delivery = self._last_delivery + 1
            owner = self.core.owner(request)
            self.deliveries[number] = (owner, item, count)
            owner.held.setdefault(self, set()).add(number)
        self.core.reply(request, Status.OK, number, (item, b"%d" % count))

    def _settle(self, request: Request) -> tuple[bytes, int] | None:
        """Take a delivery off its holder's list."""
        owner, item, count = self.deliveries.get(request.number, (None, b"", 0))
        if owner is None or owner.client is not request.client:
            self.core.reply(request, Status.NOT_HELD)
            return None
        del self.deliveries[request.number]
        owner.held[self].discard(request.number)
        if not owner.held[self]:
            del owner.held[self]
            self.core.let_go(owner)
        self.core.reply(request, Status.OK)
        return item, count + 1

    def _done_one(self) -> None:
        self.unfinished -= 1
        while self.unfinished == 0 and self.joiners:
            self.core.reply(self.joiners.first(), Status.OK)

    def _pump(self) -> None:
        """Bring items and getters, room and putters together."""
        while True:
            if self.items and self.getters:
                self._hand(self.getters.first())
            elif self.putters and len(self.items) < self.maxsize:
                self._accept(self.putters.first())
            else:
                return


class PipeMachine(Machine):
    """Two ends, each with an inbox of whole messages.

    Where the broker has conduits, messages go over one of those, and only who has which end is known here.
    """

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.inboxes: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.sizes = [0, 0]
        self.takers, self.pollers, self.senders = (Line(), Line()), (Line(), Line()), (Line(), Line())
        #: Handles of each end, by client.
        self.openers: tuple[dict[object, int], dict[object, int]] = ({}, {})
        self.was_open = [False, False]
        self.conduit: Conduit | None = None

    def open(self, request: Request) -> None:
        """OPEN."""
        end, client = request.number & 1, request.client
        if self.core.conduits is not None:
            try:
                if self.conduit is None:
                    self.conduit = self.core.conduits()
                self.conduit.hand_over(end, client)  # type: ignore[arg-type]
            except OSError as error:
                self._show()
                self.core.reply(request, Status.TOO_LARGE, 0, (f"the broker's descriptors ({error})".encode(),))
                return
        self.openers[end][client] = self.openers[end].get(client, 0) + 1
        self.was_open[end] = True
        self.core.watch(request.client, self)
        self._show()
        self.core.reply(request, Status.OK)

    def hang_up(self, request: Request) -> None:
        """HANG_UP."""
        end = request.number & 1
        count = self.openers[end].get(request.client, 0)
        if count > 1:
            self.openers[end][request.client] = count - 1
        elif count:
            self._end_gone(end, request.client)
        self.core.reply(request, Status.OK)

    def send(self, request: Request) -> None:
        """SEND."""
        other = 1 - (request.number & 1)
        if self._is_gone(other):
            self.core.reply(request, Status.CLOSED)
        elif self.sizes[other] >= PIPE_ROOM:
            self.core.wait(request, self, self.senders[other])
        else:
            self._deliver(other, request)

    def take_message(self, request: Request) -> None:
        """TAKE_MESSAGE."""
        end = request.number & 1
        if self.inboxes[end]:
            self._hand(end, request)
            self._pump(end)
        elif self._is_gone(1 - end):
            self.core.reply(request, Status.CLOSED)
        else:
            self.core.wait(request, self, self.takers[end])

    def unsend(self, request: Request) -> None:
        """UNSEND."""
        end = request.number & 1
        self.inboxes[end].appendleft(request.fields[0])
        self.sizes[end] += len(request.fields[0])
        self._pump(end)
        self.core.reply(request, Status.OK)

    def poll(self, request: Request) -> None:
        """POLL."""
        end = request.number & 1
        if self.inboxes[end] or self._is_gone(1 - end):
            self.core.reply(request, Status.OK)
        else:
            self.core.wait(request, self, self.pollers[end])

    def client_gone(self, client: object) -> None:
        """Its handles are closed."""
        for end in (0, 1):
            if client in self.openers[end]:
                self._end_gone(end, client)

    def _show(self) -> None:
        """Have those at each end know whether the other one is gone; a conduit that holds nothing needs nobody."""
        conduit = self.conduit
        if conduit is None:
            return
        if any(self.openers) or not conduit.is_empty:
            for end in (0, 1):
                conduit.show(end, self._is_gone(1 - end))
        else:
            conduit.close()
            self.conduit = None

    def _is_gone(self, end: int) -> bool:
        return self.was_open[end] and not self.openers[end]

    def _end_gone(self, end: int, client: object) -> None:
        del self.openers[end][client]
        if self.openers[end]:
            return
        self._show()
        for line in (self.takers[1 - end], self.senders[end]):
            while line:
                self.core.reply(line.first(), Status.CLOSED)
        while self.pollers[1 - end]:
            self.core.reply(self.pollers[1 - end].first(), Status.OK)

    def _deliver(self, end: int, request: Request) -> None:
        message = request.fields[0]
        self.inboxes[end].append(message)
        self.sizes[end] += len(message)
        self.core.reply(request, Status.OK)
        self._pump(end)

    def _hand(self, end: int, request: Request) -> None:
        message = self.inboxes[end].popleft()
        self.sizes[end] -= len(message)
        self.core.reply(request, Status.OK, 0, (message,))

    def _pump(self, end: int) -> None:
        while self.inboxes[end] and self.takers[end]:
            self._hand(end, self.takers[end].first())
        while self.inboxes[end] and self.pollers[end]:
            self.core.reply(self.pollers[end].first(), Status.OK)
        if self.senders[end] and self.sizes[end] < PIPE_ROOM:
            self._deliver(end, self.senders[end].first())
