"""The agent: a server's answers to whoever watches and commands it from another process.

The only thing of `control` that lives in a worker, besides the counting of events.  It serves one socket, whose other
end the control process has, on the server's own reactor, so that nothing it reads moves meanwhile.

What is said is a line of JSON each.  A request is `{"id": n, "verb": "status", ...}`, its answer
`{"id": n, "ok": true, "result": ...}` or `{"id": n, "ok": false, "error": "...", "hint": "..."}`; what it tells
unasked has no id.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from longshore import events
from longshore.config import Limits, Timeouts
from longshore.control import census, dials
from longshore.control.tracing import Traces
from longshore.errors import ConfigError, LongshoreError
from longshore.framing import Lines
from longshore.reactor.stream import Stream
from longshore.settings import near_match

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.events import Event
    from longshore.server import Server
    from longshore.strategies import Session
    from longshore.supervisor.meter import Meter

__all__ = ("FRAMING", "Agent")

#: What cuts requests; answers are lines too, of any length.
FRAMING = Lines(max_size=1 << 20)
#: The control process may be busy, or stopped in a debugger: it is never given up.
_PATIENT = Timeouts(None, None, None, None, None, None, None, None, None)
#: Seconds between two looks at how late the reactor is.
TICK = 1.0
#: Ticks between two sums over all open connections, for whoever reads the cells without asking.
TICKS_PER_SUM = 5
#: Bytes that the control process may leave untaken before traces leave events out.
TRACE_BYTES = 1 << 18
#: What the server tells of itself without being asked: its new state.
_STATES: dict[type[Event], str] = {
    events.ServerStarted: "serving",
    events.ServerPaused: "paused",
    events.ServerResumed: "serving",
    events.ServerDraining: "draining",
}


class Agent:
    """Answers for `server` on `sock`, until either of them ends.

    Args:
        server: one that has not started yet, or that serves; then this is to be called on its reactor's thread.
        sock: one end of a pair of Unix stream sockets; the agent closes it.
        meter: where it puts figures that no event tells.

    Example:
        >>> import socket
        >>> ours, theirs = socket.socketpair()
        >>> agent = Agent(Server(echo, "tcp://127.0.0.1:0"), theirs)  # doctest: +SKIP
    """

    def __init__(self, server: Server, sock: socket.socket, meter: Meter | None = None) -> None:
        self._meter = meter
        self._server = server
        self._socket = sock
        self._stream: Stream | None = None
        self._traces = Traces(self._tell, self._has_room, lambda: self._sessions)
        self._ticks = 0
        self._due = 0.0
        self._unsubscribe = server.subscribe(self._on_event)
        if server.status != "new":
            self._begin()
            self._tell({"event": "state", "state": server.status})

    @property
    def _sessions(self) -> set[Session]:
        return self._server.admission.sessions

    def _on_event(self, event: Event) -> None:
        state = _STATES.get(type(event))
        if isinstance(event, events.ServerStarted):
            # This event comes on the reactor's thread, before the first connection.
            self._begin()
        if state is not None:
            self._tell({"event": "state", "state": state})
        if isinstance(event, events.ServerStopped):
            if self._meter is not None:
                self._publish(self._meter)
            self._end()
        elif self._traces.any:
            self._server.reactor.post(self._traces.saw, event)

    def _begin(self) -> None:
        self._socket.setblocking(False)
        reactor = self._server.reactor
        # Its requests are no connection of the server's: nobody counts them, and no drain waits for them.
        # A native reactor has its own figures, and they are about the server's: so this is a portable stream.
        self._stream = Stream(
            reactor,
            self._socket,
            "the control process",
            sink=_Ear(self._end),
            limits=Limits(),
            timeouts=_PATIENT,
            framing=FRAMING,
        )
        self._stream.start()
        self._stream.dispatch(self._heard, None, _Receiver(self), batches=False)
        self._tick()

    def _end(self) -> None:
        """The server or the control process has ended."""
        self._stream = None
        self._unsubscribe()
        self._traces.clear()
        self._socket.close()

    def _tick(self) -> None:
        if self._stream is None:
            return
        reactor = self._server.reactor
        now = reactor.now()
        if self._meter is not None:
            if self._due:
                self._meter.lagged(max(0.0, now - self._due))
            if self._ticks % TICKS_PER_SUM == 0:
                self._publish(self._meter)
        self._ticks += 1
        self._due = now + TICK
        reactor.call_at(self._due, self._tick)

    def _publish(self, meter: Meter) -> None:
        """Put into shared memory what no event tells."""
        server = self._server
        figures = server.statistics()
        received, sent, pending, messages = census.traffic(self._sessions)
        meter.put(
            accepted=figures.accepted,
            bytes_received=figures.received + received,
            bytes_sent=figures.sent + sent,
            bytes_pending=pending,
            messages_received=figures.messages + messages,
            datagrams=figures.datagrams,
            connections=figures.connections,
        )
        # The portable reactor and executors of others keep no such figures.
        if (counters := getattr(server.reactor, "counters", None)) is not None:
            counted = counters()
            meter.put_histogram("message_seconds", counted["latency"], counted["taken"] / 1e6)
        if (ask := getattr(server.pool, "statistics", None)) is not None:
            tasks = ask()
            meter.put(
                tasks_waiting=tasks.pending - tasks.running,
                tasks_running=tasks.running,
                pool_processes=tasks.processes,
                pool_deaths=tasks.died,
                **{"tasks:done": tasks.done, "tasks:failed": tasks.failed, "tasks:cancelled": tasks.cancelled},
            )

    # -- requests --------------------------------------------------------------------------------------

    def _heard(self, line: bytes) -> None:
        """Answer one request; a line that is none is what a dead control process has left behind."""
        try:
            request = json.loads(line)
        except ValueError:
            return
        if not isinstance(request, dict):
            return
        answer: dict[str, Any] = {"id": request.pop("id", None)}
        try:
            answer |= {"ok": True, "result": self._answer(str(request.pop("verb", "")), request)}
        except LongshoreError as error:
            answer |= {"ok": False, "error": str(error), "hint": error.hint}
        except TypeError as error:
            answer |= {"ok": False, "error": f"this request cannot be understood: {error}", "hint": ""}
        self._tell(answer)

    def _answer(self, verb: str, arguments: dict[str, Any]) -> Any:
        function = _VERBS.get(verb)
        if function is None:
            raise ConfigError(f"an agent has no verb {verb!r}", hint=near_match(verb, tuple(_VERBS)))
        return function(self, **arguments)

    def _tell(self, message: dict[str, Any]) -> None:
        """Send one line, if there is somebody."""
        stream = self._stream
        if stream is not None and stream.state == "open":
            with contextlib.suppress(LongshoreError, OSError):
                stream.write(json.dumps(message, default=str, separators=(",", ":")).encode() + b"\n")

    def _has_room(self) -> bool:
        """Whether the control process keeps up with what it is told."""
        return self._stream is not None and self._stream.pending <= TRACE_BYTES

    def _status(self) -> dict[str, Any]:
        """What it serves, and its figures now; counts are in the cells."""
        server = self._server
        figures = server.statistics()
        received, sent, pending, messages = census.traffic(self._sessions)
        if self._meter is not None:
            self._publish(self._meter)
        return {
            "pid": os.getpid(),
            "state": server.status,
            "handler": server.handler.name,
            "strategy": server.strategy_name,
            "reactor": server.reactor.name,
            "addresses": list(server.addresses),
            "connections": figures.connections,
            "max_connections": server.limits.max_connections,
            "accepted": figures.accepted,
            "rejected": figures.rejected,
            "failed": figures.failed,
            "received": figures.received + received,
            "sent": figures.sent + sent,
            "pending": pending,
            "messages": figures.messages + messages,
            "datagrams": figures.datagrams,
            "certificate_expires": figures.certificate_expires,
        }

    def _connections(self, peer: str = "", sort: str = "age", limit: int = 1000) -> dict[str, Any]:
        """The rows of `census.rows`."""
        server = self._server
        return census.rows(self._sessions, server.reactor.now(), server.handler.name, peer=peer, sort=sort, limit=limit)

    def _limits(self) -> dict[str, Any]:
        """All limits and timeouts."""
        return dials.read(self._server.limits, self._server.timeouts)

    def _turn(self, values: dict[str, str]) -> dict[str, Any]:
        """Set limits and timeouts, all or none of them."""
        server = self._server
        limits, timeouts = dials.turned(server.limits, server.timeouts, values)
        server.reconfigure(limits=limits, timeouts=timeouts)
        return dials.read(limits, timeouts)

    def _pause(self) -> None:
        self._server.pause()

    def _resume(self) -> None:
        self._server.resume()

    def _drain(self, timeout: float | None = None) -> None:
        self._server.drain(timeout)

    def _kill(self, number: int) -> dict[str, Any]:
        """End one connection: waits of its handler raise, and what is written still leaves."""
        session = census.find(self._sessions, number)
        if session is None:
            raise ConfigError(f"there is no connection {number} any more", hint="longshore ctl connections lists them.")
        session.was_cut = True
        session.cut()
        return {"peer": session.peer}

    def _trace(self, peer: str, trace: int) -> dict[str, Any]:
        """Tell all events of one peer from now on, as `{"trace": n, "event": {...}}`."""
        return self._traces.begin(trace, peer)

    def _untrace(self, trace: int) -> dict[str, Any]:
        return {"dropped": self._traces.end(trace)}


_VERBS: dict[str, Callable[..., Any]] = {
    "status": Agent._status,
    "connections": Agent._connections,
    "limits": Agent._limits,
    "turn": Agent._turn,
    "pause": Agent._pause,
    "resume": Agent._resume,
    "drain": Agent._drain,
    "kill": Agent._kill,
    "trace": Agent._trace,
    "untrace": Agent._untrace,
}


class _Ear:
    """The sink of the agent's stream, whose messages are dispatched."""

    def __init__(self, ended: Callable[[], object]) -> None:
        self._ended = ended

    def attach(self, stream: Stream) -> None:
        """It stays the same one."""

    def opened(self) -> None:
        """It is dispatched right after."""

    def arrived(self) -> None:
        """The dispatch is told."""

    def drained(self) -> None:
        """Nobody waits for room."""

    def near(self) -> None:
        """What it sends is bounded by what it is asked."""

    def idled(self) -> None:
        """It has no idle timeout."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """The control process has ended; the next one comes with a socket of its own."""
        self._ended()


class _Receiver:
    """Who is told what is unusual about the requests."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def send(self, reply: Any) -> None:
        """Answers are written where they are made."""

    def handler_failed(self, error: BaseException) -> None:
        """A bug of ours: told like every failure, and the next request is served."""
        server = self._agent._server
        server.emit(events.HandlerFailed(handler="the control agent", peer=None, error=error))

    def input_ended(self) -> None:
        """There will be no further request."""
        self._hang_up()

    def input_failed(self, error: Exception) -> None:
        """There will be no further request, as what came is none."""
        self._hang_up()

    def _hang_up(self) -> None:
        stream = self._agent._stream
        if stream is not None:
            stream.close(linger=False)

    def ran_dry(self) -> None:
        """All that has come was answered."""
