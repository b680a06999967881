"""Signals as things that happen one after the other, for a process that has one loop and no thread.

The only place where a process takes signals for its supervisor.  A handler that did something could interrupt the
loop between any two instructions; these do nothing, and the numbers are read from a socket in their order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("Hangup", "SignalQueue")


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
        self._hangup = Hangup()
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

    @property
    def hung_up(self) -> bool:
        """Whether a SIGHUP says that the terminal was closed."""
        return self._hangup.is_end

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


class Hangup:
    """Tells what a SIGHUP means: `kill -HUP` asks for a reload, and a terminal that is closed sends the same.

    Whoever was started under nohup(1), or with SIGHUP ignored otherwise, is not meant to end with its terminal.
    """

    def __init__(self) -> None:
        self._minds = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    @property
    def is_end(self) -> bool:
        """Whether the terminal of this process is gone."""
        return self._minds and not _has_terminal()


def _has_terminal() -> bool:
    # tty(4): opening it fails with ENXIO in a process that has no controlling terminal, or not any more.
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _nothing(_number: int, _frame: object) -> None:
    """A handler: without one, no signal would be written to the socket."""
