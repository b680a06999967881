"""The connections of one server as rows: who, since when, how much, and what they do right now.

The only place that describes a connection to the outside.  To be called on the reactor's thread, where sessions hold
still.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.settings import near_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.strategies import Session

__all__ = ("SORTS", "STATES", "find", "from_peer", "rows", "traffic")

#: What a connection may be doing.
STATES = (
    "opening",  # its TLS handshake is not through
    "waiting",  # for the peer, who is owed nothing
    "active",  # the handler works, or the peer has yet to take output
    "closing",  # flushing, or lingering until the peer has closed too
)
#: What rows may be sorted by, the greatest first.
SORTS = ("age", "received", "sent", "pending", "messages", "idle")


def rows(
    sessions: Iterable[Session], now: float, handler: str, *, peer: str = "", sort: str = "age", limit: int = 1000
) -> dict[str, Any]:
    """At most `limit` connections, the greatest by `sort` first.

    Args:
        sessions: those of the server.
        now: seconds on the reactor's clock.
        handler: the handler's name.
        peer: only those whose address contains this.
        sort: one of `SORTS`.
        limit: a list of ten thousand is nothing that a person reads, and making it keeps the reactor.

    Returns:
        `total`, how many there are, and `connections`, a list of dicts: `id`, `peer`, `via`, `local`, `tls`, `state`,
        `handler`, `age` and `idle` in seconds (`idle` None while it is owed something), `received`, `sent` and
        `pending` in bytes, `messages`.

    Raises:
        ConfigError: there is no such `sort`.
    """
    if sort not in SORTS:
        raise ConfigError(f"connections cannot be sorted by {sort!r}", hint=near_match(sort, SORTS, f"By {SORTS}."))
    found = [session for session in sessions if peer in session.peer]
    key = _KEYS[sort]
    chosen = heapq.nlargest(limit, found, key=lambda session: key(session, now))
    return {"total": len(found), "connections": [_row(session, now, handler) for session in chosen]}


def _row(session: Session, now: float, handler: str) -> dict[str, Any]:
    connection = session.connection
    received, sent, pending = session.traffic()
    since = None if session.handshaking else session.idle_since()
    return {
        "id": 0 if connection is None else connection.id,
        "peer": session.peer,
        "via": None if connection is None else connection.via,
        "local": session.local,
        "tls": session.tls,
        "state": _state(session, since),
        "handler": handler,
        "age": round(max(0.0, now - session.opened_at), 3),
        "idle": None if since is None else round(max(0.0, now - since), 3),
        "received": received,
        "sent": sent,
        "pending": pending,
        "messages": _messages(session),
    }


def _state(session: Session, idle_since: float | None) -> str:
    if session.is_closing:
        return "closing"
    if session.handshaking:
        return "opening"
    return "active" if idle_since is None else "waiting"


def _messages(session: Session) -> int:
    return 0 if session.connection is None else int(session.connection.messages)


def _idle(session: Session, now: float) -> float:
    since = None if session.handshaking else session.idle_since()
    return -1.0 if since is None else now - since


_KEYS: dict[str, Callable[[Session, float], float]] = {
    "age": lambda session, now: now - session.opened_at,
    "received": lambda session, now: session.traffic()[0],
    "sent": lambda session, now: session.traffic()[1],
    "pending": lambda session, now: session.traffic()[2],
    "messages": lambda session, now: _messages(session),
    "idle": _idle,
}


def traffic(sessions: Iterable[Session]) -> tuple[int, int, int, int]:
    """Bytes received, sent and pending, and messages, of connections that are open."""
    received = sent = pending = messages = 0
    for session in sessions:
        came, went, waits = session.traffic()
        received += came
        sent += went
        pending += waits
        messages += _messages(session)
    return received, sent, pending, messages


def find(sessions: Iterable[Session], number: int) -> Session | None:
    """The session of the connection with this `id`."""
    for session in sessions:
        if session.connection is not None and session.connection.id == number:
            return session
    return None


def from_peer(address: str, wanted: str) -> bool:
    """Whether a peer's address is `wanted`: all of it, or its host."""
    return bool(address) and (address == wanted or address.rpartition(":")[0].strip("[]") == wanted.strip("[]"))
