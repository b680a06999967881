"""A real Redis or Valkey server for tests: started in a directory of its own, on a free port, and ended with them."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

__all__ = ("PROGRAM", "WHY_NOT", "RedisProcess")

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
WHY_NOT = "there is no redis-server or valkey-server here (Debian: apt-get install redis-server)"


class RedisProcess:
    """A server; `options` are those of its command line."""

    def __init__(self, directory: Path, *options: str) -> None:
        assert PROGRAM is not None, WHY_NOT
        self.directory = directory
        self.options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        """Start it; it accepts when this returns."""
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [PROGRAM, *where, "--save", "", *self.options],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stdout:
            if "eady to accept connections" in line:
                return
        raise RuntimeError(f"the server ended with {self.process.wait()}")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def command(self, *words: object) -> object:
        """Have the server do a command, over a connection of its own."""
        import redis

        with redis.Redis(port=self.port) as client:
            return client.execute_command(*words)
