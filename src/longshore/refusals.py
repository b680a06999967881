"""Refusals: what the system's "no" means for an address, and what to do about it.

The only place that turns an errno of socket(2), bind(2) or listen(2) into an error of Longshore's; connecting has words
of its own for what the other end says, and shares those about this system.  Nothing here opens a socket.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from longshore.addresses import Address, Endpoint, format_peer
from longshore.errors import AddressError, AddressInUse, AddressUnavailable, PermissionNeeded
from longshore.owners import process_name, socket_holders, temporary_name, unix_holders

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("in_use", "lacks_sockets", "no_such_sockets", "not_here", "raw_refused", "refuse_to_bind")

_NO_SOCKETS: Final = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
_MODULES: Final = {"AF_TIPC": "tipc", "AF_VSOCK": "vsock", "AF_INET6": "ipv6"}

#: linux/vm_sockets.h: the context id of the machine itself, for which the kernel needs a module of its own.
_VSOCK_LOCAL: Final = 1


def refuse_to_bind(what: Address | str, endpoint: Endpoint, error: OSError) -> NoReturn:
    """Raise the error that says what the system's refusal to bind means for this address, and what to do."""
    code = error.errno
    name = endpoint.sockaddr
    folder = os.path.dirname(name) if isinstance(name, str) else ""
    if code == errno.EADDRINUSE:
        ports = endpoint.family in (socket.AF_INET, socket.AF_INET6)
        raise in_use(what, _holders(endpoint), ports=ports) from error
    if code in (errno.EACCES, errno.EPERM):
        if endpoint.type == socket.SOCK_RAW:
            raise raw_refused(what, error) from error
        if folder:
            hint = f"This user must be able to write in {folder}, and own what is there already."
        else:
            hint = "Ports below 1024 need CAP_NET_BIND_SERVICE: use a higher one, grant it, or have the socket passed."
        raise PermissionNeeded(f"{what}: permission denied ({error.strerror})", hint=hint, errno=code) from error
    if code in (errno.EADDRNOTAVAIL, errno.ENODEV):
        raise not_here(what, endpoint, error) from error
    if lacks_sockets(error):
        raise no_such_sockets(what, endpoint.family, error) from error
    if folder and code in (errno.ENOENT, errno.ENOTDIR):
        raise AddressUnavailable(
            f"{what}: there is no directory {folder}", hint="Create it first.", errno=code
        ) from error
    raise AddressError(f"{what}: {error.strerror or error}", errno=code) from error


def raw_refused(what: Address | str, error: OSError) -> PermissionNeeded:
    """This user may open no raw socket."""
    return PermissionNeeded(
        f"{what}: permission denied ({error.strerror})",
        hint="Raw sockets need CAP_NET_RAW: run as root, or grant it (AmbientCapabilities= in a systemd unit).",
        errno=error.errno,
    )


def no_such_sockets(what: Address | str, family: int, error: OSError) -> AddressUnavailable:
    """The kernel lacks a family of sockets."""
    name = next((each.name for each in socket.AddressFamily if each == family), str(family))
    module = _MODULES.get(name)
    return AddressUnavailable(
        f"{what}: this system's kernel has no such {name} sockets ({error.strerror})",
        hint=f"Load it (`modprobe {module}`), or use another address." if module else "Use another address.",
        errno=error.errno,
    )


def lacks_sockets(error: OSError) -> bool:
    """Whether `error` says that the kernel lacks a family of sockets."""
    return error.errno in _NO_SOCKETS


def not_here(what: Address | str, endpoint: Endpoint, error: OSError) -> AddressUnavailable:
    """The address is not one of this machine's."""
    name = endpoint.sockaddr
    if endpoint.family != getattr(socket, "AF_VSOCK", None):
        hint = "`ip address` lists those it has; tcp://:PORT is all of them."
    elif name[0] == _VSOCK_LOCAL:
        hint = "Within one machine vsock needs a module of its own (`modprobe vsock_loopback`)."
    else:
        hint = "vsock://:PORT is every context id of this machine."
    return AddressUnavailable(
        f"{what}: {format_peer(endpoint.family, name)} is no address of this machine", hint=hint, errno=error.errno
    )


def _holders(endpoint: Endpoint) -> list[int]:
    name = endpoint.sockaddr
    if not isinstance(name, str):
        return socket_holders(endpoint)
    path = "@" + name[1:] if name[:1] == "\0" else name
    return unix_holders(path, temporary_name(path))


def in_use(what: Address | str, holders: Sequence[int], *, ports: bool = False) -> AddressInUse:
    """Somebody else has the address: the first of `holders`, where the system tells."""
    if os.getpid() in holders:
        owner = f"this process itself (pid {os.getpid()})"
    elif holders:
        # Prefork servers share a socket; the first to have had it is mostly the one to talk to.
        owner = f"{process_name(min(holders))} (pid {min(holders)})"
    else:
        owner = "another process (the system does not tell this user which)"
    return AddressInUse(
        f"{what}: already in use by {owner}",
        hint=f"Stop it first, or choose another address{'; port 0 takes any free one' if ports else ''}.",
        errno=errno.EADDRINUSE,
    )
