"""What runs on a Dask worker: a local pool, for each pool of a client that has sent it something.

The only code of the pool that runs there.  A worker's pool has as many processes as the worker has threads, so that a
task that Dask has started never waits for one.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import pickle
import threading

from longshore.shared.pool.contract import Call, Options
from longshore.shared.pool.local import Local
from longshore.shared.pool.waiting import Future
from longshore.strategies.wire import pack_error

__all__ = ("FAILED", "RETURNED", "cancel_there", "close_there", "run_there")

#: How a task has ended.
RETURNED, FAILED = "returned", "failed"

_lock = threading.Lock()
_pools: dict[str, Local] = {}
_calls: dict[tuple[str, int], _Call] = {}
#: Calls that were cancelled and are not here: Dask may have them on their way to a thread of this worker.
_cancelled: dict[tuple[str, int], None] = {}
#: So many of them are known, as most of them never come: every worker is told of every cancellation.
REMEMBERED = 4096


class _Call(Call):
    """A call whose outcome stays as it came: it is for the client to unpickle."""

    pool: Local | None = None

    def finish(self, payload: bytes | bytearray) -> None:
        """Keep what it has returned."""
        self._tell(self.future.set_result, (RETURNED, bytes(payload)))

    def fail_packed(self, payload: bytes | bytearray) -> None:
        """Keep what it has raised."""
        self._tell(self.future.set_result, (FAILED, bytes(payload)))

    def fail(self, error: BaseException) -> None:
        """Keep why it has failed."""
        self._tell(self.future.set_result, (FAILED, pickle.dumps(pack_error(error))))


def run_there(options: bytes, number: int, payload: bytes, name: str, timeout: float | None) -> tuple[str, bytes]:
    """Run a call in a process of this worker, and wait for it.

    Returns:
        `RETURNED` and the pickled value, or `FAILED` and the packed error.
    """
    pool_name, packed = pickle.loads(options)
    key = pool_name, number
    future = Future(_end)
    call = future.call = _Call(future, payload, name, timeout)
    with _lock:
        if key in _cancelled:
            return FAILED, pickle.dumps(pack_error(concurrent.futures.CancelledError()))
        _calls[key] = call
    try:
        # One that is cancelled from here on is dropped by the pool.
        call.pool = _pool(pool_name, packed)
        call.pool.submit(call)
        outcome: tuple[str, bytes] = concurrent.futures.Future.result(future)
    except concurrent.futures.CancelledError as error:
        return FAILED, pickle.dumps(pack_error(error))
    except Exception as error:
        return FAILED, pickle.dumps(pack_error(error))
    finally:
        with _lock:
            _calls.pop(key, None)
    return outcome


def _end(future: Future) -> None:
    call = future.call
    if call is not None and call.pool is not None:
        call.pool.cancel(call)


def _pool(name: str, packed: bytes) -> Local:
    with _lock:
        pool = _pools.get(name)
        if pool is None:
            from distributed import get_worker

            options: Options = pickle.loads(packed)
            pool = _pools[name] = Local(get_worker().state.nthreads, options)
        return pool


def cancel_there(options: bytes, number: int) -> None:
    """End a call that runs on this worker, or that is about to."""
    key = (pickle.loads(options)[0], number)
    with _lock:
        call = _calls.get(key)
        if call is None:
            _cancelled[key] = None
            while len(_cancelled) > REMEMBERED:
                del _cancelled[next(iter(_cancelled))]
    if call is not None:
        call.future.cancel()


def close_there(options: bytes) -> None:
    """The client is gone: end its pool on this worker."""
    with _lock:
        pool = _pools.pop(pickle.loads(options)[0], None)
    if pool is not None:
        pool.close(lambda: None)


@atexit.register
def _end_all() -> None:
    with _lock:
        calls = tuple(_calls.values())
        pools = tuple(_pools.values())
        _pools.clear()
    for call in calls:
        call.future.cancel()
    for pool in pools:
        pool.close(lambda: None)
        pool.join()
