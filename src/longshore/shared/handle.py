"""What every primitive's handle has in common: a name, a key, and the way to its place.

The only place that declares objects and turns the statuses that any verb may have into errors.  A handle is its name
and parameters and nothing else, so it pickles, forks and spawns; it finds its place when it is used.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from longshore import runs
from longshore.errors import ConfigError, InternalError, LimitExceeded
from longshore.shared import joining, waiting
from longshore.shared.places import KINDS, MAX_NAME, Status, Verb

if TYPE_CHECKING:
    from longshore.shared.places import Place, Reply

__all__ = ("Handle", "Record", "seconds", "whole")

#: What no count may reach: Redis keeps numbers of scripts as doubles.
_LARGEST = 1 << 53


class Record:
    """What the handles of one object in this process share: `held`, by holder.

    Threads and greenlets may have a handle each; what one of them acquired, another releases.
    """

    __slots__ = ("held", "key", "place")

    def __init__(self, place: Place, key: bytes) -> None:
        self.place = place
        self.key = key
        self.held: dict[int, Any] = {}

    def ended(self, holder: int) -> None:
        """The holder is over."""
        self.held.pop(holder, None)
        self.place.end(holder)


_lock = threading.Lock()
_records: dict[bytes, Record] = {}
#: Parameters of handles that were made here, by key, so that a clash shows before the place is asked; with their era.
_parameters: dict[bytes, tuple[int, bytes]] = {}


def seconds(timeout: float | None, block: bool = True) -> float | None:
    """How long to wait: None for ever.  As in `multiprocessing`, True and False say whether to wait at all."""
    if timeout is True:
        return None
    if timeout is False or not block:
        return 0
    return None if timeout is None else max(0.0, timeout)


def whole(number: Any, what: str, least: int = 0) -> int:
    """`number`, which is a count.

    Raises:
        ConfigError: it is no whole number, or less than `least`, or too large; `what` names it.
    """
    try:
        count = int(operator.index(number))
    except TypeError:
        count = _LARGEST
    if not least <= count < _LARGEST:
        raise ConfigError(f"{what} is a whole number, {least} or more, not {number!r}")
    return count


class Handle:
    """A named object, as this process has it."""

    kind: ClassVar[str]
    _place: Place | None = None
    _record: Record

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"{self.kind}({name!r}): a name is a text of one character or more",
                hint="Same name, same object; shared.Manager() makes objects without names, to be passed along.",
            )
        key = KINDS[self.kind] + name.encode()
        if len(key) > MAX_NAME + 1:
            raise ConfigError(
                f"{self.kind}({name[:40]!r}…): a name has at most {MAX_NAME} bytes, this one {len(key) - 1}"
            )
        self.name = name
        self._key = key
        self._parameters = self._shape().encode()
        era, known = _parameters.setdefault(key, (joining.era(), self._parameters))
        if era != joining.era():
            _parameters[key] = (joining.era(), self._parameters)
        elif known != self._parameters:
            self._conflict(known)

    def __repr__(self) -> str:
        shown = f", {self._parameters.decode()}" if self._parameters else ""
        return f"{self.kind}({self.name!r}{shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments()

    def _shape(self) -> str:
        """The parameters in which all handles of this name agree, as text."""
        return ""

    def _arguments(self) -> tuple[Any, ...]:
        """What makes the same handle elsewhere."""
        return (self.name,)

    # -- for the primitives ----------------------------------------------------------------------------------

    def _at(self) -> Place:
        """The place, where this object exists."""
        place = self._place
        if place is None or place is not joining.joined():
            place = self._bind(joining.current())
        return place

    def _bind(self, place: Place) -> Place:
        reply = waiting.ask(place, Verb.DECLARE, self._key, 0, 0, (self._parameters,), f"{self.kind}.declare")
        if reply.status != Status.OK:
            if reply.status == Status.CONFLICT:
                self._conflict(reply.fields[0])
            self._refuse(reply)
        with _lock:
            record = _records.get(self._key)
            if record is None or record.place is not place:
                record = _records[self._key] = Record(place, self._key)
        self._record = record
        self._place = place
        return place

    def _conflict(self, known: bytes) -> NoReturn:
        raise ConfigError(
            f"{self.kind} {self.name!r} exists with {known.decode()}, and is wanted with {self._parameters.decode()}",
            hint="Handles of one name have the same parameters; take another name for another object.",
        )

    def _ask(self, verb: int, number: int = 0, fields: tuple[bytes, ...] = (), holder: int = 0) -> Reply:
        """Have a verb done that does not wait."""
        place = self._at()
        return self._checked(waiting.ask(place, verb, self._key, holder, number, fields, self._what(verb)))

    def _wait(
        self,
        verb: int,
        timeout: float | None,
        number: int = 0,
        fields: tuple[bytes, ...] = (),
        holder: int | None = None,
    ) -> Reply:
        """Have a verb done that may wait."""
        place = self._at()
        if holder is None:
            holder = runs.current().number
        return self._checked(waiting.wait(place, verb, self._key, holder, number, timeout, fields, self._what(verb)))

    async def _await(
        self,
        verb: int,
        timeout: float | None = 0,
        number: int = 0,
        fields: tuple[bytes, ...] = (),
        holder: int | None = None,
    ) -> Reply:
        """Have a verb done, and await it."""
        place = self._at()
        if holder is None:
            holder = runs.current().number
        return self._checked(await waiting.await_reply(place, verb, self._key, holder, number, timeout, fields))

    def _tell(self, verb: int, number: int = 0, fields: tuple[bytes, ...] = (), holder: int = 0) -> None:
        """Say what ends with the place anyhow; a finaliser may do that, also when there is no place any more."""
        place = self._place
        if place is not None and place is joining.joined() and not place.is_lost and not sys.is_finalizing():
            place.tell(verb, self._key, holder, number, fields)

    def _what(self, verb: int) -> str:
        return f"{self.kind}.{_METHODS.get(verb, 'wait')}"

    def _checked(self, reply: Reply) -> Reply:
        if reply.status >= Status.TOO_LARGE:
            self._refuse(reply)
        return reply

    def _refuse(self, reply: Reply) -> NoReturn:
        if reply.status == Status.TOO_LARGE:
            raise LimitExceeded(f"{self!r}: {reply.fields[0].decode()}, and this would be more")
        raise InternalError(f"{self!r}: the place does not know it (status {reply.status})")


_METHODS: dict[int, str] = {
    Verb.ACQUIRE: "acquire",
    Verb.PUT: "put",
    Verb.GET: "get",
    Verb.JOIN: "join",
    Verb.SEND: "send",
    Verb.TAKE_MESSAGE: "recv",
    Verb.POLL: "poll",
    Verb.RECEIVE: "subscribe().get",
}


def _forked() -> None:
    """In a child: what was held is its parent's."""
    global _lock
    _lock = threading.Lock()
    for record in _records.values():
        record.held.clear()


os.register_at_fork(after_in_child=_forked)
