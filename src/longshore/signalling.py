"""Signals as things that happen one after the other, for a process that has one loop and no thread.

The only place where a process takes signals for its supervisor.  A handler that did something could interrupt the
loop between any two instructions; these do nothing, and the numbers are read from a socket in their order.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("SignalQueue",)


class SignalQueue:
    """The signals of `numbers`, from now until `close`; `fileno` is readable when there are some.

    Raises:
        ConfigError: this is not the main thread, on which alone Python takes signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                "worker processes are supervised by signals, which Python takes on the main thread only",
                hint="Call serve(..., workers=N) on the main thread.",
            )
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous: dict[signal.Signals, Any] = {}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            self._previous[number] = signal.signal(number, _nothing)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader.fileno()

    def read(self) -> list[int]:
        """The signals that came, in their order."""
        with contextlib.suppress(BlockingIOError):
            return list(self._reader.recv(4096))
        return []

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def forget(self) -> None:
        """Close the descriptors in a forked child, which has signals of its own."""
        self._reader.close()
        self._writer.close()


def _nothing(_number: int, _frame: object) -> None:
    """A handler: without one, no signal would be written to the socket."""
