"""What happens to a server and to its connections, as frozen values.

The core never logs.  It makes one of these and hands it to whoever subscribed (`Server.subscribe`);
logging, metrics and tracing are subscribers like any other.  An event carries plain data only, so it may
be kept, queued, pickled or printed.  Times are seconds on the reactor's clock, sizes are bytes.

This file knows nothing of sockets, servers or logging.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = (
    "AcceptFailed",
    "BrokerEnded",
    "CertificateExpires",
    "CertificateRefused",
    "CertificateRenewed",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionRejected",
    "ControlOpened",
    "ControlEnded",
    "DatagramDropped",
    "Event",
    "HandlerBlocked",
    "HandlerFailed",
    "LimitNear",
    "LimitsAdjusted",
    "ReloadFailed",
    "Reloaded",
    "Reloading",
    "ServerAnnounced",
    "ServerDraining",
    "ServerPaused",
    "ServerResumed",
    "ServerStarted",
    "ServerStopped",
    "SlowReceiver",
    "SpawnerDied",
    "ThreadsAtFork",
    "UpgradeFailed",
    "Upgraded",
    "Upgrading",
    "WorkerBlocked",
    "WorkerCrashed",
    "WorkerEnded",
    "WorkerReady",
    "WorkerRetiring",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of all events; `level` is the `logging` level's name that fits it."""

    level: ClassVar[str] = "INFO"

    def as_dict(self) -> dict[str, Any]:
        """The event's name and fields, ready for JSON but for an `error`, which is an exception."""
        return {"event": type(self).__name__} | {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStarted(Event):
    """The server accepts: its bound URLs, and how it serves them."""

    handler: str
    addresses: tuple[str, ...]
    strategy: str
    reactor: str
    reason: str
    """Why this reactor is the active one."""
    workers: int = 0
    """How many processes serve, beside the one that keeps them; 0 where there is only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnnounced(Event):
    """In a worker: its supervisor has told that the server accepts, so whoever kept silent until then may speak."""

    level: ClassVar[str] = "DEBUG"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPaused(Event):
    """`pause()`: nothing is accepted until `resume()`; what is open goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerResumed(Event):
    """`resume()`: the server accepts again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDraining(Event):
    """A drain began: `connections` are open and have `timeout` seconds to finish (None: no deadline)."""

    connections: int
    timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStopped(Event):
    """The server is gone; the figures are those of its `DrainReport`."""

    finished: int
    cut: int
    abandoned: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOpened(Event):
    """A control process stands behind these: URLs of metrics, and files of control sockets."""

    metrics: tuple[str, ...]
    control: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(Event):
    """A connection was accepted (and its TLS handshake, if any, is done)."""

    level: ClassVar[str] = "DEBUG"

    id: int
    peer: str
    local: str
    tls: str | None = None
    """The TLS version, or None on plain connections."""
    via: str | None = None
    """The proxy that it came through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed(Event):
    """A connection ended: exactly one per accepted connection, with its cause.

    `cause` is one of `CAUSES`; `error` is the exception behind it where there is one, and None for an end in order
    ("finished", "peer closed", "drained"); `unsent` counts bytes that were written but never left.
    """

    level: ClassVar[str] = "DEBUG"

    CAUSES: ClassVar[tuple[str, ...]] = (
        "finished",  # the handler returned, or closed it
        "peer closed",  # end of stream, nothing owed
        "reset",  # the peer reset it, or vanished
        "framing",  # bytes that are no message; too large; cut off in the middle
        "handshake",  # TLS failed or took too long
        "proxy",  # a PROXY header that is missing, malformed, or not believed
        "limit",  # it held most of what was over the memory budget
        "timeout",  # first_byte, idle, write, lifetime or min_rate
        "slow receiver",  # broadcast(slow="close")
        "evicted",  # overflow="evict-idle" needed its place
        "handler failed",  # an exception in the handler
        "aborted",  # abort() was called
        "drained",  # the server drained and nothing was owed
        "cut",  # the drain's deadline, or stop()
        "error",  # any other error of the system
    )

    id: int
    peer: str
    local: str
    cause: str
    error: BaseException | None = None
    received: int = 0
    sent: int = 0
    unsent: int = 0
    messages: int = 0
    duration: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRejected(Event):
    """A connection was accepted only to be turned away, because `limit` (of `Limits`) was reached or forbids it.

    Of a flood of them each of the first in a second has an event of its own; the next event then stands for all that
    came meanwhile.
    """

    level: ClassVar[str] = "WARNING"

    peer: str
    local: str
    limit: str
    count: int = 1
    """Connections that this event stands for; `peer` is the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptFailed(Event):
    """accept(2) failed; accepting goes on after `retry_in` seconds (0: at once)."""

    level: ClassVar[str] = "WARNING"

    local: str
    error: BaseException
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFailed(Event):
    """An exception left a handler, a hook, or a function given to `every`; its connection ends."""

    level: ClassVar[str] = "ERROR"

    handler: str
    peer: str | None
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerBlocked(Event):
    """Something has kept the reactor from turning for `seconds`; `stack` is where it is now."""

    level: ClassVar[str] = "WARNING"

    handler: str
    peer: str | None
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramDropped(Event):
    """A datagram was lost: truncated, malformed, over a limit, or too late for its session (`reason` says which)."""

    level: ClassVar[str] = "WARNING"

    peer: str
    local: str
    reason: str
    size: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReceiver(Event):
    """`broadcast` met a connection that does not keep up; `action` is what was done: "drop" or "close"."""

    level: ClassVar[str] = "WARNING"

    id: int
    peer: str
    pending: int
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitNear(Event):
    """A limit is at 80 % for the first time since it was last below 60 %.

    `connection_rate` and `max_pending_bytes`: for the first time after 10 seconds without anybody near it.
    """

    level: ClassVar[str] = "WARNING"

    limit: str
    value: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRenewed(Event):
    """Connections to come are shown another certificate; `expires` is in seconds since 1970 (None: not known)."""

    certfile: str | None
    expires: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRefused(Event):
    """A new certificate cannot be used; the one before is kept."""

    level: ClassVar[str] = "ERROR"

    certfile: str | None
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateExpires(Event):
    """The certificate that was just loaded ends in `seconds`, within two weeks; below 0: it has ended."""

    level: ClassVar[str] = "WARNING"

    certfile: str | None
    expires: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsAdjusted(Event):
    """At start, `limit` did not fit the system's own and was raised or clamped."""

    level: ClassVar[str] = "WARNING"

    limit: str
    wanted: int
    actual: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnerDied(Event):
    """The process that forks children for the `processes` strategy has died; the children go on.

    `replaced` says whether another one forks from now on; if not, new connections are turned away.
    """

    level: ClassVar[str] = "ERROR"

    pid: int
    replaced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadsAtFork(Event):
    """The spawner was forked while `threads` (their names) ran: what they held locked stays locked in every child."""

    level: ClassVar[str] = "WARNING"

    threads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(Event):
    """A worker accepts; `generation` counts reloads, from 1 on."""

    worker: int
    pid: int
    generation: int
    seconds: float
    """Since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRetiring(Event):
    """A worker is told to drain, because of `reason`; whoever takes its place is ready."""

    worker: int
    pid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded(Event):
    """A worker has drained and ended, as it was told; the figures are those of its `DrainReport`."""

    worker: int
    pid: int
    finished: int
    cut: int
    abandoned: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCrashed(Event):
    """A worker has ended without being told: `reason` says how; another one starts in `retry_in` seconds."""

    level: ClassVar[str] = "ERROR"

    worker: int
    pid: int
    reason: str
    connections: int
    """How many it had; they are lost."""
    retry_in: float
    stack: str = ""
    """Where it was, if a fatal signal was raised by its own code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBlocked(Event):
    """A worker gave no sign of life for `seconds`, and is killed; `stack` is where its threads are."""

    level: ClassVar[str] = "ERROR"

    worker: int
    pid: int
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloading(Event):
    """A reload begins: new workers start, with code and configuration as they are now; one process reads the latter."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded(Event):
    """The new workers accept, and the old ones drain; or one process serves with what is configured now."""

    generation: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadFailed(Event):
    """The new workers could not start, or the configuration could not be read; everything goes on as before."""

    level: ClassVar[str] = "ERROR"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrading(Event):
    """The program was started once more, as process `pid`, which takes over the sockets once it is ready."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded(Event):
    """The new program, process `pid`, serves, and this one drains."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeFailed(Event):
    """The new program did not become ready; this one goes on."""

    level: ClassVar[str] = "ERROR"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerEnded(Event):
    """The broker of the shared primitives has ended without being told; another one starts in `retry_in` seconds.

    It is empty: whoever used the one before gets `BrokerLost` until `shared.join()`.
    """

    level: ClassVar[str] = "ERROR"

    pid: int
    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEnded(Event):
    """The control process has ended without being told; another one starts in `retry_in` seconds."""

    level: ClassVar[str] = "ERROR"

    pid: int
    reason: str
    retry_in: float
