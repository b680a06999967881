"""How many tasks a pool may have that are not over, and who waits until there is room for another."""

from __future__ import annotations

import threading
from collections import deque

from longshore.errors import LimitExceeded
from longshore.shared.pool.contract import PoolClosed
from longshore.shared.pool.waiting import Promise, may_wait

__all__ = ("Room",)


class _Slot(Promise):
    what = "room in the pool"
    cure = "Await pool.run(...)."


class Room:
    """Room for `limit` tasks, given out in the order in which it was asked for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Slot] = deque()
        self._closed = False

    def take(self) -> None:
        """Take room for one task, and wait for it where the caller may wait.

        Raises:
            LimitExceeded: there is none, and this thread must not wait.
            PoolClosed: the pool was shut down meanwhile.
        """
        slot = self.ask()
        if slot is None:
            return
        if not may_wait():
            self._give_up(slot)
            raise LimitExceeded(
                f"the pool has {self.used} tasks that are not over (max_pending={self.limit})",
                hint="Await pool.run(...), which waits for room, or submit less.",
            )
        try:
            slot.result()
        except BaseException:
            self._give_up(slot)
            raise

    def ask(self) -> Promise | None:
        """Take room for one task: None if there was some, else what is done once there is.

        Whoever does not want it any more cancels it, and if that is too late, calls `release`.
        """
        with self._lock:
            if self._closed:
                raise PoolClosed("this pool was shut down", hint="Make a new Pool.")
            if self.used < self.limit:
                self.used += 1
                return None
            slot = _Slot()
            self._waiting.append(slot)
            return slot

    def _give_up(self, slot: Promise) -> None:
        if not slot.cancel() and not slot.cancelled() and slot.exception(0) is None:
            self.release()

    def release(self, _over: object = None) -> None:
        """A task is over."""
        with self._lock:
            while self._waiting:
                slot = self._waiting.popleft()
                if slot.set_running_or_notify_cancel():
                    break
            else:
                self.used -= 1
                return
        slot.set_result(None)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for slot in waiting:
            if slot.set_running_or_notify_cancel():
                slot.set_exception(PoolClosed("this pool was shut down", hint="Make a new Pool."))
