"""`Pipe`: whole messages between two ends, both ways."""

from __future__ import annotations

import time
from typing import Any, Self

from longshore import runs
from longshore.errors import ConfigError, LongshoreError
from longshore.shared import joining, waiting
from longshore.shared.handle import Handle, seconds
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.values import checked, serialiser

__all__ = ("Pipe",)

_AGAIN = int(Status.AGAIN)


class Pipe(Handle):
    """One end of a pipe; whoever has the other one gets what is sent here.

    Handles of one end share it: each message goes to one of them.  When the last handle of an end is closed, or its
    process dies, the other end reads what is left and then gets `EOFError`, until somebody opens it again.

    Args:
        end: 0 or 1.
        serializer: "pickle", "json" or "msgpack"; the same on both sides.
    """

    kind = "Pipe"

    def __init__(self, name: str, end: int, *, serializer: str = "pickle") -> None:
        if end not in (0, 1):
            raise ConfigError(f"Pipe({name!r}, {end!r}): the ends of a pipe are 0 and 1")
        #: Which end it is.
        self.end = end
        self._serializer = serializer
        self._values = serialiser(serializer)
        #: Whether it was closed here.
        self.closed = False
        self._opened: Any = None
        super().__init__(name)

    def __repr__(self) -> str:
        return f"Pipe({self.name!r}, {self.end})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _pipe, (self.name, self.end, self._serializer)

    def open(self) -> Self:
        """Take the end now, and not only when it is first used."""
        if self._opened is None or self._opened is not joining.joined() or self.closed:
            place = self._at()
            if self.closed:
                raise OSError(f"{self!r} is closed")
            self._ask(Verb.OPEN, self.end)
            self._opened = place
        return self

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Send one message; wait while the other end has too much to read already: see the place's limits.

        Raises:
            BrokenPipeError: the other end was there, and is gone.
            TimeoutError: there was no room in time.
            WouldBlock: this thread turns a reactor or a loop; with timeout=0 it may be tried.
        """
        fields = self._message(value)
        self._sent(self._done(Verb.SEND, timeout, fields))

    async def asend(self, value: Any, timeout: float | None = None) -> None:
        """`send` for tasks."""
        fields = self._message(value)
        self._sent(await self._adone(Verb.SEND, timeout, fields))

    def _message(self, value: Any) -> tuple[bytes]:
        if self._opened is None:
            self.open()
        return (checked(self, self._values, value, self._opened.max_item),)

    def _sent(self, reply: Reply) -> None:
        if reply.status == Status.OK:
            return
        if reply.status == Status.CLOSED:
            raise BrokenPipeError(f"{self!r}: the other end is gone")
        if reply.status == Status.LATE:
            raise TimeoutError(f"{self!r}: the other end has too much to read already")

    def recv(self, timeout: float | None = None) -> Any:
        """The next message of the other end.

        Raises:
            EOFError: there is none, and the other end was there and is gone.
            TimeoutError: none came in time.
            WouldBlock: this thread turns a reactor or a loop.
        """
        return self._received(self._done(Verb.TAKE_MESSAGE, timeout))

    async def arecv(self, timeout: float | None = None) -> Any:
        """`recv` for tasks."""
        return self._received(await self._adone(Verb.TAKE_MESSAGE, timeout))

    def _received(self, reply: Reply) -> Any:
        if reply.status == Status.OK:
            return self._values.load(reply.fields[0])
        if reply.status == Status.CLOSED:
            raise EOFError(f"{self!r}: the other end is gone")
        raise TimeoutError(f"{self!r}: no message came in time")

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `recv` would not wait, after at most `timeout` seconds."""
        return self._done(Verb.POLL, timeout).status == Status.OK

    async def apoll(self, timeout: float | None = 0.0) -> bool:
        """`poll` for tasks."""
        return (await self._adone(Verb.POLL, timeout)).status == Status.OK

    def _done(self, verb: int, timeout: float | None, fields: tuple[bytes, ...] = ()) -> Reply:
        """Have a verb done, which whoever waits for it may have to ask for again."""
        place = self._opened
        if place is None or place is not joining.joined() or self.closed:
            place = self.open()._opened
        left = None if timeout is None else seconds(timeout)
        until = left and time.monotonic() + left
        # Nobody holds anything of a pipe; a place that is far has to know whose waits end with whom.
        run, what = 0 if place.is_prompt else runs.current().number, self._what
        reply = waiting.wait(place, verb, self._key, run, self.end, left, fields, what)
        while reply.status == _AGAIN:
            reply = waiting.wait(place, verb, self._key, run, self.end, _until(until), fields, what)
        return self._checked(reply) if reply.status else reply

    async def _adone(self, verb: int, timeout: float | None, fields: tuple[bytes, ...] = ()) -> Reply:
        """`_done` for tasks."""
        self.open()
        left = seconds(timeout)
        until = left and time.monotonic() + left
        reply = await self._await(verb, left, self.end, fields)
        while reply.status == _AGAIN:
            reply = await self._await(verb, _until(until), self.end, fields)
        return reply

    def close(self) -> None:
        """Give the end up; again does nothing."""
        if not self.closed:
            self.closed = True
            if self._opened is not None and self._opened is self._place:
                self._tell(Verb.HANG_UP, self.end)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (LongshoreError, OSError, AttributeError):
            # The place is gone, and the end with it.
            pass


def _until(moment: float | None) -> float | None:
    """The seconds until then."""
    return None if moment is None else max(0.0, moment - time.monotonic())


def _pipe(name: str, end: int, serializer: str) -> Pipe:
    return Pipe(name, end, serializer=serializer)
