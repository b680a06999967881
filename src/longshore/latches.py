"""What threads wait for, and how a thread knows where it is.

Made for verbs that signal handlers call: nothing here can be interrupted in a state that blocks somebody.
"""

from __future__ import annotations

import threading

__all__ = ("Inside", "Latch")


class Latch:
    """Opens once.  One release of one lock, so that a signal handler may interrupt its waiters at any point."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.is_open = False

    def open(self) -> None:
        """Let all waiters through; again does nothing."""
        if not self.is_open:
            self.is_open = True
            self._lock.release()

    def wait(self, timeout: float = -1) -> bool:
        """Return True once it is open, False after `timeout` seconds (negative: never)."""
        if not self._lock.acquire(timeout=timeout):
            return False
        # Each waiter lets the next one through.
        self._lock.release()
        return True


class Inside(threading.local):
    """How deep the current thread is inside a server's own calls."""

    depth = 0
