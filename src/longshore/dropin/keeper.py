"""The keeper: what goes on for the requests of a `socketserver` while its serving thread is with a handler.

The host of sessions and the home of greenlets, on a reactor that turns on a thread of its own; or on the serving loop,
where nothing has to go on meanwhile.  It decides nothing.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longshore import reactor as reactors
from longshore.handlers import Handler

if TYPE_CHECKING:
    import contextvars

    from longshore.config import Limits, Timeouts
    from longshore.dropin.hosting import Hosting
    from longshore.events import Event
    from longshore.framing import Framing
    from longshore.reactor.portable import PortableReactor
    from longshore.strategies import Host, Session
    from longshore.strategies.green import GreenSession, Parking

__all__ = ("Keeper",)

#: Seconds that a connection may linger after its handler has closed it, where no `Timeouts.linger` is set: by then the
#: program has no use for it any more, so "for ever" would be a leak.
LINGER = 2.0


class Keeper:
    """The host of a server's connections, and the home of its greenlets, on a reactor that turns all the time."""

    framing: Framing | None = None
    draining = False

    def __init__(self, hosting: Hosting, loop: PortableReactor | None) -> None:
        self._hosting = hosting
        self.host: Host = self
        self.facade = hosting.server
        target = hosting.server.RequestHandlerClass
        self.handler = Handler(target, "class", False, getattr(target, "__qualname__", repr(target)))
        self.running: set[GreenSession] = set()
        self._thread: threading.Thread | None = None
        self._parking: Parking | None = None
        self.reactor: Any = loop
        if loop is None:
            self.reactor = reactors.create(hosting.clock)[0]
            self._thread = threading.Thread(target=self.reactor.run, name="longshore-socketserver", daemon=True)
            self._thread.start()

    @property
    def limits(self) -> Limits:
        """The server's."""
        return self._hosting.limits

    @property
    def timeouts(self) -> Timeouts:
        """The server's, but nothing lingers for ever."""
        timeouts = self._hosting.attributes.timeouts
        return replace(timeouts, linger=LINGER) if timeouts.linger is None else timeouts

    @property
    def parking(self) -> Parking:
        """Where greenlets wait."""
        if self._parking is None:
            from longshore.strategies.green import Parking

            self._parking = Parking(self.reactor)
        return self._parking

    def emit(self, event: Event) -> None:
        """Tell the server's subscribers."""
        self._hosting.emit(event)

    def wants(self, kind: type[Event]) -> bool:
        """Whether one of the server's subscribers does."""
        return self._hosting.wants(kind)

    def session_ended(self, session: Session) -> None:
        """A connection is over."""
        self._hosting.post(self._hosting.ended, session)

    def take_place(self) -> bool:
        """What `ThreadingMixIn` and the like count, they count themselves."""
        return True

    def handler_freed(self) -> None:
        """Places are left by arrivals."""

    def near_pending(self, count: int) -> None:
        """Tell of it."""
        self._hosting.near_pending(count)

    def take_handshake(self) -> bool:
        """See `handshake_over`."""
        return True

    def handshake_over(self) -> None:
        """Handshakes run where their handler does, and are bounded as handlers are."""

    def calling(self) -> Any:
        """The hooks find out by themselves on which thread they are."""
        return contextlib.nullcontext()

    def context(self) -> contextvars.Context:
        """A copy of the context that the server is served in."""
        return self._hosting.context.copy()

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self.reactor.stop()
            if self._thread is not threading.current_thread():
                self._thread.join()
            self.reactor.close()
