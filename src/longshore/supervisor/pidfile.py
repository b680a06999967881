"""A file with a process number, for programs that send signals by it.

The only place that writes one.  It appears whole (a temporary name, then rename(2)), and is removed only while it still
names this process: after an upgrade in place it is another one's.
"""

from __future__ import annotations

import contextlib
import os

from longshore.errors import ConfigError

__all__ = ("PidFile",)


class PidFile:
    """The file at `path`, made by `write`."""

    def __init__(self, path: str) -> None:
        # Whoever removes it may be in another directory by then.
        self.path = os.path.abspath(path)

    def write(self) -> None:
        """Say that this process is it.

        Raises:
            ConfigError: the file cannot be written.
        """
        temporary = f"{self.path}.{os.getpid()}"
        try:
            with open(temporary, "w") as file:
                file.write(f"{os.getpid()}\n")
            os.rename(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise ConfigError(
                f"the file {self.path} for the process number cannot be written: {error.strerror}",
                hint="--pid-file names it; its directory must exist and be writable.",
            ) from error

    def remove(self) -> None:
        """Remove it, if it is still ours."""
        with contextlib.suppress(OSError, ValueError):
            with open(self.path) as file:
                mine = int(file.read()) == os.getpid()
            if mine:
                os.unlink(self.path)
