"""`Pipe`: whole messages between two ends, both ways."""

from __future__ import annotations

from typing import Any, Self

from longshore.errors import ConfigError, LongshoreError
from longshore.shared.handle import Handle, seconds
from longshore.shared.places import Place, Reply, Status, Verb
from longshore.shared.values import checked, serialiser

__all__ = ("Pipe",)


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
        self._opened: Place | None = None
        super().__init__(name)

    def __repr__(self) -> str:
        return f"Pipe({self.name!r}, {self.end})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _pipe, (self.name, self.end, self._serializer)

    def open(self) -> Self:
        """Take the end now, and not only when it is first used."""
        place = self._at()
        if self.closed:
            raise OSError(f"{self!r} is closed")
        if self._opened is not place:
            self._ask(Verb.OPEN, self.end)
            self._opened = place
        return self

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Send one message; wait while the other end has a MiB to read already.

        Raises:
            BrokenPipeError: the other end was there, and is gone.
            TimeoutError: there was no room in time.
            WouldBlock: this thread turns a reactor or a loop; with timeout=0 it may be tried.
        """
        fields = self._message(value)
        self._sent(self._wait(Verb.SEND, seconds(timeout), self.end, fields))

    async def asend(self, value: Any, timeout: float | None = None) -> None:
        """`send` for tasks."""
        fields = self._message(value)
        self._sent(await self._await(Verb.SEND, seconds(timeout), self.end, fields))

    def _message(self, value: Any) -> tuple[bytes]:
        self.open()
        return (checked(self, self._values, value, self._at().max_item),)

    def _sent(self, reply: Reply) -> None:
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
        self.open()
        return self._received(self._wait(Verb.TAKE_MESSAGE, seconds(timeout), self.end))

    async def arecv(self, timeout: float | None = None) -> Any:
        """`recv` for tasks."""
        self.open()
        return self._received(await self._await(Verb.TAKE_MESSAGE, seconds(timeout), self.end))

    def _received(self, reply: Reply) -> Any:
        if reply.status == Status.CLOSED:
            raise EOFError(f"{self!r}: the other end is gone")
        if reply.status != Status.OK:
            raise TimeoutError(f"{self!r}: no message came in time")
        return self._values.load(reply.fields[0])

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `recv` would not wait, after at most `timeout` seconds."""
        self.open()
        return self._wait(Verb.POLL, seconds(timeout), self.end).status == Status.OK

    async def apoll(self, timeout: float | None = 0.0) -> bool:
        """`poll` for tasks."""
        self.open()
        return (await self._await(Verb.POLL, seconds(timeout), self.end)).status == Status.OK

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


def _pipe(name: str, end: int, serializer: str) -> Pipe:
    return Pipe(name, end, serializer=serializer)
