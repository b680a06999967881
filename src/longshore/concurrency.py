"""Waiting, spawning and thread-locals that are right under every strategy.

A green handler parks instead of blocking its reactor; anywhere else these are the plain calls.  Async
handlers have the twins that are awaited.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.strategies.green import Parking

__all__ = ("asleep", "current_parking", "local", "sleep", "spawn", "to_thread")


def current_parking() -> Parking | None:
    """Where the green handler that calls this may wait; None anywhere else."""
    # Without the green strategy loaded there is no green handler, and greenlet need not be imported to know.
    green = sys.modules.get("longshore.strategies.green")
    parking: Parking | None = None if green is None else green.parking()
    return parking


def sleep(seconds: float) -> None:
    """Wait for `seconds`; a green handler lets the others run meanwhile."""
    parking = current_parking()
    if parking is None:
        time.sleep(seconds)
    else:
        parking.sleep(seconds)


async def asleep(seconds: float) -> None:
    """Wait for `seconds` in an async handler."""
    import asyncio

    await asyncio.sleep(seconds)


def spawn(function: Callable[..., Any], *args: Any) -> None:
    """Run `function(*args)` beside the caller: in a greenlet under `green`, else in a daemon thread."""
    import contextvars

    context = contextvars.copy_context()
    parking = current_parking()
    if parking is None:
        threading.Thread(target=context.run, args=(function, *args), daemon=True).start()
    else:
        parking.reactor.again(lambda: parking.spawn(function, *args, context=context))


def to_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that blocks, and return its result; a green handler lets the others run meanwhile."""
    parking = current_parking()
    if parking is None:
        return function(*args, **kwargs)
    return parking.wait_for_thread(function, args, kwargs)


class local:  # the name that threading has taught
    """Attributes of their own for each thread, and under `green` for each greenlet."""

    def __init__(self) -> None:
        object.__setattr__(self, "_values", threading.local())

    def _store(self) -> Any:
        green = sys.modules.get("greenlet")
        values = object.__getattribute__(self, "_values")
        if green is None:
            return values.__dict__
        current = green.getcurrent()
        if current.parent is None:
            return values.__dict__
        # By weak references: another one may get the place in memory, and its id, that this one has now.
        stores = current.__dict__.setdefault("_longshore_locals", WeakKeyDictionary())
        return stores.setdefault(self, {})

    def __getattr__(self, name: str) -> Any:
        try:
            return self._store()[name]
        except KeyError:
            raise AttributeError(f"this thread has set no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._store()[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._store()[name]
        except KeyError:
            raise AttributeError(f"this thread has set no {name!r}") from None
