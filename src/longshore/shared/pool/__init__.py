"""The pool: functions that need a processor, in processes that may die.

One contract (`contract.py`), two implementations: `local.py`, processes on this machine, and `cluster.py`, the same on
the workers of a Dask cluster, each of which runs such a local pool.  What users hold is `executor.py`, an executor as
`concurrent.futures` defines it; how it waits without blocking a reactor is `waiting.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshore.shared.pool.contract import PoolClosed as PoolClosed
    from longshore.shared.pool.contract import Unpicklable as Unpicklable
    from longshore.shared.pool.executor import Pool as Pool
    from longshore.shared.pool.waiting import Future as Future

_HOME_OF = {"Future": "waiting", "Pool": "executor", "PoolClosed": "contract", "Unpicklable": "contract"}

__all__ = ("Future", "Pool", "PoolClosed", "Unpicklable")


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"longshore.shared.pool.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
