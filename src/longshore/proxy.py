"""The PROXY protocol, versions 1 and 2, both ways: a header in front of a connection that says whose it really is.

Pure: bytes in, a `Header` out, and back.  The rules are those of HAProxy's proxy-protocol.txt (2020/03/05 and later).
Whether a header is required, believed or refused is not decided here, and nothing here reads a socket.

Facts, and what follows from them:

* A header comes before everything else, TLS too, and its end is known from its own bytes.  So `parse` is given what
  has come, and says whether that is a whole header, the beginning of one, or none.
* Whoever sends a header can be anybody.  So each field is checked before it is used, and the size is bounded before
  the rest of it has come.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from longshore.errors import PeerError

__all__ = ("SIGNATURE", "Header", "ProxyError", "Suspicion", "header", "parse")

#: What a header of version 2 begins with (section 2.2).
SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
#: What a header of version 1 begins with, and its longest form with CRLF (section 2.1).
_V1, _V1_LONGEST = b"PROXY ", 107

#: High and low half of byte 14: family and kind of socket.
_FAMILIES: Final = {1: (socket.AF_INET, 4), 2: (socket.AF_INET6, 16)}
_UNIX_SIZE = 108

#: Types of the fields behind the addresses (section 2.2.1 and on), by the names under which `Header.fields` has them.
_FIELDS: Final = {0x01: "alpn", 0x02: "authority", 0x05: "unique_id", 0x30: "netns"}
_CRC32C, _NOOP, _SSL = 0x03, 0x04, 0x20
#: Fields inside of the one about TLS.
_SSL_FIELDS: Final = {
    0x21: "version",
    0x22: "common_name",
    0x23: "cipher",
    0x24: "signature_algorithm",
    0x25: "key_algorithm",
}


class ProxyError(PeerError, ConnectionError):
    """A PROXY header that is missing, malformed, too long, cut off or not believed."""

    #: The cause of `ConnectionClosed` that it stands for.
    cause = "proxy"


@dataclass(frozen=True, slots=True)
class Header:
    """What a proxy says of a connection.

    Addresses are as the socket module has them: `(host, port)`, a path for Unix sockets; None where the proxy speaks
    for itself (its health checks: `LOCAL`), or of something that has no address (`UNKNOWN`).
    """

    version: int
    #: Of `socket`: AF_INET, AF_INET6, AF_UNIX; None without addresses.
    family: int | None = None
    source: Any = None
    destination: Any = None
    #: Whether this is the proxy's own connection, on nobody's behalf.
    is_local: bool = False
    #: What version 2 says besides: `alpn`, `authority`, `unique_id`, `netns`, and `0xNN` for other types, as bytes.
    fields: dict[str, bytes] = field(default_factory=dict)
    #: What it says of the client's TLS: `version`, `cipher`, ... as texts, `verified` as bool; empty without TLS.
    tls: dict[str, Any] = field(default_factory=dict)


# -- reading -------------------------------------------------------------------------------------------------


def parse(data: bytes, max_size: int = 4096) -> tuple[Header, int] | None:
    """The header at the beginning of `data` and its length in bytes; None if it is not whole yet.

    Args:
        data: all that has come so far.
        max_size: bytes that a header may have.

    Raises:
        ProxyError: `data` begins with no header, or with one that breaks the rules.
    """
    if data.startswith(SIGNATURE):
        return _parse_v2(data, max_size)
    if data.startswith(_V1):
        return _parse_v1(data)
    if SIGNATURE.startswith(data) or _V1.startswith(data):
        return None
    raise ProxyError(f"it began with {data[:16]!r}, which is no PROXY header")


def _parse_v1(data: bytes) -> tuple[Header, int] | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST or b"\n" in data:
            raise ProxyError(f"its PROXY header of version 1 has no end within {_V1_LONGEST} bytes")
        return None
    line = data[:end]
    words = line.split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        # Section 2.1: what follows is to be ignored.
        return Header(1), end + 2
    try:
        _, kind, source, destination, source_port, destination_port = words
        family, _size = {b"TCP4": _FAMILIES[1], b"TCP6": _FAMILIES[2]}[kind]
        return (
            Header(
                1,
                family,
                (_host(family, source), _port(source_port)),
                (_host(family, destination), _port(destination_port)),
            ),
            end + 2,
        )
    except (ValueError, KeyError, OSError):
        raise ProxyError(f"its PROXY header {line!r} is malformed") from None


def _host(family: int, text: bytes) -> str:
    return socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))


def _port(text: bytes) -> int:
    if not text.isdigit() or (text[:1] == b"0" and len(text) > 1) or int(text) > 65_535:
        raise ValueError(text)
    return int(text)


def _parse_v2(data: bytes, max_size: int) -> tuple[Header, int] | None:
    if len(data) < 16:
        return None
    command, kind, length = struct.unpack_from("!BBH", data, 12)
    if command >> 4 != 2 or command & 15 > 1:
        raise ProxyError(f"its PROXY header has version and command 0x{command:02x}; 0x20 and 0x21 are known")
    size = 16 + length
    if size > max_size:
        raise ProxyError(f"its PROXY header has {size} bytes, over Proxy.max_header={max_size}")
    if len(data) < size:
        return None
    body = data[16:size]
    if not command & 15:
        # LOCAL (section 2.2): whatever else it says is to be skipped.
        return Header(2, is_local=True), size
    family, source, destination, rest = _addresses(kind, body)
    fields, tls = _fields(rest, data[:size])
    return Header(2, family, source, destination, False, fields, tls), size


def _addresses(kind: int, body: bytes) -> tuple[int | None, Any, Any, bytes]:
    family, transport = kind >> 4, kind & 15
    if family > 3 or transport > 2:
        raise ProxyError(f"its PROXY header has family and transport 0x{kind:02x}, which are not known")
    if family == 0 or transport == 0:
        return None, None, None, body if family == 0 else body[{1: 12, 2: 36, 3: 216}[family] :]
    wanted = {1: 12, 2: 36, 3: 216}[family]
    if len(body) < wanted:
        raise ProxyError(f"its PROXY header has {len(body)} bytes where addresses of {wanted} belong")
    if family == 3:
        # Abstract names begin with a zero, which is theirs to keep.
        source, destination = (_path(body[start : start + _UNIX_SIZE]) for start in (0, _UNIX_SIZE))
        return socket.AF_UNIX, source, destination, body[wanted:]
    number, size = _FAMILIES[family]
    ports = struct.unpack_from("!HH", body, 2 * size)
    hosts = [socket.inet_ntop(number, body[start : start + size]) for start in (0, size)]
    return number, (hosts[0], ports[0]), (hosts[1], ports[1]), body[wanted:]


def _path(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _fields(rest: bytes, whole: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    fields: dict[str, bytes] = {}
    tls: dict[str, Any] = {}
    for kind, start, value in _cut(rest):
        if kind == _CRC32C:
            at = len(whole) - len(rest) + start
            if len(value) != 4 or crc32c(whole[:at] + bytes(4) + whole[at + 4 :]) != int.from_bytes(value, "big"):
                raise ProxyError("its PROXY header has a checksum that is wrong")
        elif kind == _SSL:
            tls = _tls(value)
        elif kind != _NOOP:
            fields[_FIELDS.get(kind, f"0x{kind:02x}")] = value
    return fields, tls


def _cut(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields in `data`: type, where its value starts, value."""
    found = []
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise ProxyError("its PROXY header ends in the middle of a field")
        kind, length = struct.unpack_from("!BH", data, at)
        at += 3
        if at + length > len(data):
            raise ProxyError(
                f"its PROXY header has a field 0x{kind:02x} of {length} bytes, {len(data) - at} of which are there"
            )
        found.append((kind, at, data[at : at + length]))
        at += length
    return found


def _tls(value: bytes) -> dict[str, Any]:
    if len(value) < 5:
        raise ProxyError("its PROXY header has a field about TLS that is too short")
    client, verify = struct.unpack_from("!BI", value)
    if not client & 1:
        return {}
    # Zero is success, as in SSL_get_verify_result(3), and counts only where the client has shown a certificate.
    tls: dict[str, Any] = {"verified": bool(client & 6) and verify == 0}
    for kind, _start, text in _cut(value[5:]):
        tls[_SSL_FIELDS.get(kind, f"0x{kind:02x}")] = text.decode("utf-8", "backslashreplace")
    return tls


# -- writing -------------------------------------------------------------------------------------------------


def header(
    source: Any, destination: Any, version: int = 2, *, fields: dict[str, bytes] | None = None, checksum: bool = False
) -> bytes:
    """A header that says that the connection is one from `source` to `destination`.

    Args:
        source, destination: `(host, port)` of one family, paths of Unix sockets (version 2 only), or both None: the
            connection is the proxy's own (`LOCAL`; `UNKNOWN` in version 1).
        version: 1 or 2.
        fields: what `Header.fields` shall have (version 2 only).
        checksum: whether to add a CRC-32C.

    Raises:
        ValueError: the version cannot say that.
    """
    if version not in (1, 2):
        raise ValueError(f"there is no version {version} of the PROXY protocol")
    family, body = _encoded_addresses(source, destination)
    if version == 1:
        if fields or checksum or family == 3:
            raise ValueError("version 1 of the PROXY protocol has neither fields nor Unix addresses")
        if not family:
            return b"PROXY UNKNOWN\r\n"
        kind = "TCP4" if family == 1 else "TCP6"
        hosts = [_plain_host(address[0]) for address in (source, destination)]
        return f"PROXY {kind} {hosts[0]} {hosts[1]} {source[1]} {destination[1]}\r\n".encode("ascii")
    numbers = {name: kind for kind, name in _FIELDS.items()}
    for name, value in (fields or {}).items():
        kind_of_field = numbers[name] if name in numbers else int(name, 16)
        body += struct.pack("!BH", kind_of_field, len(value)) + value
    if checksum:
        body += struct.pack("!BHI", _CRC32C, 4, 0)
    whole = SIGNATURE + struct.pack("!BBH", 0x21 if family else 0x20, family << 4 | bool(family), len(body)) + body
    return whole[:-4] + crc32c(whole).to_bytes(4, "big") if checksum else whole


def _plain_host(host: str) -> str:
    return host.partition("%")[0]


def _encoded_addresses(source: Any, destination: Any) -> tuple[int, bytes]:
    """Number of the family, and both addresses as version 2 has them."""
    if source is None and destination is None:
        return 0, b""
    if isinstance(source, str) and isinstance(destination, str):
        paths = [path.encode("utf-8", "surrogateescape") for path in (source, destination)]
        if any(len(path) > _UNIX_SIZE for path in paths):
            raise ValueError(f"a path has at most {_UNIX_SIZE} bytes")
        return 3, b"".join(path.ljust(_UNIX_SIZE, b"\0") for path in paths)
    try:
        hosts = [_plain_host(address[0]) for address in (source, destination)]
        number = 2 if ":" in hosts[0] else 1
        packed = [socket.inet_pton(_FAMILIES[number][0], host) for host in hosts]
        return number, b"".join(packed) + struct.pack("!HH", source[1], destination[1])
    except (TypeError, IndexError, OSError, struct.error):
        raise ValueError(f"{source!r} and {destination!r} are no two addresses of one family") from None


def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE: list[int] = []


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, appendix B.4 (not zlib's, which has another polynomial)."""
    if not _TABLE:
        _TABLE.extend(_table())
    value = 0xFFFFFFFF
    for octet in data:
        value = value >> 8 ^ _TABLE[(value ^ octet) & 0xFF]
    return value ^ 0xFFFFFFFF


# -- refusing ------------------------------------------------------------------------------------------------


class Suspicion:
    """Notices a header from somebody who is not trusted, however its bytes are cut; holds none of them back.

    A server may have to speak first, so nobody waits here for what a peer will send.  What was let through of a
    header before it could be told is at most the beginning of its first line, and nobody believes it.
    """

    __slots__ = ("_peer", "_seen")

    #: Where version 1 goes on after its first word.
    _FORMS = tuple(_V1 + kind for kind in (b"TCP4 ", b"TCP6 ", b"UNKNOWN"))

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._seen: bytes | None = b""

    @property
    def over(self) -> bool:
        """Whether this peer has begun with something else."""
        return self._seen is None

    def look(self, data: bytes) -> None:
        """Look at what has come.

        Raises:
            ProxyError: it is a header.
        """
        if self._seen is None or not data:
            return
        seen = self._seen + data[:16]
        forms = (SIGNATURE, *self._FORMS)
        if seen.startswith(forms):
            raise ProxyError(
                f"{self._peer} sent a PROXY header, and is not in Proxy.trusted",
                hint="If it is a proxy of yours, add its address.",
            )
        self._seen = seen if any(form.startswith(seen) for form in forms) else None
