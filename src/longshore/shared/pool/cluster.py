"""The same pool on a Dask cluster: the scheduler finds a worker, and there the task runs in a process of its own.

Dask runs a task on a thread of a worker, where nothing can end it.  So what Dask gets to run is `remote.run_there`,
which hands the task to a local pool of that worker, and timeouts, deaths and memory limits are the local pool's.

Facts, and what follows from them:

* Dask runs a task again if the *worker* that has it is lost, and gives up with `KilledWorker` after some (its setting
  `distributed.scheduler.allowed-failures`).  So a task may run twice when a worker dies, but not when its process does.
* A running task hears nothing of `cancel`.  So cancelling also tells the workers, out of band.
* A client that has lost its scheduler cancels all of its futures.  So whoever did not cancel gets `BrokerLost`.
* A cluster has another `__main__`.  So calls are pickled by cloudpickle, which comes with Dask and sends what is
  defined there by value; what is in modules must be importable on the workers, as must Longshore.

Nothing here knows how tasks run.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pickle
import threading
import uuid
from typing import TYPE_CHECKING, Any

from longshore.errors import AddressUnavailable, BrokerLost, ConfigError, LongshoreError, WorkerDied
from longshore.shared.pool import remote
from longshore.shared.pool.contract import PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.pool.contract import Call, Options

__all__ = ("Cluster", "dumps")

#: Seconds that a scheduler has to answer.
PATIENCE = 5.0


def dumps(value: Any) -> bytes:
    """Pickle for a cluster."""
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return data


class Cluster:
    """Runs calls on the cluster whose scheduler is at `url`, `dask://host:port`.

    Raises:
        ConfigError: Dask is not installed, or the URL names no scheduler.
        AddressUnavailable: no scheduler answers there.
    """

    def __init__(self, url: str, options: Options) -> None:
        try:
            distributed: Any = importlib.import_module("distributed")
        except ImportError as error:
            raise ConfigError(
                f"Pool({url!r}) needs Dask, which is not installed", hint="pip install longshore[dask]"
            ) from error
        self._address = f"tcp://{_checked(url)}"
        self._url = url
        dumps(options)
        #: By this name the workers know which of their pools is ours.
        self._options = pickle.dumps((uuid.uuid4().hex, dumps(options)))
        try:
            self._client: Any = distributed.Client(
                self._address, timeout=PATIENCE, set_as_default=False, name="longshore-pool", heartbeat_interval=1000
            )
        except (OSError, TimeoutError) as error:
            raise AddressUnavailable(
                f"no Dask scheduler answers at {url}: {error}", hint="Start one: dask scheduler --port 8786"
            ) from error
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._running: dict[int, Call] = {}
        self._closing: Callable[[], object] | None = None
        self._is_closed = False

    @property
    def processes(self) -> int:
        """The threads of all workers: so many tasks Dask runs at once."""
        try:
            threads: dict[str, int] = self._client.nthreads()
            return max(1, sum(threads.values()))
        except (OSError, ValueError, TimeoutError):
            return 1

    def submit(self, call: Call) -> None:
        """Have the cluster run it.

        Raises:
            BrokerLost: the scheduler is gone.
        """
        with self._lock:
            if self._is_closed:
                raise PoolClosed("this pool was shut down", hint="Make a new Pool.")
            number = next(self._numbers)
            self._running[number] = call
        try:
            if self._client.status != "running":
                raise self._lost()
            future = self._client.submit(
                remote.run_there,
                self._options,
                number,
                call.payload,
                call.name,
                call.timeout,
                key=f"longshore-pool-{self._client.id}-{number}",
                pure=False,
            )
        except BaseException:
            self._over(number)
            raise
        call.place = (number, future)
        call.begin()
        future.add_done_callback(lambda done: self._done(number, call, done))
        if call.future.cancelled():
            self.cancel(call)

    def _done(self, number: int, call: Call, future: Any) -> None:
        """Dask is through with it; on a thread of the client's."""
        try:
            if future.status == "finished":
                verb, payload = future.result(timeout=PATIENCE)
                if verb == remote.RETURNED:
                    call.finish(payload)
                else:
                    call.fail_packed(payload)
            elif future.status == "error":
                call.fail(self._failure(call, future.exception(timeout=PATIENCE)))
            else:
                call.fail(self._lost())
        except Exception as error:
            lost = self._lost()
            lost.__cause__ = error
            call.fail(lost)
        finally:
            self._over(number)

    def _failure(self, call: Call, error: BaseException) -> LongshoreError:
        distributed: Any = importlib.import_module("distributed")
        if isinstance(error, distributed.KilledWorker):
            failure: LongshoreError = WorkerDied(f"the Dask workers that ran {call.name} have died: {error}")
        else:
            failure = LongshoreError(
                f"Dask could not run {call.name}: {error}",
                hint="Its workers need Longshore, and the modules of the task, in the same versions.",
            )
        failure.__cause__ = error
        return failure

    def _lost(self) -> BrokerLost:
        return BrokerLost(
            f"the Dask scheduler at {self._url} is gone",
            hint="What ran there may or may not be done.  Make a new Pool when it is back.",
        )

    def _over(self, number: int) -> None:
        with self._lock:
            self._running.pop(number, None)
            closing = self._closing if not self._running and not self._is_closed else None
            if closing is not None:
                self._is_closed = True
        if closing is not None:
            self._end(closing)

    def cancel(self, call: Call) -> None:
        """Take it from the cluster, and end it where it runs."""
        if call.place is None:
            return
        number, future = call.place
        # Out of band, and without waiting: whoever cancels may be on a loop.
        with contextlib.suppress(Exception):
            self._client.loop.add_callback(self._tell_workers, number)
            future.cancel(reason="cancelled")
        self._over(number)

    async def _tell_workers(self, number: int) -> None:
        with contextlib.suppress(Exception):
            await self._client._run(remote.cancel_there, self._options, number, on_error="ignore")

    def close(self, closed: Callable[[], object]) -> None:
        """End once nothing runs; then call `closed()`."""
        with self._lock:
            if self._is_closed or self._closing is not None:
                return
            self._closing = closed
            is_idle = not self._running
            self._is_closed = is_idle
        if is_idle:
            self._end(closed)

    def _end(self, closed: Callable[[], object]) -> None:
        # On a thread of its own: closing a client waits for its loop, on which this may be.
        threading.Thread(target=self._disconnect, args=(closed,), name="longshore-pool-end", daemon=True).start()

    def _disconnect(self, closed: Callable[[], object]) -> None:
        try:
            with contextlib.suppress(Exception):
                if self._client.status == "running":
                    self._client.run(remote.close_there, self._options, on_error="ignore")
            with contextlib.suppress(Exception):
                self._client.close(timeout=PATIENCE)
        finally:
            closed()

    def join(self) -> None:
        """The client has ended its thread by itself."""

    def figures(self) -> dict[str, int]:
        """What is known on this side; deaths and replacements are the workers' to count."""
        processes = self.processes
        return {"processes": processes, "running": len(self._running), "died": 0, "recycled": 0}


def _checked(url: str) -> str:
    place = url.removeprefix("dask://").rstrip("/")
    host, colon, port = place.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ConfigError(
            f"Pool({url!r}): not the URL of a scheduler", hint="It is dask://host:port; port 8786 is Dask's own."
        )
    return place
