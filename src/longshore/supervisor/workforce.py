"""One child of the supervisor, as its parent sees it: forked, heard, commanded, reaped.

The only place that forks workers, and that says how one has ended.  It decides nothing: when to start, drain or kill
is the supervisor's business.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Literal

from longshore.config import Workers
from longshore.errors import ConfigError
from longshore.machine import nameless, usable_cpus
from longshore.supervisor.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = (
    "ChildProcess",
    "State",
    "cause_of",
    "reap_orphans",
    "staff",
)

State = Literal["starting", "ready", "draining", "ended"]


class ChildProcess:
    """A forked child with a channel; `run(channel, stacks)` is called in it and must not return.

    Attributes:
        slot: where its figures are; -1 for the control process.
        place: which one it is of those that are wanted, from 0 on; whoever takes its place has the same.
        accepts: whether it takes connections.
        leaving: why it is to be replaced, once somebody else is ready; empty if it is not.
        blocked_since: when it was found blocked, on the clock of `time.monotonic`; None if it was not.
        kill_at: when it is killed unless it has ended.
        figures: its last words: a report, or what it failed with.
    """

    def __init__(self, slot: int, generation: int, place: int) -> None:
        self.slot = slot
        self.generation = generation
        self.place = place
        self.state: State = "starting"
        self.started = time.monotonic()
        self.ready_at = 0.0
        self.accepts = False
        self.leaving = ""
        self.blocked_since: float | None = None
        self.kill_at: float | None = None
        self.expires_at: float | None = None
        self.max_connections: int | None = None
        self.welcome: dict[str, Any] = {}
        self.report: dict[str, Any] | None = None
        self.failure: dict[str, Any] | None = None
        self.status: int | None = None
        self.pid = 0
        self.channel: Channel = None  # type: ignore[assignment]
        self._stacks = -1

    def fork(self, run: Callable[[Channel, int], object], others: Iterable[ChildProcess]) -> None:
        """Start it; `others` are the children whose descriptors it must not keep.

        Raises:
            OSError: the system has no process, memory or descriptor left.
        """
        others = tuple(others)
        self._stacks = nameless("longshore-stacks")
        self.channel, theirs = Channel.pair()
        # A signal that came to the child before it is one would be read by the parent, as its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.channel.close()
            theirs.close()
            os.close(self._stacks)
            raise
        if pid == 0:
            try:
                _shed(before)
                # As long as any process has the supervisor's end, nobody reads that it is gone.
                for other in (self, *others):
                    other.channel.socket.close()
                    if other is not self:
                        os.close(other._stacks)
                run(theirs, self._stacks)
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = pid
        theirs.close()

    @property
    def number(self) -> int:
        """What users call it: from 1 on."""
        return self.slot + 1

    @property
    def age(self) -> float:
        """Seconds since it was forked."""
        return time.monotonic() - self.started

    def send(self, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Command it."""
        self.channel.send(message, tuple(fds))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it was reaped."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def reap(self) -> bool:
        """Whether it has ended; its status is known then."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else has waited for it: what is left to know is that it is gone.
                pid, status = self.pid, 0
            if pid == 0:
                return False
            self.status = os.waitstatus_to_exitcode(status)
        return True

    def stack(self) -> str:
        """What it has written about its stacks, by a fatal signal or because it was asked."""
        with contextlib.suppress(OSError):
            return os.pread(self._stacks, 65536, 0).decode("utf-8", "replace")
        return ""

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP, or a debugger), so that it can say nothing."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        """Give back what the parent has of it."""
        self.state = "ended"
        self.channel.close()
        if self._stacks >= 0:
            os.close(self._stacks)
            self._stacks = -1


def cause_of(status: int) -> str:
    """How a process ended: `killed by SIGKILL`, `exit status 3`."""
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exit status {status}"


def _shed(mask: Iterable[int]) -> None:
    """Be no supervisor any more: its signals, and what its program has registered for its own end, are not this one's.

    What a terminal sends to all processes, and what belongs to the supervisor, is ignored.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    atexit._clear()
    gc.enable()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reap_orphans(children: Iterable[ChildProcess]) -> None:
    """Bury whose parents have died before them: as process 1 of a container that is nobody else's duty."""
    ours = {child.pid for child in children}
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            # How ours have ended is asked elsewhere, and this is called again.
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)


def staff(workers: int | str | Workers) -> Workers:
    """What `serve(workers=...)` means: a number, "auto" for one for each CPU that this process may use, or options.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(workers, Workers):
        return workers
    if workers == "auto":
        return Workers(count=usable_cpus())
    if isinstance(workers, str):
        raise ConfigError(f"workers={workers!r}: must be a whole number, 'auto' or Workers(...)")
    return Workers(count=workers)
