"""`Queue`: work, from whoever has it to whoever does it."""

from __future__ import annotations

import queue
from typing import Any

from longshore import runs
from longshore.errors import NotHeld
from longshore.shared.handle import Handle, seconds, whole
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.values import checked, serialiser

__all__ = ("Delivery", "Queue")


class Delivery:
    """An item that stays the queue's until it is acknowledged.

    If the handler run, thread or task that got it ends before, the item goes to somebody else.  That it is collected
    does nothing.
    """

    def __init__(self, queue: Queue, number: int, value: Any, deliveries: int) -> None:
        self._queue = queue
        self._number = number
        #: The item.
        self.value = value
        #: How often it was delivered before.
        self.redelivered = deliveries

    def __repr__(self) -> str:
        return f"<delivery of {self.value!r} from {self._queue!r}>"

    def _settled(self, reply: Reply) -> None:
        if reply.status == Status.NOT_HELD:
            raise NotHeld(f"{self!r} was settled before, or is not this thread's")

    def ack(self) -> None:
        """It is done: nobody gets it again, and it counts as `task_done`.

        Raises:
            NotHeld: it was settled before, or belongs to another thread.
        """
        self._settled(self._queue._ask(Verb.ACK, self._number, holder=runs.current().number))

    def requeue(self) -> None:
        """Let somebody else do it, next.

        Raises:
            NotHeld: it was settled before, or belongs to another thread.
        """
        self._settled(self._queue._ask(Verb.REQUEUE, self._number, holder=runs.current().number))

    async def aack(self) -> None:
        """`ack` for tasks."""
        self._settled(await self._queue._await(Verb.ACK, 0, self._number))

    async def arequeue(self) -> None:
        """`requeue` for tasks."""
        self._settled(await self._queue._await(Verb.REQUEUE, 0, self._number))


class Queue(Handle):
    """Items in order, each for one who gets it.

    Args:
        maxsize: how many may lie in it before `put` waits; 0 or less: any number.
        serializer: "pickle", "json" or "msgpack"; the same on all sides.

    Raises:
        ConfigError: `maxsize` is no whole number, or not that of the other handles of this name.
    """

    kind = "Queue"

    def __init__(self, name: str, maxsize: int = 0, *, serializer: str = "pickle") -> None:
        #: How many items may lie in it; 0: any number.
        self.maxsize = 0 if isinstance(maxsize, int) and maxsize < 0 else whole(maxsize, f"maxsize of Queue {name!r}")
        self._serializer = serializer
        self._values = serialiser(serializer)
        super().__init__(name)

    def _shape(self) -> str:
        return f"maxsize={self.maxsize}"

    def _arguments(self) -> tuple[Any, ...]:
        return self.name, self.maxsize, self._serializer

    def __reduce__(self) -> tuple[Any, ...]:
        return _queue, self._arguments()

    def _item(self, item: Any) -> tuple[bytes]:
        return (checked(self, self._values, item, self._at().max_item),)

    def put(self, item: Any, timeout: float | None = None, *, block: bool = True) -> None:
        """Append an item; where the queue is full, wait for room for at most `timeout` seconds.

        Raises:
            queue.Full: there was no room in time.
            WouldBlock: the queue is bounded, and this thread turns a reactor or a loop.
            NotSerialisable, LimitExceeded: the item cannot be put.
        """
        fields = self._item(item)
        if self.maxsize:
            self._room(self._wait(Verb.PUT, seconds(timeout, block), 0, fields))
        else:
            self._ask(Verb.PUT, 0, fields)

    async def aput(self, item: Any, timeout: float | None = None) -> None:
        """`put` for tasks."""
        self._room(await self._await(Verb.PUT, seconds(timeout), 0, self._item(item)))

    def put_nowait(self, item: Any) -> None:
        """`put` without waiting."""
        self.put(item, 0)

    def _room(self, reply: Reply) -> None:
        if reply.status == Status.LATE:
            raise queue.Full

    def get(self, timeout: float | None = None, *, ack: bool = False, block: bool = True) -> Any:
        """Take the item that has waited longest; wait for one for at most `timeout` seconds.

        Args:
            ack: return a `Delivery`, which must be acknowledged, and goes to somebody else if its holder ends before:
                at least once.  Without, whoever gets an item has it for good, and it is lost with him: at most once.

        Raises:
            queue.Empty: nothing came in time.
            WouldBlock: this thread turns a reactor or a loop.
        """
        run = runs.current()
        reply = self._wait(Verb.GET, seconds(timeout, block), ack, holder=run.number)
        return self._got(run, reply)

    async def aget(self, timeout: float | None = None, *, ack: bool = False) -> Any:
        """`get` for tasks."""
        run = runs.current()
        return self._got(run, await self._await(Verb.GET, seconds(timeout), ack, holder=run.number))

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(0)

    def _got(self, run: runs.Run, reply: Reply) -> Any:
        if reply.status != Status.OK:
            raise queue.Empty
        value = self._values.load(reply.fields[0])
        if not reply.number:
            return value
        run.endings[self._record.ended] = None
        return Delivery(self, reply.number, value, int(reply.fields[1]))

    def task_done(self) -> None:
        """An item that was got without acknowledging is dealt with.

        Raises:
            ValueError: all were done before.
        """
        if self._ask(Verb.TASK_DONE).status == Status.NOT_HELD:
            raise NotHeld(f"{self!r}: task_done() called more often than there were items")

    async def atask_done(self) -> None:
        """`task_done` for tasks."""
        if (await self._await(Verb.TASK_DONE)).status == Status.NOT_HELD:
            raise NotHeld(f"{self!r}: task_done() called more often than there were items")

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all items were dealt with (`task_done`, or acknowledged); False after `timeout` seconds."""
        return self._wait(Verb.JOIN, seconds(timeout)).status == Status.OK

    async def ajoin(self, timeout: float | None = None) -> bool:
        """`join` for tasks."""
        return (await self._await(Verb.JOIN, seconds(timeout))).status == Status.OK

    def qsize(self) -> int:
        """How many items lie in it."""
        return self._ask(Verb.SIZE).number

    def empty(self) -> bool:
        """Whether none does."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether `put` would wait."""
        return 0 < self.maxsize <= self.qsize()

    def __len__(self) -> int:
        return self.qsize()

    def __bool__(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to close; here because `multiprocessing.Queue` has it."""

    def join_thread(self) -> None:
        """No thread to join; here because `multiprocessing.Queue` has it."""


def _queue(name: str, maxsize: int, serializer: str) -> Queue:
    return Queue(name, maxsize, serializer=serializer)
