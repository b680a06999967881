"""`Topic`: what one publishes, all who have subscribed get."""

from __future__ import annotations

import queue
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from longshore.errors import ClosedError, ConfigError, LongshoreError
from longshore.shared.handle import Handle, seconds, whole
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.values import checked, serialiser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ("Subscription", "Topic")


class Topic(Handle):
    """A channel to many: publishing waits for nobody.

    Args:
        serializer: "pickle", "json" or "msgpack"; the same on all sides.
    """

    kind = "Topic"

    def __init__(self, name: str, *, serializer: str = "pickle") -> None:
        self._serializer = serializer
        self._values = serialiser(serializer)
        super().__init__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _topic, (self.name, self._serializer)

    def publish(self, value: Any) -> int:
        """Give `value` to every subscription that keeps up; returns how many took it."""
        return self._ask(Verb.PUBLISH, 0, (checked(self, self._values, value, self._at().max_item),)).number

    async def apublish(self, value: Any) -> int:
        """`publish` for tasks."""
        data = checked(self, self._values, value, self._at().max_item)
        return (await self._await(Verb.PUBLISH, 0, 0, (data,))).number

    def subscribe(self, max_pending: int = 1024, slow: str = "drop") -> Subscription:
        """Get what is published from now on.

        Args:
            max_pending: values that may wait for this subscriber.
            slow: what happens when more come: it misses them ("drop", counted in `missed`), or it is ended ("close").
        """
        if slow not in ("drop", "close"):
            raise ConfigError(f"slow={slow!r}: a slow subscriber is dealt with by 'drop' or 'close'")
        pending = whole(max_pending, f"max_pending of {self!r}.subscribe", 1)
        return Subscription(self, self._ask(Verb.SUBSCRIBE, pending, (slow.encode(),)).number)

    async def asubscribe(self, max_pending: int = 1024, slow: str = "drop") -> Subscription:
        """`subscribe` for tasks."""
        return self.subscribe(max_pending, slow)


class Subscription:
    """One subscriber's values; iterable, also by `async for`.

    It ends with `close`, or when it is collected, or with the thread that used it last.
    """

    def __init__(self, topic: Topic, number: int) -> None:
        self._topic = topic
        self._number = number
        self._ready: deque[bytes] = deque()
        self._closed = False
        #: Values that it has missed, being slow.
        self.missed = 0

    def get(self, timeout: float | None = None) -> Any:
        """The next value; wait for it for at most `timeout` seconds.

        Raises:
            queue.Empty: none came in time.
            ClosedError: it is closed, or was ended for being slow.
            WouldBlock: this thread turns a reactor or a loop.
        """
        if not self._ready:
            self._take(self._topic._wait(Verb.RECEIVE, seconds(timeout), self._number))
        return self._topic._values.load(self._ready.popleft())

    async def aget(self, timeout: float | None = None) -> Any:
        """`get` for tasks."""
        if not self._ready:
            self._take(await self._topic._await(Verb.RECEIVE, seconds(timeout), self._number))
        return self._topic._values.load(self._ready.popleft())

    def _take(self, reply: Reply) -> None:
        if reply.status == Status.CLOSED or self._closed:
            self._closed = True
            raise ClosedError(f"the subscription of {self._topic!r} is closed, or was too slow for slow='close'")
        if reply.status != Status.OK:
            raise queue.Empty
        self.missed = reply.number
        self._ready.extend(reply.fields)

    def close(self) -> None:
        """End it; again does nothing."""
        if not self._closed:
            self._closed = True
            self._topic._tell(Verb.UNSUBSCRIBE, self._number)

    def __iter__(self) -> Iterator[Any]:
        while not self._closed:
            try:
                value = self.get()
            except LongshoreError as error:
                # Once it is closed the place may be left as well, and whichever came first ends the wait.
                if self._closed or isinstance(error, ClosedError):
                    return
                raise
            yield value

    async def __aiter__(self) -> AsyncIterator[Any]:
        while not self._closed:
            try:
                value = await self.aget()
            except LongshoreError as error:
                # Once it is closed the place may be left as well, and whichever came first ends the wait.
                if self._closed or isinstance(error, ClosedError):
                    return
                raise
            yield value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (LongshoreError, OSError, AttributeError):
            # The place is gone, and the subscription with it.
            pass


def _topic(name: str, serializer: str) -> Topic:
    return Topic(name, serializer=serializer)
