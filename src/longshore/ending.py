"""How a server ends: who may finish, who is cut, who is abandoned.

The only place that knows the steps of a drain and of a stop, and that counts for the report.  Everything in it
happens on the reactor's thread.  It begins once the server is open; a start that fails ends in the server itself.
"""

from __future__ import annotations

import math
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from longshore.events import ServerDraining
from longshore.reports import DrainReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.admission import Admission
    from longshore.events import Event
    from longshore.lifecycle import Machine
    from longshore.peers import DatagramService
    from longshore.strategies import Session

__all__ = ("GRACE", "Ending")

#: Seconds that handlers have to end after their connection was cut, before they are abandoned.
GRACE = 1.0
#: Connections that may all be closed at once; of more, the idle ones are closed at about this many a second ...
JITTERED = 1000
#: ... but within this many seconds, and within half of the time that the drain has; ...
JITTER = 5.0
#: ... and sooner where nobody else serves on these addresses, as clients that come back find nobody anyway.
JITTER_ALONE = 1.0
#: Seconds that a connection has for its first byte, from its accept, if others serve on while this server drains.
FRESH = 1.0


class Ends(Protocol):
    """What an ending needs of its server."""

    reactor: Any
    draining: bool
    emit: Callable[[Event], None]
    services: list[DatagramService]

    def close_doors(self, *, queued: bool) -> None:
        """Accept no more; `queued` takes in first what the kernel has accepted already."""

    def let_go(self) -> None:
        """Nothing is left to wait for: end the reactor."""


class Ending:
    """Ends one server, once."""

    def __init__(self, server: Ends, machine: Machine, admission: Admission) -> None:
        self._server = server
        self._machine = machine
        self._admission = admission
        self._began = 0.0
        self._finished = self._cut = 0
        self._give_up: threading.Timer | None = None
        #: How it ended; None before.
        self.report: DrainReport | None = None

    def drain(self, timeout: float | None) -> None:
        """Let everybody finish, for at most `timeout` seconds."""
        if self._machine.state not in ("serving", "paused"):
            return
        server = self._server
        # First of all: who asks whether this server is ready must hear that it is not before a door is shut.
        server.emit(ServerDraining(connections=len(self._admission.sessions), timeout=timeout))
        self._begin()
        self._machine.to("draining")
        deadline = None if timeout is None else server.reactor.now() + timeout
        for service in server.services:
            service.finish(deadline, self._finish_if_empty)
        self._drain_sessions(deadline, timeout)
        if timeout is not None:
            server.reactor.call_later(timeout, self.stop)
        self._finish_if_empty()

    def _drain_sessions(self, deadline: float | None, timeout: float | None) -> None:
        """Ask every connection to finish: many not at once, as their clients would all come back in that moment."""
        sessions = tuple(self._admission.sessions)
        window = 0.0
        if len(sessions) > JITTERED:
            longest = JITTER if self._admission.leaves_queue else JITTER_ALONE
            window = min(len(sessions) / JITTERED, longest, math.inf if timeout is None else timeout / 2)
        for session in sessions:
            patience = self._patience_with(session, window)
            if patience > 0:
                self._server.reactor.call_later(patience, self._drain_one, session, deadline)
            else:
                session.drain(deadline)

    def _patience_with(self, session: Session, window: float) -> float:
        """Seconds until `session` is drained.

        Only who is idle may wait: whoever is at work hears of it now, to make good use of the time.  Where others go
        on serving, a client that has just connected finds out only here that it came to the wrong one, so its first
        message is awaited.
        """
        patience = random.uniform(0, window) if window and session.idle_since() is not None else 0.0
        if self._admission.leaves_queue and not session.traffic()[0]:
            patience = max(patience, session.opened_at + FRESH - self._server.reactor.now())
        return patience

    def _drain_one(self, session: Session, deadline: float | None) -> None:
        if session in self._admission.sessions and self._machine.state == "draining":
            session.drain(deadline)

    def stop(self) -> None:
        """Cut what is open, and abandon what has not ended `GRACE` seconds later."""
        if self._machine.state in ("stopping", "stopped"):
            return
        if not self._began:
            self._begin()
        self._machine.to("stopping")
        self._admission.cut()
        # Real time, also under a clock that tests turn: what is left to wait for are threads.
        self._give_up = threading.Timer(GRACE, self._server.reactor.post, (self._abandon,))
        self._give_up.daemon = True
        self._give_up.start()
        self._finish_if_empty()

    def session_ended(self, session: Session) -> None:
        """One less to wait for."""
        if self._machine.state not in ("draining", "stopping"):
            return
        if session.was_cut:
            self._cut += 1
        else:
            self._finished += 1
        self._finish_if_empty()

    def finish(self) -> None:
        """Everything is over: let the reactor go."""
        if self.report is not None:
            return
        for service in self._server.services:
            service.close()
        self.report = self.summary()
        self._server.let_go()

    def summary(self, abandoned: tuple[str, ...] = ()) -> DrainReport:
        """The report as it would be now."""
        seconds = self._server.reactor.now() - self._began if self._began else 0.0
        return DrainReport(self._finished, self._cut, abandoned, seconds)

    def close(self, abandoned: tuple[str, ...]) -> None:
        """The reactor has ended: the report is final."""
        if self._give_up is not None:
            self._give_up.cancel()
        self.report = replace(self.report or self.summary(), abandoned=abandoned)

    def join(self) -> None:
        """Wait for the thread that would have given up."""
        if self._give_up is not None and self._give_up is not threading.current_thread():
            self._give_up.join()

    def _begin(self) -> None:
        self._began = self._server.reactor.now()
        self._server.close_doors(queued=self._machine.state == "serving")
        self._server.draining = True

    def _finish_if_empty(self) -> None:
        if self._admission.sessions or self._machine.state not in ("draining", "stopping"):
            return
        if self._machine.state == "draining":
            if any(service.busy for service in self._server.services):
                return
            self._machine.to("stopping")
        self.finish()

    def _abandon(self) -> None:
        if self._machine.state == "stopped":
            return
        self._admission.destroy()
        self._cut += len(self._admission.sessions)
        self.finish()
