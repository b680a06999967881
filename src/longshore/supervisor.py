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
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from longshore.anchorage import Anchorage
from longshore.channel import Channel
from longshore.errors import ConfigError, LongshoreError
from longshore.events import (
    Reloaded,
    ReloadFailed,
    Reloading,
    ServerDraining,
    ServerStarted,
    ServerStopped,
    WorkerCrashed,
    WorkerEnded,
    WorkerReady,
    WorkerRetiring,
)
from longshore.places import Places
from longshore.privileges import Identity
from longshore.pulse import Pulse
from longshore.region import Region
from longshore.reports import DrainReport, Statistics
from longshore.signalling import SignalQueue
from longshore.subscribers import Subscribers
from longshore.workers import BEAT, Assignment, work
from longshore.workforce import ChildProcess, cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from longshore.anchorage import Target
    from longshore.config import Workers
    from longshore.events import Event
    from longshore.listeners import Listener

__all__ = ("Plan", "Supervisor", "refuse_processes")

#: Deaths before anybody was ready, after which a start is given up.
BRAKE = 3
#: Seconds until the first, and at most until the next, new start after workers that died young.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
#: A worker that dies younger than this, in seconds after it was ready, counts as one that could not start.
YOUNG = 0.5
#: Seconds that a worker has beyond its drain until it is killed: to cut what is left, and to end.
BEYOND = 5.0
#: Bounds of the histogram of how long connections lasted, in seconds.
DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)

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


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be served, as of one reading of the configuration."""

    targets: tuple[Target, ...]
    workers: Workers
    drain: float | None
    """`Timeouts.drain`."""
    build: Callable[[Sequence[Listener], int, int], AbstractContextManager[Any]]
    """Makes the server for these sockets, and what it needs; called once in a worker's life, in the worker, with its
    place (from 0 on) and how many there are."""


class Supervisor:
    """Keeps as many workers as wanted; `run` serves until a signal ends it.

    Args:
        load: reads the configuration, at first and at each reload.
    """

    def __init__(self, load: Callable[[], Plan]) -> None:
        self._load = load
        self.plan = load()
        self.wanted = self.plan.workers.count
        self._subscribers = Subscribers()
        self.emit: Callable[[Event], None] = self._subscribers.emit
        self.anchorage = Anchorage()
        self.listeners: list[Listener] = []
        self.workers: dict[int, ChildProcess] = {}
        self.generation = 1
        self.started = time.monotonic()
        figures = [item.name for item in fields(Statistics) if item.type == "int"]
        self.region = Region(
            [name for name in figures if name != "connections"], ["connections"], {"connection_seconds": DURATIONS}
        )
        self._places: Places = None  # type: ignore[assignment]
        self._signals: SignalQueue = None  # type: ignore[assignment]
        self._selector: selectors.BaseSelector = None  # type: ignore[assignment]
        #: "starting", "serving" or "ending".
        self.state = "starting"
        self._asked = 0
        self._reloading: _Reload | None = None
        #: When the reload began whose new workers accept, while old ones do as well.
        self._reloaded_since = 0.0
        self._deaths = 0
        self._not_before = 0.0
        self._pulse = Pulse(self.region, self.emit)
        self._error: LongshoreError | None = None
        self._ending_since = 0.0
        self._finished = self._cut = 0
        self._abandoned: list[str] = []
        self.report: DrainReport | None = None

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
            self._identity = Identity.of(self.plan.workers.user, self.plan.workers.group)
            self.listeners = self.anchorage.bind(self.plan.targets)
            self._places = Places(self.region, self.wanted)
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._signals, selectors.EVENT_READ)
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
            if key.fileobj is self._signals:
                for number in self._signals.read():
                    self._signalled(number)
            else:
                self._hear(key.data)
        for worker in list(self.workers.values()):
            if worker.channel.pending:
                worker.channel.flush()
            if worker.reap():
                self._bury(worker)
        self._watch()
        self._mend()

    def _watch(self) -> None:
        now = time.monotonic()
        for worker in self.workers.values():
            if worker.kill_at is not None and now >= worker.kill_at:
                self._pulse.kill(worker)
        if self.state == "serving" and self._reloading is None:
            self._pulse.look(self.workers.values(), self.plan.workers)

    def _patience(self) -> float | None:
        """Seconds until there is something to do even if nothing happens."""
        now = time.monotonic()
        due = [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if self._staying_count() < self.wanted and self.state != "ending":
            due.append(self._not_before)
        if self.state == "serving" and self._reloading is None:
            look = self._pulse.due(self.plan.workers)
            due += [] if look is None else [look]
        if any(worker.channel.pending for worker in self.workers.values()):
            due.append(now + 0.05)
        return max(0.0, min(due) - now) if due else None

    def _finish(self) -> DrainReport:
        if self._error is not None:
            raise self._error
        since = self._ending_since or time.monotonic()
        self.report = DrainReport(self._finished, self._cut, tuple(self._abandoned), time.monotonic() - since)
        self.emit(
            ServerStopped(
                finished=self.report.finished,
                cut=self.report.cut,
                abandoned=self.report.abandoned,
                seconds=self.report.seconds,
            )
        )
        return self.report

    def _close(self) -> None:
        for worker in list(self.workers.values()):
            # Only after an error of our own: nobody would command them any more.
            worker.signal(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            worker.close()
        self.anchorage.close()
        if self._selector is not None:
            self._selector.close()
        if self._places is not None:
            self._places.close()
        self._signals.close()
        gc.unfreeze()

    # -- signals ---------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
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
                self.reload()
            case signal.SIGUSR1:
                self.reopen_logs()
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
            self._reloading = None
            self._ending_since = time.monotonic()

    def resize(self, count: int) -> int:
        """Have `count` workers, at least 1, from now on; what was set."""
        self.wanted = max(1, count)
        return self.wanted

    def reopen_logs(self) -> None:
        """Have every process open its log files anew."""
        for worker in self.workers.values():
            worker.send({"do": "reopen-logs"})

    def reload(self) -> None:
        """Replace all workers by new ones with code and configuration as they are now."""
        if self.state != "serving":
            return
        if self._reloading is not None:
            self._fail_reload("another reload was asked for before this one was over")
        before = _Reload(self.plan, self.wanted, self.listeners, time.monotonic())
        try:
            plan = self._load()
            identity = Identity.of(plan.workers.user, plan.workers.group)
            listeners = self.anchorage.bind((*before.plan.targets, *plan.targets))
        except Exception as error:
            self.emit(ReloadFailed(reason=_words(error)))
            return
        self._identity = identity
        self.listeners = [item for item in listeners if item in self.anchorage.bind(plan.targets)]
        if plan.workers.count != self.plan.workers.count:
            self.wanted = plan.workers.count
        self.plan = plan
        self._reloading = before
        self.generation += 1
        self._deaths, self._not_before = 0, 0.0
        for worker in self.workers.values():
            worker.leaving = worker.leaving or "reload"
        self.emit(Reloading(generation=self.generation))

    def _fail_reload(self, reason: str) -> None:
        before = self._reloading
        assert before is not None
        self._reloading = None
        self.plan, self.wanted, self.listeners = before.plan, before.wanted, before.listeners
        self.anchorage.keep(self.plan.targets)
        for worker in self.workers.values():
            if worker.generation == self.generation:
                worker.leaving = "its reload failed"
                if worker.state == "starting":
                    worker.signal(signal.SIGKILL)
            elif worker.leaving == "reload":
                worker.leaving = ""
        # Numbers are never used twice, so what is left of the failed one is told from the next.
        self._deaths = 0
        self.emit(ReloadFailed(reason=reason))

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
            self._selector.unregister(worker.channel)

    def _bury(self, worker: ChildProcess) -> None:
        """A worker has ended: give back its places and figures, and note what follows."""
        if not worker.channel.ended:
            self._hear(worker)
        if not worker.channel.ended:
            self._selector.unregister(worker.channel)
        lost = self.region.row("held")[worker.slot]
        self.region.free_slot(worker.slot)
        self._places.wake(worker.slot)
        del self.workers[worker.slot]
        was, worker.state = worker.state, "ended"
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
        self._deaths = self._deaths + 1 if young else 0
        pause = 0.0
        if self._deaths > 1:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._deaths - 2))
        self._not_before = time.monotonic() + pause
        stack = "" if worker.blocked_since is not None else worker.stack()
        if self.state == "starting" and was == "starting":
            if self._deaths >= BRAKE:
                self._give_up(failure, reason, stack)
                return
        elif self._reloading is not None and worker.generation == self.generation:
            self._fail_reload(f"worker {worker.number} (process {worker.pid}): {reason}")
            return
        self.emit(
            WorkerCrashed(
                worker=worker.number,
                pid=worker.pid,
                reason=reason,
                connections=lost,
                retry_in=pause,
                stack=stack or failure.get("trace", ""),
            )
        )

    def _give_up(self, failure: dict[str, Any], reason: str, stack: str) -> None:
        """The start has failed: end with what the last worker said."""
        trace = failure.get("trace", "") or stack
        self._error = LongshoreError(
            f"{BRAKE} workers ended before they were ready, the last one: {reason}", hint=failure.get("hint", "")
        )
        if trace:
            self._error.add_note(trace)
        self.stop()

    # -- putting right ---------------------------------------------------------------------------------------

    def _staying(self) -> list[ChildProcess]:
        return [item for item in self.workers.values() if not item.leaving and item.state in ("starting", "ready")]

    def _staying_count(self) -> int:
        return len(self._staying())

    def _mend(self) -> None:
        """Start who is missing, and let go who is too many or to be replaced."""
        if self.state == "ending":
            return
        now = time.monotonic()
        staying = self._staying()
        while len(staying) < self.wanted and now >= self._not_before:
            try:
                staying.append(self._start())
            except (OSError, ConfigError) as error:
                self._deaths += 1
                self._not_before = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._deaths)
                self.emit(
                    WorkerCrashed(worker=0, pid=0, reason=_words(error), connections=0, retry_in=self._not_before - now)
                )
                if self.state == "starting" and self._deaths >= BRAKE:
                    self._give_up({}, _words(error), "")
                return
        ready = [item for item in staying if item.state == "ready"]
        for worker in sorted(ready, key=lambda item: item.slot)[self.wanted :]:
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
        if self._reloaded_since and not any(item.accepts for item in self.workers.values() if item.leaving):
            # From now on whoever connects meets the new ones.
            self.emit(Reloaded(generation=self.generation, seconds=time.monotonic() - self._reloaded_since))
            self._reloaded_since = 0.0

    def _all_ready(self) -> None:
        """As many as wanted accept."""
        if any(item.ready_at and time.monotonic() - item.ready_at > YOUNG for item in self.workers.values()):
            self._deaths = 0
        if self.state == "starting":
            self.state = "serving"
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
        elif self._reloading is not None:
            self._reloaded_since, self._reloading = self._reloading.since, None
            self.anchorage.keep(self.plan.targets)

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
                    places=self._places,
                    channel=channel,
                    stacks=stacks,
                    beat=beat,
                    build=lambda: plan.build(listeners, place, max(wanted, place + 1)),
                    identity=self._identity,
                    agent=None,
                    drain=plan.drain,
                )
            )

        try:
            worker.fork(run, self.workers.values())
        except BaseException:
            self.region.free_slot(slot)
            raise
        self.region.row("pid")[slot] = worker.pid
        self.workers[slot] = worker
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        return worker

    def _drain_worker(self, worker: ChildProcess, *, last: bool) -> None:
        timeout = self.plan.drain
        worker.send({"do": "drain", "timeout": timeout, "last": last})
        worker.state = "draining"
        worker.kill_at = None if timeout is None else time.monotonic() + timeout + BEYOND


@dataclass(frozen=True, slots=True)
class _Reload:
    """What was before a reload, for the case that it fails."""

    plan: Plan
    wanted: int
    listeners: list[Listener]
    since: float


def _words(error: BaseException) -> str:
    text = str(error) if isinstance(error, LongshoreError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", "")
    return f"{text} ({hint})" if hint else text


def refuse_processes(strategy: str | None) -> None:
    """Raise ConfigError for the strategy that has processes of its own."""
    if strategy == "processes":
        raise ConfigError(
            'strategy="processes" with workers: it has a process for each connection already',
            hint="Leave workers out, or use another strategy in each of them.",
        )
