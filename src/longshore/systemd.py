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

from longshore import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from longshore.events import Event
    from longshore.listeners import Listener

__all__ = ("Herald", "Notifier", "forget_others", "name_of", "stored", "taken_back", "watchdog_interval")

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

    def succeeded_by(self, pid: int) -> bool:
        """Another process is the service from now on (MAINPID=), and the end of this one is not its end."""
        return self._send({"MAINPID": str(pid)})

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


#: What begins the names of sockets that we have left with systemd ourselves.
PREFIX = "longshore-"


class Herald:
    """Tells systemd what happens to a server, or to a supervisor: a subscriber of its events.

    Args:
        notifier: who tells; one for this process if None.
        sockets: gives what `stored` does: left with systemd once it accepts, so that a restart refuses nobody.
    """

    def __init__(
        self,
        notifier: Notifier | None = None,
        sockets: Callable[[], Iterable[tuple[str, socket.socket]]] = tuple,
    ) -> None:
        self._notifier = notifier or Notifier()
        self._sockets = sockets

    def __call__(self, event: Event) -> None:
        """Tell it, if it is of interest."""
        notifier = self._notifier
        match event:
            case events.ServerStarted():
                for target, sock in self._sockets():
                    notifier.store(name_of(target), [sock])
                notifier.ready(f"serving {event.handler} on {' and '.join(event.addresses)}")
            case events.ServerPaused():
                notifier.status("paused")
            case events.ServerResumed():
                notifier.status("serving")
            case events.Reloading():
                notifier.reloading(f"reloading: generation {event.generation} starts")
            case events.Reloaded():
                notifier.ready(f"serving, generation {event.generation}")
            case events.ReloadFailed():
                notifier.ready(f"serving; the last reload failed: {event.reason}")
            case events.Upgraded():
                notifier.succeeded_by(event.pid)
            case events.ServerDraining():
                notifier.stopping(f"draining {event.connections} connections")
            case events.ServerStopped():
                notifier.stopping("stopped")


def name_of(target: str) -> str:
    """The name under which the sockets of an address are left with systemd: letters and digits, as it takes no URL."""
    import hashlib

    return PREFIX + hashlib.sha256(target.encode()).hexdigest()[:16]


def taken_back(targets: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The addresses, those whose sockets were left with systemd before a restart as `systemd://name`.

    Only for the process that systemd has started (LISTEN_PID, sd_listen_fds(3)).
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return tuple(targets)
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return tuple(_taken_back(target) if name_of(target) in names else target for target in targets)


def _taken_back(target: str) -> str:
    # Of what an address says about its socket only this is not the socket's own.
    speaks_tls = target.startswith("tls:") or "tls=1" in target.partition("?")[2].split("&")
    return f"systemd://{name_of(target)}{'?tls=1' if speaks_tls else ''}"


def stored(listeners: Iterable[Listener]) -> list[tuple[str, socket.socket]]:
    """What of a server's listening sockets can be left with systemd, by the address that it was asked for with.

    Those of the internet: the file of a Unix socket goes with its process, and an inherited one is systemd's already.
    """
    return [
        (listener.address.text, listener.socket)
        for listener in listeners
        if listener.address is not None and listener.address.scheme in ("tcp", "tls", "udp")
    ]


def forget_others(targets: Sequence[str], notifier: Notifier, environ: Mapping[str, str] = os.environ) -> None:
    """Have systemd close what was left with it for addresses that are served no more."""
    wanted = {name_of(target) for target in targets}
    for name in set(environ.get("LISTEN_FDNAMES", "").split(":")):
        if name.startswith(PREFIX) and name not in wanted:
            notifier.forget(name)
