"""What happens to the connections of one peer, told while it happens.

The only place that picks out a peer's events.  A trace is bounded: where the listener does not keep up, events are left
out, counted, and the count told with the next one that goes out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from longshore.control.census import from_peer
from longshore.errors import LimitExceeded
from longshore.events import HandlerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.events import Event
    from longshore.strategies import Session

__all__ = ("MOST", "Traces", "plain")

#: Traces at once: each looks at every event.
MOST = 16


class Traces:
    """The traces of one server; every call on the reactor's thread.

    Args:
        tell: sends a message.
        has_room: whether whoever listens keeps up.
        sessions: the server's sessions now.
    """

    def __init__(
        self,
        tell: Callable[[dict[str, Any]], object],
        has_room: Callable[[], bool],
        sessions: Callable[[], Iterable[Session]],
    ) -> None:
        self._tell = tell
        self._has_room = has_room
        self._sessions = sessions
        self._peers: dict[int, str] = {}
        self._dropped: dict[int, int] = {}

    @property
    def any(self) -> bool:
        """Whether somebody listens."""
        return bool(self._peers)

    def begin(self, trace: int, peer: str) -> dict[str, Any]:
        """Tell the events of `peer` (an address, or its host) from now on; what is open now is in the answer.

        Raises:
            LimitExceeded: there are `MOST` already.
        """
        if len(self._peers) >= MOST:
            raise LimitExceeded(f"{MOST} traces run already in this worker", hint="End one of them.")
        self._peers[trace] = peer
        self._dropped[trace] = 0
        found = [session for session in self._sessions() if from_peer(session.peer, peer)]
        return {"open": [session.connection.id for session in found if session.connection is not None]}

    def end(self, trace: int) -> int:
        """Tell no more; returns how many events were left out at the end."""
        self._peers.pop(trace, None)
        return self._dropped.pop(trace, 0)

    def clear(self) -> None:
        """End all of them."""
        self._peers.clear()
        self._dropped.clear()

    def saw(self, event: Event) -> None:
        """An event happened."""
        address = getattr(event, "peer", None)
        if not address:
            return
        for trace, peer in self._peers.items():
            if from_peer(address, peer):
                self._pass_on(trace, event)

    def _pass_on(self, trace: int, event: Event) -> None:
        if not self._has_room():
            self._dropped[trace] += 1
            return
        dropped, self._dropped[trace] = self._dropped[trace], 0
        self._tell({"trace": trace, "time": time.time(), "dropped": dropped, "event": plain(event)})


def plain(event: Event) -> dict[str, Any]:
    """An event as JSON values; an error is its type and text, a failed handler's with the place that raised it."""
    fields = event.as_dict()
    error = fields.get("error")
    if isinstance(error, BaseException):
        fields["error"] = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(event, HandlerFailed):
            import traceback

            frames = traceback.extract_tb(error.__traceback__)
            fields["at"] = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
