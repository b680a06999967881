"""Topics of the local broker: what is published goes to every subscription that keeps up."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from longshore.shared.machines import Line, Machine
from longshore.shared.places import Status

if TYPE_CHECKING:
    from longshore.shared.core import Core
    from longshore.shared.wire import Request

__all__ = ("TopicMachine",)


class _Subscription:
    """What waits for one subscriber."""

    __slots__ = ("client", "closes", "missed", "readers", "room", "size", "values")

    def __init__(self, client: object, room: int, closes: bool) -> None:
        self.client = client
        self.room = room
        self.closes = closes
        self.values: deque[bytes] = deque()
        self.size = 0
        self.missed = 0
        self.readers = Line()


class TopicMachine(Machine):
    """Subscriptions by number."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.subscriptions: dict[int, _Subscription] = {}

    def publish(self, request: Request) -> None:
        """PUBLISH."""
        value = request.fields[0]
        took = 0
        for number, subscription in list(self.subscriptions.items()):
            if len(subscription.values) < subscription.room:
                subscription.values.append(value)
                subscription.size += len(value)
                took += 1
                self._pump(subscription)
            elif subscription.closes:
                self._end(number)
            else:
                subscription.missed += 1
        self.core.reply(request, Status.OK, took)

    def subscribe(self, request: Request) -> None:
        """SUBSCRIBE."""
        number = self.core.next_number()
        subscription = _Subscription(request.client, max(1, request.number), request.fields == (b"close",))
        self.subscriptions[number] = subscription
        self.core.watch(request.client, self)
        self.core.reply(request, Status.OK, number)

    def unsubscribe(self, request: Request) -> None:
        """UNSUBSCRIBE."""
        self._end(request.number)
        self.core.reply(request, Status.OK)

    def receive(self, request: Request) -> None:
        """RECEIVE."""
        subscription = self.subscriptions.get(request.number)
        if subscription is None:
            self.core.reply(request, Status.CLOSED)
            return
        if subscription.client is not request.client:
            subscription.client = request.client
            self.core.watch(request.client, self)
        if subscription.values:
            self._hand(subscription, request)
        else:
            self.core.wait(request, self, subscription.readers)

    def client_gone(self, client: object) -> None:
        """Its subscriptions end."""
        for number, subscription in list(self.subscriptions.items()):
            if subscription.client is client:
                self._end(number)

    def _pump(self, subscription: _Subscription) -> None:
        if subscription.readers:
            self._hand(subscription, subscription.readers.first())

    def _hand(self, subscription: _Subscription, request: Request) -> None:
        values, missed = subscription.values, subscription.missed
        if subscription.size <= self.core.max_item:
            self.core.reply(request, Status.OK, missed, tuple(values))
            values.clear()
            subscription.size = 0
        else:
            value = values.popleft()
            subscription.size -= len(value)
            self.core.reply(request, Status.OK, missed, (value,))

    def _end(self, number: int) -> None:
        subscription = self.subscriptions.pop(number, None)
        if subscription is not None:
            while subscription.readers:
                self.core.reply(subscription.readers.first(), Status.CLOSED)
