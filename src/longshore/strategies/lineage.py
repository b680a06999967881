"""The spawners of one server, from the oldest to the youngest: who is asked to fork, and what if one dies.

The serving process's side of `spawner.py`.  The youngest forks; the one before is its parent, and is kept because
only a process with one thread can make another spawner.  A death is noticed by the end of the control stream,
answered with a copy of whoever is left, and told once.  If all die at the same moment no more children can be had,
as the serving process has threads by then; the children that live are not touched by that.

Nothing here knows what children do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from longshore.events import SpawnerDied, ThreadsAtFork
from longshore.strategies.slots import Slots
from longshore.strategies.spawner import (
    COPY,
    DIED,
    FORK,
    FORKED,
    KILL,
    NOBODY,
    REFUSED,
    REPORT,
    REQUEST,
    descriptors,
    launch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.events import Event
    from longshore.reactor.portable import PortableReactor

__all__ = ("Lineage", "Ward", "turn")

#: Seconds until a spawner that could not copy itself is asked again.
AGAIN = 1.0
#: Seconds that `close` waits for the spawners to end before it kills them.
PATIENCE = 3.0


class Ward(Protocol):
    """A child, as far as spawners have to do with it."""

    number: int

    def forked(self, pid: int) -> None:
        """It lives."""

    def refused(self, error: OSError) -> None:
        """The system does not let it be forked."""

    def died(self, status: int) -> None:
        """It is dead and buried; `status` is its exit status, negative for a signal."""

    def orphaned(self) -> None:
        """Its spawner is dead: its own death may not be reported any more."""


class _Spawner:
    """One spawner, at the other end of its control stream."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        control.setblocking(False)
        self.pid = pid
        self.control = control
        self.wards: dict[int, Ward] = {}
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    def ask(self, verb: bytes, number: int, sockets: list[socket.socket]) -> None:
        """Send a request; the sockets must stay open until the answer, in case it cannot be sent at once."""
        self._waiting.append((REQUEST.pack(verb, number), [sock.fileno() for sock in sockets]))
        self.send()

    def send(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        try:
            while self._waiting:
                data, numbers = self._waiting[0]
                # So few bytes are taken whole or not at all.
                if numbers:
                    socket.send_fds(self.control, [data], numbers)
                else:
                    self.control.send(data)
                self._waiting.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # It is dead; the end of its stream, which is read next, tells.
            self._waiting.clear()

    def dismiss(self) -> None:
        """Have it end; the end of its stream tells when it has."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    @property
    def events(self) -> int:
        """What to watch its control stream for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)


class Lineage:
    """Forks the first spawner when it is made; to be made while the process has one thread.

    Raises:
        OSError: the system refuses.
    """

    def __init__(
        self, serve: Callable[[Slots, list[socket.socket]], None], emit: Callable[[Event], object], foreign: set[int]
    ) -> None:
        self._emit = emit
        self._closing = False
        self._reactor: PortableReactor | None = None
        others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        if others:
            emit(ThreadsAtFork(threads=tuple(others)))
        self.slots = Slots()
        slots = self.slots
        pid, control = launch(lambda sockets: serve(slots, sockets), foreign)
        self._first = pid
        self._spawners = [_Spawner(pid, control)]
        self._wards: dict[int, Ward] = {}

    def attach(self, reactor: PortableReactor) -> None:
        """Hear of deaths from now on."""
        self._reactor = reactor
        self._watch(self._spawners[0])
        self._complete()

    @property
    def extinct(self) -> bool:
        """Whether no spawner is left."""
        return not self._spawners

    @property
    def pids(self) -> tuple[int, ...]:
        """The spawners' processes, the oldest first."""
        return tuple(spawner.pid for spawner in self._spawners)

    # -- requests --------------------------------------------------------------------------------------

    def fork(self, ward: Ward, sockets: list[socket.socket]) -> None:
        """Fork a child for `ward`; its `forked` or `refused` is called, or its `orphaned`.

        The sockets stay the caller's, and open until then.
        """
        spawner = self._spawners[-1]
        spawner.wards[ward.number] = ward
        self._ask(spawner, FORK, ward.number, sockets)

    def kill(self, pid: int) -> None:
        """Kill a child, if it is not buried yet."""
        for spawner in self._spawners:
            # Only its own parent does it: for anybody else its number might be somebody else's by now.
            self._ask(spawner, KILL, pid, [])

    def _ask(self, spawner: _Spawner, verb: bytes, number: int, sockets: list[socket.socket]) -> None:
        spawner.ask(verb, number, sockets)
        self._watch(spawner)

    def _watch(self, spawner: _Spawner) -> None:
        if self._reactor is not None and spawner in self._spawners:
            self._reactor.watch(spawner.control, spawner.events, lambda events: self._ready(spawner, events))

    def _complete(self) -> None:
        """Have a second spawner made if there is but one."""
        if len(self._spawners) == 1 and not self._closing:
            self._ask(self._spawners[0], COPY, NOBODY, [])

    # -- reports ---------------------------------------------------------------------------------------

    def _ready(self, spawner: _Spawner, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            spawner.send()
            self._watch(spawner)
        if events & selectors.EVENT_READ:
            self.read(spawner)

    def read(self, spawner: _Spawner) -> None:
        """Take the reports of one spawner that have come."""
        while True:
            try:
                data, ancillary, _, _ = spawner.control.recvmsg(REPORT.size, socket.CMSG_SPACE(8))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, ancillary = b"", []
            if len(data) < REPORT.size:
                self._lost(spawner)
                return
            verb, number, pid, status = REPORT.unpack(data)
            self._reported(spawner, verb, number, pid, status, descriptors(ancillary))

    def _reported(self, spawner: _Spawner, verb: bytes, number: int, pid: int, status: int, numbers: list[int]) -> None:
        if verb == FORKED:
            ward = spawner.wards[number]
            self._wards[pid] = ward
            ward.forked(pid)
        elif verb == DIED:
            # Of a spawner's death its stream tells.
            dead = self._wards.pop(pid, None)
            if dead is not None:
                self.forget(dead)
                dead.died(status)
        elif verb == COPY:
            copy = _Spawner(pid, socket.socket(fileno=numbers[0]))
            self._spawners.append(copy)
            if self._closing:
                copy.dismiss()
            self._watch(copy)
        elif verb == REFUSED and number == NOBODY:
            if self._reactor is not None:
                self._reactor.call_later(AGAIN, self._complete)
        elif verb == REFUSED:
            spawner.wards.pop(number).refused(OSError(status, os.strerror(status)))

    def forget(self, ward: Ward) -> None:
        """Its end is known."""
        for spawner in self._spawners:
            spawner.wards.pop(ward.number, None)

    def _lost(self, spawner: _Spawner) -> None:
        if self._reactor is not None:
            self._reactor.watch(spawner.control, 0, lambda _: None)
        spawner.control.close()
        self._spawners.remove(spawner)
        _bury(spawner.pid, kill=spawner.pid == self._first)
        if self._closing:
            return
        self._emit(SpawnerDied(pid=spawner.pid, replaced=not self.extinct))
        self._complete()
        for ward in tuple(spawner.wards.values()):
            ward.orphaned()

    # -- the end ---------------------------------------------------------------------------------------

    @property
    def sources(self) -> list[tuple[socket.socket, Callable[[int], object]]]:
        """What to watch where the reactor turns no more: sockets, and what to call when one can be read."""
        return [(item.control, functools.partial(self._ready, item)) for item in self._spawners]

    def close(self) -> None:
        """End the spawners, and their children with them."""
        if self._closing:
            return
        self._closing = True
        for spawner in self._spawners:
            spawner.dismiss()
        deadline = time.monotonic() + PATIENCE
        while self._spawners and turn(self.sources, deadline - time.monotonic()):
            pass
        for spawner in tuple(self._spawners):
            with contextlib.suppress(OSError):
                os.kill(spawner.pid, signal.SIGKILL)
            self._lost(spawner)
        _bury(self._first, kill=True)
        self.slots.close()


def turn(sources: list[tuple[socket.socket, Callable[[int], object]]], seconds: float) -> bool:
    """Wait until one of `sources` can be read, and call what belongs to it; False if that takes too long."""
    with selectors.DefaultSelector() as selector:
        for sock, callback in sources:
            selector.register(sock, selectors.EVENT_READ, callback)
        ready = selector.select(max(0.0, seconds))
    for key, events in ready:
        # What was called before may have closed it.
        if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
            key.data(events)
    return bool(ready)


def _bury(pid: int, *, kill: bool) -> None:
    """Wait for a spawner that has ended; the first is a child of ours, others only where nobody else adopts them."""
    with contextlib.suppress(OSError):
        if kill:
            # It is ours, so its number is its own until it is buried: what closed its stream ends for sure.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0 if kill else os.WNOHANG)
