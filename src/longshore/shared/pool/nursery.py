"""The nursery: a process with one thread that forks a pool's processes, and buries them.

It is a `Spawner` as the strategy `processes` has, but a program of its own, started with exec: a pool is used in
programs that have threads already, and those must not fork.  Because it can be started again at any time there is one,
without a copy that waits.  It imports what its children need before it forks, and nothing of the program.

This file has both sides: `main` is the nursery, `Nursery` is how the pool commands it.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from longshore.strategies.spawner import FORK, KILL, REPORT, REQUEST, Spawner

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Nursery", "main")

_PROGRAM = "import sys; sys.path[:] = {path!r}; from longshore.shared.pool.nursery import main; main({descriptor})"


def main(descriptor: int) -> None:
    """Be a nursery; `descriptor` is its end of the control stream."""
    from longshore.shared.pool import process

    # A terminal sends it to all; what it means the pool's program decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    gc.collect()
    gc.freeze()
    Spawner(process.serve, control).run()


class Nursery:
    """A nursery at the other end of `control`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        program = _PROGRAM.format(path=sys.path, descriptor=theirs.fileno())
        try:
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
        #: Whether it has forked anything yet.
        self.is_proven = False
        self._partial = b""

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fork(self, number: int, sock: socket.socket) -> None:
        """Have a process forked whose socket is `sock`; its end is reported by `number`."""
        # The end of the stream, which is read next, tells when it is gone.
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [REQUEST.pack(FORK, number)], [sock.fileno()])

    def kill(self, pid: int) -> None:
        """Kill one of its processes, if it is not buried yet."""
        with contextlib.suppress(OSError):
            self.control.sendall(REQUEST.pack(KILL, pid))

    def reports(self) -> Iterator[tuple[bytes, int, int, int]]:
        """What it has reported: verb, number, pid, status; at the end of its stream the last one has no verb."""
        try:
            data = self.control.recv(64 * REPORT.size, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            yield b"", 0, 0, 0
            return
        data = self._partial + data
        whole = len(data) - len(data) % REPORT.size
        self._partial = data[whole:]
        yield from REPORT.iter_unpack(data[:whole])

    def dismiss(self) -> None:
        """Have it end, and its processes with it; the end of its stream tells when it has."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def bury(self) -> None:
        """It has closed its stream, or is not to live on."""
        self.control.close()
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
