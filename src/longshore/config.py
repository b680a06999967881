"""Options as frozen values, each declared once.

The command line's flags, the `LONGSHORE_*` variables, `longshore.toml` and the docs derive from these
dataclasses and from the `help` in each field's metadata.  A value is checked when it is made, so a server
never starts with one that cannot work.  Nothing here reads the environment or a file: that is
`Config.load()`, which only the command line calls.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.networks import Networks

if TYPE_CHECKING:
    import ssl

__all__ = ("TLS", "Limits", "Proxy", "Timeouts", "Workers", "check_kinds")

#: What every implementation of the PROXY protocol must take (proxy-protocol.txt, sections 2.1 and 2.2): 16 + 216.
SMALLEST_HEADER = 232
KIB = 1024
MIB = 1024 * KIB


def option(default: Any, help: str) -> Any:
    """A dataclass field with the one sentence that every surface shows for it."""
    return field(default=default, metadata={"help": help})


def _positive_or_none(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or math.isnan(value):
            raise ConfigError(
                f"{type(owner).__name__}({name}={value!r}): must be a number above 0, or None",
                hint="None switches it off explicitly.",
            )


def _count(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(owner).__name__}({name}={value!r}): must be a whole number of at least 1")


def _count_or_none(owner: object, *names: str) -> None:
    _count(owner, *(name for name in names if getattr(owner, name) is not None))


def check_kinds(**given: Any) -> None:
    """Refuse what is given in the place of one of the values here; the keyword is the value's name, in lower case.

    Raises:
        ConfigError: it is neither None nor of that class.
    """
    kinds = {"limits": Limits, "timeouts": Timeouts, "tls": TLS, "proxy": Proxy}
    for name, value in given.items():
        if value is not None and not isinstance(value, kinds[name]):
            raise ConfigError(f"{name}={value!r}: must be {kinds[name].__name__}(...)")


def _networks(owner: object, *names: str) -> None:
    """Check lists of networks, and keep them as tuples."""
    for name in names:
        entries = getattr(owner, name)
        if entries:
            Networks(entries, f"{type(owner).__name__}.{name}")
        object.__setattr__(owner, name, tuple(entries))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of everything a server takes; sizes in bytes, rates in connections a second.

    A peer is an IPv4 address, an IPv6 /64, or a user on a Unix socket; behind a trusted proxy it is the proxy's client.
    `allow` and `deny` take networks (`10.0.0.0/8`), `unix` and `uid:NUMBER`; who is in both stays out.
    """

    max_connections: int = option(10_000, "connections open at once")
    max_connections_per_peer: int | None = option(None, "connections open at once from one peer")
    max_threads: int | None = option(256, "threads at once under the threads strategy")
    max_processes: int = option(64, "children at once under the processes strategy")
    connection_rate: float | None = option(None, "new connections a second from one peer")
    max_pending_bytes: int = option(MIB, "bytes pending on one connection before reading from it stops")
    memory_budget: int | None = option(
        None, "bytes pending on all connections together; at it nobody comes in, and those with the most are held up"
    )
    max_handshakes: int = option(64, "TLS handshakes at once")
    allow: tuple[str, ...] = option((), "networks that may connect (CIDR, unix, uid:N); empty means all")
    deny: tuple[str, ...] = option((), "networks that may not connect (CIDR, unix, uid:N)")
    overflow: str = option("pause", "when full: pause accepting, reject, or evict-idle")
    farewell: bytes = option(b"", "bytes sent to a connection that is rejected")

    #: What `overflow` may be.
    OVERFLOWS = ("pause", "reject", "evict-idle")

    def __post_init__(self) -> None:
        _count(self, "max_connections", "max_processes", "max_pending_bytes", "max_handshakes")
        _count_or_none(self, "max_connections_per_peer", "max_threads", "memory_budget")
        _positive_or_none(self, "connection_rate")
        if self.overflow not in self.OVERFLOWS:
            raise ConfigError(
                f"Limits(overflow={self.overflow!r}): must be one of {', '.join(map(repr, self.OVERFLOWS))}"
            )
        if not isinstance(self.farewell, bytes):
            raise ConfigError(f"Limits(farewell={self.farewell!r}): must be bytes")
        _networks(self, "allow", "deny")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a server waits, in seconds; None waits for ever."""

    handshake: float | None = option(10, "for a TLS handshake")
    first_byte: float | None = option(60, "for a new connection's first byte")
    idle: float | None = option(600, "without a byte either way while no message is being handled")
    write: float | None = option(30, "without progress of pending output")
    drain: float | None = option(15, "for connections to finish when the server drains")
    lifetime: float | None = option(None, "for a connection's whole life")
    linger: float | None = option(2, "for the peer to read the last bytes after we close")
    blocked: float | None = option(1, "until a handler that blocks the reactor is named")
    min_rate: float | None = option(None, "bytes a second a message must arrive at")

    def __post_init__(self) -> None:
        _positive_or_none(self, *(item.name for item in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True)
class TLS:
    """What `tls://` addresses (and `start_tls`) need: files, or an `ssl.SSLContext` of your own.

    On a client, `TLS()` verifies the server against the system's authorities, `client_ca` replaces those
    authorities, and `certfile` is the client's own certificate.  A server that finds its files changed loads them
    again, for connections to come; a context of your own is yours to change.
    """

    certfile: str | None = option(None, "the certificate chain (PEM)")
    keyfile: str | None = option(None, "the private key (PEM), if it is not in the certificate's file")
    client_ca: str | None = option(None, "authorities (PEM) whose clients are required and trusted")
    minimum: str = option("1.2", "the oldest version of TLS that is spoken")
    alpn: tuple[str, ...] = option((), "protocols offered by ALPN, the best first")
    context: ssl.SSLContext | None = option(None, "your own context; nothing else is read then")
    certificate_check: float | None = option(10, "seconds between looks at whether the files have changed")

    #: What `minimum` may be.
    VERSIONS = ("1.2", "1.3")

    def __post_init__(self) -> None:
        if self.minimum not in self.VERSIONS:
            raise ConfigError(f"TLS(minimum={self.minimum!r}): must be one of {', '.join(map(repr, self.VERSIONS))}")
        _positive_or_none(self, "certificate_check")
        if self.context is not None and not hasattr(self.context, "wrap_bio"):
            raise ConfigError(f"TLS(context={self.context!r}): must be an ssl.SSLContext")
        if self.context is not None and (self.certfile or self.keyfile or self.client_ca or self.alpn):
            raise ConfigError(
                "TLS(context=...) with other fields: a context of your own is taken as it is",
                hint="Set certificates, authorities and ALPN on the context, or leave the context out.",
            )
        if isinstance(self.alpn, str) or not all(isinstance(name, str) for name in self.alpn):
            raise ConfigError(f"TLS(alpn={self.alpn!r}): must be a tuple of protocol names, such as ('h2', 'http/1.1')")


@dataclass(frozen=True, slots=True)
class Workers:
    """Prefork worker processes, for `serve(workers=...)`; ages in seconds, memory in bytes."""

    count: int = option(1, "processes")
    max_age: float | None = option(None, "seconds until a worker is replaced")
    max_connections: int | None = option(None, "connections until a worker is replaced")
    max_memory: int | None = option(None, "bytes of memory until a worker is replaced")
    jitter: float = option(0.1, "share by which age and connections vary between workers")
    heartbeat: float | None = option(30, "seconds without a sign of life until a worker is replaced")
    user: str | None = option(None, "the user to become once the sockets are bound")
    group: str | None = option(None, "the group to become once the sockets are bound")
    pid_file: str | None = option(None, "a file that has the supervisor's process number while it serves")

    def __post_init__(self) -> None:
        _count(self, "count")
        _count_or_none(self, "max_connections", "max_memory")
        _positive_or_none(self, "max_age", "heartbeat")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter < 1:
            raise ConfigError(f"Workers(jitter={self.jitter!r}): must be at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Proxies that speak the PROXY protocol (v1, v2) in front of the server; times in seconds, sizes in bytes.

    Who is `trusted` must begin each connection with a header, and is believed; whoever else begins with one is cut
    off.  `trusted` takes networks as `Limits.allow` does: `unix` trusts every peer of a Unix socket.
    """

    trusted: tuple[str, ...] = option((), "networks (CIDR, unix, uid:N) whose PROXY header is required and believed")
    timeout: float = option(5, "seconds for the header of a connection")
    max_header: int = option(4096, "bytes of a header, what it says of TLS and names included")

    def __post_init__(self) -> None:
        _networks(self, "trusted")
        if self.timeout is None:
            raise ConfigError("Proxy(timeout=None): a proxy that sends no header must not keep its place for ever")
        _positive_or_none(self, "timeout")
        _count(self, "max_header")
        if self.max_header < SMALLEST_HEADER:
            raise ConfigError(f"Proxy(max_header={self.max_header}): must be at least {SMALLEST_HEADER}")
        if not self.trusted:
            raise ConfigError(
                "Proxy(trusted=()): there is no proxy to believe",
                hint="Name it: Proxy(trusted=('10.0.0.7',)), or --proxy-trusted 10.0.0.7.",
            )
