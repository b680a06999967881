"""`Manager`: the names of `multiprocessing.Manager()`, as plain aliases."""

from __future__ import annotations

import secrets
from typing import Any, Self

from longshore.shared.lock import Lock, RLock, Semaphore
from longshore.shared.mapping import Dict
from longshore.shared.queue import Queue
from longshore.shared.signals import Barrier, Condition, Event

__all__ = ("Manager", "Value")


class Value:
    """One value that all see; `value` gets and sets it.

    As with `multiprocessing`, `v.value += 1` is two steps: hold `v.get_lock()`, or take a `Counter`.
    """

    def __init__(self, typecode: Any, value: Any = 0, *, name: str | None = None) -> None:
        self._typecode = typecode
        self._name = name or _fresh()
        self._dict = Dict(self._name)
        if name is None:
            self._dict["value"] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _value, (self._typecode, self._name)

    def __repr__(self) -> str:
        return f"Value({self._typecode!r}, {self.value!r})"

    @property
    def value(self) -> Any:
        """The value; assigning replaces it."""
        return self._dict["value"]

    @value.setter
    def value(self, value: Any) -> None:
        self._dict["value"] = value

    def get(self) -> Any:
        """The value."""
        return self.value

    def set(self, value: Any) -> None:
        """Replace it."""
        self.value = value

    def get_lock(self) -> RLock:
        """A lock for what takes more than one step."""
        return RLock(self._name)


def _value(typecode: Any, name: str) -> Value:
    return Value(typecode, name=name)


def _fresh() -> str:
    return f"manager/{secrets.token_hex(8)}"


class Manager:
    """Makes objects without a name of their own, by the names that `multiprocessing.Manager()` has for them.

    They are objects like any other: they pickle, and live as long as the place.

    Example:
        >>> with Manager() as manager:
        ...     squares = manager.dict({2: 4})
        ...     print(squares[2])
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    def start(self) -> None:
        """Nothing to start: the place is there."""

    def shutdown(self) -> None:
        """Nothing to end: the place goes on."""

    def dict(self, *args: Any, **more: Any) -> Dict:
        """A `Dict` with these items."""
        made = Dict(_fresh())
        made.update(*args, **more)
        return made

    def Queue(self, maxsize: int = 0) -> Queue:
        """A `Queue`."""
        return Queue(_fresh(), maxsize)

    #: Queues have `task_done` and `join` anyhow.
    JoinableQueue = Queue

    def Lock(self) -> Lock:
        """A `Lock`."""
        return Lock(_fresh())

    def RLock(self) -> RLock:
        """An `RLock`."""
        return RLock(_fresh())

    def Semaphore(self, value: int = 1) -> Semaphore:
        """A `Semaphore`: of slots, which their holders release, or with 0 a signal, which anybody does."""
        return Semaphore(_fresh(), value)

    #: Every semaphore is bounded: only its holder releases.
    BoundedSemaphore = Semaphore

    def Event(self) -> Event:
        """An `Event`."""
        return Event(_fresh())

    def Condition(self) -> Condition:
        """A `Condition`."""
        return Condition(_fresh())

    def Barrier(self, parties: int) -> Barrier:
        """A `Barrier`."""
        return Barrier(_fresh(), parties)

    def Value(self, typecode: Any, value: Any = 0) -> Value:
        """A `Value`."""
        return Value(typecode, value)
