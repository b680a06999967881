"""Handler runs: which one the caller is in, and what is done when it is over.

A *run* is one call of a handler (for a message handler: with one message, or batch), or outside of handlers one thread
or task.  Most handlers never ask for theirs, so there is none until somebody does, and a strategy pays one look at
`touched` for it.  This file knows no primitive and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("Run", "current", "over", "parking", "reactor", "running_loop", "touched", "turned_by", "turning")

#: The reactor that each thread turns, by the thread's number.
turning: dict[int, Any] = {}
#: Whether anybody in this process has ever asked for his run: a list, so that a strategy may hold it.
touched: list[bool] = []

_numbers = itertools.count(1)
_tasks: dict[Any, Run] = {}


class _Local(threading.local):
    run: Run | None = None


_local = _Local()


class Run:
    """One run; `number` is no other's in this process."""

    __slots__ = ("__weakref__", "endings", "number")

    def __init__(self) -> None:
        self.number = next(_numbers)
        #: What is called with the number when the run is over.
        self.endings: dict[Callable[[int], object], None] = {}

    def end(self) -> None:
        """It is over."""
        while self.endings:
            ending, _ = self.endings.popitem()
            ending(self.number)

    def __del__(self) -> None:
        # The thread or greenlet that it belonged to is gone.
        if self.endings and not sys.is_finalizing():
            self.end()


def parking() -> Any:
    """Where the green handler that calls this may wait; None anywhere else."""
    green = sys.modules.get("longshore.strategies.green")
    return None if green is None else green.parking()


@contextlib.contextmanager
def turned_by(reactor: Any) -> Iterator[None]:
    """Inside, this thread turns `reactor`; None: it is a handler's, to block, although a reactor turns around it.

    What the thread holds is its own, and no handler's that is called inside.
    """
    me = threading.get_ident()
    before, own = turning.pop(me, None), _local.run
    _local.run = None
    if reactor is not None:
        turning[me] = reactor
    try:
        yield
    finally:
        _thread_over()
        _local.run = own
        turning.pop(me, None)
        if before is not None:
            turning[me] = before


def running_loop() -> Any:
    """The asyncio loop that runs on this thread; None if there is none."""
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


def reactor() -> Any:
    """The reactor that this thread turns; None if there is none."""
    return turning.get(threading.get_ident())


def current() -> Run:
    """The run that the caller is in."""
    green = sys.modules.get("greenlet")
    if green is not None and parking() is not None:
        me = green.getcurrent()
        run = getattr(me, "run_of_shared", None)
        if run is None:
            run = me.run_of_shared = _fresh()
        return run
    if running_loop() is not None:
        task = sys.modules["asyncio"].current_task()
        if task is not None:
            run = _tasks.get(task)
            if run is None:
                run = _tasks[task] = _fresh()
                task.add_done_callback(_task_over)
            return run
    run = _local.run
    if run is None:
        run = _local.run = _fresh()
        turner = turning.get(threading.get_ident())
        if turner is not None:
            # On the reactor itself no call of a handler outlives the turn.
            turner.again(_thread_over)
    return run


def over() -> None:
    """The handler that ran here has returned; what runs here next is another run."""
    green = sys.modules.get("greenlet")
    run: Run | None = None
    if green is not None and parking() is not None:
        me = green.getcurrent()
        run = getattr(me, "run_of_shared", None)
        me.run_of_shared = None
    elif running_loop() is not None:
        run = _tasks.pop(sys.modules["asyncio"].current_task(), None)
    else:
        run, _local.run = _local.run, None
    if run is not None:
        run.end()


def _thread_over() -> None:
    run, _local.run = _local.run, None
    if run is not None:
        run.end()


def _task_over(task: Any) -> None:
    run = _tasks.pop(task, None)
    if run is not None:
        run.end()


def _forked() -> None:
    """In a child: the runs that it has a copy of are its parent's."""
    for run in [_local.run, *_tasks.values()]:
        if run is not None:
            run.endings.clear()
    _local.run = None
    _tasks.clear()
    turning.clear()


os.register_at_fork(after_in_child=_forked)


def _fresh() -> Run:
    if not touched:
        touched.append(True)
    return Run()
