"""`Dict` and `Counter`: values that all see."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Self

from longshore.errors import LimitExceeded
from longshore.shared.handle import Handle
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.values import checked, dump_key, load_key, serialiser

__all__ = ("Counter", "Dict")

_LARGEST = 1 << 63


class Counter(Handle):
    """A number that many add to."""

    kind = "Counter"

    def _added(self, n: int) -> int:
        n = operator.index(n)
        if not -_LARGEST < n < _LARGEST:
            raise LimitExceeded(f"{self!r}: {n} has more than 64 bits")
        return n

    def add(self, n: int = 1) -> int:
        """Add `n`; returns the new value.

        Raises:
            LimitExceeded: it would have more than 64 bits.
            TypeError: `n` is no whole number.
        """
        return self._ask(Verb.ADD, self._added(n)).number

    async def aadd(self, n: int = 1) -> int:
        """`add` for tasks."""
        return (await self._await(Verb.ADD, 0, self._added(n))).number

    @property
    def value(self) -> int:
        """The number, as it is now; assigning replaces it."""
        return self._ask(Verb.VALUE).number

    @value.setter
    def value(self, value: int) -> None:
        self._ask(Verb.ASSIGN, self._added(value))

    async def avalue(self) -> int:
        """`value` for tasks."""
        return (await self._await(Verb.VALUE)).number


class Dict(Handle, MutableMapping[Any, Any]):
    """Values by key, with everything that a mapping has; each method is one step for all who see it.

    Keys are text, bytes, numbers, None and tuples of them.  A value is a copy: change it, and set it again.

    Args:
        serializer: "pickle", "json" or "msgpack", for the values; the same on all sides.
    """

    kind = "Dict"
    __hash__ = object.__hash__

    def __init__(self, name: str, *, serializer: str = "pickle") -> None:
        self._serializer = serializer
        self._values = serialiser(serializer)
        super().__init__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _dict, (self.name, self._serializer)

    def _key_of(self, key: Any) -> bytes:
        return dump_key(self, key)

    def _pair(self, key: Any, value: Any) -> tuple[bytes, bytes]:
        return dump_key(self, key), checked(self, self._values, value, self._at().max_item)

    def _pairs(self, other: Any, more: dict[str, Any]) -> tuple[bytes, ...]:
        if isinstance(other, Mapping):
            items: Iterable[tuple[Any, Any]] = other.items()
        elif hasattr(other, "keys"):
            items = ((key, other[key]) for key in other.keys())  # noqa: SIM118  # no mapping, but it has keys
        else:
            items = other
        return tuple(part for key, value in (*items, *more.items()) for part in self._pair(key, value))

    def _found(self, reply: Reply, default: Any) -> Any:
        return default if reply.status == Status.ABSENT else self._values.load(reply.fields[0])

    def __getitem__(self, key: Any) -> Any:
        reply = self._ask(Verb.READ, 0, (self._key_of(key),))
        if reply.status == Status.ABSENT:
            raise KeyError(key)
        return self._values.load(reply.fields[0])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask(Verb.WRITE, 0, self._pair(key, value))

    def __delitem__(self, key: Any) -> None:
        if self._ask(Verb.TAKE, 0, (self._key_of(key),)).status == Status.ABSENT:
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self._ask(Verb.READ, 0, (self._key_of(key),)).status == Status.OK

    def __len__(self) -> int:
        return self._ask(Verb.COUNT).number

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        return map(load_key, self._ask(Verb.KEYS).fields)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or `default`."""
        return self._found(self._ask(Verb.READ, 0, (self._key_of(key),)), default)

    async def aget(self, key: Any, default: Any = None) -> Any:
        """`get` for tasks."""
        return self._found(await self._await(Verb.READ, 0, 0, (self._key_of(key),)), default)

    def set(self, key: Any, value: Any) -> None:
        """Set a value; the same as `d[key] = value`."""
        self[key] = value

    async def aset(self, key: Any, value: Any) -> None:
        """`set` for tasks."""
        await self._await(Verb.WRITE, 0, 0, self._pair(key, value))

    def delete(self, key: Any) -> bool:
        """Remove a key; returns whether it was there."""
        return self._ask(Verb.TAKE, 0, (self._key_of(key),)).status == Status.OK

    async def adelete(self, key: Any) -> bool:
        """`delete` for tasks."""
        return (await self._await(Verb.TAKE, 0, 0, (self._key_of(key),))).status == Status.OK

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a key and return its value."""
        reply = self._ask(Verb.TAKE, 0, (self._key_of(key),))
        if reply.status == Status.ABSENT and not default:
            raise KeyError(key)
        return self._found(reply, default[0] if default else None)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value; `default`, which is set, if there is none."""
        name, data = self._pair(key, default)
        while not self._ask(Verb.WRITE_IF, 0, (name, data)).number:
            reply = self._ask(Verb.READ, 0, (name,))
            if reply.status == Status.OK:
                return self._values.load(reply.fields[0])
        return default

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many at once: nobody sees some of them without the others."""
        pairs = self._pairs(other, more)
        if pairs:
            self._ask(Verb.WRITE, 0, pairs)

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    async def aupdate(self, other: Any = (), /, **more: Any) -> None:
        """`update` for tasks."""
        pairs = self._pairs(other, more)
        if pairs:
            await self._await(Verb.WRITE, 0, 0, pairs)

    def compare_and_set(self, key: Any, expected: Any, value: Any) -> bool:
        """Set `value` if the present one equals `expected`; a key that is not there has None.

        Returns:
            Whether it was set.
        """
        name, data = self._pair(key, value)
        while True:
            reply = self._ask(Verb.READ, 0, (name,))
            if self._found(reply, None) != expected:
                return False
            if self._ask(Verb.WRITE_IF, reply.number, (name, data)).number:
                return True

    async def acompare_and_set(self, key: Any, expected: Any, value: Any) -> bool:
        """`compare_and_set` for tasks."""
        name, data = self._pair(key, value)
        while True:
            reply = await self._await(Verb.READ, 0, 0, (name,))
            if self._found(reply, None) != expected:
                return False
            if (await self._await(Verb.WRITE_IF, 0, reply.number, (name, data))).number:
                return True

    def clear(self) -> None:
        """Remove all."""
        self._ask(Verb.WIPE)

    async def aclear(self) -> None:
        """`clear` for tasks."""
        await self._await(Verb.WIPE)

    def __str__(self) -> str:
        return str(self.copy())

    def copy(self) -> dict[Any, Any]:
        """All of it at one moment, as a plain dict."""
        return self._plain(self._ask(Verb.LIST).fields)

    async def acopy(self) -> dict[Any, Any]:
        """`copy` for tasks."""
        return self._plain((await self._await(Verb.LIST)).fields)

    def _plain(self, fields: Any) -> dict[Any, Any]:
        return {load_key(fields[at]): self._values.load(fields[at + 1]) for at in range(0, len(fields), 2)}

    def keys(self) -> Any:
        """The keys at one moment."""
        return dict.fromkeys(self).keys()

    def values(self) -> Any:
        """The values at one moment."""
        return self.copy().values()

    def items(self) -> Any:
        """The pairs at one moment."""
        return self.copy().items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dict) and other._key == self._key:
            return True
        return self.copy() == (other.copy() if isinstance(other, Dict) else other)


def _dict(name: str, serializer: str) -> Dict:
    return Dict(name, serializer=serializer)
