"""Threads that are started when there is work, and that end when there was none for a while.

The only place that starts threads for handlers.  Not `concurrent.futures`: its executor is joined at the
interpreter's exit, so one handler that hangs would keep the process alive.  These threads are daemons, and
`close` names those that do not end.  Nothing here knows what a job is.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Crew",)

#: Seconds that a thread waits for its next job before it ends.
IDLE = 3.0
#: Seconds that `close` waits for jobs that still run.
PATIENCE = 1.0
#: Of so many jobs that are taken, one is from behind.
SHARE = 8

_numbers = itertools.count(1)


class Crew:
    """At most `maximum()` threads (None: as many as there are jobs) that take jobs in the order they came.

    Jobs of those who always have another one go behind the others, which a flood of them must not delay.
    """

    def __init__(self, maximum: Callable[[], int | None]) -> None:
        self._maximum = maximum
        self._ready = threading.Condition()
        self._jobs: deque[tuple[str, str, Callable[[], object]]] = deque()
        self._behind: deque[tuple[str, str, Callable[[], object]]] = deque()
        self._taken = 0
        self._idle = 0
        #: Whether a thread was called that has not come yet.
        self._coming = False
        self._threads: dict[threading.Thread, str] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._jobs) + len(self._behind)

    def submit(self, label: str, job: Callable[[], object], *, name: str = "", behind: bool = False) -> None:
        """Run `job`; `label` says what it is, `name` is its thread's meanwhile.  After `close` it is forgotten.

        What is put `behind` waits for the others, but for a share of the threads' turns.
        """
        with self._ready:
            if self._closed:
                return
            (self._behind if behind else self._jobs).append((label, name, job))
            self._call()

    def _call(self) -> None:
        """Have one more thread come, unless one is on its way: it calls the next if there is more than it can take.

        Of many that are called at once each waits for the interpreter, for up to 5 ms after another
        (sys.setswitchinterval), and the reactor's thread with them.  Of those that call each other most find that
        whoever ran meanwhile has left them nothing.
        """
        if self._coming:
            return
        maximum = self._maximum()
        if self._idle:
            self._ready.notify()
        elif maximum is None or len(self._threads) < maximum:
            thread = threading.Thread(target=self._work, name=f"longshore-thread-{next(_numbers)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system has none left: what there is to do waits for those that there are.
                if not self._threads:
                    raise
                return
            self._threads[thread] = ""
        else:
            return
        self._coming = True

    def _work(self) -> None:
        me = threading.current_thread()
        own_name = me.name
        with self._ready:
            self._coming = False
        while (taken := self._take(me)) is not None:
            label, name, job = taken
            me.name = name or own_name
            self._threads[me] = label
            try:
                job()
            except SystemExit:
                # In a thread it ends the thread, and quietly; here the thread is not the job's to end.
                pass
            finally:
                # A job that is over must not keep what it worked on alive while its thread is idle.
                del taken, job
                me.name = own_name

    def _take(self, me: threading.Thread) -> tuple[str, str, Callable[[], object]] | None:
        with self._ready:
            self._threads[me] = ""
            called = True
            while called and not (self.waiting or self._closed):
                self._idle += 1
                called = self._ready.wait(IDLE)
                self._idle -= 1
                self._coming = False
            if not self.waiting:
                del self._threads[me]
                return None
            self._taken += 1
            first, then = (self._jobs, self._behind) if self._taken % SHARE else (self._behind, self._jobs)
            taken = (first or then).popleft()
            if self.waiting:
                self._call()
            return taken

    def close(self) -> tuple[str, ...]:
        """Take no more jobs, forget those that wait, and join the threads; the names of those that still run."""
        return self.close_all(self)

    @staticmethod
    def close_all(*crews: Crew) -> tuple[str, ...]:
        """Close all of them within the time of one."""
        deadline = time.monotonic() + PATIENCE
        for crew in crews:
            with crew._ready:
                crew._closed = True
                crew._jobs.clear()
                crew._behind.clear()
                crew._ready.notify_all()
        running = []
        for crew in crews:
            with crew._ready:
                threads = list(crew._threads)
            for thread in threads:
                if thread is threading.current_thread():
                    continue
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    running.append(f"{crew._threads.get(thread) or 'an idle thread'} (thread {thread.name})")
        return tuple(running)
