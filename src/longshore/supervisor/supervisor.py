"""The supervisor: a parent that keeps its workers.

The only place that decides when a worker starts, is replaced, drains or is killed.  It owns the listening sockets and
runs nothing else: no thread, no reactor, and none of the user's code, so there is little in it that can fail, and what
it forks is as good as a program that has just started.

Everything happens in one loop, in four steps: read signals, hear the children, reap who has ended, and put right
what differs from what is wanted (`_mend`).  A decision is never made where something is heard, only noted.

Whoever is to be replaced (by a reload, its age, its size) is marked as `leaving` and serves on until as many others
are ready as are wanted; only then it drains.  So there is no moment without a worker, and a reload that fails costs
nothing.

Times are seconds on the clock of `time.monotonic`, which nobody sets.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import selectors
import signal
import time
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, LongshoreError
from longshore.events import (
    ServerDraining,
    ServerStarted,
    ServerStopped,
    Upgraded,
    UpgradeFailed,
    Upgrading,
    WorkerCrashed,
    WorkerEnded,
    WorkerReady,
    WorkerRetiring,
)
from longshore.logfiles import reopen_logs
from longshore.reports import DrainReport, Statistics
from longshore.subscribers import Subscribers
from longshore.supervisor.anchorage import Anchorage
from longshore.supervisor.brake import Brake
from longshore.supervisor.channel import Channel
from longshore.supervisor.chores import Chores
from longshore.supervisor.mainstay import Mainstay
from longshore.supervisor.meter import COUNTERS, GAUGES, HISTOGRAMS
from longshore.supervisor.pidfile import PidFile
from longshore.supervisor.places import Places
from longshore.supervisor.plans import words
from longshore.supervisor.privileges import Identity
from longshore.supervisor.pulse import Pulse
from longshore.supervisor.region import Region
from longshore.supervisor.reloading import Reload
from longshore.supervisor.signalling import SignalQueue
from longshore.supervisor.steward import Steward
from longshore.supervisor.upgrade import Heritage, Successor, refusal
from longshore.supervisor.workers import BEAT, Assignment, work
from longshore.supervisor.workforce import ChildProcess, cause_of, reap_orphans

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.events import Event
    from longshore.listeners import Listener
    from longshore.supervisor.liaison import Control
    from longshore.supervisor.mainstay import Source
    from longshore.supervisor.plans import Plan

__all__ = ("Supervisor",)

#: Deaths before anybody was ready, after which a start is given up.
BRAKE = 3
#: A worker that dies younger than this, in seconds after it was ready, counts as one that could not start.
YOUNG = 0.5
#: Seconds that a worker has beyond its drain until it is killed: to cut what is left, and to end.
BEYOND = 5.0

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)


class Supervisor:
    """Keeps as many workers as wanted; `run` serves until a signal ends it.

    Args:
        load: reads the configuration, at first and at each reload.
        control: a process that is told of the workers, and may command them; see `liaison.py`.
        broker: a process that the workers depend on, which is started again if it ends.
    """

    def __init__(self, load: Callable[[], Plan], control: Control | None = None, broker: Source | None = None) -> None:
        self.plan = load()
        self.plan.settle(True)
        self.wanted = self.plan.workers.count
        self._subscribers = Subscribers()
        self.emit: Callable[[Event], None] = self._subscribers.emit
        self.anchorage = Anchorage()
        self.listeners: list[Listener] = []
        self.workers: dict[int, ChildProcess] = {}
        self.generation = 1
        self.started = time.monotonic()
        figures = [item.name for item in fields(Statistics) if item.type == "int"]
        counters = [name for name in dict.fromkeys((*figures, *COUNTERS)) if name not in GAUGES]
        self.region = Region(counters, GAUGES, HISTOGRAMS)
        self.chores = Chores()
        self._places: Places = None  # type: ignore[assignment]
        self._signals: SignalQueue = None  # type: ignore[assignment]
        self._selector: selectors.BaseSelector = None  # type: ignore[assignment]
        #: "starting", "serving" or "ending".
        self.state = "starting"
        self._asked = 0
        self.reloads = Reload(self, load)
        self.brake = Brake()
        self._pulse = Pulse(self.region, self.emit)
        self._error: LongshoreError | None = None
        self._ending_since = 0.0
        self._finished = self._cut = 0
        self._abandoned: list[str] = []
        self.report: DrainReport | None = None
        self.steward = None if control is None else Steward(self, control)
        self._mainstay = Mainstay(self, broker)
        self._heritage: Heritage | None = None
        self._successor: Successor | None = None
        #: Whether another program has the sockets.
        self._handed_over = False
        self._pid_file: PidFile | None = None

    def subscribe(self, observer: Callable[[Event], object]) -> None:
        """Call `observer(event)` for the events of the supervisor, whose workers have events of their own."""
        self._subscribers.add(observer)

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> DrainReport:
        """Serve until a signal ends it.

        Raises:
            AddressError: an address cannot be bound.
            LongshoreError: the workers could not start; the message is theirs.
        """
        self._signals = SignalQueue(_SIGNALS)
        try:
            self.identity = Identity.of(self.plan.workers.user, self.plan.workers.group)
            self._heritage = Heritage.receive()
            if self._heritage is not None:
                self._heritage.moor(self.anchorage)
            self.listeners = self.anchorage.bind(self.plan.targets)
            self.anchorage.keep(self.plan.targets)
            self._places = Places(self.region, self.wanted)
            self._selector = selectors.DefaultSelector()
            self.watch(self._signals, self._heed)
            self._mainstay.watch()
            # What is there now is the same in every worker: not looked at again, its memory stays shared.
            gc.collect()
            gc.freeze()
            self._mend()
            while self.workers or self.state != "ending":
                self._step()
            return self._finish()
        finally:
            self._close()

    def _step(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            key.data()
        if self.steward is not None:
            self.steward.bury()
        for worker in list(self.workers.values()):
            if worker.channel.pending:
                worker.channel.flush()
            if worker.reap():
                self._bury(worker)
        if os.getpid() == 1:
            reap_orphans(self.children)
        self._watch()
        self._mend()

    def _watch(self) -> None:
        now = time.monotonic()
        for worker in self.workers.values():
            if worker.kill_at is not None and now >= worker.kill_at:
                self._pulse.kill(worker)
        if self.state == "serving" and not self.reloads.is_open:
            self._pulse.look(self.workers.values(), self.plan.workers)
        self.chores.do(now)

    def _patience(self) -> float | None:
        """Seconds until there is something to do even if nothing happens."""
        now = time.monotonic()
        due = [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        due += self.chores.due + self._mainstay.due
        if len(self._staying()) < self.wanted and self.state != "ending":
            due.append(self.brake.not_before)
        if self.state == "serving" and not self.reloads.is_open:
            look = self._pulse.due(self.plan.workers)
            due += [] if look is None else [look]
        if any(child.channel.pending for child in self.children):
            due.append(now + 0.05)
        if self.steward is not None and self.steward.process is None and self.steward.not_before is not None:
            due.append(self.steward.not_before)
        return max(0.0, min(due) - now) if due else None

    @property
    def children(self) -> list[ChildProcess]:
        """All processes that it has forked, and not buried."""
        control = None if self.steward is None else self.steward.process
        return [*self.workers.values(), *([] if control is None else [control])]

    def watch(self, source: Any, heard: Callable[[], object]) -> None:
        """Call `heard` while there is something to read."""
        self._selector.register(source, selectors.EVENT_READ, heard)

    def forget(self, source: Any) -> None:
        """Watch it no more; again does nothing."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def become_child(self) -> None:
        """In a child that serves nothing of ours: close what is the supervisor's."""
        self._signals.forget()
        self._selector.close()
        for _, listener in self.anchorage.listeners:
            listener.socket.close()

    def tell(self, event: str, worker: ChildProcess | None = None, **more: Any) -> None:
        """Tell the control process, if there is one."""
        if self.steward is not None:
            about = {} if worker is None else {"worker": worker.number, "pid": worker.pid}
            self.steward.say({"event": event, **about, **more})

    def _finish(self) -> DrainReport:
        if self._error is not None:
            raise self._error
        since = self._ending_since or time.monotonic()
        self.report = DrainReport(self._finished, self._cut, tuple(self._abandoned), time.monotonic() - since)
        self.emit(ServerStopped(**asdict(self.report)))
        return self.report

    def _close(self) -> None:
        for worker in list(self.workers.values()):
            # Only after an error of our own: nobody would command them any more.
            worker.signal(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            worker.close()
        if self.steward is not None and self._selector is not None:
            self.steward.close()
        if self._pid_file is not None:
            self._pid_file.remove()
        self.anchorage.close()
        if self._selector is not None:
            self._selector.close()
        if self._places is not None:
            self._places.close()
        self._signals.close()
        gc.unfreeze()

    # -- signals ---------------------------------------------------------------------------------------------

    def _heed(self) -> None:
        for number in self._signals.read():
            match number:
                case signal.SIGTERM | signal.SIGINT:
                    self._asked += 1
                    if self._asked == 1:
                        self.drain()
                    else:
                        self.stop()
                case signal.SIGQUIT:
                    self.stop()
                case signal.SIGHUP:
                    self.drain() if self._signals.hung_up else self.reload()
                case signal.SIGUSR1:
                    self.reopen_logs()
                case signal.SIGUSR2:
                    self.upgrade()
                case signal.SIGTTIN:
                    self.resize(self.wanted + 1)
                case signal.SIGTTOU:
                    self.resize(self.wanted - 1)

    # -- verbs: what signals and the control process ask for --------------------------------------------------

    def drain(self) -> None:
        """End in order: every worker drains."""
        if self.state == "ending":
            return
        self._end()
        timeout = self.plan.drain
        self.emit(ServerDraining(connections=sum(self.region.row("held")), timeout=timeout))
        for worker in self.workers.values():
            if worker.state == "starting":
                worker.signal(signal.SIGKILL)
            else:
                self._drain_worker(worker, last=True)

    def stop(self) -> None:
        """End now."""
        self._end()
        for worker in self.workers.values():
            if worker.state == "starting":
                worker.signal(signal.SIGKILL)
            else:
                worker.send({"do": "stop"})
                worker.state = "draining"
                worker.kill_at = time.monotonic() + BEYOND

    def _end(self) -> None:
        if self.state != "ending":
            self.state = "ending"
            self.tell("state", state="draining")
            if self.steward is not None:
                self.steward.reloaded("the server ends")
            self.reloads.abandon()
            self._ending_since = time.monotonic()

    def resize(self, count: int) -> int:
        """Have `count` workers, at least 1, from now on; what was set."""
        self.wanted = max(1, count)
        return self.wanted

    def reopen_logs(self) -> None:
        """Have every process open its log files anew."""
        reopen_logs()
        self.tell("reopen-logs")
        for worker in self.workers.values():
            worker.send({"do": "reopen-logs"})

    def upgrade(self) -> None:
        """Start this program once more, and end in order when that one serves on the same sockets."""
        if self.state != "serving" or self._successor is not None:
            return
        try:
            if reason := refusal():
                raise ConfigError(reason)
            self._successor = Successor(self.anchorage)
        except (OSError, ConfigError) as error:
            self.emit(UpgradeFailed(reason=words(error)))
            return
        self.watch(self._successor, self._succeed)
        self.emit(Upgrading(pid=self._successor.pid))

    def _succeed(self) -> None:
        """The new program serves, or has failed."""
        successor, self._successor = self._successor, None
        assert successor is not None
        self.forget(successor)
        if successor.is_ready():
            self._handed_over = True
            self.anchorage.hand_over()
            self.emit(Upgraded(pid=successor.pid))
            self.drain()
        else:
            self.emit(UpgradeFailed(reason=successor.failure()))
        successor.close()

    def reload(self) -> bool:
        """Replace all workers by new ones with code and configuration as they are now; whether that has begun."""
        return self.state == "serving" and self.reloads.begin()

    # -- what children say, and how they end ------------------------------------------------------------------

    def _hear(self, worker: ChildProcess) -> None:
        for message, fds in worker.channel.receive():
            for fd in fds:
                os.close(fd)
            match message["say"]:
                case "ready":
                    worker.state, worker.accepts = "ready", True
                    worker.ready_at = time.monotonic()
                    worker.welcome = message
                    if self.state != "starting":
                        worker.send({"do": "speak"})
                    self.tell("worker-ready", worker)
                    self._pulse.set_ends(worker, self.plan.workers)
                    self.emit(
                        WorkerReady(
                            worker=worker.number, pid=worker.pid, generation=worker.generation, seconds=worker.age
                        )
                    )
                case "closed":
                    worker.accepts = False
                case "failed":
                    worker.failure = message
                case "report":
                    worker.report = message
                    worker.kill_at = time.monotonic() + BEYOND
        if worker.channel.ended:
            self.forget(worker.channel)

    def _bury(self, worker: ChildProcess) -> None:
        """A worker has ended: give back its places and figures, and note what follows."""
        if not worker.channel.ended:
            self._hear(worker)
        self.forget(worker.channel)
        lost = self.region.row("held")[worker.slot]
        self.region.free_slot(worker.slot)
        self._places.bury(worker.slot)
        del self.workers[worker.slot]
        was, worker.state = worker.state, "ended"
        self.tell("worker-ended", worker, reason=worker.leaving or cause_of(worker.status or 0))
        if worker.report is not None:
            self._note_report(worker, worker.report)
        elif self.state != "ending" and was == "draining":
            end = f"the worker itself, {cause_of(worker.status or 0)}"
            self._note_report(worker, {"finished": 0, "cut": lost, "abandoned": [end], "seconds": 0.0})
        elif self.state == "ending":
            if lost:
                self._cut += lost
                self._abandoned.append(f"worker {worker.number} (process {worker.pid}), {cause_of(worker.status or 0)}")
        elif not worker.leaving or was == "ready":
            self._crashed(worker, was, lost)
        worker.close()

    def _note_report(self, worker: ChildProcess, report: dict[str, Any]) -> None:
        if self.state == "ending":
            self._finished += report["finished"]
            self._cut += report["cut"]
            self._abandoned += report["abandoned"]
        self.emit(
            WorkerEnded(
                worker=worker.number,
                pid=worker.pid,
                finished=report["finished"],
                cut=report["cut"],
                abandoned=tuple(report["abandoned"]),
                seconds=report["seconds"],
            )
        )

    def _crashed(self, worker: ChildProcess, was: str, lost: int) -> None:
        failure = worker.failure or {}
        reason = failure.get("error") or cause_of(worker.status or 0)
        young = was == "starting" or time.monotonic() - worker.ready_at < YOUNG
        pause = self.brake.died(time.monotonic(), early=young)
        stack = "" if worker.blocked_since is not None else worker.stack() or failure.get("raised", "")
        if self.state == "starting" and was == "starting":
            if failure.get("is_mistake") or self.brake.deaths >= BRAKE:
                self._give_up(failure, reason, stack)
                return
        elif self.reloads.is_open and worker.generation == self.generation:
            self.reloads.fail(f"worker {worker.number} (process {worker.pid}): {reason}")
            return
        self.emit(
            WorkerCrashed(
                worker=worker.number,
                pid=worker.pid,
                reason=reason,
                connections=lost,
                retry_in=pause,
                stack=stack,
            )
        )

    def _give_up(self, failure: dict[str, Any], reason: str, stack: str) -> None:
        """The start has failed: end with what the last worker said."""
        told = f"{BRAKE} workers ended before they were ready, the last one: {reason}"
        # A mistake would be made again by every worker, and is told as without them.
        is_mistake, hint = failure.get("is_mistake"), failure.get("hint", "")
        self._error = ConfigError(reason, hint=hint) if is_mistake else LongshoreError(told, hint=hint)
        if trace := failure.get("trace") or stack:
            self._error.add_note(trace)
        self.stop()

    # -- putting right ---------------------------------------------------------------------------------------

    def _staying(self) -> list[ChildProcess]:
        return [item for item in self.workers.values() if not item.leaving and item.state in ("starting", "ready")]

    def _mend(self) -> None:
        """Start who is missing, and let go who is too many or to be replaced."""
        self._mainstay.mend()
        if self.state == "ending":
            return
        if self.steward is not None:
            self.steward.mend()
        now = time.monotonic()
        staying = self._staying()
        while len(staying) < self.wanted and now >= self.brake.not_before:
            try:
                staying.append(self._start())
            except (OSError, ConfigError) as error:
                pause = self.brake.died(now, early=True)
                self.emit(WorkerCrashed(worker=0, pid=0, reason=words(error), connections=0, retry_in=pause))
                if self.state == "starting" and self.brake.deaths >= BRAKE:
                    self._give_up({}, words(error), "")
                return
        ready = [item for item in staying if item.state == "ready"]
        for worker in sorted(ready, key=lambda item: item.place)[self.wanted :]:
            worker.leaving = "there are more workers than wanted"
        if len(ready) < self.wanted:
            return
        self._all_ready()
        for worker in list(self.workers.values()):
            if worker.leaving and worker.state in ("starting", "ready"):
                if worker.state == "ready":
                    self.emit(WorkerRetiring(worker=worker.number, pid=worker.pid, reason=worker.leaving))
                    self._drain_worker(worker, last=False)
                else:
                    worker.signal(signal.SIGKILL)
        self.reloads.announce()

    def _all_ready(self) -> None:
        """As many as wanted accept."""
        if any(item.ready_at and time.monotonic() - item.ready_at > YOUNG for item in self.workers.values()):
            self.brake.release()
        if self.state == "starting":
            self.state = "serving"
            if self.plan.workers.pid_file is not None:
                self._pid_file = PidFile(self.plan.workers.pid_file)
                self._pid_file.write()
            if self._heritage is not None:
                self._heritage.announce()
            self.tell("state", state="serving")
            welcome = next(item.welcome for item in self.workers.values() if item.welcome)
            self.emit(
                ServerStarted(
                    handler=welcome["handler"],
                    addresses=self.addresses,
                    strategy=welcome["strategy"],
                    reactor=welcome["reactor"],
                    reason=welcome["reason"],
                    workers=self.wanted,
                )
            )
            # Not before: the first line that is printed is the one that says where it serves.
            for worker in self.workers.values():
                worker.send({"do": "speak"})
        else:
            self.reloads.all_ready()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound URLs, with real ports."""
        return tuple(listener.url for listener in self.listeners)

    def _start(self) -> ChildProcess:
        """Fork one worker."""
        slot = self.region.take_slot(self.generation)
        taken = {item.place for item in self._staying()}
        place = next(number for number in itertools.count() if number not in taken)
        worker = ChildProcess(slot, self.generation, place)
        plan, wanted = self.plan, self.wanted
        listeners = list(self.listeners)
        beat = BEAT if plan.workers.heartbeat is None else min(BEAT, plan.workers.heartbeat / 4)

        def run(channel: Channel, stacks: int) -> None:
            self._signals.forget()
            self._selector.close()
            kept = {listener.socket.fileno() for listener in listeners}
            for _, listener in self.anchorage.listeners:
                if listener.socket.fileno() not in kept:
                    listener.socket.close()
            work(
                Assignment(
                    slot=slot,
                    place=place,
                    places=self._places,
                    channel=channel,
                    stacks=stacks,
                    beat=beat,
                    build=lambda: plan.build(listeners, place, max(wanted, place + 1)),
                    identity=self.identity,
                    agent=None if self.steward is None else self.steward.control.agent,
                    drain=plan.drain,
                )
            )

        try:
            worker.fork(run, self.children)
        except BaseException:
            self.region.free_slot(slot)
            raise
        self.region.row("pid")[slot] = worker.pid
        self.workers[slot] = worker
        self.watch(worker.channel, lambda: self._hear(worker))
        if self.steward is not None:
            self.steward.introduce(worker)
        return worker

    def _drain_worker(self, worker: ChildProcess, *, last: bool) -> None:
        timeout = self.plan.drain
        self.tell("worker-draining", worker, reason=worker.leaving or "the server ends")
        worker.send({"do": "drain", "timeout": timeout, "last": last and not self._handed_over})
        worker.state = "draining"
        worker.kill_at = None if timeout is None else time.monotonic() + timeout + BEYOND
