"""The spawner: a process with one thread, which does nothing but fork children, and bury them.

The only place that forks.  A spawner holds no socket of a client but that of the child that it is about to fork, and
closes that right after; it runs no handler.  Whom to fork for, and what to do about a death, the serving process
decides (`lineage.py`); what a child does, `child.py`.

Facts, and what follows from them:

* fork(2) takes the calling thread along and leaves the locks that others held locked for ever.  So nobody forks who
  has a second thread: the first spawner is forked before the server has one, and everything else by a spawner.
* A spawner that dies can only be replaced by a fork of another such process.  So a spawner may be asked for a copy of
  itself, and there are two at any time: the younger forks children, the elder, its parent, waits for nothing else
  but to replace it.  When the elder dies, the younger becomes the elder and gets a copy.
* The children of a dead process are handed to the nearest ancestor that asked for them (PR_SET_CHILD_SUBREAPER), else
  to process 1, which in a container may be anybody.  So spawners ask for them, and the elder buries the younger's.
* waitpid(2) tells of children that were adopted too, a pidfd only of those that one knows.  So SIGCHLD says when to
  look, which every system has.
* A descriptor that is on its way in a control message belongs to no process.  So a spawner that dies before it has
  read a request closes the child's end of the wire with it, and the serving process knows that nobody was forked.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = (
    "COPY",
    "DIED",
    "FORK",
    "FORKED",
    "KILL",
    "NOBODY",
    "REFUSED",
    "REPORT",
    "REQUEST",
    "Spawner",
    "descriptors",
    "launch",
)

#: A request to a spawner: what, and a number: of the child to be, or the pid to kill.
REQUEST = struct.Struct("=cq")
FORK, COPY, KILL = b"F", b"C", b"K"
#: What a spawner reports: what, the number of the request, a pid, and an exit status or an errno.
REPORT = struct.Struct("=cqqi")
FORKED, REFUSED, DIED = b"f", b"r", b"d"

#: The number of no child: that of a request for a copy.
NOBODY = 0

#: Descriptors that come with a request to fork: the child's end of its wire, and the connection.
DESCRIPTORS = 2
#: Seconds that children have to end by themselves when the serving process is gone, before they are killed.
PATIENCE = 2.0
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_PR_SET_CHILD_SUBREAPER = 36


def launch(serve: Callable[[list[socket.socket]], None], foreign: set[int]) -> tuple[int, socket.socket]:
    """Fork a spawner whose children call `serve(sockets)`; its pid and the socket to command it by.

    `foreign` are descriptors of other servers in this process, which it does not keep.

    To be called while the process has one thread.

    Raises:
        OSError: the system refuses.
    """
    # What is buffered now would be written once more by every process.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    ours, theirs = socket.socketpair()
    try:
        with warnings.catch_warnings():
            # The server says it with the names of the threads, see `ThreadsAtFork`.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except BaseException:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _become(lambda: _begin(serve, theirs, {*foreign, ours.fileno()}))
    theirs.close()
    return pid, ours


def _become(role: Callable[[], None]) -> NoReturn:
    """In a new process: do `role`, and never return to whoever called fork."""
    status = 1
    try:
        role()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _begin(serve: Callable[[list[socket.socket]], None], control: socket.socket, foreign: set[int]) -> None:
    # Covered, not closed: the objects that have these numbers are here too, and may close them once more.
    cover = os.open(os.devnull, os.O_RDWR)
    for number in foreign:
        os.dup2(cover, number, inheritable=False)
    os.close(cover)
    # What was registered before the fork is the serving process's to do, once.
    atexit._clear()
    gc.freeze()
    _leave_signals_to_the_serving_process()
    Spawner(serve, control).run()


def _leave_signals_to_the_serving_process() -> None:
    """Ignore the signals that it handles: a terminal, or a supervisor, may send them to the whole group."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _adopt_orphans() -> None:
    """Become the parent of what dead descendants leave behind, where the system has that."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Spawner:
    """Obeys the serving process at the other end of `control` until that is closed."""

    def __init__(self, serve: Callable[[list[socket.socket]], None], control: socket.socket) -> None:
        self._serve = serve
        self._control = control
        self._children: set[int] = set()
        self._bell, self._ringer = socket.socketpair()

    def run(self) -> None:
        """Fork and bury until the serving process is gone; then end what is left."""
        _adopt_orphans()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        # Not ignored: then the system would bury them itself, and nobody would know how they ended.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._bell.fileno() in ready:
                    self._bury()
                if self._control.fileno() in ready and not self._obey():
                    break
        except (BrokenPipeError, ConnectionResetError):
            # It has ended in the middle of a report.
            pass
        self._end()

    # -- requests --------------------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Do one thing that is asked for; False at the end of the stream."""
        data, ancillary, _, _ = self._control.recvmsg(REQUEST.size, socket.CMSG_SPACE(4 * DESCRIPTORS), _CLOEXEC)
        sockets = [socket.socket(fileno=number) for number in descriptors(ancillary)]
        while data and len(data) < REQUEST.size:
            more = self._control.recv(REQUEST.size - len(data))
            data = data + more if more else b""
        if not data:
            return False
        verb, number = REQUEST.unpack(data)
        if verb == FORK:
            self._fork(number, sockets)
        elif verb == COPY:
            self._copy()
        elif verb == KILL:
            self._kill(number)
        return True

    def _fork(self, number: int, sockets: list[socket.socket]) -> None:
        pid = self._try_fork(number)
        if pid == 0:
            _become(lambda: self._be_child(sockets))
        for sock in sockets:
            sock.close()
        if pid is not None:
            self._report(FORKED, number, pid, 0)

    def _try_fork(self, number: int) -> int | None:
        try:
            pid = os.fork()
        except OSError as error:
            self._report(REFUSED, number, 0, error.errno or 0)
            return None
        if pid:
            self._children.add(pid)
        return pid

    def _copy(self) -> None:
        ours, theirs = socket.socketpair()
        pid = self._try_fork(NOBODY)
        if pid == 0:
            _become(lambda: self._be_copy(theirs, ours))
        theirs.close()
        if pid is not None:
            socket.send_fds(self._control, [REPORT.pack(COPY, NOBODY, pid, 0)], [ours.fileno()])
        ours.close()

    def _kill(self, pid: int) -> None:
        # As long as it is not buried its number is nobody else's; of somebody else's child nothing is known.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, signal.SIGKILL)

    def _report(self, verb: bytes, number: int, pid: int, status: int) -> None:
        self._control.sendall(REPORT.pack(verb, number, pid, status))

    # -- in new processes ------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Give up what belongs to the process that this one was forked from."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for sock in (self._control, self._bell, self._ringer):
            sock.close()

    def _be_child(self, sockets: list[socket.socket]) -> None:
        self._forget()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._serve(sockets)
        atexit._run_exitfuncs()

    def _be_copy(self, control: socket.socket, other: socket.socket) -> None:
        other.close()
        self._forget()
        Spawner(self._serve, control).run()

    # -- deaths ----------------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Wait for all that have died, and report them."""
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass
        for pid, status in _dead():
            self._children.discard(pid)
            self._report(DIED, 0, pid, os.waitstatus_to_exitcode(status))

    def _end(self) -> None:
        """Let the children end, who learn of the serving process's end themselves, and kill those that do not."""
        deadline = time.monotonic() + PATIENCE
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        while True:
            with contextlib.suppress(BlockingIOError):
                while self._bell.recv(4096):
                    pass
            for _ in _dead():
                pass
            left = self._left()
            if not left:
                return
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                for pid in left:
                    self._kill(pid)
                seconds = PATIENCE
            poller.poll(seconds * 1000)

    def _left(self) -> set[int]:
        """Children that are not buried, adopted ones too, as far as the system tells."""
        me = os.getpid()
        try:
            with open(f"/proc/{me}/task/{me}/children") as listing:
                return set(map(int, listing.read().split()))
        except OSError:
            self._children = {pid for pid in self._children if _is_child(pid)}
            return self._children


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message; programs that this process starts do not get them."""
    numbers: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
    for number in numbers:
        os.set_inheritable(number, False)
    return numbers


def _dead() -> Iterable[tuple[int, int]]:
    """Bury one child after the other, as long as there are dead ones."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
