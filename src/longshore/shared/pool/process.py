"""A process of a pool: it takes one call after the other from its socket, and answers each.

Runs in a child of the nursery, on its only thread.  A task may do anything here, so nothing of the pool's depends on
what is left afterwards:

* A task that forks has a child which must not answer.  So the child's copy of the socket is closed at the fork, and
  whoever comes back from a task with another pid ends.
* A task that closes all descriptors may have opened another one under the socket's number.  So before each answer it is
  looked at whether it is still the same socket; if it is not, the process ends, which the pool notices.
* `sys.exit` means that the process ends.  So it does, with that status.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from longshore.errors import LimitExceeded
from longshore.shared.pool.contract import Unpicklable, describe_call, is_many, shown
from longshore.shared.pool.frames import FAILED, HEAD, LEAVING, READY, RESULT, UNFIT, Inbox
from longshore.strategies.wire import pack_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ("Setup", "serve")

#: What a process exits with when a task has taken its socket away (sysexits.h: an error of input or output).
SOCKET_GONE = 74


class Setup:
    """What a process has to know before its first task; pickled on the pool's side."""

    def __init__(
        self, path: list[str], directory: str, main: dict[str, Any], initializer: bytes | None, growth: int | None
    ) -> None:
        self.path = path
        self.directory = directory
        #: What `multiprocessing.spawn` needs to import the program's `__main__`.
        self.main = main
        #: The pickled call of the initializer.
        self.initializer = initializer
        #: Bytes by which a task may grow the process.
        self.growth = growth


def serve(sockets: list[socket.socket]) -> None:
    """Be a process of a pool until the other end of the socket is closed."""
    try:
        _Process(sockets[0]).run()
    except SystemExit as end:
        _exit(end.code)


def _exit(code: Any) -> None:
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit((code or 0) & 0xFF)


class _Process:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._inbox = Inbox()
        self._pid = os.getpid()
        self._identity = self._look()
        self._setup: Setup = None  # type: ignore[assignment]  # comes with the first frame
        self._main_is_there = False
        os.register_at_fork(after_in_child=sock.close)

    def _look(self) -> tuple[int, int]:
        seen = os.fstat(self._socket.fileno())
        return seen.st_dev, seen.st_ino

    def run(self) -> None:
        """Set up, say so, and work."""
        first = self._receive()
        if first is None:
            return
        self._setup = pickle.loads(first[1])
        sys.path[:] = self._setup.path
        try:
            os.chdir(self._setup.directory)
        except OSError:
            # It was removed, or is not ours to enter; tasks see the one that the pool was started in.
            pass
        if self._setup.initializer is not None:
            try:
                function, args, kwargs = self._load(self._setup.initializer)
                function(*args, **kwargs)
            except Exception as error:
                self._send(UNFIT, pickle.dumps(pack_error(error)))
                return
        self._send(READY, b"%d" % self._pid)
        while True:
            received = self._receive()
            if received is None:
                return
            kind, payload = self._work(received[1])
            del received
            self._send(kind, payload)
            if kind == LEAVING:
                return

    def _receive(self) -> tuple[bytes, bytes | bytearray] | None:
        """The next frame; None at the end of the stream."""
        while True:
            found = self._inbox.receive(self._socket)
            if not isinstance(found, bool):
                return found
            if not found:
                return None

    # -- one task --------------------------------------------------------------------------------------

    def _work(self, payload: bytes | bytearray) -> tuple[bytes, bytes]:
        """Run one call: the kind of the answer, and its payload."""
        growth = self._setup.growth
        if growth is None:
            return self._call(payload)
        restore = _limit(growth)
        error: BaseException
        try:
            return self._call(payload)
        except MemoryError as outgrown:
            restore()
            name = "its arguments" if not self._name else self._name
            error = LimitExceeded(
                f"{name} needed more memory than it may take (max_task_memory={growth} bytes)",
                hint="Give it less to do at once, or the pool a higher max_task_memory.",
            )
            error.__cause__ = outgrown.with_traceback(None)
        finally:
            restore()
        # What it left behind is nobody's to use.
        return LEAVING, pickle.dumps(pack_error(error))

    _name = ""

    def _call(self, payload: bytes | bytearray) -> tuple[bytes, bytes]:
        self._name = ""
        try:
            try:
                function, args, kwargs = self._load(payload)
            except MemoryError:
                raise
            except Exception as error:
                raise Unpicklable(
                    f"a task cannot be unpickled in the pool's process: {error}",
                    hint="Its module must be importable there, under the same name.",
                ) from error
            self._name = describe_call(function, args)
            result = function(*args, **kwargs)
        except MemoryError as error:
            if self._setup.growth is not None:
                raise
            return self._raised(error)
        except Exception as error:
            return self._raised(error)
        self._be_alone()
        try:
            return RESULT, pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        except MemoryError:
            raise
        except Exception as error:
            if is_many(function):
                result = next((each for each in result if not _can_be_pickled(each)), result)
            refused = Unpicklable(
                f"{self._name} returned {shown(result)}, which cannot be pickled: {error}",
                hint="Return plain data.",
            )
            return FAILED, pickle.dumps(pack_error(refused))

    def _raised(self, error: BaseException) -> tuple[bytes, bytes]:
        self._be_alone()
        return FAILED, pickle.dumps(pack_error(error))

    def _be_alone(self) -> None:
        """End, if this is a child of the process that got the task."""
        if os.getpid() != self._pid:
            _exit(0)

    def _load(self, payload: bytes | bytearray) -> Any:
        """Unpickle, with the program's main module where the payload names it.

        Not before: that costs what importing the program costs, and under `longshore serve` it is the command line.
        """
        if not self._main_is_there and b"__main__" in payload:
            from multiprocessing import process, spawn

            # By this mark the library refuses to start processes, and so does a pool: a program without the usual
            # `if __name__ == "__main__":` would start itself again and again.
            process.current_process()._inheriting = True  # type: ignore[attr-defined]
            try:
                spawn.prepare(self._setup.main)
            finally:
                del process.current_process()._inheriting  # type: ignore[attr-defined]
            self._main_is_there = True
        return pickle.loads(payload)

    def _send(self, kind: bytes, payload: bytes) -> None:
        try:
            if self._look() != self._identity:
                _exit(SOCKET_GONE)
        except OSError:
            _exit(SOCKET_GONE)
        try:
            if len(payload) < 65_536:
                self._socket.sendall(HEAD.pack(kind, len(payload)) + payload)
            else:
                self._socket.sendall(HEAD.pack(kind, len(payload)))
                self._socket.sendall(payload)
        except OSError:
            # The pool is gone, or has given this process up.
            _exit(0)


def _can_be_pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def _limit(growth: int) -> Callable[[], None]:
    """Let the process grow by `growth` bytes and no more; returns what undoes it.

    RLIMIT_DATA counts brk(2) and, since Linux 4.7, private writable mappings, which is all that allocators use; unlike
    RLIMIT_AS it does not count what is merely mapped, such as libraries and files.
    """
    import resource

    with open("/proc/self/statm") as file:
        data = int(file.read().split()[5]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + growth
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
