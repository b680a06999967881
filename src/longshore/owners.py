"""Who has an address that is in use: the processes behind a port, a Unix socket or a lock, as far as Linux tells.

The only place that looks for other processes, in /proc.  Where there is none, or another user's are hidden, nobody
is found, and that is an answer too.  Nothing here binds or judges.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

from longshore.addresses import PATH_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshore.addresses import Endpoint

__all__ = (
    "credentials_of",
    "lock_holders",
    "peer_of",
    "process_name",
    "socket_holders",
    "temporary_name",
    "unix_holders",
)

#: struct ucred of unix(7).
_CREDENTIALS = struct.Struct("=iII")


def process_name(pid: int) -> str:
    """What the system calls the process, fit to be shown."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return "".join(each if each.isprintable() else "?" for each in file.read().strip()) or "a process"
    except OSError:
        return "a process"


def lock_holders(held: bytes, path: str, temporary: str) -> list[int]:
    """Who has the lock: the process that wrote itself into it, or, if only its children are left, those."""
    text = held.strip()
    if text.isdigit() and os.path.exists(f"/proc/{int(text)}"):
        return [int(text)]
    return unix_holders(path, temporary)


def socket_holders(endpoint: Endpoint) -> list[int]:
    """Who has the port of `endpoint`, on any address that is in its way; listeners before others."""
    name = endpoint.sockaddr
    if isinstance(name, str) or endpoint.family not in (socket.AF_INET, socket.AF_INET6) or not name[1]:
        return []
    table = "udp" if endpoint.type == socket.SOCK_DGRAM else "tcp"
    wanted = _plain(socket.inet_pton(endpoint.family, str(name[0]).partition("%")[0]))
    listening: set[str] = set()
    others: set[str] = set()
    for row in (*_rows(f"/proc/net/{table}"), *_rows(f"/proc/net/{table}6")):
        host, _, port = row[1].partition(":")
        theirs = _plain(_proc_address(host))
        if int(port, 16) == name[1] and (theirs == wanted or not any(theirs) or not any(wanted)):
            (listening if row[3] == "0A" else others).add(row[9])
    return _holders(listening) or _holders(others)


def _proc_address(text: str) -> bytes:
    """The address in network order: /proc/net prints it as 32-bit words of this machine's byte order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "big":
        return raw
    return b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))


def _plain(packed: bytes) -> bytes:
    return packed[12:] if packed[:12] == b"\0" * 10 + b"\xff\xff" else packed


def unix_holders(path: str, temporary: str) -> list[int]:
    """Who has a Unix socket at `path` (`@name` if abstract), or made there as `temporary`, the kernel's name for it.

    A temporary name that is too long for the kernel is reached through its directory's descriptor.
    """
    folder, short = "/proc/self/fd/", "/" + os.path.basename(temporary)
    found: set[str] = set()
    for row in _rows("/proc/net/unix", 7):
        name = row[7].rstrip("\n") if len(row) == 8 else ""
        if name in (path, temporary) or (name.startswith(folder) and name.endswith(short)):
            found.add(row[6])
    return _holders(found)


def temporary_name(path: str) -> str:
    """The name under which the file of `path` is made: short, and the same at each start, so leftovers are found."""
    name = path + ".new"
    if len(os.fsencode(name)) > PATH_LIMIT:
        name = os.path.join(os.path.dirname(path), f".{zlib.crc32(os.fsencode(path)):08x}.new")
    return name


def credentials_of(sock: Any) -> tuple[int, int, int] | None:
    """Process, user and group at the other end of a Unix socket when it connected (SO_PEERCRED, unix(7)).

    `sock` has `getsockopt`, as sockets and connections do.  None where the system does not tell, or it is gone already.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        return _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except OSError:
        return None


def peer_of(path: str) -> list[int]:
    """Who listens at `path`, by asking the kernel over a connection: it tells also of other users' processes."""
    if sys.platform != "linux":
        return []
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except OSError:
                continue
            told = credentials_of(probe)
            return [told[0]] if told is not None and told[0] else []
    return []


def _rows(table: str, split: int = -1) -> Iterator[list[str]]:
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            next(file, None)
            for line in file:
                yield line.split(None, split)
    except OSError:
        # No /proc, or no such protocol: then the owner stays unnamed.
        return


def _holders(inodes: set[str]) -> list[int]:
    """The processes that have one of these sockets open, as far as this user may look."""
    if not inodes:
        return []
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found: list[int] = []
    for pid in filter(str.isdigit, _names("/proc")):
        for descriptor in _names(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") not in wanted:
                    continue
            except OSError:
                continue
            found.append(int(pid))
            break
    return found


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        # No /proc, a process that has just ended, or another user's.
        return []
