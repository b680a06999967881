"""Processes on a core of their own: a server that says where it listens, and the load that is put on it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ("Cores", "Failed", "Server", "load", "raise_descriptor_limit")


class Failed(Exception):
    """A server or its load did not do what it was asked; says what it said."""


class Cores:
    """Which core the server has, and which the load.

    Children inherit the core of the thread that starts them, so that thread goes there for a moment; nothing has to
    run between fork and exec.
    """

    def __init__(self) -> None:
        self.all = os.sched_getaffinity(0)
        usable = sorted(self.all)
        self.server, self.load = usable[0], usable[-1]

    @property
    def are_two(self) -> bool:
        """Whether server and load do not take time from each other."""
        return self.server != self.load

    @contextlib.contextmanager
    def on(self, core: int) -> Iterator[None]:
        """Start children on this core."""
        os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.all)


def raise_descriptor_limit() -> int:
    """Let this process and its children have as many descriptors as the system allows; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Server:
    """A server that runs; a context manager that ends it."""

    def __init__(self, command: Sequence[str], cores: Cores, environment: dict[str, str] | None = None) -> None:
        self._command = list(command)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        with cores.on(cores.server):
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=self._log, env={**os.environ, **(environment or {})}
            )
        try:
            words = self._first_line().split()
        except Failed:
            self.stop()
            raise
        self.url = words[0]
        #: The reactor that serves, if the server names one.
        self.reactor = words[1] if len(words) > 1 else ""

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def _first_line(self, patience: float = 20.0) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line.strip():
            raise Failed(f"it does not start: {self.last_error()}")
        return line

    def last_error(self) -> str:
        """The last line that it wrote to its standard error."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"

    def stop(self, patience: float = 5.0) -> str:
        """End it, and return the rest of its output."""
        self._process.send_signal(signal.SIGTERM)
        try:
            rest, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        self._log.close()
        return rest.decode()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def load(program: Path, cores: Cores, *arguments: object, patience: float = 120.0) -> dict[str, Any]:
    """Run the load generator once, and return its report.

    Raises:
        Failed: an answer was wrong or missing.
    """
    with cores.on(cores.load):
        process = subprocess.Popen(
            [str(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    try:
        output, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failed(f"the load did not end within {patience:g} seconds") from None
    if process.returncode:
        raise Failed(errors.decode(errors="replace").strip() or f"the load ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])
