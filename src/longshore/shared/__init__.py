"""Shared primitives and the pool: one name, one object, for all who are joined to the same place.

Methods are those of `threading`, `queue` and `dict`; each that may wait blocks a thread, parks a greenlet, and has a
twin with an `a` in front to be awaited.  What a handler run, a thread or a task holds is released when it ends, or
when its process dies.  The place is a broker of this machine, which the first use starts, unless the environment or
`join` names one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.shared.dialect import Manager as Manager
    from longshore.shared.joining import address as address
    from longshore.shared.joining import join as join
    from longshore.shared.joining import leave as leave
    from longshore.shared.lock import Lock as Lock
    from longshore.shared.lock import RLock as RLock
    from longshore.shared.lock import Semaphore as Semaphore
    from longshore.shared.mapping import Counter as Counter
    from longshore.shared.mapping import Dict as Dict
    from longshore.shared.pipe import Pipe as Pipe
    from longshore.shared.pool.executor import Pool as Pool
    from longshore.shared.queue import Delivery as Delivery
    from longshore.shared.queue import Queue as Queue
    from longshore.shared.signals import Barrier as Barrier
    from longshore.shared.signals import Condition as Condition
    from longshore.shared.signals import Event as Event
    from longshore.shared.starting import Broker as Broker
    from longshore.shared.starting import start_broker as start_broker
    from longshore.shared.topic import Subscription as Subscription
    from longshore.shared.topic import Topic as Topic

_HOME = {
    "dialect": ("Manager",),
    "joining": ("address", "join", "leave"),
    "lock": ("Lock", "RLock", "Semaphore"),
    "mapping": ("Counter", "Dict"),
    "pipe": ("Pipe",),
    "pool.executor": ("Pool",),
    "queue": ("Delivery", "Queue"),
    "signals": ("Barrier", "Condition", "Event"),
    "starting": ("Broker", "start_broker"),
    "topic": ("Subscription", "Topic"),
}
_HOME_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = tuple(sorted(_HOME_OF))


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.shared.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
