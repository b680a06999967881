"""Blocking handlers on the server's own thread, one connection at a time.

The reactor turns on a thread of its own meanwhile, so that deadlines, accepting and stopping work as
everywhere.  What a handler does to its thread it does to the server's: `KeyboardInterrupt` and `SystemExit`
leave `run`.  How a handler is run is `blocking.py`'s business.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.strategies.blocking import BlockingSession
from longshore.strategies.threads import Refused, guarded_call, handle_datagram

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.config import Limits
    from longshore.strategies import Host, Session

__all__ = ("InlineStrategy",)

#: Datagrams that may wait for the handler.
WAITING = 1024


def _nothing() -> None:
    """A job after which Python has run its signal handlers."""


class InlineStrategy:
    """One thing at a time, on the thread that called `run`."""

    name = "inline"
    on_streams = False

    def __init__(self, host: Host) -> None:
        self._host = host
        self._jobs: queue.SimpleQueue[Callable[[], BaseException | None] | None] = queue.SimpleQueue()

    def capacity(self, limits: Limits) -> int | None:
        """One."""
        return 1

    def run(self) -> None:
        """Run handlers until the reactor has stopped, which turns on a helper's thread."""
        failure: list[BaseException] = []
        reactor = self._host.reactor
        helper = threading.Thread(target=self._turn, args=(failure,), name="longshore-reactor", daemon=True)
        helper.start()
        # A queue sleeps through a signal that comes just before: the reactor hears it, and gives us something to do.
        reactor.on_signal = lambda: self._jobs.put(_nothing)
        try:
            with reactor.hearing_signals(), runs.turned_by(None):
                while (job := self._jobs.get()) is not None:
                    leaving = job()
                    if leaving is not None:
                        raise leaving
        except BaseException:
            reactor.stop()
            helper.join()
            # What the handler that was left has posted: its socket among it.
            reactor.run_ready()
            raise
        helper.join()
        if failure:
            raise failure[0]

    def _turn(self, failure: list[BaseException]) -> None:
        try:
            self._host.reactor.run()
        except BaseException as error:
            failure.append(error)
        finally:
            # The system gives a thread's number to the next one, which is not the reactor's.
            self._host.reactor.thread = None
            self._jobs.put(None)

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session whose handler runs after those that wait already."""
        try:
            session = BlockingSession(self._host, sock, peer, local, tls, self._enqueue)
        except OSError as error:
            return Refused(self._host, peer, local, error)
        session.quiet = (SystemExit, KeyboardInterrupt)
        return session

    def _enqueue(self, session: BlockingSession) -> None:
        self._jobs.put(session.run)

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram after what waits already."""
        if self._jobs.qsize() >= WAITING:
            return False
        host = self._host
        self._call(host.handler.name, peer, lambda: handle_datagram(host, data, reply, address))
        return True

    def call(self, function: Callable[[], Any]) -> None:
        """Call it between two handlers."""
        self._call(str(getattr(function, "__qualname__", repr(function))), None, function)

    def _call(self, name: str, peer: str | None, function: Callable[[], Any]) -> None:
        def job() -> BaseException | None:
            return guarded_call(self._host, name, peer, function)

        self._jobs.put(job)

    def close(self) -> tuple[str, ...]:
        """Nothing is left behind: the helper has ended with `run`."""
        return ()
