"""What `map` and `imap_unordered` return: results as they come, to be iterated over where one may wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.shared.pool.waiting import Promise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from longshore.shared.pool.waiting import Future

__all__ = ("Results", "Unordered")


class Results:
    """The results of a map, in order.

    An iterator, as `Executor.map` promises, and with the whole as `multiprocessing.Pool.map` returns it: printing,
    comparing, indexing and `len` wait for all of them.  `async for` awaits each.
    """

    def __init__(self, futures: list[Future], timeout: float | None) -> None:
        self._futures = futures
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._iterator = self._iterate()

    def _iterate(self) -> Iterator[Any]:
        done = False
        try:
            for future in self._futures:
                yield from future.result(self._left())
            done = True
        finally:
            if not done:
                # Nobody will ask for what is left.
                self.cancel()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> None:
        """End what is not over."""
        for future in self._futures:
            future.cancel()

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def next(self, timeout: float | None = None) -> Any:
        """The next result, as `multiprocessing`'s iterators give it.

        Raises:
            TimeoutError: it is not there in time; ask again.
            StopIteration: that was all.
        """
        if timeout is not None:
            for future in self._futures:
                if not future.done():
                    future.exception(timeout)
                    break
        return next(self._iterator)

    async def __aiter__(self) -> AsyncIterator[Any]:
        import asyncio

        for future in self._futures:
            for value in await asyncio.wrap_future(future):
                yield value

    def _whole(self) -> list[Any]:
        return [value for future in self._futures for value in future.result(self._left())]

    def get(self, timeout: float | None = None) -> list[Any]:
        """All of them, as `multiprocessing`'s `map_async` gives them."""
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        return self._whole()

    def __len__(self) -> int:
        return len(self._whole())

    def __getitem__(self, index: Any) -> Any:
        return self._whole()[index]

    def __eq__(self, other: object) -> bool:
        return self._whole() == (other._whole() if isinstance(other, Results) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._whole())


class Unordered:
    """Results as they come, of tasks that are submitted as they are taken: an endless input is fine.

    `submit_next()` submits one more task and returns its future, or None at the end of the input.
    """

    def __init__(
        self,
        submit_next: Callable[[], Future | None],
        window: int,
        timeout: float | None,
    ) -> None:
        self._submit_next = submit_next
        self._window = window
        self._timeout = timeout
        self._lock = threading.Lock()
        self._done: deque[Future] = deque()
        self._open: set[Future] = set()
        self._values: deque[Any] = deque()
        self._slot: Promise | None = None
        self._exhausted = False
        self._top_up()

    def _top_up(self) -> None:
        while not self._exhausted and len(self._open) + len(self._done) < self._window:
            future = self._submit_next()
            if future is None:
                self._exhausted = True
                return
            with self._lock:
                self._open.add(future)
            future.add_done_callback(self._came)

    def _came(self, future: Any) -> None:
        with self._lock:
            self._open.discard(future)
            self._done.append(future)
            slot, self._slot = self._slot, None
        if slot is not None and slot.set_running_or_notify_cancel():
            slot.set_result(None)

    def _wanted(self) -> Promise | None:
        """What is done when the next one has come; None if it is there."""
        with self._lock:
            if self._done or not self._open:
                return None
            self._slot = Promise()
            return self._slot

    def _take(self) -> None:
        future = self._done.popleft()
        self._values.extend(future.result(0))

    def __iter__(self) -> Unordered:
        return self

    def __next__(self) -> Any:
        return self.next(self._timeout)

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            TimeoutError: none has come in time; ask again.
            StopIteration: that was all.
        """
        while not self._values:
            self._top_up()
            slot = self._wanted()
            if slot is not None:
                slot.result(timeout)
            if not self._done:
                raise StopIteration
            self._take()
        self._top_up()
        return self._values.popleft()

    def __aiter__(self) -> Unordered:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        while not self._values:
            self._top_up()
            slot = self._wanted()
            if slot is not None:
                await asyncio.wrap_future(slot)
            if not self._done:
                raise StopAsyncIteration
            self._take()
        self._top_up()
        return self._values.popleft()

    def close(self) -> None:
        """End what is not over."""
        self._exhausted = True
        for future in tuple(self._open):
            future.cancel()
