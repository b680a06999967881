"""`Lock`, `RLock` and `Semaphore`: who may go on."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from longshore import runs
from longshore.errors import NotHeld
from longshore.shared.handle import Handle, seconds, whole
from longshore.shared.places import Reply, Status, Verb

__all__ = ("Grant", "Held", "Lock", "RLock", "Semaphore")


class Grant(NamedTuple):
    """A lock that is held: since when, and how often."""

    fence: int
    recovered: bool
    depth: int = 1


class Held(Handle):
    """A handle of something that a handler run, thread or task holds."""

    #: The grant that this handle saw last.
    _last = Grant(0, False, 0)

    def _granted(self, run: runs.Run, reply: Reply) -> bool:
        if reply.status != Status.OK:
            return False
        record = self._record
        fields = reply.fields
        self._last = record.held[run.number] = Grant(reply.number, bool(fields) and fields[0] == b"1")
        run.endings[record.ended] = None
        return True

    def _released(self) -> None:
        self._at()
        run = runs.current()
        record = self._record
        if record.held.pop(run.number, None) is None:
            raise self._not_held("release")
        run.endings.pop(record.ended, None)
        record.place.tell(Verb.RELEASE, self._key, run.number)

    #: What to do instead of releasing what one does not hold.
    _cure = "Whoever acquires releases; what a handler run holds is released when it ends."

    def _not_held(self, what: str) -> NotHeld:
        return NotHeld(f"{what} of {self!r}, which this handler run, thread or task does not hold", hint=self._cure)

    @property
    def _grant(self) -> Grant:
        place = self._place
        held = None if place is None else self._record.held.get(runs.current().number)
        return self._last if held is None else held

    @property
    def fence(self) -> int:
        """A number that rises with every grant: give it to what the lock protects, which refuses a lower one.

        Of the caller's grant; 0 before this handle had any.
        """
        return self._grant.fence

    @property
    def recovered(self) -> bool:
        """Whether the holder before ended without releasing, so that what it worked on may be half done."""
        return self._grant.recovered

    def acquire(self, timeout: float | None = None, *, block: bool = True) -> bool:
        """Hold it; wait for at most `timeout` seconds (None: for ever, 0: not at all).

        Returns:
            Whether it is held now.

        Raises:
            WouldBlock: this thread turns a reactor or a loop, and must not wait.
            BrokerLost: the place is gone.
        """
        run = runs.current()
        return self._granted(run, self._wait(Verb.ACQUIRE, seconds(timeout, block), holder=run.number))

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` for tasks."""
        run = runs.current()
        return self._granted(run, await self._await(Verb.ACQUIRE, seconds(timeout), holder=run.number))

    def release(self) -> None:
        """Let the next one have it.  It never waits.

        Raises:
            NotHeld: the caller does not hold it.
        """
        self._released()

    async def arelease(self) -> None:
        """`release` for tasks."""
        self.release()

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return bool(self._ask(Verb.LOCKED).number)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self.aacquire()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.release()


class Lock(Held):
    """One holder at a time, among all who are joined to the place.

    Example:
        >>> with Lock("ledger") as lock:
        ...     print(lock.fence > 0)
    """

    kind = "Lock"


class RLock(Held):
    """A lock that its holder may acquire again; it is free once it was released as often."""

    kind = "RLock"

    def _nested(self) -> bool:
        self._at()
        number = runs.current().number
        grant = self._record.held.get(number)
        if grant is None:
            return False
        self._record.held[number] = grant._replace(depth=grant.depth + 1)
        return True

    def acquire(self, timeout: float | None = None, *, block: bool = True) -> bool:
        """As `Lock.acquire`; at once if the caller holds it already."""
        return self._nested() or super().acquire(timeout, block=block)

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` for tasks."""
        return self._nested() or await super().aacquire(timeout)

    def release(self) -> None:
        """Undo one `acquire`.

        Raises:
            NotHeld: the caller does not hold it.
        """
        self._at()
        number = runs.current().number
        grant = self._record.held.get(number)
        if grant is not None and grant.depth > 1:
            self._record.held[number] = grant._replace(depth=grant.depth - 1)
        else:
            self._released()


class Semaphore(Held):
    """As many holders as it has slots; the slots of one that dies come back.

    With no slots it is a signal: anybody's `release` adds one, and each `acquire` takes one for good, as nobody holds
    what was not lent to him.

    Args:
        value: the slots; 0 makes a signal.

    Raises:
        ConfigError: `value` is no number from 0, or not that of the other handles of this name.

    Example:
        >>> done = Semaphore("done", 0)
        >>> done.release()
        >>> print(done.acquire(timeout=0), done.acquire(timeout=0))
        True False
    """

    kind = "Semaphore"
    _cure = f"{Held._cure}  To signal others, take Semaphore(name, 0), which anybody releases, or an Event."

    def __init__(self, name: str, value: int = 1) -> None:
        self._value = whole(value, f"value of Semaphore {name!r}")
        super().__init__(name)

    def _shape(self) -> str:
        return f"value={self._value}"

    def _arguments(self) -> tuple[Any, ...]:
        return self.name, self._value

    def _granted(self, run: runs.Run, reply: Reply) -> bool:
        if reply.status != Status.OK:
            return False
        if self._value:
            record = self._record
            record.held[run.number] = record.held.get(run.number, 0) + 1
            run.endings[record.ended] = None
        return True

    def release(self) -> None:
        """Give a slot back; a signal is sent.  It never waits.

        Raises:
            NotHeld: the caller holds no slot.
        """
        self._at()
        run = runs.current()
        if self._value:
            self._give_back(run)
        self._record.place.tell(Verb.RELEASE, self._key, run.number)

    def _give_back(self, run: runs.Run) -> None:
        record = self._record
        count = record.held.get(run.number, 0)
        if not count:
            raise self._not_held("release")
        if count == 1:
            del record.held[run.number]
            run.endings.pop(record.ended, None)
        else:
            record.held[run.number] = count - 1

    @property
    def free(self) -> int:
        """The slots that nobody holds, or the signals that nobody has taken."""
        return self._ask(Verb.LOCKED).number

    def locked(self) -> bool:
        """Whether no slot is free."""
        return self.free == 0
