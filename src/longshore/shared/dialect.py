"""`Manager`: the names of `multiprocessing.Manager()`, as plain aliases."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, NoReturn, Self

from longshore.errors import ConfigError
from longshore.shared.lock import Lock, RLock, Semaphore
from longshore.shared.mapping import Dict
from longshore.shared.places import Verb
from longshore.shared.queue import Queue
from longshore.shared.signals import Barrier, Condition, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ("List", "Manager", "Value")

#: What `multiprocessing.Manager()` also has, and what does it here.
_INSTEAD = {
    "Array": "manager.list(...)",
    "Namespace": "manager.dict(...)",
    "Pool": "shared.Pool(...)",
    "address": "shared.address()",
    "connect": "shared.join(url)",
    "get_server": "shared.start_broker()",
    "register": "a name: whoever joins the place has each object by it",
    "set": "the keys of manager.dict()",
}


class Value:
    """One value that all see; `value` gets and sets it.  On a place that has lost it, it is what it was made with.

    As with `multiprocessing`, `v.value += 1` is two steps: hold `v.get_lock()`, or take a `Counter`.
    """

    def __init__(self, typecode: Any, value: Any = 0, *, name: str | None = None) -> None:
        self._typecode = typecode
        self._made_with = value
        self._name = name or _fresh()
        self._dict = Dict(self._name)
        if name is None:
            self._dict["value"] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _value, (self._typecode, self._name, self._made_with)

    def __repr__(self) -> str:
        return f"Value({self._typecode!r}, {self.value!r})"

    @property
    def value(self) -> Any:
        """The value; assigning replaces it."""
        return self._dict.get("value", self._made_with)

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


def _value(typecode: Any, name: str, value: Any) -> Value:
    return Value(typecode, value, name=name)


def _read(name: str) -> Callable[..., Any]:
    def method(self: List, *args: Any) -> Any:
        return getattr(self.copy(), name)(*args)

    method.__name__, method.__doc__ = name, f"As `list.{name}`, of what is there now."
    return method


def _change(name: str) -> Callable[..., Any]:
    def method(self: List, *args: Any, **options: Any) -> Any:
        outcome = self._changed(lambda items: getattr(items, name)(*args, **options))
        return self if name in ("__iadd__", "__imul__") else outcome

    method.__name__, method.__doc__ = name, f"As `list.{name}`, in one step."
    return method


class List:
    """A list that all see; each method is one step, and what it gives is a copy.

    It is kept as one value, of which every change writes all: hand work on in a `Queue`, which has no such cost.

    Raises:
        LimitExceeded: the whole of it has more bytes than one value may have.
    """

    __hash__ = object.__hash__

    def __init__(self, items: Iterable[Any] = (), *, name: str | None = None) -> None:
        self._name = name or _fresh()
        self._dict = Dict(self._name)
        if name is None:
            self._dict["items"] = list(items)

    def __reduce__(self) -> tuple[Any, ...]:
        return _list, (self._name,)

    def __repr__(self) -> str:
        return f"List({self.copy()!r})"

    def __str__(self) -> str:
        return str(self.copy())

    def copy(self) -> list[Any]:
        """All of it at one moment, as a plain list."""
        items: list[Any] = self._dict.get("items", [])
        return items

    def _changed(self, change: Callable[[list[Any]], Any]) -> Any:
        """Do `change` to the list, again if somebody was faster."""
        data = self._dict
        while True:
            reply = data._ask(Verb.READ, 0, (data._key_of("items"),))
            items = data._found(reply, [])
            outcome = change(items)
            if data._ask(Verb.WRITE_IF, reply.number, data._pair("items", items)).number:
                return outcome

    __getitem__, __iter__, __len__, __contains__ = map(_read, ("__getitem__", "__iter__", "__len__", "__contains__"))
    __reversed__, __add__, __mul__, __rmul__ = map(_read, ("__reversed__", "__add__", "__mul__", "__rmul__"))
    index, count = map(_read, ("index", "count"))
    __setitem__, __delitem__, __iadd__, __imul__ = map(_change, ("__setitem__", "__delitem__", "__iadd__", "__imul__"))
    append, extend, insert, pop = map(_change, ("append", "extend", "insert", "pop"))
    remove, reverse, sort, clear = map(_change, ("remove", "reverse", "sort", "clear"))

    def __eq__(self, other: object) -> bool:
        return self.copy() == (other.copy() if isinstance(other, List) else other)


def _list(name: str) -> List:
    return List(name=name)


def _fresh() -> str:
    return f"manager/{secrets.token_hex(8)}"


class Manager:
    """Makes objects without a name of their own, by the names that `multiprocessing.Manager()` has for them.

    They are objects like any other: they pickle, and live as long as the place.

    Raises:
        AttributeError: `multiprocessing` has more names; the message says what does the same here.

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

    def list(self, items: Iterable[Any] = ()) -> List:
        """A `List` of these items."""
        return List(items)

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

    def Condition(self, lock: None = None) -> Condition:
        """A `Condition`, which has a lock of its own.

        Raises:
            ConfigError: another lock was given.
        """
        if lock is not None:
            raise ConfigError(
                f"Condition({lock!r}): a condition here is a lock of its own",
                hint="Make it without one, and acquire the condition where you acquired the lock.",
            )
        return Condition(_fresh())

    def Barrier(self, parties: int) -> Barrier:
        """A `Barrier`."""
        return Barrier(_fresh(), parties)

    def Value(self, typecode: Any, value: Any = 0) -> Value:
        """A `Value`."""
        return Value(typecode, value)

    def __getattr__(self, name: str) -> NoReturn:
        instead = f"; what does it here is {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise AttributeError(f"Manager has no {name!r}{instead}", name=name, obj=self)
