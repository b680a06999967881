"""`Event`, `Condition` and `Barrier`: waiting for something that others do."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.shared.handle import Handle, seconds, whole
from longshore.shared.lock import Grant, RLock
from longshore.shared.places import Reply, Status, Verb

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Barrier", "Condition", "Event")


class Event(Handle):
    """A flag that one sets and many wait for."""

    kind = "Event"

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._ask(Verb.SET)

    def clear(self) -> None:
        """Take it back."""
        self._ask(Verb.CLEAR)

    def is_set(self) -> bool:
        """Whether it is set."""
        return bool(self._ask(Verb.IS_SET).number)

    def wait(self, timeout: float | None = None) -> bool:
        """Return True once it is set, False after `timeout` seconds.

        Raises:
            WouldBlock: this thread turns a reactor or a loop; await `await_set()`.
        """
        return self._wait(Verb.AWAIT_SET, seconds(timeout)).status == Status.OK

    async def await_set(self, timeout: float | None = None) -> bool:
        """`wait` for tasks."""
        return (await self._await(Verb.AWAIT_SET, seconds(timeout))).status == Status.OK

    async def aset(self) -> None:
        """`set` for tasks."""
        await self._await(Verb.SET)

    async def aclear(self) -> None:
        """`clear` for tasks."""
        await self._await(Verb.CLEAR)

    async def ais_set(self) -> bool:
        """`is_set` for tasks."""
        return bool((await self._await(Verb.IS_SET)).number)


class Condition(RLock):
    """A lock, and a place to wait until somebody who holds it says that something has changed."""

    kind = "Condition"

    def _sleeping(self) -> tuple[runs.Run, Grant]:
        """Give the grant up for the time of a wait."""
        self._at()
        run = runs.current()
        grant = self._record.held.pop(run.number, None)
        if grant is None:
            raise self._not_held("wait")
        return run, grant

    def _awake(self, run: runs.Run, before: Grant, reply: Reply | None) -> bool:
        """Hold it again, as often as before."""
        if reply is None or reply.status != Status.OK:
            self._record.held[run.number] = before
            return False
        fresh = Grant(reply.number, reply.fields[0] == b"1", before.depth)
        self._last = self._record.held[run.number] = fresh
        return reply.fields[1] == b"1"

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until somebody notifies; return with the lock held.

        Returns:
            False if `timeout` seconds passed first.

        Raises:
            NotHeld: the caller does not hold the lock.
            WouldBlock: this thread turns a reactor or a loop; await `await_notified()`.
        """
        run, grant = self._sleeping()
        reply = None
        try:
            reply = self._wait(Verb.WAIT, seconds(timeout), holder=run.number)
        finally:
            notified = self._awake(run, grant, reply)
        return notified

    async def await_notified(self, timeout: float | None = None) -> bool:
        """`wait` for tasks."""
        run, grant = self._sleeping()
        reply = None
        try:
            reply = await self._await(Verb.WAIT, seconds(timeout), holder=run.number)
        finally:
            notified = self._awake(run, grant, reply)
        return notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()` is true, for at most `timeout` seconds; returns its last value."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake `n` who wait.

        Raises:
            NotHeld: the caller does not hold the lock.
        """
        n = whole(n, f"n of {self!r}.notify", -1)
        if self._ask(Verb.NOTIFY, n, holder=runs.current().number).status == Status.NOT_HELD:
            raise self._not_held("notify")

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.notify(-1)

    async def anotify(self, n: int = 1) -> None:
        """`notify` for tasks."""
        n = whole(n, f"n of {self!r}.anotify", -1)
        if (await self._await(Verb.NOTIFY, 0, n)).status == Status.NOT_HELD:
            raise self._not_held("notify")

    async def anotify_all(self) -> None:
        """`notify_all` for tasks."""
        await self.anotify(-1)


class Barrier(Handle):
    """Lets nobody go on before `parties` have come.

    Raises:
        ConfigError: `parties` is no number from 1, or not that of the other handles of this name.
    """

    kind = "Barrier"

    def __init__(self, name: str, parties: int) -> None:
        #: How many it takes.
        self.parties = whole(parties, f"parties of Barrier {name!r}", 1)
        super().__init__(name)

    def _shape(self) -> str:
        return f"parties={self.parties}"

    def _arguments(self) -> tuple[Any, ...]:
        return self.name, self.parties

    def _through(self, reply: Reply) -> int:
        if reply.status != Status.OK:
            raise threading.BrokenBarrierError(
                f"{self!r} is broken: somebody was late, died or aborted it; reset() mends it"
            )
        return reply.number

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all have come.

        Returns:
            The caller's place, 0 to parties-1, in order of arrival.

        Raises:
            threading.BrokenBarrierError: `timeout` seconds passed, here or elsewhere; somebody who waited died;
                or it was aborted or reset.
            WouldBlock: this thread turns a reactor or a loop; await `await_all()`.
        """
        return self._through(self._wait(Verb.ARRIVE, seconds(timeout)))

    async def await_all(self, timeout: float | None = None) -> int:
        """`wait` for tasks."""
        return self._through(await self._await(Verb.ARRIVE, seconds(timeout)))

    def abort(self) -> None:
        """Break it."""
        self._ask(Verb.ABORT)

    def reset(self) -> None:
        """Make it whole again; who waits now gets a `BrokenBarrierError`."""
        self._ask(Verb.RESET)

    @property
    def n_waiting(self) -> int:
        """How many wait."""
        return self._ask(Verb.BARRIER_STATE).number

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self._ask(Verb.BARRIER_STATE).fields[0] == b"1"
