"""Addresses: what a URL means, what it resolves to, and how an address reads as text.

The only place that knows the URL forms and calls getaddrinfo(3).  `parse` is pure, `resolve` asks the resolver,
`format_peer` and `format_url` go the other way.  A mistake in the text is a `ConfigError`; what the system
cannot offer is an `AddressError`.

Nothing here opens, binds or connects a socket: `longshore.listeners` binds, the client connects.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from longshore.errors import AddressError, AddressUnavailable, ConfigError

__all__ = (
    "Address",
    "AddressOptions",
    "Endpoint",
    "SCHEMES",
    "format_peer",
    "format_url",
    "inherited_descriptors",
    "parse",
    "resolve",
)

#: Every scheme, with the options that mean something for it: one that does not is refused, never ignored.
SCHEMES: Final[dict[str, tuple[str, ...]]] = {
    "tcp": ("backlog", "reuse_port", "nodelay", "defer", "tls"),
    "tls": ("backlog", "reuse_port", "nodelay", "defer"),
    "udp": ("reuse_port",),
    "unix": ("mode", "backlog", "tls"),
    "unixgram": ("mode",),
    "seqpacket": ("mode", "backlog"),
    "raw": ("protocol",),
    "rdm": (),
    "vsock": ("backlog", "tls"),
    "fd": ("backlog", "nodelay"),
    "systemd": ("backlog", "nodelay"),
}

#: `sun_path` has 108 bytes on Linux (104 on the BSDs); a path needs one of them for its final NUL.
PATH_LIMIT: Final = 107 if sys.platform == "linux" else 103

_UNIX_TYPES: Final = {"unix": "SOCK_STREAM", "unixgram": "SOCK_DGRAM", "seqpacket": "SOCK_SEQPACKET"}

#: linux/vm_sockets.h: the context ids that have names, and the numbers for "any".
# Of an enumeration, comparing with which costs more than with a number.
_IPV4: Final = int(socket.AF_INET)
_VSOCK_ANY: Final = 0xFFFFFFFF
_VSOCK_HOSTS: Final = {"": _VSOCK_ANY, "*": _VSOCK_ANY, "any": _VSOCK_ANY, "local": 1, "host": 2}

#: linux/tipc.h: a range of instances is bound, one instance is sent to; types below 64 are TIPC's own.
_TIPC_NAMESEQ, _TIPC_NAME, _TIPC_CLUSTER, _TIPC_FIRST_TYPE = 1, 2, 2, 64

_RAW_NAMES: Final = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmpv6"}

_SWITCH: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """What stands behind the `?` of an address; None leaves it to the system."""

    mode: int | None = None
    """Permission bits of the Unix socket's file, such as `0660`."""
    backlog: int | None = None
    """Connections that the kernel queues until they are accepted; it caps this at its own limit."""
    reuse_port: bool = False
    """Share the port with other sockets of this user that ask for it too."""
    nodelay: bool = True
    """Send small writes at once (TCP_NODELAY on accepted connections)."""
    defer: bool = False
    """Accept a connection only once its first bytes are there."""
    protocol: str | None = None
    """The IP protocol of a raw socket, by name or number."""
    tls: bool = False
    """Speak TLS on a stream whose scheme does not say so; on `tcp` the same as the scheme `tls`."""


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address; `text` is the URL it came from.

    `host` None means every interface.  `port` is a service name where it is no number (for `rdm`, an instance or
    a range of them; for `fd`, the descriptor).  `path` is a Unix path, `@name` of an abstract socket, or the name of a
    `systemd` socket.
    """

    scheme: str
    host: str | None
    port: int | str | None
    path: str | None
    options: AddressOptions
    text: str

    @property
    def is_stream(self) -> bool:
        """Whether it carries a stream of bytes; unknown, so False, for `fd` and `systemd` until they are bound."""
        return self.scheme in ("tcp", "tls", "unix", "vsock")

    @property
    def is_datagram(self) -> bool:
        """Whether it carries whole messages; unknown, so False, for `fd` and `systemd` until they are bound."""
        return self.scheme in ("udp", "unixgram", "seqpacket", "raw", "rdm")

    @property
    def is_tls(self) -> bool:
        """Whether its connections begin with a TLS handshake."""
        return self.scheme == "tls" or self.options.tls

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One thing to bind or to connect to: the arguments of `socket.socket`, and its address."""

    family: int
    type: int
    proto: int
    sockaddr: tuple[Any, ...] | str


def parse(url: str) -> Address:
    """The address that `url` spells; asks neither the resolver nor the kernel.

    Raises:
        ConfigError: the scheme, a part of the address or an option is unknown, missing or no good.
    """
    if not isinstance(url, str):
        raise ConfigError(f"{url!r} is no address: must be a URL such as 'tcp://127.0.0.1:5000'")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        _refuse_scheme(url, scheme if separator else "", rest)
    if "\0" in url:
        _refuse(url, "a NUL character cannot be part of an address")
    rest, _, query = rest.partition("?")
    options = _options(url, scheme, query)
    host: str | None = None
    port: int | str | None = None
    path: str | None = None
    if scheme in _UNIX_TYPES:
        path = _unix_path(url, scheme, rest)
        if path.startswith("@") and options.mode is not None:
            _refuse(url, "an abstract socket has no file, so it has no mode", "Use a path, or leave the mode out.")
    elif scheme == "fd":
        port = _whole(rest)
        if port is None:
            _refuse(url, "a descriptor number must follow", "Write fd://3 for descriptor 3.")
    elif scheme == "systemd":
        path = _unquote(rest)
        if not path:
            _refuse(url, "the name is missing", "Write systemd://NAME, with the socket unit's FileDescriptorName=.")
    elif scheme == "raw":
        host = _raw_host(url, rest)
        if options.protocol is None:
            _refuse(url, "a raw socket needs a protocol", "Write raw://127.0.0.1?protocol=icmp.")
    else:
        host, service = _host_and_port(url, scheme, rest)
        port = {"vsock": _vsock_port, "rdm": _tipc_instance}.get(scheme, _service)(url, service)
        if scheme == "vsock":
            _vsock_context(url, host)
        elif scheme == "rdm" and (_whole(host or "") or 0) < _TIPC_FIRST_TYPE:
            _refuse(url, f"a TIPC service type is a number of at least {_TIPC_FIRST_TYPE}", "Write rdm://1000:1.")
    return Address(scheme, host, port, path, options, url)


def resolve(address: Address, passive: bool) -> list[Endpoint]:
    """What to bind (`passive`) or to connect to, in the resolver's order; may wait for the name service.

    Raises:
        AddressUnavailable: the host or the service is unknown, or this system lacks the family.
        AddressError: a Unix path is too long.
        ConfigError: an inherited socket, or port 0, cannot be connected to.
    """
    scheme = address.scheme
    if scheme in ("fd", "systemd"):
        raise ConfigError(f"{address}: an inherited socket is there to serve on; it cannot be connected to")
    if not passive and address.port == 0:
        raise ConfigError(f"{address}: port 0 means any free port, which only a server can ask for")
    if scheme in _UNIX_TYPES:
        return [Endpoint(_family(address, "AF_UNIX"), getattr(socket, _UNIX_TYPES[scheme]), 0, _unix_name(address))]
    if scheme == "vsock":
        context = _vsock_context(address.text, address.host)
        port = _VSOCK_ANY if address.port == 0 else address.port
        return [Endpoint(_family(address, "AF_VSOCK"), socket.SOCK_STREAM, 0, (context, port))]
    if scheme == "rdm":
        service = int(address.host or 0)
        lower, _, upper = str(address.port).partition("-")
        sockaddr = (
            (_TIPC_NAMESEQ, service, int(lower), int(upper or lower), _TIPC_CLUSTER)
            if passive
            else (_TIPC_NAME, service, int(lower), 0)
        )
        return [Endpoint(_family(address, "AF_TIPC"), socket.SOCK_RDM, 0, sockaddr)]
    if scheme == "raw":
        protocol = _protocol_number(address.text, address.options.protocol or "")
        # musl and the BSDs know no SOCK_RAW in getaddrinfo(3), so the host is looked up as for datagrams.
        found = _lookup(address, passive, socket.SOCK_DGRAM)
        family = {socket.IPPROTO_ICMP: socket.AF_INET, socket.IPPROTO_ICMPV6: socket.AF_INET6}.get(protocol)
        fitting = [
            Endpoint(each.family, socket.SOCK_RAW, protocol, each.sockaddr)
            for each in found
            if family is None or each.family == family
        ]
        if not fitting:
            raise AddressUnavailable(f"{address}: {address.host!r} has no address for {address.options.protocol}")
        return fitting
    return _lookup(address, passive, socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM)


def inherited_descriptors(address: Address) -> list[int]:
    """The descriptors behind `fd://N` or `systemd://name` (one name may stand for several sockets).

    Reads LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID as sd_listen_fds(3) does, and leaves them in place.

    Raises:
        AddressUnavailable: nothing, or nothing of that name, was passed to this process.
    """
    if address.scheme == "fd":
        return [int(address.port or 0)]
    count = _whole(os.environ.get("LISTEN_FDS", ""))
    owner = _whole(os.environ.get("LISTEN_PID", ""))
    if not count or owner is None:
        raise AddressUnavailable(
            f"{address}: this process was not started by socket activation (LISTEN_FDS or LISTEN_PID is not set)",
            hint="Start it from a systemd .socket unit, or bind a tcp:// or unix:// address instead.",
        )
    if owner != os.getpid():
        # The variables are inherited by children of the process they were meant for, the descriptors mostly not.
        raise AddressUnavailable(
            f"{address}: the sockets were passed to process {owner}, and this is {os.getpid()}",
            hint="Let the service manager start this process itself (with `exec`), not through a shell or a wrapper.",
        )
    given = os.environ.get("LISTEN_FDNAMES")
    names = given.split(":") if given else []
    names += ["unknown"] * (count - len(names))
    found = [3 + index for index, name in enumerate(names[:count]) if name == address.path]
    if not found:
        raise AddressUnavailable(
            f"{address}: no socket of that name was passed; there are {', '.join(map(repr, names[:count]))}",
            hint="Set FileDescriptorName= in the .socket unit, or use one of these names.",
        )
    return found


def format_peer(family: int, sockaddr: Any) -> str:
    """The other end's address as text: `127.0.0.1:5000`, `[::1]:5000`, a Unix path, `@abstract`, `unix peer`.

    An IPv4 peer of an IPv6 socket reads as IPv4.  Where there is no port (raw sockets), it is left out.
    """
    if family == _IPV4 and type(sockaddr) is tuple and sockaddr[1:] and sockaddr[1]:
        # Nearly everybody, and this is done for each connection.
        return f"{sockaddr[0]}:{sockaddr[1]}"
    if family in (socket.AF_INET, socket.AF_INET6) and isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
        host, port = str(sockaddr[0]), sockaddr[1]
        if host.lower().startswith("::ffff:") and "." in host:
            host = host[7:]
        elif ":" in host and len(sockaddr) > 3 and sockaddr[3] and "%" not in host:
            host = f"{host}%{sockaddr[3]}"
        if not port:
            return host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if family == getattr(socket, "AF_UNIX", None):
        name = os.fsdecode(sockaddr or b"")
        if not name:
            return "unix peer"
        # A name may hold any byte, and this text ends up on terminals and in logs.
        shown = "".join(each if each.isprintable() else f"\\x{ord(each) & 0xFF:02x}" for each in name.lstrip("\0"))
        return "@" + shown if name[0] == "\0" else shown
    if family == getattr(socket, "AF_TIPC", None) and isinstance(sockaddr, tuple):
        # A service and its instance, or a node and its socket; what comes before and after says which.
        return ":".join(map(str, sockaddr[1:3]))
    if isinstance(sockaddr, tuple):
        return ":".join(map(str, sockaddr))
    return str(sockaddr)


def format_url(scheme: str, sock: socket.socket) -> str:
    """The URL under which the bound `sock` is reached, with the port it really has."""
    name = sock.getsockname()
    if scheme in _UNIX_TYPES:
        text = os.fsdecode(name)
        return f"{scheme}://{_quote('@' + text[1:] if text.startswith(chr(0)) else text)}"
    if scheme == "vsock":
        return f"vsock://{'' if name[0] == _VSOCK_ANY else name[0]}:{name[1]}"
    if scheme == "rdm":
        return f"rdm://{':'.join(map(str, name[1:3]))}"
    host = str(name[0])
    if ":" in host:
        scope = f"%{name[3]}" if len(name) > 3 and name[3] and "%" not in host else ""
        host = f"[{host}{scope}]"
    if scheme == "raw":
        return f"raw://{host}?protocol={_RAW_NAMES.get(sock.proto, sock.proto)}"
    return f"{scheme}://{host}:{name[1]}"


def _refuse(url: str, why: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"{url}: {why}", hint=hint)


#: What schemes of others are carried by.
_OTHERS = {"http": "tcp", "ws": "tcp", "telnet": "tcp", "https": "tls", "wss": "tls", "ssl": "tls"}


def _refuse_scheme(url: str, scheme: str, rest: str) -> NoReturn:
    known = ", ".join(f"{each}://" for each in SCHEMES)
    if scheme:
        from difflib import get_close_matches

        meant = _OTHERS.get(scheme) or next(iter(get_close_matches(scheme, SCHEMES, 1)), "")
        raise ConfigError(
            f"{url}: unknown scheme {scheme!r}; known are {known}",
            hint=f"Did you mean {meant}://{rest}?" if meant else "",
        )
    head, colon, tail = url.rpartition(":")
    before = url.partition(":")[0].lower()
    if before in _UNIX_TYPES and colon and "/" in url:
        hint = f"Did you mean {before}://{url.partition(':')[2]}?"
    elif url.startswith(("/", "@")):
        hint = f"Did you mean unix://{url}?"
    elif colon and tail and "/" not in url:
        literal = head.count(":") > 1 and not head.startswith("[")
        hint = f"Did you mean tcp://{f'[{head}]' if literal else head}:{tail}?"
    elif _whole(url) is not None:
        hint = f"Did you mean tcp://:{url}?"
    else:
        hint = "Write a URL such as tcp://127.0.0.1:5000 or unix:///run/app.sock."
    raise ConfigError(f"{url!r} is no address: it has no scheme; known are {known}", hint=hint)


def _whole(text: str) -> int | None:
    """The number that `text` spells in plain digits, else None (int() would take signs, spaces and underscores)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    # Imported here because it costs more than this whole file, and hardly any address has an escape.
    from urllib.parse import unquote

    return unquote(text, errors="surrogateescape")


def _quote(path: str) -> str:
    if path.isascii() and path.isprintable() and not set(path) & set("%?# "):
        return path
    from urllib.parse import quote

    return quote(os.fsencode(path), safe="/@:,+=~")


def _options(url: str, scheme: str, query: str) -> AddressOptions:
    allowed = SCHEMES[scheme]
    known = f"{scheme}:// takes {', '.join(allowed)}" if allowed else f"{scheme}:// takes none"
    found: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        name, _, text = item.partition("=")
        if name not in AddressOptions.__dataclass_fields__:
            _refuse(url, f"unknown option {name!r}; {known}")
        if name not in allowed:
            _refuse(url, f"the option {name!r} means nothing here; {known}")
        if name in found:
            _refuse(url, f"the option {name!r} is given twice")
        found[name] = _option_value(url, name, _unquote(text))
    return AddressOptions(**found)


def _option_value(url: str, name: str, text: str) -> int | bool | str:
    if name == "mode":
        digits = text.removeprefix("0o")
        if not digits or set(digits) - set("01234567") or int(digits, 8) > 0o777:
            _refuse(url, f"mode={text!r}: must be permission bits in octal, such as 0660")
        return int(digits, 8)
    if name == "backlog":
        count = _whole(text)
        if not count or count > 0x7FFFFFFF:
            _refuse(url, f"backlog={text!r}: must be a whole number of at least 1, such as 4096")
        return count
    if name == "protocol":
        _protocol_number(url, text)
        return text
    if text.lower() not in _SWITCH:
        _refuse(url, f"{name}={text!r}: must be 1 or 0")
    return _SWITCH[text.lower()]


def _protocol_number(url: str, text: str) -> int:
    number = _whole(text)
    if number is None:
        # Small containers have no /etc/protocols, and the usual names are constants anyway.
        constant = getattr(socket, "IPPROTO_" + text.upper().replace("IPV6-", "", 1) if text else "", None)
        if text.lower() == "ipv6-icmp":
            constant = socket.IPPROTO_ICMPV6
        if constant is not None:
            return int(constant)
        try:
            return socket.getprotobyname(text)
        except (OSError, UnicodeError):
            pass
    elif number <= 255:
        return number
    _refuse(url, f"protocol={text!r}: must be the name or number (0 to 255) of an IP protocol, such as icmp")


def _unix_path(url: str, scheme: str, rest: str) -> str:
    path = _unquote(rest)
    if "\0" in path:
        _refuse(url, "a NUL character cannot be part of an address")
    if path.startswith("@"):
        if path == "@":
            _refuse(url, "the name of the abstract socket is missing", f"Write {scheme}://@name.")
        return path
    if not path.startswith("/"):
        wanted = f"{scheme}://{os.path.abspath(path)}" if path else f"{scheme}:///run/app.sock"
        _refuse(url, "the path must be absolute, which makes three slashes", f"Write {wanted}.")
    if path.endswith("/"):
        _refuse(url, "the path names a directory", f"Name a file in it: {scheme}://{path}app.sock.")
    return path


def _unix_name(address: Address) -> str:
    path = address.path or ""
    size = len(os.fsencode(path))
    # An abstract name has no final NUL but begins with one, for which the "@" stands.
    limit = PATH_LIMIT + 1 if path.startswith("@") else PATH_LIMIT
    if size > limit:
        raise AddressError(
            f"{address}: the path has {size} bytes, and the system's limit for a Unix socket is {limit}",
            hint="Use a shorter path, for example below /run or /tmp.",
        )
    return "\0" + path[1:] if path.startswith("@") else path


def _host_and_port(url: str, scheme: str, rest: str) -> tuple[str | None, str]:
    rest = rest.removesuffix("/")
    host, service = _split_brackets(url, rest) if rest.startswith("[") else _split_colon(url, scheme, rest)
    if not service:
        _refuse(url, "the port is missing", f"Write {scheme}://{rest.rstrip(':') or '127.0.0.1'}:5000.")
    return (None if host in ("", "*") else host), service


def _split_brackets(url: str, rest: str) -> tuple[str, str]:
    host, bracket, tail = rest[1:].partition("]")
    host = host.replace("%25", "%", 1)  # RFC 6874 escapes the zone's percent sign; most people do not
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        bracket = ""
    if not bracket or (tail and not tail.startswith(":")):
        _refuse(url, "brackets must hold an IPv6 address", "Write tcp://[::1]:5000.")
    return host, tail[1:]


def _split_colon(url: str, scheme: str, rest: str) -> tuple[str, str]:
    host, colon, service = rest.rpartition(":")
    if not colon:
        host, service = service, ""
    if ":" in host:
        _refuse(url, "an IPv6 address must stand in brackets", f"Write {scheme}://[::1]:5000.")
    if "@" in rest or "/" in rest or "#" in rest:
        _refuse(url, "an address is only host and port: no user, no path, no fragment")
    if any(each.isspace() or not each.isprintable() for each in host):
        _refuse(url, f"{host!r} is no host name")
    return host, service


def _raw_host(url: str, rest: str) -> str | None:
    rest = rest.removesuffix("/")
    host, service = _split_brackets(url, rest) if rest.startswith("[") else _split_colon(url, "raw", rest)
    if service or rest.endswith(":"):
        _refuse(url, "a raw socket has no port", f"Write raw://{host}?protocol=icmp.")
    return None if host in ("", "*") else host


def _service(url: str, text: str) -> int | str:
    number = _whole(text)
    if number is not None and number <= 0xFFFF:
        return number
    named = any(each.isalpha() for each in text) and text[0] not in "+-"
    if not named or not text.isascii() or not all(each.isalnum() or each in "_.+-" for each in text):
        _refuse(url, f"{text!r} is no port: must be 0 to 65535, or the name of a service")
    return text


def _vsock_port(url: str, text: str) -> int | str:
    number = _whole(text)
    if number is None or number >= _VSOCK_ANY:
        _refuse(url, f"{text!r} is no vsock port: must be 0 to {_VSOCK_ANY - 1}")
    return number


def _vsock_context(url: str, host: str | None) -> int:
    number = _VSOCK_HOSTS.get((host or "").lower(), _whole(host or ""))
    if number is None or number > _VSOCK_ANY:
        _refuse(url, f"{host!r} is no context id: must be a number, or any, local or host")
    return number


def _tipc_instance(url: str, text: str) -> int | str:
    lower, dash, upper = text.partition("-")
    low, high = _whole(lower), _whole(upper) if dash else None
    if low is None or low > _VSOCK_ANY or (dash and (high is None or not low <= high <= _VSOCK_ANY)):
        _refuse(url, f"{text!r} is no TIPC instance: must be a number, or a range such as 1-100")
    return text if dash else low


def _family(address: Address, name: str) -> int:
    family = getattr(socket, name, None)
    if family is None:
        raise AddressUnavailable(f"{address}: this system has no {name} sockets, which {address.scheme}:// needs")
    return int(family)


def _lookup(address: Address, passive: bool, kind: int) -> list[Endpoint]:
    host, port = address.host, address.port or 0  # a raw socket has none, and getaddrinfo wants host or port
    # getaddrinfo imports the IDNA codec for any str, which costs milliseconds; bytes go through as they are.
    wire = host.encode("ascii") if host is not None and host.isascii() else host
    try:
        found = socket.getaddrinfo(wire, port, type=kind, flags=socket.AI_PASSIVE if passive else 0)
    except (OSError, UnicodeError) as error:
        _refuse_lookup(address, error)
    endpoints = (Endpoint(int(family), kind, proto, sockaddr) for family, _, proto, _, sockaddr in found)
    return list(dict.fromkeys(endpoints))


def _refuse_lookup(address: Address, error: Exception) -> NoReturn:
    code = getattr(error, "errno", None)
    if code == socket.EAI_SERVICE:
        raise AddressUnavailable(
            f"{address}: no service {address.port!r} is known for {address.scheme}",
            hint="Write the port's number, or add the service to /etc/services.",
        ) from error
    if code == socket.EAI_AGAIN:
        raise AddressUnavailable(
            f"{address}: the name service does not answer for host {address.host!r}",
            hint="Check the network and /etc/resolv.conf, or write the IP address.",
        ) from error
    why = getattr(error, "strerror", None) or str(error)
    raise AddressUnavailable(
        f"{address}: unknown host {address.host!r} ({why})",
        hint="Check the spelling, /etc/hosts and the DNS, or write the IP address.",
    ) from error
