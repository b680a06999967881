"""What a service tells systemd, and leaves with it: sd_notify(3), without libsystemd.

The only place that knows this protocol: datagrams of `NAME=value` lines to the Unix socket that NOTIFY_SOCKET names.
Outside of systemd there is no such variable, and every call does nothing.  Sockets that systemd passes at the start
(`systemd://name`, sd_listen_fds(3)) are the business of `longshore.addresses`, and those that were stored come back the
same way.

Nothing here fails: that a supervisor cannot be told is no reason to stop serving.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ("Notifier", "watchdog_interval")

#: The most descriptors that one message carries: SCM_MAX_FD of the kernel.
MAX_FDS = 253


class Notifier:
    """Speaks to the service manager that has started this process, if one has.

    Args:
        environ: the environment whose NOTIFY_SOCKET counts: a path, or `@name` for an abstract socket.

    Example:
        >>> Notifier({}).ready("serving")  # not under systemd: nobody was told
        False
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        # AF_VSOCK is for virtual machines as a whole, and anything else is none of its forms.
        self._address = "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is complete (READY=1)."""
        return self._send({"READY": "1"}, status)

    def reloading(self, status: str = "") -> bool:
        """A reload begins (RELOADING=1): `ready` ends it.

        Type=notify-reload compares the time with its own signal's, so it is CLOCK_MONOTONIC, in microseconds.
        """
        return self._send({"RELOADING": "1", "MONOTONIC_USEC": str(time.clock_gettime_ns(1) // 1000)}, status)

    def stopping(self, status: str = "") -> bool:
        """Shutdown begins (STOPPING=1)."""
        return self._send({"STOPPING": "1"}, status)

    def status(self, status: str) -> bool:
        """One line that `systemctl status` shows (STATUS=)."""
        return self._send({}, status)

    def alive(self) -> bool:
        """All is well (WATCHDOG=1); to be said every `watchdog_interval` seconds."""
        return self._send({"WATCHDOG": "1"})

    def store(self, name: str, sockets: Sequence[socket.socket]) -> bool:
        """Leave sockets with systemd over a restart (FDSTORE=1, needs FileDescriptorStoreMax= in the unit).

        At the next start they are among LISTEN_FDS, under this name: the one that `systemd://name` takes.
        """
        return self._send({"FDSTORE": "1", "FDNAME": name}, fds=[sock.fileno() for sock in sockets])

    def forget(self, name: str) -> bool:
        """Have what was stored under `name` closed (FDSTOREREMOVE=1)."""
        return self._send({"FDSTOREREMOVE": "1", "FDNAME": name})

    def _send(self, fields: dict[str, str], status: str = "", fds: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        if status:
            # A line end would begin another field.
            fields = fields | {"STATUS": " ".join(status.split())}
        data = "\n".join(f"{name}={value}" for name, value in fields.items()).encode()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # A manager that does not read must not stop its services.
            sock.setblocking(False)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds[:MAX_FDS]))] if fds else []
            sock.sendmsg([data], rights, 0, self._address)
            return True
        return False


def watchdog_interval(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds between two signs of life: half of what WatchdogSec= allows; None if nobody waits for any.

    Args:
        environ: the environment whose WATCHDOG_USEC and WATCHDOG_PID count (sd_watchdog_enabled(3)).
        pid: whose business it would be; this process if None.
    """
    meant = environ.get("WATCHDOG_PID", "")
    if meant and meant != str(os.getpid() if pid is None else pid):
        return None
    with contextlib.suppress(ValueError):
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        if microseconds > 0:
            return microseconds / 2e6
    return None
