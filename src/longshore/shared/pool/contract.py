"""What a pool's implementations have in common: a call, the options, and the contract that both fulfil.

The only place that pickles calls and reads their outcomes.  Here are no processes, threads or sockets.
"""

from __future__ import annotations

import concurrent.futures
import logging
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import ClosedError, ConfigError, LongshoreError
from longshore.strategies.wire import unpack_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.pool.waiting import Future

__all__ = (
    "Backend",
    "Call",
    "Options",
    "PoolClosed",
    "Unpicklable",
    "call_each",
    "describe",
    "describe_call",
    "is_many",
    "pack_call",
    "share",
    "shown",
)

#: Characters of a value's repr that a message shows.
SHOWN = 80


class Unpicklable(LongshoreError, pickle.PicklingError):
    """A task or its result cannot go to another process; the message names the object."""


class PoolClosed(ClosedError, RuntimeError):
    """The pool was shut down before; a `RuntimeError` too, as every executor's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a pool treats its processes; sizes in bytes, times in seconds."""

    initializer: Callable[..., object] | None = None
    """Called as `initializer(*initargs)` in each process before its first task."""
    initargs: tuple[Any, ...] = ()
    max_tasks: int | None = None
    """Tasks after which a process is replaced."""
    max_age: float | None = None
    """Seconds after which a process is replaced, once it is idle."""
    max_memory: int | None = None
    """Bytes of resident memory above which a process is replaced, once it is idle."""
    max_task_memory: int | None = None
    """Bytes by which one task may grow its process (RLIMIT_DATA, see setrlimit(2))."""

    def __post_init__(self) -> None:
        if self.initializer is not None and not callable(self.initializer):
            raise ConfigError(f"initializer={self.initializer!r}: must be callable")
        for name in ("max_tasks", "max_memory", "max_task_memory"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"Pool({name}={value!r}): must be a whole number of at least 1, or None")
        age = self.max_age
        if age is not None and (isinstance(age, bool) or not isinstance(age, (int, float)) or not age > 0):
            raise ConfigError(f"Pool(max_age={age!r}): must be a number of seconds above 0, or None")


class Call:
    """One task on its way: what runs, for how long at most, and the future that waits for it."""

    __slots__ = ("future", "name", "payload", "place", "timeout")

    def __init__(self, future: Future, payload: bytes, name: str, timeout: float | None) -> None:
        self.future = future
        self.payload = payload
        self.name = name
        #: Seconds from its start; None: as long as it likes.
        self.timeout = timeout
        #: Where it runs, for whoever runs it.
        self.place: Any = None

    def begin(self) -> None:
        """It has started."""
        self.future.began = True

    def finish(self, payload: bytes | bytearray) -> None:
        """It has returned; `payload` is what, pickled."""
        try:
            value = pickle.loads(payload)
        except Exception as error:
            cause = Unpicklable(
                f"the result of {self.name} came back and cannot be unpickled here: {error}",
                hint="Its class must be importable in this process as well.",
            )
            cause.__cause__ = error
            self.fail(cause)
            return
        self._tell(self.future.set_result, value)

    def fail_packed(self, payload: bytes | bytearray) -> None:
        """It has raised; `payload` is what `pack_error` made of it, pickled."""
        self.fail(unpack_error(pickle.loads(payload)) or LongshoreError(f"{self.name} failed"))

    def fail(self, error: BaseException) -> None:
        """It has failed."""
        self._tell(self.future.set_exception, error)

    def _tell(self, verb: Callable[[Any], object], value: Any) -> None:
        # Nobody cancels it any more, and they are not to keep each other until the collector comes.
        self.future.call = None
        try:
            verb(value)
        except concurrent.futures.InvalidStateError:
            # It was cancelled meanwhile.
            pass
        except BaseException:
            # Where `concurrent.futures` reports callbacks that raise; what it lets through would end the pool's thread.
            logging.getLogger("concurrent.futures").exception("exception calling callback for %r", self.future)


class Backend(Protocol):
    """What runs the calls of one pool.  All of it may be called from any thread, and none of it waits."""

    @property
    def processes(self) -> int:
        """How many tasks can run at once."""

    def submit(self, call: Call) -> None:
        """Run it, when it is its turn.

        Raises:
            LongshoreError: nothing can run here any more.
        """

    def cancel(self, call: Call) -> None:
        """Do not run it; if it runs, end it."""

    def close(self, closed: Callable[[], object]) -> None:
        """End everything once what was submitted is over; then call `closed()`."""

    def join(self) -> None:
        """After `closed()` was called: leave nothing behind."""

    def figures(self) -> dict[str, int]:
        """For `Pool.statistics`: processes, running, died, recycled."""


def shown(value: object) -> str:
    """A value in a message: its repr, if it has one, cut."""
    try:
        text = repr(value)
    except Exception:
        text = f"<a {type(value).__name__} whose repr fails>"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def describe(function: Any) -> str:
    """A function's name as messages show it."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        function = getattr(function, "func", function)
        name = getattr(function, "__qualname__", None) or shown(function)
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def call_each(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    """The task that several calls of one function make up; messages name the function."""
    return [function(*args) for args in calls]


def is_many(function: Any) -> bool:
    """Whether a task is several calls of its first argument."""
    return function is call_each


def describe_call(function: Any, args: tuple[Any, ...]) -> str:
    """The name of the user's function that a task runs."""
    return describe(args[0] if is_many(function) else function)


def pack_call(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dumps: Callable[[Any], bytes],
) -> bytes:
    """A call as bytes.

    Raises:
        Unpicklable: it cannot be; the message names the part that is in the way.
    """
    try:
        return dumps((function, args, kwargs))
    except Exception as error:
        whole = error
    name = describe_call(function, args)
    if is_many(function):
        function, args = args[0], tuple(item for call in args[1] for item in call)
    parts: list[tuple[str, Any]] = [(f"the function {shown(function)}", function)]
    parts += [(f"argument {number} of {name}, {shown(value)},", value) for number, value in enumerate(args, 1)]
    parts += [(f"argument {key!r} of {name}, {shown(value)},", value) for key, value in kwargs.items()]
    for what, part in parts:
        try:
            dumps(part)
        except Exception as error:
            raise Unpicklable(
                f"{what} cannot be pickled: {error}",
                hint="Functions must be defined at a module's top level; pass names or plain data, not live objects.",
            ) from error
    raise Unpicklable(f"the call of {name} cannot be pickled: {whole}") from whole


def share(processes: int, workers: int, index: int) -> int:
    """How many of a server's `processes` belong to the prefork worker `index` (from 0) of `workers`.

    Example:
        >>> [share(8, 3, index) for index in range(3)]
        [3, 3, 2]

    Raises:
        ConfigError: there are fewer processes than workers.
    """
    if processes < workers:
        raise ConfigError(
            f"a pool of {processes} processes cannot be divided among {workers} workers",
            hint="The number of processes is the total over all workers; give each at least one.",
        )
    return processes // workers + (index < processes % workers)
