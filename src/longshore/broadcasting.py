"""One message to many connections, without waiting for any of them.

The only place that decides what happens to receivers that do not keep up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.buffers import octets
from longshore.errors import ConfigError, LimitExceeded
from longshore.events import SlowReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.events import Event

__all__ = ("broadcast",)


def broadcast(connections: Iterable[Any], message: Any, slow: str, emit: Callable[[Event], object]) -> int:
    """Send `message`, encoded once per framing; returns how many took it."""
    if slow not in ("drop", "close"):
        raise ConfigError(f"broadcast(slow={slow!r}): must be 'drop' or 'close'")
    taken = 0
    # By identity: a framing of somebody's own need not be hashable.
    encoded: dict[int, bytes] = {}
    for connection in connections:
        framing = connection.framing
        if id(framing) not in encoded:
            encoded[id(framing)] = octets(message) if framing is None else framing.encode(message)
        link = connection._link
        if link.try_write(encoded[id(framing)]):
            taken += 1
        elif not link.ended:
            pending = link.pending
            emit(SlowReceiver(id=connection.id, peer=connection.peer, pending=pending, action=slow))
            if slow == "close":
                error = LimitExceeded(
                    f"{connection.peer} does not keep up with broadcasts: {pending} bytes pending "
                    "(Limits.max_pending_bytes)"
                )
                link.abort("slow receiver", error)
    return taken
