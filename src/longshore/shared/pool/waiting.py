"""Waiting for a pool without blocking a reactor: a thread sleeps, a greenlet parks, a loop is told to await.

The only place that decides which of these the caller is.  Here are no processes.

Facts, and what follows from them:

* `concurrent.futures.Future.result` waits on a condition, which stops whoever turns a reactor.  So ours looks where it
  is called first, unless the future is done: then nothing has to wait.
* `concurrent.futures.wait` and `as_completed` append one waiter to each future's list, and wait for its event.  So
  our futures have a list that gives the waiter an event which looks, too.
* A greenlet may only be switched to on its reactor's thread, and only while it waits for just this.  So whoever is done
  posts to the reactor, and a wake-up that comes late finds nobody.
* `cancel` of the standard library's future does nothing once the task runs.  A task of ours is a process's, which can
  be ended.  So the state of a running future stays "pending", which can be cancelled, and `running` is ours.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.errors import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.strategies.green import Parking

__all__ = ("Future", "Promise", "may_wait")


def _turned() -> str:
    """What this thread turns and must not stop: a description, or nothing."""
    if runs.running_loop() is not None:
        return "a thread that runs an asyncio loop"
    # The pool's own thread turns one as well: callbacks run there.
    return "" if runs.reactor() is None else "a thread that turns a reactor"


def may_wait() -> bool:
    """Whether the caller may be made to wait: a plain thread may, and a green handler."""
    return runs.parking() is not None or not _turned()


def _wait(when_done: Callable[[Callable[[Any], object]], object], timeout: float | None, what: str, cure: str) -> bool:
    """Wait for what `when_done` tells a callback of, as the caller may.

    Returns:
        True once it has happened, or at once where the caller may be blocked as usual; False if it was late.

    Raises:
        WouldBlock: on this thread nothing may wait.
    """
    if timeout is not None and timeout <= 0:
        return True
    parking = runs.parking()
    if parking is not None:
        return _park(parking, when_done, timeout)
    where = _turned()
    if where:
        raise WouldBlock(f"waiting for {what} would block {where}", hint=cure)
    return True


_CURE = "Await pool.run(...) or asyncio.wrap_future(future), use add_done_callback, or a strategy that may wait."


class Promise(concurrent.futures.Future[Any]):
    """A future that may be waited for from a thread and from a green handler, and that refuses to block a reactor.

    Alone, with `result`, and beside others, with `concurrent.futures.wait` and `as_completed`.
    """

    #: What is waited for, as the refusal says it.
    what = "the result of a pool's task"
    #: And what to do instead.
    cure = _CURE

    def __init__(self) -> None:
        super().__init__()
        self._waiters = _Waiters()

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it is not done in time.
            concurrent.futures.CancelledError: it was cancelled.
            WouldBlock: it is not done, and on this thread nothing may wait.
            Exception: what the task raised.
        """
        if not self.done():
            self._wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; see `result`."""
        if not self.done():
            self._wait(timeout)
        return super().exception(timeout)

    def _wait(self, timeout: float | None) -> None:
        if not _wait(self.add_done_callback, timeout, self.what, self.cure):
            raise TimeoutError(f"{self.what} is not there within {timeout:g} s")


class _Waiters(list[Any]):
    """Who waits for a future beside others, as `concurrent.futures.wait` and `as_completed` note it down."""

    def append(self, waiter: Any) -> None:
        if type(waiter.event) is threading.Event:
            waiter.event = _Flag()
        super().append(waiter)


class _Flag(threading.Event):
    """An event on which a greenlet parks, and that refuses to block a reactor."""

    def __init__(self) -> None:
        super().__init__()
        self._hearers: deque[Callable[[Any], object]] = deque()

    def _tell(self, hearer: Callable[[Any], object]) -> None:
        self._hearers.append(hearer)
        if self.is_set():
            self.set()

    def set(self) -> None:
        super().set()
        # Others may do the same at the same time.
        with contextlib.suppress(IndexError):
            while True:
                self._hearers.popleft()(self)

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set() and not _wait(self._tell, timeout, "one of several tasks", _CURE):
            return False
        return super().wait(timeout)


def _park(parking: Parking, when_done: Callable[[Callable[[Any], object]], object], timeout: float | None) -> bool:
    """Park the current greenlet until what `when_done` is told of has happened; False if that takes too long."""
    import greenlet

    me = greenlet.getcurrent()
    hub = me
    while hub.parent is not None:
        hub = hub.parent
    waiting = [me]

    def wake(done: bool) -> None:
        # Whoever was woken by something else waits here no more.
        if waiting:
            waiting.pop().switch(done)

    # A reactor that was closed meanwhile has no greenlets left to wake.
    when_done(lambda _: None if parking.reactor.closed else parking.reactor.post(wake, True))
    timer = None if timeout is None else parking.reactor.call_later(timeout, wake, False)
    try:
        return bool(hub.switch())
    finally:
        waiting.clear()
        if timer is not None:
            timer.cancel()


class Future(Promise):
    """A task's future: `result` parks a greenlet, and `cancel` ends a task that runs already.

    It also answers to the names of `multiprocessing.pool.AsyncResult`: `get`, `wait`, `ready`, `successful`.
    """

    def __init__(self, on_cancel: Callable[[Future], object] | None = None) -> None:
        super().__init__()
        self._on_cancel = on_cancel
        self._cancelling = threading.Lock()
        #: Whether it has started.
        self.began = False
        #: What it is the future of, as its pool knows it; None once that is over.
        self.call: Any = None

    def running(self) -> bool:
        """Whether the task has started and is not over."""
        return self.began and not self.done()

    def cancel(self) -> bool:
        """Do not run the task; if it runs, end its process.

        Returns:
            False if it was over before.
        """
        with self._cancelling:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            # Tells whoever waits in `concurrent.futures.wait` and `as_completed`.
            self.set_running_or_notify_cancel()
        if self._on_cancel is not None:
            self._on_cancel(self)
        return True

    def get(self, timeout: float | None = None) -> Any:
        """As `result`."""
        return self.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Return once the task is over, or after `timeout` seconds."""
        try:
            self.exception(timeout)
        except (TimeoutError, concurrent.futures.CancelledError):
            pass

    def ready(self) -> bool:
        """As `done`."""
        return self.done()

    def successful(self) -> bool:
        """Whether it has returned and not raised.

        Raises:
            ValueError: it is not over.
        """
        if not self.done():
            raise ValueError(f"{self!r} is not ready")
        return not self.cancelled() and super().exception(0) is None
