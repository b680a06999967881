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

__all__ = ("UP", "Broker", "start_broker")

#: Seconds that it may take to come up.
UP = 30.0


class Broker:
    """A broker that this process owns.

    Args:
        directory: where it lives: of mode 0700, and this user's.  None makes a fresh one.  A broker that is started in
            the directory of one that died has a higher epoch.
        max_item: the largest value, in bytes.

        user: the numbers of the user and group that it becomes, which only root may ask for; then it serves that user
            and whoever has started it.

    Raises:
        BrokerLost: it did not come up.
    """

    def __init__(
        self, directory: str | None = None, max_item: int = MAX_ITEM, *, user: tuple[int, int] | None = None
    ) -> None:
        made = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="longshore-", dir=None if user else _usable()))
        key = self.directory / "key"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        #: The URL by which others join.
        self.url = f"local://{self.directory}/socket"
        #: Its process, which is no child of this one.
        self.pid = 0
        self._max_item = max_item
        self._user = user
        self._owner = os.getpid()
        self._lifeline = self._ended = -1
        #: Whether its directory is not this one's any more.
        self._released = False
        #: What was run, until it is known what has come of it.
        self._run: subprocess.Popen[bytes] | None = None
        try:
            if user is not None:
                for path in (self.directory, key):
                    os.chown(path, *user)
            self.restart()
        except BaseException:
            if made:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def begin(self) -> None:
        """Start another one, empty, where this one has died, and wait for nothing: `complete` says what comes of it.

        Its epoch is higher, and its URL the same.  It lives as long as this process holds `_lifeline`, and nothing can
        be read from `_ended` before it is up or over: the other end of that pipe is its alone.

        Raises:
            OSError: it could not be run.
        """
        self._end(0)
        self._released = False
        lifeline, self._lifeline = os.pipe()
        self._ended, ready = os.pipe()
        try:
            self._run = self._launch(lifeline, ready)
        except BaseException:
            self._forget()
            raise

    def _launch(self, lifeline: int, ready: int) -> subprocess.Popen[bytes]:
        """Run it with its ends of the pipes, which are closed here."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        home = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "longshore.shared.broker", str(self.directory)]
        command += ["--owner", str(os.getpid()), "--lifeline", str(lifeline), "--ready", str(ready)]
        command += ["--max-item", str(self._max_item)]
        command += ["--user", *map(str, self._user)] if self._user else []
        try:
            return subprocess.Popen(
                command,
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

    def complete(self, seconds: float = 0.0) -> None:
        """Take note that what was begun is up, within `seconds`; one that is up already is left as it is.

        A pidfd takes the place of the pipe where there are some, as a process that dies closes one descriptor after the
        other, and nobody must be served by the next broker before it has closed all.

        Raises:
            BrokerLost: it is not up, and was killed.
        """
        run = self._run
        if run is None:
            if self._lifeline < 0:
                raise BrokerLost(f"the broker in {self.directory} did not come up")
            return
        # What has hung says no more than what has died.
        up = os.read(self._ended, 32) if self._has_told(seconds) else b""
        if not up:
            self._abandon()
            raise BrokerLost(
                f"the broker in {self.directory} did not come up (exit {run.returncode})",
                hint="Its standard error says why.",
            )
        run.wait()
        self._run = None
        self.pid = int(up)
        with contextlib.suppress(OSError, AttributeError):
            pidfd = os.pidfd_open(self.pid)
            os.close(self._ended)
            self._ended = pidfd

    def _has_told(self, seconds: float) -> bool:
        """Whether it is up or over, after at most `seconds`."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _abandon(self) -> None:
        """End what is not up."""
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        self._forget()

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended, or, after `begin`, is up; -1 where there is none."""
        return self._ended

    def restart(self) -> None:
        """Start another one, empty, where this one has died: its epoch is higher, and its URL the same.

        Raises:
            BrokerLost: it did not come up.
        """
        self.begin()
        try:
            self.complete(UP)
        except BaseException:
            # Whatever came between, what was begun ends.
            self._abandon()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether there is none, and none was begun."""
        return self._ended < 0 or (self._run is None and self._has_told(0))

    def release(self) -> None:
        """Take note of its death; its directory stays, for the next one."""
        self._end(0)
        self._released = True

    def stop(self) -> None:
        """End it, and remove what it had; again, or in a child of its owner, does nothing."""
        self._end(5)
        if self._owner == os.getpid() and not self._released:
            self._released = True
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, seconds: float) -> None:
        """Let it end, if it is this process's own, and kill it after `seconds`."""
        if self._lifeline < 0 or self._owner != os.getpid():
            return
        os.close(self._lifeline)
        self._lifeline = -1
        if self._run is not None:
            self._abandon()
            return
        if not self._has_told(seconds):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._has_told(5)
        self._forget()

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
