"""Waiting until a descriptor is ready, and hearing of signals meanwhile.

The only place where a blocking caller waits in poll(2).  It reads and writes nothing of the caller's.

Facts, and what follows from them:

* Python runs signal handlers between two instructions of the main thread.  A signal that comes after the last of them
  and before the system call interrupts nothing, and its handler would run when the peer happens to send.  So the main
  thread waits for two descriptors: its own, and one to which the interpreter writes when a signal comes.
* That descriptor (`signal.set_wakeup_fd`) belongs to the whole process, and a loop may use it.  So it is borrowed for
  one wait at a time, and what came for its owner is passed on.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ("Signals", "on_main_thread", "ready")


def on_main_thread() -> bool:
    """Whether the caller is the thread on which Python runs signal handlers."""
    return threading.get_ident() == threading.main_thread().ident


def ready(sock: socket.socket, events: int, deadline: float | None) -> bool:
    """Wait until `sock` is ready for `events` (of `select.poll`), or in trouble.

    `deadline` is on the clock of `time.monotonic`; None waits for ever.

    Returns:
        False if the deadline passed before.

    Raises:
        OSError, ValueError: the socket is closed.
    """
    poller = select.poll()
    poller.register(sock, events)
    return bool(poller.poll(_milliseconds(deadline)))


def _milliseconds(deadline: float | None) -> int | None:
    return None if deadline is None else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)


class Signals:
    """A pipe that tells one waiter on the main thread of signals; it closes with its last user."""

    __slots__ = ("_poller", "_reader", "_writer")

    def __init__(self) -> None:
        # A signal handler may raise anywhere in here, and then this object ends half made.
        self._reader = self._writer = -1
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._poller = select.poll()
        self._poller.register(self._reader, select.POLLIN)

    def __del__(self) -> None:
        for descriptor in (self._reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)

    def ready(self, sock: socket.socket, events: int, deadline: float | None) -> bool:
        """As the function `ready`, on the main thread; what signal handlers raise leaves it."""
        poller = self._poller
        descriptor = sock.fileno()
        poller.register(descriptor, events)
        # A signal that has come before this call is handled at its end, one that comes later is in the pipe.
        owner = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            while found := poller.poll(_milliseconds(deadline)):
                if len(found) > 1 or found[0][0] == descriptor:
                    return True
                self._pass_on(owner)
            return False
        finally:
            signal.set_wakeup_fd(owner, warn_on_full_buffer=False)
            poller.unregister(descriptor)

    def _pass_on(self, owner: int) -> None:
        numbers = os.read(self._reader, 4096)
        if owner >= 0:
            try:
                os.write(owner, numbers)
            except OSError:
                # Full: then its owner wakes up anyway.
                pass
