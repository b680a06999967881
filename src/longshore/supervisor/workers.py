"""A worker: one server in a process of its own, as a supervisor's child.

The only place that knows what a process has to be and do there: it takes its orders from the supervisor's channel on
the server's own reactor, so that what answers is what serves; it says by a cell in shared memory that its reactor
turns; and it ends when the supervisor is gone.

Signals belong to the supervisor.  A worker ignores what a terminal sends to everybody (SIGINT, SIGHUP), drains on a
SIGTERM of its own, and shows where its threads are on SIGQUIT.

It knows nothing of how many others there are, nor why it is asked to end.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from longshore.errors import ConfigError, LongshoreError
from longshore.events import ServerAnnounced, ServerDraining, ServerStarted
from longshore.logfiles import reopen_logs
from longshore.supervisor.meter import Meter
from longshore.supervisor.places import LOOK_AGAIN, SharedGate
from longshore.supervisor.tally import SharedPeerGate

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from longshore.events import Event
    from longshore.supervisor.channel import Channel
    from longshore.supervisor.places import Places
    from longshore.supervisor.privileges import Identity

__all__ = ("Assignment", "work")

#: Seconds between two signs of life, at most.
BEAT = 1.0
#: Seconds that a worker whose supervisor has died may take beyond its drain.
LAST = 5


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is forked with."""

    slot: int
    place: int
    """The lowest number that no other worker has which is to stay."""
    places: Places
    channel: Channel
    stacks: int
    """The descriptor of a file for stacks, which the supervisor reads."""
    beat: float
    """Seconds between two signs of life."""
    build: Callable[[], AbstractContextManager[Any]]
    """Makes the server, not yet started, in the worker: this is where user code is imported."""
    identity: Identity | None
    """Whom to become before that."""
    agent: Callable[[Any, socket.socket, Meter], object] | None
    """Gets the server and the sockets of a control process."""
    drain: float | None
    """`Timeouts.drain`, for the case that the supervisor dies."""


def work(assignment: Assignment) -> NoReturn:
    """Be the worker, and end with the process.  To be called right after fork(2), in the child."""
    status = 1
    try:
        _begin(assignment)
        _Worker(assignment).run()
        status = 0
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):
            _complain(assignment.channel, error)
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # Never through the frames below, which are the supervisor's.
        os._exit(status)


def _begin(assignment: Assignment) -> None:
    faulthandler.enable(assignment.stacks, all_threads=True)
    faulthandler.register(signal.SIGQUIT, assignment.stacks, all_threads=True, chain=False)
    if assignment.identity is not None:
        assignment.identity.assume()


def _complain(channel: Channel, error: BaseException) -> None:
    """Tell the supervisor what this worker dies of."""
    known = isinstance(error, LongshoreError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    message = {
        "say": "failed",
        "error": text[:8000],
        "hint": getattr(error, "hint", ""),
        "is_mistake": isinstance(error, ConfigError),
        "trace": trace[-8000:],
        # Where an error was raised is told only of those that do not say what is wrong.
        "raised": "" if known else trace[-2000:],
    }
    channel.socket.setblocking(True)
    with contextlib.suppress(Exception):
        channel.send(message)


class _Worker:
    """The server of this process, seen from its supervisor's side."""

    def __init__(self, assignment: Assignment) -> None:
        self._given = assignment
        self._channel = assignment.channel
        region = assignment.places.region
        self._column = region.column(assignment.slot)
        self._willing = region.row("accepting")
        self._meter = Meter(self._column)
        self._server: Any = None
        self._gate: SharedGate | None = None
        self._error: BaseException | None = None
        self._alarm: _Descriptor | None = None

    def run(self) -> None:
        """Serve until told to end."""
        with self._given.build() as self._server:
            self._serve(self._server)

    def _serve(self, server: Any) -> None:
        places, slot = self._given.places, self._given.slot
        self._gate = server.admission.share(
            functools.partial(SharedGate, places, slot),
            functools.partial(SharedPeerGate, places, slot),
            self._given.place,
        )
        server.subscribe(self._meter)
        server.subscribe(self._on_event)
        signal.signal(signal.SIGTERM, lambda *_: server.drain())
        signal.signal(signal.SIGUSR1, lambda *_: server.reactor is not None and server.reactor.post(reopen_logs))
        server.serve_forever()
        if self._error is not None:
            raise self._error
        self._willing[self._given.slot] = 0
        self._publish()
        report = server.report
        self._channel.socket.setblocking(True)
        self._channel.send(
            {
                "say": "report",
                "finished": report.finished,
                "cut": report.cut,
                "abandoned": list(report.abandoned)[:1000],
                "seconds": report.seconds,
            }
        )

    # -- on the reactor's thread -----------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ServerDraining):
            self._channel.send({"say": "closed"})
        elif isinstance(event, ServerStarted):
            try:
                self._attach(event)
            except BaseException as error:
                # Nobody would ever hear of this worker, nor command it.
                self._error = error
                self._server.stop()

    def _attach(self, event: ServerStarted) -> None:
        server = self._server
        reactor = server.reactor
        reactor.watch(self._channel.socket, 1, self._ordered)
        slot, wakes = self._given.slot, self._given.places.wakes
        if slot < len(wakes):
            self._alarm = _Descriptor(wakes[slot][0])
            reactor.watch(self._alarm, 1, self._woken)
        self._beat()
        self._look()
        self._willing[slot] = 1
        threading.Thread(target=self._outlive_nobody, name="longshore-lifeline", daemon=True).start()
        self._channel.send(
            {
                "say": "ready",
                "handler": event.handler,
                "strategy": event.strategy,
                "reactor": event.reactor,
                "reason": event.reason,
            }
        )

    def _beat(self) -> None:
        self._column.beat()
        self._publish()
        if self._channel.pending:
            self._channel.flush()
        if not self._server.reactor.closed:
            self._server.reactor.call_later(self._given.beat, self._beat)

    def _publish(self) -> None:
        for name, value in asdict(self._server.statistics()).items():
            if isinstance(value, int):
                self._column.set(name, value)

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._given.places.wakes[self._given.slot][0], 8)
        self._look_once()

    def _look(self) -> None:
        """Look again from time to time: see the top of `places.py`."""
        self._look_once()
        self._server.reactor.call_later(LOOK_AGAIN, self._look)

    def _look_once(self) -> None:
        gate = self._gate
        if gate is not None and gate.is_waiting and gate.look():
            self._server.admission.look_again()

    def _ordered(self, _events: int) -> None:
        server = self._server
        for message, fds in self._channel.receive():
            match message["do"]:
                case "drain":
                    self._willing[self._given.slot] = 0
                    # The last ones take what is queued; all others leave it to those that stay.
                    server.admission.leaves_queue = not message["last"]
                    server.drain(message["timeout"])
                case "stop":
                    server.stop()
                case "speak":
                    server.emit(ServerAnnounced())
                case "reopen-logs":
                    reopen_logs()
                case "control" if self._given.agent is not None:
                    with contextlib.suppress(Exception):
                        self._given.agent(server, socket.socket(fileno=fds.pop()), self._meter)
            for fd in fds:
                os.close(fd)
        if self._channel.ended:
            server.reactor.watch(self._channel.socket, 0, self._ordered)
            server.drain()

    # -- on a thread of its own ------------------------------------------------------------------------------

    def _outlive_nobody(self) -> None:
        """Wait for the supervisor's end, and make sure that this process ends too, whatever blocks its reactor."""
        import select

        poller = select.poll()
        # Hang-ups are always told; what comes is the reactor's to read.
        poller.register(self._channel.socket, 0)
        with contextlib.suppress(OSError, ValueError):
            poller.poll()
            drain = self._given.drain
            if drain is not None:
                # alarm(2) kills, unless somebody handles it, and needs nobody who is able to run.
                signal.alarm(int(drain) + LAST)


class _Descriptor:
    """What a reactor can watch: something with a `fileno`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd
