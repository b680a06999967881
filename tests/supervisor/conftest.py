"""Running `longshore serve` with workers as its users do, and asking its workers who they are."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

import running

COMMAND = [*running.COMMAND, "serve"]

#: A handler that says which process answers, on each line that it gets.
WHO = """
import os, time
def who(connection):
    while line := connection.readline():
        connection.sendall(b"%d %s" % (os.getpid(), line))
"""


class Service:
    """A program with workers in a process of its own, entered once it accepts; killed if it is left behind."""

    def __init__(self, command, cwd, **variables):
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=running.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.pid = self.process.pid
        self._lines = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._lines.append(None)
            self._news.notify_all()

    def line(self, pattern, timeout=15.0, count=1):
        """Wait until `count` lines of its output have matched, and return the last match."""
        with self._news:
            found = self._news.wait_for(lambda: self._find(pattern, count) or self._over(), timeout)
            match = self._find(pattern, count)
        assert match, f"no {pattern!r} in {found}:\n" + "\n".join(map(str, self._lines))
        return match

    def _find(self, pattern, count=1):
        matches = [match for line in self._lines if line is not None and (match := re.search(pattern, line))]
        return matches[count - 1] if len(matches) >= count else None

    def count(self, pattern):
        """How many lines have matched so far."""
        return sum(1 for line in self.output if re.search(pattern, line))

    def _over(self):
        return bool(self._lines) and self._lines[-1] is None

    @property
    def output(self):
        """All lines so far."""
        return [line for line in self._lines if line is not None]

    @property
    def url(self):
        """The first URL, once it accepts."""
        return self.line(r"^longshore: serving \S+ on (\S+)").group(1)

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def connect(self):
        """A new connection, as a file of bytes with its socket in `sock`."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return Peer(sock)

    def ask(self):
        """The process that answers on a new connection."""
        with self.connect() as peer:
            return peer.ask()

    def workers(self):
        """The processes that are its children now."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def send(self, number):
        os.kill(self.pid, number)

    def stop(self, number=signal.SIGTERM, timeout=15):
        """Send a signal and wait; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=15):
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def __enter__(self):
        try:
            self.line(r"^longshore: serving ")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc):
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            for pid in [*self.workers(), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
        finally:
            self.process.stdout.close()
            self.process.stderr.close()


class Peer:
    """One connection to a service."""

    def __init__(self, sock):
        self.sock = sock
        self.file = sock.makefile("rb")

    def ask(self, text=b"hello"):
        """Send a line; the process that answers it."""
        self.sock.sendall(text + b"\n")
        answer = self.file.readline()
        assert answer.endswith(text + b"\n"), answer
        return int(answer.split()[0])

    def close(self):
        self.file.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


def alive(pid):
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, timeout=15.0):
    """Wait until `condition()` is true; what it was last."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"{condition} did not come true"
        time.sleep(0.01)
    return found


@pytest.fixture
def app(tmp_path):
    """A directory with `app.py`, whose handler says who answers."""
    (tmp_path / "app.py").write_text(WHO)
    return tmp_path


@pytest.fixture
def service(app):
    """Start the command: `service("--workers", "2", ...)`, on a port of its own; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, enter=True, target="app.py", bind="tcp://127.0.0.1:0", command=None, **variables):
            words = command or [*COMMAND, target, "--bind", bind, *arguments]
            made = Service(words, app, **variables)
            if enter:
                stack.enter_context(made)
            else:
                stack.callback(made.process.stdout.close)
                stack.callback(made.process.stderr.close)
                stack.callback(made.process.kill)
            return made

        yield start
