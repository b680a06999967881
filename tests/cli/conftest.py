"""Running `longshore` as its users do: in a process of its own, without what this environment says."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

import running
from running import COMMAND


def _run(*arguments: str, cwd: Any = None, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=15,
        env=running.environment(**variables),
    )


class _Serving:
    """`longshore serve` in a process of its own, entered once it accepts; left with SIGTERM."""

    def __init__(self, *arguments: str, cwd: Any = None, **variables: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "serve", *arguments],
            cwd=cwd,
            env=running.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.first_line = self._process.stderr.readline().decode()
        self.rest = b""

    @property
    def url(self) -> str:
        """The first URL of the first line."""
        assert "://" in self.first_line, self.first_line + self._process.communicate()[1].decode()
        return next(word for word in self.first_line.split() if "://" in word)

    def line(self) -> str:
        """The next line of standard error."""
        assert self._process.stderr is not None
        return self._process.stderr.readline().decode()

    def stop(self, number: int = 15) -> int:
        """Send a signal, wait for the end, keep what was still printed in `rest`; the exit status."""
        if self._process.returncode is None:
            self._process.send_signal(number)
            try:
                output, errors = self._process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                raise
            assert output == b""
            self.rest = errors
        return self._process.returncode

    def __enter__(self) -> _Serving:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


@pytest.fixture
def run():
    """Runs a command to its end: `run("serve", ..., cwd=, stdin=, VARIABLE=...)`."""
    return _run


@pytest.fixture
def serving():
    """Serves until the block is left: `with serving("app.py", "--bind", url, cwd=...) as server`."""
    return _Serving


@pytest.fixture
def environment():
    """The environment of such a command."""
    return running.environment


@pytest.fixture
def command():
    """The words that start the command."""
    return list(COMMAND)


@pytest.fixture
def app(tmp_path):
    """A directory with `echo.py`, which has one handler, and `several.py`, which has three."""
    (tmp_path / "echo.py").write_text(
        "def echo(connection):\n    while data := connection.recv(65536):\n        connection.sendall(data)\n"
    )
    (tmp_path / "several.py").write_text(
        "import socketserver\n"
        "from longshore import MessageHandler, Lines\n\n"
        "class Upper(MessageHandler):\n"
        "    def message(self, message):\n"
        "        return message.upper()\n\n"
        "class Old(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline())\n\n"
        "def answer(message, connection):\n"
        "    return b'got ' + message\n\n"
        "def _private(connection):\n"
        "    pass\n\n"
        "def of_no_use(one, two, three):\n"
        "    pass\n"
    )
    return tmp_path
