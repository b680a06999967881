"""The seam between the supervisor and a control process: what each tells the other, and nothing of what it does.

The only place that knows this agreement.  The supervisor runs one child more than it has workers, the *control
process*, which serves metrics, a control socket or whatever it likes.  It is supervised like a worker: if it ends, it
is started again, and told again of every worker.

The supervisor says (one JSON message each, on `Liaison.channel`, a `Channel`):

    {"event": "worker-started", "worker": 3, "pid": 4711, "generation": 2}      with one descriptor
    {"event": "worker-ready", "worker": 3, "pid": 4711}
    {"event": "worker-draining", "worker": 3, "pid": 4711, "reason": "reload"}
    {"event": "worker-ended", "worker": 3, "pid": 4711, "reason": "killed by SIGKILL"}
    {"event": "state", "state": "starting" | "serving" | "reloading" | "draining"}
    {"event": "reopen-logs"}                                                    log files are to be opened anew

The descriptor is the control process' end of a stream socket pair; the worker holds the other end, and gives it to
`Control.agent(server, socket, meter)` on its reactor's thread once it accepts.  What goes over it is theirs alone.
"state" `draining` comes before any worker is told to drain, so that readiness is off first.

The control process commands:

    {"id": 1, "verb": "status"}                   {"id": 1, "ok": true, "result": {...}}
    {"id": 2, "verb": "reload"}                   {"id": 2, "ok": true, "result": null}, once the new workers serve
    {"id": 3, "verb": "drain", "worker": 3}       that worker drains, and is replaced
    {"id": 4, "verb": "kill", "worker": 3}        that worker is killed, and is replaced
    {"id": 5, "verb": "drain"}, {"id": 6, "verb": "stop"}     the whole server ends: as by SIGTERM, or at once
    {"id": 7, "verb": "add"}, {"id": 8, "verb": "remove"}     one worker more or less; the result is the number

and each is answered once, with `"ok": false, "error": "..."` if it could not be done.  The result of `status` has
`state`, `generation`, `wanted`, `pid` (the supervisor's), `started` (seconds ago), `addresses`, and `workers`, a list
of `worker`, `pid`, `generation`, `state` (`starting`, `ready`, `draining`), `age` and `beat` (seconds ago, None before
it is ready).

When the channel ends the supervisor is gone, and the control process is to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.supervisor.channel import Channel
    from longshore.supervisor.meter import Meter
    from longshore.supervisor.region import SharedCounters

__all__ = ("Control", "Liaison")


@dataclass(frozen=True, slots=True)
class Control:
    """A control process, for the supervisor to run.

    Both are called in processes that were forked from the supervisor's, so they may be functions of any kind.
    """

    entry: Callable[[Liaison], object]
    """The control process' main function: serves until it is asked to end by SIGTERM, or `channel` ends."""
    agent: Callable[[Any, socket.socket, Meter], object]
    """Called in a worker, on its reactor's thread, as `agent(server, socket, meter)`."""


@dataclass(frozen=True, slots=True)
class Liaison:
    """What the control process gets."""

    channel: Channel
    counters: SharedCounters
    addresses: tuple[str, ...]
    """The bound URLs that the workers serve."""
