"""The steward: the supervisor's side of the seam with its control process (`liaison.py`).

The only place that starts the control process, tells it of workers, and does what it asks for.  It is started first,
so that it hears of everybody, and it ends last, so that it can tell of the end; the workers do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, LongshoreError
from longshore.events import ControlEnded
from longshore.supervisor.liaison import Control, Liaison
from longshore.supervisor.region import SharedCounters
from longshore.supervisor.workforce import ChildProcess, cause_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.supervisor.channel import Channel
    from longshore.supervisor.supervisor import Supervisor

__all__ = ("Steward",)

#: Seconds until the first, and at most until the next, new start of a control process that has ended.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
#: A control process that lived longer than this, in seconds, starts again at once.
STEADY = 10.0
#: Seconds that it has to end once its channel has ended.
PATIENCE = 2.0


class Steward:
    """Keeps one control process."""

    def __init__(self, supervisor: Supervisor, control: Control) -> None:
        self._supervisor = supervisor
        self.control = control
        self.process: ChildProcess | None = None
        self._deaths = 0
        self.not_before: float | None = 0.0
        #: Commands to be answered once a reload is over.
        self._waiting: list[int] = []

    def mend(self) -> None:
        """Start it if it is missing."""
        if self.process is not None or self.not_before is None or time.monotonic() < self.not_before:
            return
        supervisor = self._supervisor
        process = ChildProcess(-1, 0, 0)
        addresses = supervisor.addresses
        counters = SharedCounters(supervisor.region)

        def run(channel: Channel, _stacks: int) -> None:
            supervisor.become_child()
            status = 0
            try:
                self.control.entry(Liaison(channel, counters, addresses))
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
                status = 1
            os._exit(status)

        process.fork(run, supervisor.workers.values())
        self.process = process
        supervisor.watch(process.channel, self.hear)
        self.say({"event": "state", "state": supervisor.state})
        for worker in supervisor.workers.values():
            self.introduce(worker)
            if worker.state == "ready":
                self.say({"event": "worker-ready", "worker": worker.number, "pid": worker.pid})

    def introduce(self, worker: ChildProcess) -> None:
        """Tell of a worker, and connect the two."""
        if self.process is None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            worker.send({"do": "control"}, [theirs.fileno()])
            message = {"event": "worker-started", "worker": worker.number, "pid": worker.pid}
            self.process.send({**message, "generation": worker.generation}, [ours.fileno()])

    def say(self, message: dict[str, Any]) -> None:
        """Tell something."""
        if self.process is not None:
            self.process.send(message)

    def hear(self) -> None:
        """Do what it asks for."""
        process = self.process
        assert process is not None
        for message, fds in process.channel.receive():
            for fd in fds:
                os.close(fd)
            number = message.get("id")
            try:
                done, result = self._do(message)
            except (LongshoreError, KeyError, TypeError, ValueError) as error:
                process.send({"id": number, "ok": False, "error": str(error)})
                continue
            if done:
                process.send({"id": number, "ok": True, "result": result})
            elif isinstance(number, int):
                self._waiting.append(number)
        if process.channel.ended:
            self._supervisor.forget(process.channel)

    def reloaded(self, error: str = "") -> None:
        """A reload is over."""
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            self.say(
                {"id": number, "ok": False, "error": error} if error else {"id": number, "ok": True, "result": None}
            )

    def _do(self, message: dict[str, Any]) -> tuple[bool, Any]:
        """Whether it is done, and its result."""
        supervisor = self._supervisor
        verb, number = message["verb"], message.get("worker")
        if number is None:
            verbs: dict[str, Callable[[], Any]] = {
                "status": lambda: status(supervisor),
                "drain": supervisor.drain,
                "stop": supervisor.stop,
                "add": lambda: supervisor.resize(supervisor.wanted + 1),
                "remove": lambda: supervisor.resize(supervisor.wanted - 1),
            }
            if verb == "reload":
                if not supervisor.reload():
                    raise ConfigError(supervisor.reloads.why_not or f"the server is {supervisor.state}")
                return False, None
            if verb not in verbs:
                raise ConfigError(f"there is no verb {verb!r} for the whole server")
            return True, verbs[verb]()
        worker = supervisor.workers.get(int(number) - 1)
        if worker is None:
            raise ConfigError(f"there is no worker {number}")
        if verb in ("drain", "remove"):
            worker.leaving = worker.leaving or "the control process has asked for it"
            if verb == "remove":
                return True, supervisor.resize(supervisor.wanted - 1)
        elif verb in ("kill", "stop"):
            worker.signal(signal.SIGKILL)
        else:
            raise ConfigError(f"there is no verb {verb!r} for one worker")
        return True, None

    def bury(self) -> bool:
        """Whether it has ended; then another one is due, unless the supervisor ends."""
        process = self.process
        if process is None or not process.reap():
            return False
        self._supervisor.forget(process.channel)
        self.process = None
        process.close()
        self._waiting.clear()
        if self._supervisor.state == "ending":
            self.not_before = None
            return True
        self._deaths = self._deaths + 1 if process.age < STEADY else 0
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._deaths - 1)) if self._deaths else 0.0
        self.not_before = time.monotonic() + pause
        reason = cause_of(process.status or 0)
        self._supervisor.emit(ControlEnded(pid=process.pid, reason=reason, retry_in=pause))
        return True

    def close(self) -> None:
        """End it, and wait for that."""
        self.not_before = None
        process, self.process = self.process, None
        if process is None:
            return
        self._supervisor.forget(process.channel)
        process.channel.flush()
        process.channel.close()
        process.signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while not process.reap():
            if time.monotonic() > end:
                process.signal(signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, 0)
                break
            time.sleep(0.01)
        process.close()


def status(supervisor: Supervisor) -> dict[str, Any]:
    """What a control process shows of its supervisor."""
    now = time.monotonic()
    beats = supervisor.region.row("beat")
    return {
        "state": "reloading" if supervisor.reloads.is_open else supervisor.state,
        "generation": supervisor.generation,
        "wanted": supervisor.wanted,
        "pid": os.getpid(),
        "started": round(now - supervisor.started, 3),
        "addresses": list(supervisor.addresses),
        "workers": [
            {
                "worker": item.number,
                "pid": item.pid,
                "generation": item.generation,
                "state": item.state,
                "age": round(item.age, 3),
                "beat": round(now - beats[item.slot] / 1e9, 3) if beats[item.slot] else None,
            }
            for item in sorted(supervisor.workers.values(), key=lambda item: item.slot)
        ],
    }
