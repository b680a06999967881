"""The watchdog: names the handler that blocks a reactor.

A thread that looks at the reactor from outside, because whoever blocks cannot report himself.  It only
reads, and emits one event per blockage.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from longshore.events import HandlerBlocked

if TYPE_CHECKING:
    from longshore.strategies import Host

__all__ = ("Watchdog",)


class Watchdog:
    """Watches one server's reactor until `stop`; there is no thread if `Timeouts.blocked` is None."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if host.timeouts.blocked is not None:
            self._thread = threading.Thread(target=self._watch, name="longshore-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        named: float | None = None
        reactor = self._host.reactor
        # Inside of an event loop, handlers run between the reactor's turns: what tells is an answer that does not come.
        asked: float | None = None
        embedded = self._host.handler.is_async

        def answer() -> None:
            nonlocal asked
            asked = None

        while True:
            limit = self._host.timeouts.blocked
            if self._ended.wait(0.5 if limit is None else limit / 2):
                return
            since = reactor.busy_since
            if embedded and since is None:
                since = asked
                if asked is None:
                    asked = time.monotonic()
                    reactor.post(answer)
            if since is None or since == named or limit is None or time.monotonic() - since < limit:
                continue
            # Imported when there is a stack to show: it would cost every start a twentieth.
            import traceback

            named = since
            frame = sys._current_frames().get(reactor.thread or 0)
            stack = "" if frame is None else "".join(traceback.format_stack(frame))
            current = reactor.current
            self._host.emit(
                HandlerBlocked(
                    handler=self._host.handler.name,
                    peer=None if current is None else current.peer,
                    seconds=time.monotonic() - since,
                    stack=stack,
                )
            )
