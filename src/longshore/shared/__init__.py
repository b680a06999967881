"""Shared primitives and the pool: what the workers of a server need to work together, and to leave the reactor.

Names are imported when they are first used, as in `longshore` itself: a process of a pool comes through here too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.shared.pool.executor import Pool as Pool

_HOME_OF = {"Pool": "pool.executor"}

__all__ = ("Pool",)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.shared.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
