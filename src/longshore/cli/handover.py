"""Bound sockets on their way from the process that keeps them to the server that serves them.

Both sides of one agreement, and the only place that knows it: one variable of the environment names the inherited
descriptors, with the URL of each, and one channel.  On the channel the server says once that it accepts, and when
it ends, because whoever keeps the sockets is gone, the server drains.

It starts no process and serves nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from longshore.events import ServerStarted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longshore.events import Event
    from longshore.listeners import Listener

__all__ = ("VARIABLE", "Handover", "describe", "receive")

#: Set for the server's process only, which takes it away again before it runs any code of the user's.
VARIABLE = "LONGSHORE_HANDOVER"


class Handover(NamedTuple):
    """What a server got from the process that keeps its sockets."""

    listeners: list[Listener]
    channel: socket.socket

    def tell(self, event: Event) -> None:
        """Say that the server accepts, once it does; a subscriber of its events."""
        if isinstance(event, ServerStarted):
            self.channel.send(b"\n")
            # Not before: strategies that fork do so while the server starts, and want no thread there.
            threading.Thread(target=self._watch, name="longshore-handover", daemon=True).start()

    def _watch(self) -> None:
        if not self.channel.recv(1):
            os.kill(os.getpid(), signal.SIGTERM)


def describe(listeners: Sequence[tuple[str, Listener]], channel: socket.socket) -> str:
    """What `VARIABLE` is to say: each listener with the URL that it was asked for, and the server's end."""
    import json

    sockets = [(each.socket.fileno(), target, each.url) for target, each in listeners]
    return json.dumps({"sockets": sockets, "channel": channel.fileno()})


def receive() -> Handover | None:
    """What this process was given, or None if it is a server of its own.

    From here on it is commanded by SIGTERM alone: Ctrl-C reaches every process of a terminal, and would count twice.
    """
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    import json

    from longshore.listeners import inherit

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    given = json.loads(text)
    channel = socket.socket(fileno=given["channel"])
    channel.set_inheritable(False)
    return Handover([inherit(*each) for each in given["sockets"]], channel)
