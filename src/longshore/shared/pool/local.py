"""A pool's processes on this machine.

Each process has a socket pair of its own, and one task at a time; there is no queue or lock that processes share, so
what one takes along when it dies is its task.  That is why this is not built on a library, though two were tried, with
two processes on Python 3.11, by tests that `tests/pool/test_deaths.py` has now:

* Pebble 5.2.3 survives kills between results (58 of 1,000 tasks killed, 58 failed).  But its processes write their
  results to one pipe under one lock: after one was killed in the middle of a result of 60 MB, or while it held that
  lock, none of the next tasks came back within 8 seconds each.
* loky 3.7.0 breaks as a whole by design: of the same 1,000 tasks 969 failed with the first that was killed, and so did
  all 20 after each of the other deaths.

A thread of its own turns a reactor: it reads results, buries processes, has new ones forked by the nursery, and keeps
the tasks' deadlines.  A task for which there is an idle process is sent by whoever submits it, which saves a switch of
threads.  The lock guards what both touch, and is never held while a future is told, or anything waits.

Nothing here knows how tasks are pickled, or who waits for them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, LongshoreError, Timeout, WorkerDied
from longshore.machine import resident
from longshore.reactor.portable import PortableReactor
from longshore.shared.pool.contract import PoolClosed, describe, pack_call
from longshore.shared.pool.frames import FAILED, LEAVING, READY, RESULT, SETUP, TASK, UNFIT, frame
from longshore.shared.pool.member import Member, advice, ending
from longshore.shared.pool.nursery import Nursery
from longshore.shared.pool.process import Setup
from longshore.strategies.spawner import DIED, FORKED, REFUSED
from longshore.strategies.wire import unpack_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.clock import Timer
    from longshore.shared.pool.contract import Call, Options

__all__ = ("Local",)

#: Processes, or nurseries, that die in a row before they are ready until the pool gives up.
STILLBORN = 3
#: Seconds that processes have to end by themselves when the pool is closed.
PATIENCE = 3.0
#: Seconds until the system is asked again for a process that it has refused.
AGAIN = 0.5


class Local:
    """At most `processes` processes, started when there are tasks for them.

    Raises:
        ConfigError: the system cannot do what the options ask for.
    """

    def __init__(self, processes: int, options: Options) -> None:
        if options.max_task_memory is not None and sys.platform != "linux":
            raise ConfigError(
                "Pool(max_task_memory=...): this system has no limit that counts a process's own memory",
                hint="It works on Linux; elsewhere, use max_memory, which looks between two tasks.",
            )
        self.processes = processes
        self._options = options
        self._lock = threading.Lock()
        self._queue: deque[Call] = deque()
        self._idle: list[Member] = []
        self._all: dict[int, Member] = {}
        self._number = 0
        self._stillborn = 0
        self._broken: LongshoreError | None = None
        self._nursery: Nursery | None = None
        self._setup = b""
        self._reactor: PortableReactor = None  # type: ignore[assignment]  # made with the thread, by the first task
        self._thread: threading.Thread | None = None
        self._owner = 0
        self._closing: Callable[[], object] | None = None
        self._end: Timer | None = None
        self.died = self.recycled = 0

    # -- from any thread -------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Run it in the next process that is idle.

        Raises:
            WorkerDied: no process can be made ready.
            PoolClosed: this is a child that was forked from the pool's process.
        """
        with self._lock:
            if self._thread is None:
                self._start()
            elif self._owner != os.getpid():
                raise PoolClosed(
                    f"this pool belongs to process {self._owner}, which has forked this one",
                    hint="Make a Pool after the fork.",
                )
            if self._broken is not None:
                raise _again(self._broken)
            while self._idle:
                process = self._idle.pop()
                if self._worn(process):
                    self._retire(process)
                elif self._assign(process, call):
                    return
            self._queue.append(call)
            if len(self._all) < self.processes:
                self._reactor.post(self._grow)

    def cancel(self, call: Call) -> None:
        """Forget it, or kill the process that runs it."""
        with self._lock:
            process: Member | None = call.place
            if process is not None and process.call is call:
                process.call = None
                process.leaving = True
            else:
                # It is dropped when its turn comes.
                process = None
        if process is not None:
            self._post(self._kill, process)
        elif self._closing is not None:
            self._post(self._close_if_done)

    def close(self, closed: Callable[[], object]) -> None:
        """End once nothing is queued and nothing runs; then call `closed()`."""
        with self._lock:
            self._closing = closed
            is_mine = self._thread is not None and self._owner == os.getpid()
        if is_mine:
            self._post(self._close_if_done)
        else:
            closed()

    def join(self) -> None:
        """Wait for the thread, which has nothing to do any more."""
        if self._thread is not None and self._owner == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def figures(self) -> dict[str, int]:
        """How many processes there are, how many work, and how many were lost and replaced."""
        with self._lock:
            return {
                "processes": len(self._all),
                "running": sum(process.call is not None for process in self._all.values()),
                "died": self.died,
                "recycled": self.recycled,
            }

    def pids(self) -> tuple[int, ...]:
        """The processes that are ready."""
        with self._lock:
            return tuple(process.pid for process in self._all.values() if process.ready)

    def _post(self, function: Callable[..., object], *args: Any) -> None:
        if not self._reactor.closed:
            self._reactor.post(function, *args)

    # -- with the lock held ----------------------------------------------------------------------------

    def _start(self) -> None:
        initializer = None
        if self._options.initializer is not None:
            initializer = pack_call(self._options.initializer, self._options.initargs, {}, pickle.dumps)
        from multiprocessing import spawn

        main = spawn.get_preparation_data("longshore-pool")
        # What concerns multiprocessing's own children.
        for key in ("authkey", "log_to_stderr", "log_level", "start_method", "sys_path", "dir", "orig_dir"):
            main.pop(key, None)
        setup = Setup(sys.path, os.getcwd(), main, initializer, self._options.max_task_memory)
        self._setup = frame(SETUP, pickle.dumps(setup))
        self._owner = os.getpid()
        self._reactor = PortableReactor()
        self._thread = threading.Thread(target=self._run, name="longshore-pool", daemon=True)
        self._thread.start()

    def _assign(self, process: Member, call: Call) -> bool:
        """Have `process` run `call`; False if it cannot take it, True also if nobody wants it any more."""
        if call.future.cancelled():
            self._idle.append(process)
            return True
        data = frame(TASK, call.payload)
        try:
            sent = process.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # It is dead, of which its nursery will tell.
            process.leaving = True
            return False
        process.call = call
        process.tasks += 1
        call.place = process
        call.begin()
        if sent < len(data):
            process.outbox = data[sent:]
            self._reactor.post(self._watch, process)
        if call.timeout is not None:
            self._reactor.post(self._arm, process, call)
        return True

    def _worn(self, process: Member) -> bool:
        options = self._options
        if options.max_tasks is not None and process.tasks >= options.max_tasks:
            return True
        if options.max_age is not None and time.monotonic() - process.born >= options.max_age:
            return True
        return options.max_memory is not None and resident(process.pid) > options.max_memory

    def _retire(self, process: Member) -> None:
        """Have an idle process end."""
        process.leaving = True
        self.recycled += 1
        with contextlib.suppress(OSError):
            process.sock.shutdown(socket.SHUT_WR)

    def _next(self, process: Member) -> None:
        """`process` is idle: give it the next task, or let it wait for one."""
        if process.leaving:
            return
        if self._worn(process):
            self._retire(process)
            return
        while self._queue:
            call = self._queue.popleft()
            if call.future.cancelled():
                continue
            if not self._assign(process, call):
                self._queue.appendleft(call)
            return
        self._idle.append(process)

    # -- on the pool's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        self._reactor.run()
        self._reactor.close()

    def _grow(self) -> None:
        """Start as many processes as there are tasks for, up to the maximum."""
        with self._lock:
            if self._broken is not None:
                return
            starting = sum(not process.ready for process in self._all.values())
            wanted = min(len(self._queue) - starting, self.processes - len(self._all))
        for _ in range(wanted):
            if not self._spawn():
                return

    def _spawn(self) -> bool:
        theirs = None
        try:
            nursery = self._nursery
            if nursery is None:
                nursery = self._nursery = Nursery()
                self._reactor.watch(nursery.control, selectors.EVENT_READ, lambda _: self._hear(nursery))
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self._number += 1
            process = Member(self._number, ours, nursery)
            process.outbox = self._setup
            with self._lock:
                self._all[process.number] = process
            nursery.fork(process.number, theirs)
            self._send(process)
        except OSError as error:
            self._refused(error)
            return False
        finally:
            if theirs is not None:
                theirs.close()
        return True

    def _refused(self, error: OSError) -> None:
        """The system gives us no process, for now: those that there are go on."""
        self._stillborn += 1
        if self._stillborn >= STILLBORN and not self._all:
            self._give_up(WorkerDied(f"the system refuses processes for the pool: {error}"))
        else:
            self._reactor.call_later(AGAIN, self._grow)

    def _watch(self, process: Member) -> None:
        if process.ended:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.outbox else 0)
        self._reactor.watch(process.sock, events, lambda ready: self._ready(process, ready))

    def _ready(self, process: Member, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._send(process)
        if ready & selectors.EVENT_READ:
            self._read(process)

    def _send(self, process: Member) -> None:
        with self._lock, contextlib.suppress(BlockingIOError, InterruptedError):
            try:
                while process.outbox:
                    process.outbox = process.outbox[process.sock.send(process.outbox) :]
            except (BrokenPipeError, ConnectionResetError):
                process.outbox = b""
        self._watch(process)

    def _read(self, process: Member, *, everything: bool = False) -> None:
        """Take what has come from a process; all of it where it is dead."""
        while not process.ended:
            try:
                found = process.inbox.receive(process.sock)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                found = False
            if isinstance(found, tuple):
                self._answered(process, *found)
            elif not found:
                self._end_of(process)
            if not everything and not process.inbox.holds:
                return

    def _end_of(self, process: Member) -> None:
        """Nothing can come from it any more: it is dead, or a task has closed what it answers by."""
        process.ended = True
        self._reactor.watch(process.sock, 0, lambda _: None)
        with self._lock:
            process.leaving = True
            if process in self._idle:
                self._idle.remove(process)
        if not process.is_dead:
            self._kill(process)
            if process.nursery is None:
                self._buried(process, None)

    def _answered(self, process: Member, kind: bytes, payload: bytes | bytearray) -> None:
        if kind == READY:
            self._stillborn = 0
            process.ready = True
            self._know(process, int(payload))
            with self._lock:
                self._next(process)
            if self._closing is not None:
                self._close_if_done()
            return
        if kind == UNFIT:
            cause = unpack_error(pickle.loads(payload))
            name = describe(self._options.initializer)
            failure = WorkerDied(f"the pool's initializer {name} has failed, so no task can run: {cause!r}")
            failure.__cause__ = cause
            self._give_up(failure)
            return
        with self._lock:
            call, process.call = process.call, None
            if kind == LEAVING:
                process.leaving = True
                self.recycled += 1
            if process.deadline is not None:
                process.deadline.cancel()
                process.deadline = None
            # Before the future is told, so that the process works while others hear of it.
            self._next(process)
        if call is not None:
            if kind == RESULT:
                call.finish(payload)
            elif kind in (FAILED, LEAVING):
                call.fail_packed(payload)
        if self._closing is not None:
            self._close_if_done()

    def _arm(self, process: Member, call: Call) -> None:
        """Begin to count a task's time, unless it is over already."""
        if process.call is call:
            process.deadline = self._reactor.call_later(call.timeout or 0, self._expire, process, call)

    def _expire(self, process: Member, call: Call) -> None:
        with self._lock:
            if process.call is not call:
                return
            process.call = None
            process.leaving = True
        call.fail(
            Timeout(
                f"{call.name} was not done {call.timeout:g} s after its start; its process {process.pid} was killed",
                hint="Give submit a longer timeout, or the task less to do.",
            )
        )
        self._kill(process)

    def _kill(self, process: Member) -> None:
        if process.is_dead:
            return
        if process.descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.descriptor, signal.SIGKILL)
        elif process.pid and process.nursery is not None:
            process.nursery.kill(process.pid)
        # One that has no pid yet is killed when it has: see _know.

    def _know(self, process: Member, pid: int) -> None:
        process.pid = pid
        if process.descriptor < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                process.descriptor = os.pidfd_open(pid)
        if process.leaving:
            self._kill(process)

    # -- what the nursery says -------------------------------------------------------------------------

    def _hear(self, nursery: Nursery) -> None:
        for verb, number, pid, status in nursery.reports():
            if not verb:
                self._nursery_lost(nursery)
            elif verb == FORKED:
                nursery.is_proven = True
                if number in self._all:
                    self._know(self._all[number], pid)
            elif verb == DIED:
                for process in tuple(self._all.values()):
                    if process.pid == pid and process.nursery is nursery:
                        self._buried(process, status)
            elif verb == REFUSED:
                with self._lock:
                    refused = self._all.pop(number, None)
                if refused is not None:
                    refused.is_dead = True
                    self._release(refused)
                    self._refused(OSError(status, os.strerror(status)))

    def _nursery_lost(self, nursery: Nursery) -> None:
        """Its processes live on; what they die of nobody will tell, but that they do, the end of their stream."""
        self._reactor.watch(nursery.control, 0, lambda _: None)
        nursery.bury()
        if self._nursery is nursery:
            self._nursery = None
        if self._closing is not None and not self._all:
            self._reactor.stop()
            self._closing()
            return
        if not nursery.is_proven:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                self._give_up(WorkerDied("the process that starts the pool's processes ends as soon as it starts"))
                return
        for process in tuple(self._all.values()):
            if process.nursery is nursery:
                process.nursery = None
                if process.ended:
                    self._buried(process, None)
        self._grow()

    def _buried(self, process: Member, status: int | None) -> None:
        """It is dead; `status` is how it has ended, None if nobody knows."""
        process.is_dead = True
        # What it had answered before counts.
        self._read(process, everything=True)
        self._release(process)
        with self._lock:
            del self._all[process.number]
            if process in self._idle:
                self._idle.remove(process)
            call, process.call = process.call, None
            if process.deadline is not None:
                process.deadline.cancel()
            if not process.leaving or call is not None:
                self.died += 1
        how = ending(status)
        if call is not None:
            call.fail(WorkerDied(f"process {process.pid} {how} while it ran {call.name}", hint=advice(status)))
        elif not process.ready:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                self._give_up(
                    WorkerDied(
                        f"{self._stillborn} processes of the pool in a row died before they were ready; "
                        f"the last one {how}",
                        hint="Look at what the initializer does.",
                    )
                )
        if self._closing is not None:
            self._close_if_done()
        self._grow()

    def _release(self, process: Member) -> None:
        self._reactor.watch(process.sock, 0, lambda _: None)
        process.ended = True
        process.sock.close()
        if process.descriptor >= 0:
            os.close(process.descriptor)
            process.descriptor = -1

    def _give_up(self, error: LongshoreError) -> None:
        """No process can be made ready: say so to everybody, instead of trying for ever."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = error
            queue, self._queue = self._queue, deque()
        for call in queue:
            call.fail(_again(error))
        if self._closing is not None:
            self._close_if_done()

    # -- the end ---------------------------------------------------------------------------------------

    def _close_if_done(self) -> None:
        with self._lock:
            if self._queue and all(call.future.cancelled() for call in self._queue):
                self._queue.clear()
            if self._queue or any(process.call is not None for process in self._all.values()):
                return
            processes = tuple(self._all.values())
            self._idle.clear()
        if self._end is None:
            self._end = self._reactor.call_later(PATIENCE, self._insist)
        for process in processes:
            process.leaving = True
            with contextlib.suppress(OSError):
                process.sock.shutdown(socket.SHUT_WR)
        if processes:
            return
        if self._nursery is None:
            self._reactor.stop()
            if self._closing is not None:
                self._closing()
        else:
            self._nursery.dismiss()

    def _insist(self) -> None:
        """What does not end by itself is killed: at-exit functions may wait for ever."""
        for process in tuple(self._all.values()):
            self._kill(process)
        if not self._all and self._nursery is not None:
            self._nursery_lost(self._nursery)
        self._end = self._reactor.call_later(PATIENCE, self._insist)


def _again(error: LongshoreError) -> WorkerDied:
    """The same error for another task: each has a traceback of its own."""
    same = WorkerDied(*error.args, hint=error.hint)
    same.__cause__ = error.__cause__
    return same
