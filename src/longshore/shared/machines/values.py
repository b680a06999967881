"""Dicts and counters of the local broker: nobody waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.shared.machines import MOST_LENT, Machine
from longshore.shared.places import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.shared.core import Core, Owner
    from longshore.shared.wire import Request

__all__ = ("CounterMachine", "DictMachine")

_LARGEST = (1 << 63) - 1


class CounterMachine(Machine):
    """A number of 64 bits."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.number = 0

    def add(self, request: Request) -> None:
        """ADD."""
        total = self.number + request.number
        if -_LARGEST <= total <= _LARGEST:
            self.number = total
            self.core.reply(request, Status.OK, total)
        else:
            self.core.reply(request, Status.TOO_LARGE, 0, (b"a counter has 64 bits",))

    def assign(self, request: Request) -> None:
        """ASSIGN."""
        self.number = request.number
        self.core.reply(request, Status.OK)

    def value(self, request: Request) -> None:
        """VALUE."""
        self.core.reply(request, Status.OK, self.number)

    def snapshot(self, client: object) -> list[bytes]:
        """Its number."""
        return [b"%d" % self.number]

    def restore(self, parts: Sequence[bytes], owner: Callable[[int], Owner]) -> None:
        """See `Machine`."""
        self.number = int(parts[0])


class DictMachine(Machine):
    """Values with versions, by key, in order of insertion."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        super().__init__(core, parameters)
        self.values: dict[bytes, tuple[bytes, int]] = {}
        self.version = 0

    def read(self, request: Request) -> None:
        """READ."""
        found = self.values.get(request.fields[0])
        if found is None:
            self.core.reply(request, Status.ABSENT)
        else:
            self.core.reply(request, Status.OK, found[1], found[:1])

    def write(self, request: Request) -> None:
        """WRITE."""
        fields = request.fields
        self.version += 1
        for at in range(0, len(fields) - 1, 2):
            self.values[fields[at]] = (fields[at + 1], self.version)
        self.core.reply(request, Status.OK)

    def write_if(self, request: Request) -> None:
        """WRITE_IF."""
        key, value = request.fields
        found = self.values.get(key)
        matches = (0 if found is None else found[1]) == request.number
        if matches:
            self.version += 1
            self.values[key] = (value, self.version)
        self.core.reply(request, Status.OK, matches)

    def take(self, request: Request) -> None:
        """TAKE."""
        found = self.values.pop(request.fields[0], None)
        if found is None:
            self.core.reply(request, Status.ABSENT)
        else:
            self.version += 1
            self.core.reply(request, Status.OK, 0, found[:1])

    def wipe(self, request: Request) -> None:
        """WIPE."""
        self.version += 1
        self.values.clear()
        self.core.reply(request, Status.OK)

    def count(self, request: Request) -> None:
        """COUNT."""
        self.core.reply(request, Status.OK, len(self.values))

    def snapshot(self, client: object) -> list[bytes] | None:
        """The version, and each key with its value and version."""
        if len(self.values) > MOST_LENT:
            return None
        return [
            b"%d" % self.version,
            *(part for key, (value, version) in self.values.items() for part in (key, value, b"%d" % version)),
        ]

    def restore(self, parts: Sequence[bytes], owner: Callable[[int], Owner]) -> None:
        """See `Machine`."""
        self.version = int(parts[0])
        self.values = {parts[at]: (parts[at + 1], int(parts[at + 2])) for at in range(1, len(parts), 3)}

    def list(self, request: Request) -> None:
        """LIST."""
        self.core.reply(
            request, Status.OK, 0, [part for key, (value, _) in self.values.items() for part in (key, value)]
        )

    def keys(self, request: Request) -> None:
        """KEYS."""
        self.core.reply(request, Status.OK, 0, tuple(self.values))
