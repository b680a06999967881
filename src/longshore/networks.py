"""Networks and peers as keys: who a peer is, and whether a list of networks names it.

Pure: texts and addresses in, bytes and numbers out.  The only place that reads the entries of `Limits.allow`,
`Limits.deny` and `Proxy.trusted`.  An entry is a network (`10.0.0.0/8`, `2001:db8::/32`), an address, `unix` for every
peer of a Unix socket, or `uid:1000` for those that run as that user.  It decides nothing about connections.

Who a peer is (`Who`) is its packed address (4 bytes for IPv4, also where that comes over an IPv6 socket, else 16), its
user's number on a Unix socket, or None where the system does not tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Networks", "Who", "key_of", "packed", "who_is")

#: Packed address, uid, or None: nobody knows.
Who = bytes | int | None

#: The first 12 bytes of an IPv4 address in IPv6 clothes (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"


def packed(host: str) -> bytes | None:
    """The address in `host` as 4 or 16 bytes; None if it is none."""
    import socket

    try:
        if ":" not in host:
            return socket.inet_pton(socket.AF_INET, host)
        found = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return None
    return found[12:] if found.startswith(_MAPPED) else found


def who_is(peer: str) -> Who:
    """Whose address `addresses.format_peer` has written."""
    return packed(peer.rpartition(":")[0].strip("[]"))


def key_of(who: Who) -> Who:
    """What a peer is counted by: IPv4 addresses one by one, IPv6 by /64 (one customer has that many), users by uid."""
    return who[:8] if isinstance(who, bytes) and len(who) == 16 else who


class Networks:
    """A list of networks that can be asked quickly: once per length of prefix in it, however long it is.

    Raises:
        ConfigError: an entry is no network; the message says where it stands (`owner`).
    """

    __slots__ = ("_every_user", "_prefixes", "_users", "empty")

    def __init__(self, entries: Sequence[str], owner: str) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}
        self._users: set[int] = set()
        self._every_user = False
        self.empty = not entries
        if isinstance(entries, (str, bytes)) or not all(isinstance(entry, str) for entry in entries):
            raise ConfigError(
                f"{owner}={entries!r}: must be a tuple of networks, such as ('10.0.0.0/8', '2001:db8::/32')"
            )
        for entry in entries:
            self._add(entry, owner)

    def _add(self, entry: str, owner: str) -> None:
        if entry == "unix":
            self._every_user = True
            return
        if entry.startswith("uid:") and entry[4:].isdecimal():
            self._users.add(int(entry[4:]))
            return
        import ipaddress

        try:
            network = ipaddress.ip_network(entry)
        except ValueError as error:
            raise ConfigError(
                f"{owner}: {entry!r} is no network: {error}",
                hint="Write 192.0.2.0/24, 2001:db8::/32, a single address, unix, or uid:NUMBER.",
            ) from error
        size, bits, start = network.max_prefixlen // 8, network.prefixlen, network.network_address.packed
        if size == 16 and bits >= 96 and start.startswith(_MAPPED):
            size, bits, start = 4, bits - 96, start[12:]
        self._prefixes.setdefault((size, bits), set()).add(int.from_bytes(start, "big") >> (size * 8 - bits))

    def __contains__(self, who: Any) -> bool:
        if isinstance(who, bytes):
            size = len(who)
            number = int.from_bytes(who, "big")
            return any(
                length == size and number >> (size * 8 - bits) in starts
                for (length, bits), starts in self._prefixes.items()
            )
        if isinstance(who, int):
            return self._every_user or who in self._users
        return False
