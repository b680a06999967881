"""A program that replaces itself: started once more with the same command, it takes over the bound sockets.

The only place that knows both sides of this.  The old program starts the new one as its child and passes it the
descriptors of its sockets and, in one variable of the environment, what they are; the new one serves on them as if it
had bound them, and says so on a pipe once its workers accept.  Only then the old one drains.  If the pipe ends without
a word, the new one has failed, and nothing has happened.

No connection is refused meanwhile, because the sockets are never closed, and what waits in their queues is accepted by
whoever is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from longshore.listeners import inherit
from longshore.machine import OWN

if TYPE_CHECKING:
    from longshore.supervisor.anchorage import Anchorage

__all__ = ("VARIABLE", "Heritage", "Successor", "refusal")

#: Set for the new program only, which takes it away again before any other code of its runs.
VARIABLE = "LONGSHORE_UPGRADE"


def refusal() -> str:
    """Why this program cannot be upgraded in place; empty if it can."""
    if os.getpid() == 1:
        return "this is process 1, with which its container would end; start another container"
    return ""


class Successor:
    """The new program, as the old one sees it; `fileno` is readable when there is news.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, anchorage: Anchorage) -> None:
        self._reader, writer = os.pipe()
        sockets = []
        inherited = [writer]
        for target, listener in anchorage.listeners:
            lock = listener.lock
            inherited += [listener.socket.fileno(), *([] if lock is None else [lock])]
            sockets.append((listener.socket.fileno(), target, listener.url, lock))
        # systemd asks whoever is the service's main process for signs of life, and that is the new program soon.
        environment = {name: value for name, value in os.environ.items() if name not in (*OWN, "WATCHDOG_PID")}
        try:
            self._process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=environment | {VARIABLE: json.dumps({"sockets": sockets, "ready": writer})},
                pass_fds=inherited,
            )
        except BaseException:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._reader

    def is_ready(self) -> bool:
        """Read the news: whether it serves; if not, it has ended, or will not serve."""
        return os.read(self._reader, 16) != b""

    def failure(self) -> str:
        """How it ended, once it did not become ready."""
        try:
            return f"process {self.pid} ended with exit status {self._process.wait(timeout=5)} before it was ready"
        except subprocess.TimeoutExpired:
            return f"process {self.pid} closed its pipe without being ready"

    def is_over(self) -> bool:
        """Whether it has ended, and is no zombie any more."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Wait for no more news; the program itself goes on, as a child of whoever adopts it."""
        os.close(self._reader)
        # Popen would warn that it still runs, which is the point.
        self._process.returncode = self._process.returncode or 0


class Heritage:
    """What this program was given by the one before."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._sockets = given["sockets"]
        self._ready: int | None = given["ready"]
        os.set_inheritable(given["ready"], False)

    @classmethod
    def receive(cls) -> Heritage | None:
        """It, or None if this program was started by somebody else."""
        text = os.environ.pop(VARIABLE, "")
        return cls(json.loads(text)) if text else None

    def moor(self, anchorage: Anchorage) -> None:
        """Put the sockets where those are that this program binds itself."""
        for descriptor, target, url, lock in self._sockets:
            anchorage.adopt(target, inherit(descriptor, target, url, lock))

    def announce(self) -> None:
        """Say that this program serves, so that the other one drains."""
        if self._ready is not None:
            os.write(self._ready, b"ready")
            os.close(self._ready)
            self._ready = None
