"""Starting a broker: a fresh directory, a secret, and a process that ends with its owner.

The only file that starts one.  It is exec'd, never forked into this program's memory, so it may be started at any
time, also where threads run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from longshore.errors import BrokerLost
from longshore.shared.places import MAX_ITEM

__all__ = ("Broker", "start_broker")

#: Seconds that it may take to come up.
_UP = 30.0


class Broker:
    """A broker that this process owns.

    Args:
        directory: where it lives: of mode 0700, and this user's.  None makes a fresh one.  A broker that is started in
            the directory of one that died has a higher epoch.
        max_item: the largest value, in bytes.

    Raises:
        BrokerLost: it did not come up.
    """

    def __init__(self, directory: str | None = None, max_item: int = MAX_ITEM) -> None:
        made = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="longshore-", dir=_usable()))
        key = self.directory / "key"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        #: The URL by which others join.
        self.url = f"local://{self.directory}/socket"
        #: Its process, which is no child of this one.
        self.pid = 0
        self._max_item = max_item
        self._owner = os.getpid()
        self._lifeline = self._ended = -1
        try:
            self._start()
        except BaseException:
            if made:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _start(self) -> None:
        """Have a process come up.

        It lives as long as this one holds `_lifeline`, and nothing can be read from `_ended` before it is over: the
        other end of that pipe is its alone.  A pidfd takes its place where there are some, as a process that dies
        closes one descriptor after the other, and nobody must be served by the next broker before it has closed all.
        """
        lifeline, self._lifeline = os.pipe()
        self._ended, ready = os.pipe()
        try:
            self.pid = self._launch(lifeline, ready)
        except BaseException:
            # Whatever came between, what was begun ends with its lifeline.
            self._forget()
            raise
        with contextlib.suppress(OSError, AttributeError):
            pidfd = os.pidfd_open(self.pid)
            os.close(self._ended)
            self._ended = pidfd

    def _launch(self, lifeline: int, ready: int) -> int:
        """Run it with its ends of the pipes, which are closed here; its process, once it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        home = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "longshore.shared.broker", str(self.directory)]
        command += ["--owner", str(os.getpid()), "--lifeline", str(lifeline), "--ready", str(ready)]
        try:
            process = subprocess.Popen(
                [*command, "--max-item", str(self._max_item)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(lifeline, ready),
                env=environment,
                # An interrupt of the terminal's is for the program, which ends the broker by ending.
                start_new_session=True,
            )
        finally:
            os.close(lifeline)
            os.close(ready)
        # What has hung says no more than what has died.
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        up = os.read(self._ended, 32) if poll.poll(_UP * 1000) else b""
        if not up:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if not up:
            raise BrokerLost(
                f"the broker in {self.directory} did not come up (exit {code})", hint="Its standard error says why."
            )
        return int(up)

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended; -1 where there is none."""
        return self._ended

    def restart(self) -> None:
        """Start another one, empty, where this one has died: its epoch is higher, and its URL the same.

        Raises:
            BrokerLost: it did not come up.
        """
        self.release()
        self._start()

    def release(self) -> None:
        """Take note of its death; its directory stays, for the next one."""
        self._end(0)

    def stop(self) -> None:
        """End it, and remove what it had; again, or in a child of its owner, does nothing."""
        if self._end(5):
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, seconds: float) -> bool:
        """Let it end, and kill it after `seconds`; whether there was one of this process's own."""
        if self._lifeline < 0 or self._owner != os.getpid():
            return False
        os.close(self._lifeline)
        self._lifeline = -1
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        if not poll.poll(seconds * 1000):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            poll.poll(5000)
        self._forget()
        return True

    def _forget(self) -> None:
        for descriptor in (self._lifeline, self._ended):
            if descriptor >= 0:
                os.close(descriptor)
        self._lifeline = self._ended = -1

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def _usable() -> str | None:
    """XDG_RUNTIME_DIR, if this user may make others in it; paths of sockets are short, so a deep one is none."""
    directory = os.environ.get("XDG_RUNTIME_DIR")
    with contextlib.suppress(OSError):
        if directory and len(directory) < 40 and os.stat(directory).st_uid == os.geteuid() and os.access(directory, 7):
            return directory
    return None


def start_broker(directory: str | None = None, max_item: int = MAX_ITEM) -> Broker:
    """Start a broker that ends with this process: what a supervisor does before its first worker.

    Its `url` goes into the environment of the workers as `LONGSHORE_SHARED`.

    Raises:
        BrokerLost: it did not come up.
    """
    return Broker(directory, max_item)
