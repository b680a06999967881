"""What maps return: results to be iterated over where one may wait.

`Results` are those of tasks that were submitted together, as `map` and `starmap` promise; `Coming` are those of tasks
that are submitted as results are taken, in order (`imap`) or as they are ready (`imap_unordered`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.shared.pool.waiting import Promise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from longshore.shared.pool.waiting import Future

__all__ = ("Coming", "Ordered", "Results", "Unordered")


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

    def wait(self, timeout: float | None = None) -> None:
        """Return once all are over, or after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for future in self._futures:
            future.wait(None if end is None else max(0.0, end - time.monotonic()))

    def ready(self) -> bool:
        """Whether all are over."""
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether none has raised.

        Raises:
            ValueError: they are not over.
        """
        return not [future for future in self._futures if not future.successful()]

    def tell(
        self, callback: Callable[[list[Any]], object] | None, error_callback: Callable[[Exception], object] | None
    ) -> Results:
        """Call one of them when all are over, on the pool's thread."""
        over = itertools.count(1)

        def count(_: Any) -> None:
            if next(over) < len(self._futures):
                return
            try:
                values = self._whole()
            except Exception as error:
                if error_callback is not None:
                    error_callback(error)
            else:
                if callback is not None:
                    callback(values)

        for future in self._futures:
            future.add_done_callback(count)
        return self

    def __len__(self) -> int:
        return len(self._whole())

    def __getitem__(self, index: Any) -> Any:
        return self._whole()[index]

    def __eq__(self, other: object) -> bool:
        return self._whole() == (other._whole() if isinstance(other, Results) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._whole())


class Coming:
    """Results of tasks that are submitted as they are taken: an endless input is fine.

    One that is an error is raised in its turn, and the others follow.

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
        self._open: deque[Future] = deque()
        self._values: deque[Any] = deque()
        self._exhausted = False
        self._top_up()

    def _top_up(self) -> None:
        while not self._exhausted and self._under_way() < self._window:
            future = self._submit_next()
            if future is None:
                self._exhausted = True
                return
            self._open.append(future)
            self._follow(future)

    def _under_way(self) -> int:
        """Tasks whose results were not taken."""
        return len(self._open)

    def _follow(self, future: Future) -> None:
        """A task was submitted."""

    def _wanted(self) -> Promise | None:
        """What is done when the next one has come; None if it is there, or none will come."""
        raise NotImplementedError

    def _come(self) -> Future | None:
        """The next one, which is done; None if there is none."""
        raise NotImplementedError

    def _take(self, end: type[Exception]) -> None:
        future = self._come()
        if future is None:
            raise end
        self._values.extend(future.result(0))

    def __iter__(self) -> Coming:
        return self

    def __next__(self) -> Any:
        return self.next(self._timeout)

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            TimeoutError: it has not come in time; ask again.
            StopIteration: that was all.
        """
        while not self._values:
            self._top_up()
            slot = self._wanted()
            if slot is not None:
                slot.result(timeout)
            self._take(StopIteration)
        self._top_up()
        return self._values.popleft()

    def __aiter__(self) -> Coming:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        while not self._values:
            self._top_up()
            slot = self._wanted()
            if slot is not None:
                await asyncio.wrap_future(slot)
            self._take(StopAsyncIteration)
        self._top_up()
        return self._values.popleft()

    def close(self) -> None:
        """End what is not over."""
        self._exhausted = True
        for future in tuple(self._open):
            future.cancel()


class Ordered(Coming):
    """Results in the order of their calls."""

    def _wanted(self) -> Promise | None:
        if not self._open or self._open[0].done():
            return None
        slot = Promise()
        self._open[0].add_done_callback(lambda _: _fill(slot))
        return slot

    def _come(self) -> Future | None:
        return self._open.popleft() if self._open else None


class Unordered(Coming):
    """Results as they are ready."""

    def __init__(self, *args: Any) -> None:
        self._lock = threading.Lock()
        self._done: deque[Future] = deque()
        self._slot: Promise | None = None
        super().__init__(*args)

    def _under_way(self) -> int:
        with self._lock:
            return len(self._open) + len(self._done)

    def _follow(self, future: Future) -> None:
        future.add_done_callback(self._came)

    def _came(self, future: Any) -> None:
        with self._lock:
            self._open.remove(future)
            self._done.append(future)
            slot, self._slot = self._slot, None
        if slot is not None:
            _fill(slot)

    def _wanted(self) -> Promise | None:
        with self._lock:
            if self._done or not self._open:
                return None
            self._slot = Promise()
            return self._slot

    def _come(self) -> Future | None:
        return self._done.popleft() if self._done else None


def _fill(slot: Promise) -> None:
    """What a slot waits for is there, if anybody still waits."""
    if slot.set_running_or_notify_cancel():
        slot.set_result(None)
