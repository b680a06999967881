"""What this machine grants a server, and what Longshore runs on here.

The only place that reads the system's limits.  What cannot be read is said to be unknown, with the reason, and
stops nothing: containers hide some of these files, and other systems have none of them.

Sources: proc(5), getrlimit(2), listen(2), tcp(7), socket(7), udp(7), ip(7), cgroups(7), and the kernel's
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

from longshore.admission import SPARE_DESCRIPTORS
from longshore.config import Limits
from longshore.errors import LongshoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Vital", "vitals")

#: What we ask listen(2) for; the kernel gives at most somaxconn (whose own default is 4096 since Linux 5.4).
_BACKLOG: Final = 4096
#: Half-open connections that a busy server should survive; the kernel's default is 128 to 4096, by memory.
_SYN_BACKLOG: Final = 1024
#: net/core/sock.c, SK_RMEM_MAX: what the kernel gives where nobody changed it.
_BUFFER: Final = 212_992
#: Ports for connections out of this machine; the kernel's default range has 28,232.
_PORTS: Final = 10_000
#: Threads of Python itself, of a pool, and of whatever else runs as this user.
_SPARE_THREADS: Final = 128
#: Below this a Python server with a few hundred connections is likely to be killed.
_MEMORY: Final = 128 * 1024 * 1024

_PACKAGES: Final = {
    "greenlet": "the green strategy",
    "uvloop": "a faster loop for the async strategy",
    "msgpack": "the MsgPack framing",
    "watchfiles": "serve --reload",
}
_EXTRAS: Final = {"uvloop": "uvloop", "msgpack": "msgpack", "watchfiles": "reload"}


@dataclass(frozen=True, slots=True)
class Vital:
    """One measurement.

    Attributes:
        name: what was measured: "net.core.somaxconn".
        value: what it is, as text; "unknown" if it cannot be read.
        verdict: "ok", "look" (at this), or "unknown".
        note: what it means, or why it is unknown.
        fix: the one line that raises it; "" if nothing needs to.
    """

    name: str
    value: str
    verdict: str = "ok"
    note: str = ""
    fix: str = ""


def vitals(limits: Limits | None = None, root: str = "/") -> list[Vital]:
    """Measure everything; never raises for what cannot be measured.

    Args:
        limits: what the server is to have; the defaults if None.
        root: the directory under which `proc` and `sys` lie.
    """
    return [*_software(), *_limits(limits or Limits(), root)]


def _software() -> Iterator[Vital]:
    from longshore import __version__

    yield Vital("longshore", __version__)
    threading = "free-threaded" if not getattr(sys, "_is_gil_enabled", lambda: True)() else "with the GIL"
    yield Vital("python", f"{platform.python_version()} ({platform.python_implementation()}, {threading})")
    yield Vital("system", f"{platform.system()} {platform.release()} ({platform.machine()}), {os.cpu_count()} CPUs")
    yield _reactor()
    for name, purpose in _PACKAGES.items():
        try:
            yield Vital(name, metadata.version(name), note=f"for {purpose}")
        except metadata.PackageNotFoundError:
            extra = _EXTRAS.get(name)
            how = f"pip install 'longshore[{extra}]'" if extra else f"pip install {name}"
            # Only what the core needs is missed; an extra is a choice.
            yield Vital(name, "not installed", "ok" if extra else "look", f"for {purpose}: {how}", "" if extra else how)


def _reactor() -> Vital:
    from longshore import reactor

    try:
        active, reason = reactor.create()
    except LongshoreError as error:
        return Vital("reactor", "none", "look", str(error), error.hint)
    except Exception as error:
        return Vital("reactor", "none", "look", f"it cannot be made: {type(error).__name__}: {error}")
    try:
        return Vital("reactor", active.name, note=reason)
    finally:
        active.close()


def _limits(limits: Limits, root: str) -> Iterator[Vital]:
    read = _Files(root)
    yield from _own(limits)
    yield read.least(
        "net.core.somaxconn", _BACKLOG, "connections that wait to be accepted, on each address; " + read.overflows()
    )
    yield read.least("net.ipv4.tcp_max_syn_backlog", _SYN_BACKLOG, "connections whose handshake is not over")
    lost = read.counter("proc/net/snmp", "Udp", "RcvbufErrors")
    for way, what in (("r", "datagrams that wait to be read"), ("w", "datagrams that wait to leave")):
        yield read.least(f"net.core.{way}mem_max", _BUFFER, f"bytes a socket may ask for, for {what}")
        note = f"bytes a socket has for {what}"
        if way == "r" and lost:
            size = 4 * 1024 * 1024
            fix = f"sysctl -w net.core.rmem_default={size} net.core.rmem_max={size}"
            value = read.text("proc/sys/net/core/rmem_default")[0]
            note = f"{note}; {lost} were dropped since the start of the system, because it was full"
            yield Vital("net.core.rmem_default", value or "unknown", "look", note, fix)
        else:
            yield read.least(f"net.core.{way}mem_default", _BUFFER, note)
    yield _ports(read)
    needed = (limits.max_threads or 0) + _SPARE_THREADS
    yield read.least("kernel.threads-max", needed, "threads on the whole machine")
    yield from _cgroup(read, needed)


def _own(limits: Limits) -> Iterator[Vital]:
    """The limits of this process, getrlimit(2)."""
    try:
        import resource
    except ImportError as error:
        yield Vital("descriptors", "unknown", "unknown", str(error))
        return
    needed = limits.max_connections + SPARE_DESCRIPTORS
    note = f"{needed} are needed for max_connections={limits.max_connections}"
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (OSError, ValueError) as error:
        yield Vital("descriptors", "unknown", "unknown", str(error))
    else:
        value = f"soft {_amount(soft)}, hard {_amount(hard)}"
        if _allows(soft, needed):
            yield Vital("descriptors", value, note=note)
        elif _allows(hard, needed):
            yield Vital("descriptors", value, note=f"{note}; a server raises its soft limit itself")
        else:
            note = f"{note}; a server takes {max(1, hard - SPARE_DESCRIPTORS)} connections at most"
            fix = f"ulimit -n {needed}  (as root; under systemd LimitNOFILE={needed})"
            yield Vital("descriptors", value, "look", note, fix)
    needed = (limits.max_threads or 0) + _SPARE_THREADS
    note = f"{needed} are needed for max_threads={limits.max_threads}, and all else that runs as this user counts too"
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    except (AttributeError, OSError, ValueError) as error:
        yield Vital("processes", "unknown", "unknown", str(error))
    else:
        value = f"soft {_amount(soft)}, hard {_amount(hard)}"
        good = _allows(soft, needed)
        yield Vital("processes", value, "ok" if good else "look", note, "" if good else f"ulimit -u {needed}")


def _allows(limit: int, needed: int) -> bool:
    return limit < 0 or limit >= needed  # RLIM_INFINITY is -1 in Python


def _amount(limit: int) -> str:
    return "unlimited" if limit < 0 else str(limit)


def _ports(read: _Files) -> Vital:
    name, what = "net.ipv4.ip_local_port_range", "ports for connections out of this machine"
    text, why = read.text("proc/sys/net/ipv4/ip_local_port_range")
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return Vital(name, "unknown", "unknown", why or f"it reads {text!r}")
    count = int(words[1]) - int(words[0]) + 1
    good = count >= _PORTS
    fix = "" if good else f'sysctl -w {name}="32768 60999"'
    return Vital(name, "-".join(words), "ok" if good else "look", f"{count} {what}", fix)


class _Files:
    """The files of the kernel under one root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def text(self, path: str) -> tuple[str, str]:
        """What stands in a file, and why it cannot be read; one of them is empty."""
        try:
            with open(os.path.join(self.root, path), encoding="utf-8", errors="replace") as file:
                return file.read().strip(), ""
        except OSError as error:
            return "", f"/{path}: {error.strerror or error}"

    def least(self, name: str, wanted: int, note: str) -> Vital:
        """The vital of a sysctl that should be at least `wanted`."""
        text, why = self.text("proc/sys/" + name.replace(".", "/"))
        note = note.removesuffix("; ")
        if not text.isdigit():
            return Vital(name, "unknown", "unknown", why or f"it reads {text!r}")
        if int(text) >= wanted:
            return Vital(name, text, note=note)
        return Vital(name, text, "look", note, f"sysctl -w {name}={wanted}")

    def counter(self, path: str, group: str, name: str) -> int:
        """A counter of /proc/net/snmp or netstat, where a line of names stands above one of numbers; 0 if unknown."""
        lines = [line.split() for line in self.text(path)[0].splitlines() if line.startswith(f"{group}:")]
        found = dict(zip(lines[0], lines[1], strict=False)).get(name, "") if len(lines) == 2 else ""
        return int(found) if found.isdigit() else 0

    def overflows(self) -> str:
        """What the kernel counted of listening sockets that were full; "" if nothing."""
        count = self.counter("proc/net/netstat", "TcpExt", "ListenOverflows")
        return f"since the start of the system {count} found a full queue" if count else ""


#: What a cgroup may limit: our name for it, the file of version 2, and controller and file of version 1.
_CONTROLS: Final = (
    ("cgroup memory", "memory.max", "memory", "memory.limit_in_bytes"),
    ("cgroup pids", "pids.max", "pids", "pids.max"),
    ("cgroup cpu", "cpu.max", "cpu", "cpu.cfs_quota_us"),
)


def _cgroup(read: _Files, threads: int) -> Iterator[Vital]:
    text, why = read.text("proc/self/cgroup")
    if why:
        yield Vital("cgroup", "unknown", "unknown", why)
        return
    rows = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    paths = {each: path for _, names, path in rows for each in names.split(",")}
    for name, newer, controller, older in _CONTROLS:
        places = (
            [("sys/fs/cgroup", paths[""], newer), ("sys/fs/cgroup/unified", paths[""], newer)] if "" in paths else []
        )
        if controller in paths:
            places.append((f"sys/fs/cgroup/{controller}", paths[controller], older))
        found = [limit for place in places for limit in _along(read, *place)]
        if found:
            yield _judged(name, min(found), threads)
        else:
            yield Vital(name, "no limit")


def _along(read: _Files, mount: str, path: str, file: str) -> Iterator[float]:
    """The limits of a cgroup and of all above it: the lowest holds."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = os.path.join(mount, *parts[:depth])
        words = read.text(os.path.join(folder, file))[0].split()
        # "max" is no limit; a quota of -1 is none either, and version 1 says about 2**63 where no memory limit is set.
        if not words or not words[0].isdigit() or int(words[0]) >= 1 << 62:
            continue
        if file == "cpu.max":
            period = words[1] if len(words) == 2 else ""
        elif file == "cpu.cfs_quota_us":
            period = read.text(os.path.join(folder, "cpu.cfs_period_us"))[0]
        else:
            period = "1"
        if period.isdigit() and int(period):
            yield int(words[0]) / int(period)


def _judged(name: str, limit: float, threads: int) -> Vital:
    if name == "cgroup cpu":
        return Vital(name, f"{limit:g} CPUs", note="more workers than that gain nothing")
    if name == "cgroup pids":
        good = limit >= threads
        fix = "" if good else f"give the container or unit more (--pids-limit {threads}, TasksMax={threads})"
        note = "threads and processes in this container or unit"
        return Vital(name, f"{limit:.0f}", "ok" if good else "look", note, fix)
    good = limit >= _MEMORY
    fix = "" if good else "give the container or unit more (--memory, MemoryMax=), or lower --max-connections"
    value = f"{limit / (1024 * 1024):.0f} MiB"
    return Vital(name, value, "ok" if good else "look", "whoever needs more is killed", fix)
