"""`Pool`: an executor whose tasks have a time limit that is kept, and whose processes may die.

What users hold.  It pickles calls, counts what is not over, and refuses to block a reactor; what runs the calls is a
backend (`contract.py`).
"""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import pickle
import threading
import weakref
from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from longshore.errors import ConfigError
from longshore.machine import usable_cpus
from longshore.shared.pool.contract import Call, Options, Unpicklable, call_each, describe_call, pack_call
from longshore.shared.pool.results import Coming, Ordered, Results, Unordered
from longshore.shared.pool.room import Room
from longshore.shared.pool.waiting import Future, Promise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from longshore.shared.pool.contract import Backend

__all__ = ("Pool", "PoolStatistics")

T = TypeVar("T")
C = TypeVar("C", bound=Coming)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool's figures."""

    pending: int
    """Tasks that are not over, those that run included."""
    running: int
    """Tasks that run, as far as this side knows."""
    processes: int
    """Processes that there are now."""
    died: int
    """Processes that have died in a task or of themselves."""
    recycled: int
    """Processes that were replaced because of their tasks, age or memory."""
    done: int
    """Tasks that have returned."""
    failed: int
    """Tasks that have raised, took too long, or whose process died."""
    cancelled: int
    """Tasks that were cancelled."""


class _Closed(Promise):
    what = "the end of the pool's tasks"
    cure = 'Use "async with", or shutdown(wait=False).'


class Pool(concurrent.futures.Executor):
    """Runs functions in other processes: an executor of `concurrent.futures`, for work that needs a processor.

    Args:
        place: how many processes (None: one for each processor), or `dask://host:port`, the scheduler of a cluster.
        initializer, initargs: called in each process before its first task; if it raises, that is every task's error.
        max_tasks: tasks after which a process is replaced.
        max_age: seconds after which an idle process is replaced.
        max_memory: bytes of resident memory above which an idle process is replaced.
        max_task_memory: bytes by which one task may grow its process; if it needs more it fails with `LimitExceeded`.
        max_pending: tasks that may be submitted and not be over.  Above it `submit` waits where it may wait (a thread,
            a green handler) and is refused with `LimitExceeded` where it must not; `await pool.run(...)` waits.
        timeout: seconds that a task may take from its start, unless `submit` says otherwise.
        processes: another name for `place`, which `multiprocessing` has taught.

    A process is started when there is a task for it, by a process of its own that has one thread; nothing is ever
    forked from this one.  One that dies costs the task that it ran, which fails with `WorkerDied`, and is replaced.
    Functions, arguments and results are pickled; those of the program's `__main__` work as with `multiprocessing`.

    Raises:
        ConfigError: an argument cannot be used.

    Example:
        >>> with Pool(2) as pool:
        ...     future = pool.submit(pow, 2, 10, timeout=5)
        ...     print(future.result())
        1024
    """

    def __init__(
        self,
        place: int | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks: int | None = None,
        *,
        max_age: float | None = None,
        max_memory: int | None = None,
        max_task_memory: int | None = None,
        max_pending: int = 10_000,
        timeout: float | None = None,
        processes: int | None = None,
    ) -> None:
        if processes is not None:
            if place is not None:
                raise ConfigError(f"Pool({place!r}, processes={processes!r}): one of them says how many")
            place = processes
        options = Options(
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=max_tasks,
            max_age=max_age,
            max_memory=max_memory,
            max_task_memory=max_task_memory,
        )
        if isinstance(max_pending, bool) or not isinstance(max_pending, int) or max_pending < 1:
            raise ConfigError(f"Pool(max_pending={max_pending!r}): must be a whole number of at least 1")
        _check_timeout("Pool", timeout)
        self._timeout = timeout
        self._backend, self._dumps = _backend(place, options)
        self.place = place
        self._room = Room(max_pending)
        #: The futures of tasks that are not over.
        self._open: set[Future] = set()
        #: How many tasks have ended, by how; done, failed, cancelled.
        self._ended = [0, 0, 0]
        self._counting = threading.Lock()
        self._shut = False
        self._closed = _Closed()
        _pools.add(self)
        # One that nobody holds any more has no tasks left, and needs no processes.
        weakref.finalize(self, self._backend.close, _nothing).atexit = False

    def __repr__(self) -> str:
        state = "shut down" if self._shut else f"{self._room.used} tasks pending"
        return f"<Pool {self.place if isinstance(self.place, str) else self._backend.processes} ({state})>"

    # -- tasks -----------------------------------------------------------------------------------------

    def submit(  # type: ignore[override]  # `timeout` is the task's
        self, fn: Callable[..., Any], /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Future:
        """Run `fn(*args, **kwargs)` in a process.

        Args:
            timeout: seconds from its start; then its process is killed, and the future raises `Timeout`.

        Raises:
            LimitExceeded: there are `max_pending` tasks, and this thread must not wait.
            PoolClosed: the pool was shut down.
            WorkerDied: no process of this pool can be made ready.
        """
        _check_timeout("submit", timeout)
        self._room.take()
        return self._begin(fn, args, kwargs, timeout)

    async def run(self, fn: Callable[..., T], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> T:
        """Run `fn(*args, **kwargs)` in a process and await what it returns; cancelling ends the task.

        Raises:
            Timeout: it took longer than `timeout` seconds from its start.
            Exception: what it raised.
        """
        import asyncio

        _check_timeout("run", timeout)
        slot = self._room.ask()
        if slot is not None:
            try:
                await asyncio.wrap_future(slot)
            except BaseException:
                if not slot.cancelled() and slot.exception(0) is None:
                    self._room.release()
                raise
        return await asyncio.wrap_future(self._begin(fn, args, kwargs, timeout))

    def _begin(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Future:
        """Submit a call for which there is room."""
        future = Future(self._cancelled)
        future.add_done_callback(self._over)
        try:
            payload = pack_call(fn, args, kwargs, self._dumps)
        except Unpicklable as error:
            future.set_exception(error)
            return future
        call = Call(future, payload, describe_call(fn, args), self._timeout if timeout is None else timeout)
        future.call = call
        self._open.add(future)
        try:
            self._backend.submit(call)
        except BaseException:
            self._over(future)
            raise
        return future

    def _over(self, future: Any) -> None:
        self._open.discard(future)
        self._room.release()
        if future.done():
            with self._counting:
                self._ended[2 if future.cancelled() else future.exception(0) is not None] += 1

    def _cancelled(self, future: Future) -> None:
        call = future.call
        if call is not None:
            self._backend.cancel(call)

    # -- many tasks ------------------------------------------------------------------------------------

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        task_timeout: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Results:
        """Call `fn` with the items of the iterables, as `Executor.map` does; results come in order.

        Args:
            timeout: seconds from now that whoever iterates waits at most.
            chunksize: how many calls make up one task.
            task_timeout: seconds for each task.
            progress: called as `progress(done, total)` when calls are over, on the pool's thread.
        """
        return self._map(fn, zip(*iterables, strict=False), timeout, chunksize, task_timeout, progress)

    def starmap(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        task_timeout: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Results:
        """As `map`, where each item of `iterable` holds the arguments of one call."""
        return self._map(fn, map(tuple, iterable), timeout, chunksize, task_timeout, progress)

    def _map(
        self,
        fn: Any,
        calls: Iterable[tuple[Any, ...]],
        timeout: float | None,
        chunksize: int | None,
        task_timeout: float | None,
        progress: Callable[[int, int], object] | None,
    ) -> Results:
        chunks = list(_chunks(calls, _checked_chunksize(chunksize)))
        count = _Progress(progress, sum(map(len, chunks)))
        futures: list[Future] = []
        try:
            for chunk in chunks:
                future = self.submit(call_each, fn, chunk, timeout=task_timeout)
                futures.append(future)
                count.follow(future, len(chunk))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return Results(futures, timeout)

    def imap_unordered(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        task_timeout: float | None = None,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> Unordered:
        """Call `fn` with each item; results come as they are ready.

        The input is taken as results are: at most four tasks for each process are under way.

        Args:
            progress: called as `progress(done, total)` on the pool's thread; `total` is None where `iterable` has no
                length.
        """
        return self._imap(Unordered, fn, iterable, chunksize, timeout, task_timeout, progress)

    def imap(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        task_timeout: float | None = None,
        progress: Callable[[int, int | None], object] | None = None,
    ) -> Ordered:
        """As `imap_unordered`, but results come in order."""
        return self._imap(Ordered, fn, iterable, chunksize, timeout, task_timeout, progress)

    def _imap(
        self,
        kind: Callable[..., C],
        fn: Any,
        iterable: Iterable[Any],
        chunksize: int,
        timeout: float | None,
        task_timeout: float | None,
        progress: Callable[[int, int | None], object] | None,
    ) -> C:
        chunks = _chunks(((item,) for item in iterable), _checked_chunksize(chunksize))
        count = _Progress(progress, len(iterable) if isinstance(iterable, Sized) else None)

        def submit_next() -> Future | None:
            chunk = next(chunks, None)
            if chunk is None:
                return None
            future = self.submit(call_each, fn, chunk, timeout=task_timeout)
            count.follow(future, len(chunk))
            return future

        return kind(submit_next, min(4 * max(1, self._backend.processes), self._room.limit), timeout)

    # -- as multiprocessing calls it -------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> Any:
        """`submit(...).result()`."""
        return self.submit(func, *args, **(kwds or {})).result()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Future:
        """`submit`; the callbacks get the result, or the error, on the pool's thread."""
        future = self.submit(func, *args, **(kwds or {}))

        def over(_: Any) -> None:
            error = concurrent.futures.CancelledError() if future.cancelled() else future.exception(0)
            if error is None and callback is not None:
                callback(future.result(0))
            elif error is not None and error_callback is not None:
                error_callback(error)

        if callback is not None or error_callback is not None:
            future.add_done_callback(over)
        return future

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[Exception], object] | None = None,
    ) -> Results:
        """`map`; `get(timeout)` gives the list, and so do the callbacks, on the pool's thread."""
        return self.starmap_async(func, ((item,) for item in iterable), chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[Exception], object] | None = None,
    ) -> Results:
        """`starmap`, as `map_async`."""
        return self._map(func, map(tuple, iterable), None, chunksize, None, None).tell(callback, error_callback)

    def close(self) -> None:
        """Take no more tasks, and end when those that there are are over."""
        self.shutdown(wait=False)

    def terminate(self) -> None:
        """End at once: tasks that are not over are cancelled, those that run as well."""
        self.shutdown(wait=False)
        for future in tuple(self._open):
            future.cancel()

    def join(self) -> None:
        """Return once it has ended.

        Raises:
            ValueError: neither `close`, `terminate` nor `shutdown` was called.
        """
        if not self._shut:
            raise ValueError("the pool is still open: close() or terminate() it before join()")
        self._wait_closed()

    # -- the end ---------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end when those that there are are over.

        Args:
            wait: whether to return only when it has ended; then no process, thread or descriptor is left.
            cancel_futures: cancel the tasks that have not started.

        Raises:
            WouldBlock: it has not ended, and this thread must not wait; it ends nevertheless.
        """
        self._request_end(cancel_futures)
        if wait:
            self._wait_closed()

    def _request_end(self, cancel_futures: bool) -> None:
        if not self._shut:
            self._shut = True
            self._room.close()
            self._backend.close(self._has_closed)
        if cancel_futures:
            for future in tuple(self._open):
                if not future.began:
                    future.cancel()

    def _has_closed(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _wait_closed(self) -> None:
        self._closed.result()
        self._backend.join()

    def __exit__(self, kind: Any, error: Any, trace: TracebackType | None) -> None:
        self.shutdown(wait=True)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        import asyncio

        self._request_end(cancel_futures=False)
        await asyncio.wrap_future(self._closed)
        self._backend.join()

    def statistics(self) -> PoolStatistics:
        """The pool's figures."""
        done, failed, cancelled = self._ended
        ended = {"done": done, "failed": failed, "cancelled": cancelled}
        return PoolStatistics(pending=self._room.used, **ended, **self._backend.figures())


class _Progress:
    """Counts the calls of a map that are over."""

    def __init__(self, tell: Callable[..., object] | None, total: int | None) -> None:
        self._tell = tell
        self._total = total
        self._count = 0

    def follow(self, future: Future, calls: int) -> None:
        """Count `calls` when `future` is done."""
        if self._tell is not None:
            future.add_done_callback(lambda _: self._over(calls))

    def _over(self, calls: int) -> None:
        self._count += calls
        if self._tell is not None:
            self._tell(self._count, self._total)


def _backend(place: int | str | None, options: Options) -> tuple[Backend, Callable[[Any], bytes]]:
    if isinstance(place, str):
        if not place.startswith("dask://"):
            raise ConfigError(
                f"Pool({place!r}): no such place", hint="A number of processes, None, or dask://host:port."
            )
        from longshore.shared.pool import cluster

        return cluster.Cluster(place, options), cluster.dumps
    if place is None:
        place = usable_cpus()
    if isinstance(place, bool) or not isinstance(place, int) or place < 1:
        raise ConfigError(f"Pool({place!r}): the number of processes must be a whole number of at least 1")
    from longshore.shared.pool.local import Local

    return Local(place, options), _dumps


def _dumps(value: Any) -> bytes:
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _check_timeout(what: str, timeout: float | None) -> None:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0):
        raise ConfigError(f"{what}(timeout={timeout!r}): must be a number of seconds above 0, or None")


def _checked_chunksize(chunksize: int | None) -> int:
    if chunksize is None:
        return 1
    if chunksize < 1:
        raise ValueError(f"chunksize={chunksize!r}: must be at least 1")
    return chunksize


def _chunks(calls: Iterable[tuple[Any, ...]], size: int) -> Any:
    iterator = iter(calls)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _nothing() -> None:
    """Nobody waits for the end of a pool that nobody holds."""


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """At the interpreter's exit tasks are waited for, as every executor does."""
    for pool in tuple(_pools):
        if not pool._shut:
            pool.shutdown(wait=True)
