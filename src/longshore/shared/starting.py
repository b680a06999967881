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
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        made = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="longshore-", dir=_usable(runtime)))
        key = self.directory / "key"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        #: The URL by which others join.
        self.url = f"local://{self.directory}/socket"
        self._pid = os.getpid()
        lifeline, self._lifeline = os.pipe()
        came, ready = os.pipe()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGSHORE_")}
        home = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "longshore.shared.broker", str(self.directory)]
        command += ["--owner", str(os.getpid()), "--lifeline", str(lifeline), "--ready", str(ready)]
        try:
            process = subprocess.Popen(
                [*command, "--max-item", str(max_item)],
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
        with open(came, "rb") as stream:
            up = stream.read()
        code = process.wait()
        if not up:
            os.close(self._lifeline)
            if made:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise BrokerLost(
                f"the broker in {self.directory} did not come up (exit {code})", hint="Its standard error says why."
            )

        #: Its process, which is no child of this one.
        self.pid = int(up)

    def _wait(self, seconds: float) -> None:
        """Wait for its end, and kill it after `seconds`."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], seconds)[0]:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], 5)
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Take note of its death; its directory stays, for the next one."""
        if self._lifeline >= 0 and self._pid == os.getpid():
            os.close(self._lifeline)
            self._lifeline = -1
            self._wait(0)

    def stop(self) -> None:
        """End it, and remove what it had; again, or in a child of its owner, does nothing."""
        if self._lifeline >= 0 and self._pid == os.getpid():
            os.close(self._lifeline)
            self._lifeline = -1
            self._wait(5)
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def _usable(directory: str | None) -> str | None:
    """The directory, if this user may make others in it; paths of sockets are short, so a deep one is none."""
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
