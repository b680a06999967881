"""An end of a pipe of the local place, as one process has it: what all its handles of that end share.

The only file that knows how a process takes an end and gives it up.  An end has a connection to the broker of its own,
which tells the broker that this process has it, whatever its threads do, and a conduit (`conduit.py`), over which its
messages go without the broker.  A thread that waits looks at the conduit itself.  Where a greenlet or a task waits, its
reactor or loop looks, and the waiter takes its message when it runs again (`Status.AGAIN`): so nothing is ever taken
for somebody who has gone.

Where the broker has no conduits, verbs go to the broker.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import BrokerLost, ClosedError, LimitExceeded
from longshore.shared.conduit import PACKET, receive, transmit
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.watching import called_later, watched

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("End", "Ends")

_OK, _LATE, _CLOSED = (Reply(status, 0, ()) for status in (Status.OK, Status.LATE, Status.CLOSED))
_AGAIN, _CANCELLED = (Reply(status, 0, ()) for status in (Status.AGAIN, Status.CANCELLED))
_OPEN, _HANG_UP, _SEND, _POLL = (int(verb) for verb in (Verb.OPEN, Verb.HANG_UP, Verb.SEND, Verb.POLL))


class Channel(Protocol):
    """A connection to the broker."""

    socket: socket.socket

    def ask(self, verb: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Any) -> Reply:
        """Have a verb done."""

    def handed(self, verb: int, key: bytes, number: int) -> tuple[Reply, list[int]]:
        """Have a verb done that hands over descriptors."""


class Home(Protocol):
    """The place."""

    url: str

    def opened(self) -> Channel:
        """Another connection to the broker."""

    def lose(self, error: BaseException | None) -> BrokerLost:
        """The broker is gone."""


class Ends(dict[tuple[bytes, int], "End"]):
    """The ends that this process has of the pipes of a place, by key and number."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home
        self._lock = threading.Lock()

    def __missing__(self, which: tuple[bytes, int]) -> End:
        return self.setdefault(which, End(self._home, *which))

    def open(self, key: bytes, number: int) -> Reply:
        """A handle takes an end."""
        while True:
            end = self[key, number]
            reply = end.open()
            if reply is not None:
                return reply
            # Its last handle is being closed by another thread: whoever comes now has one of his own.
            self._drop((key, number), end)

    def hang_up(self, key: bytes, number: int) -> None:
        """A handle is closed; the last one gives the end up."""
        end = self.get((key, number))
        if end is not None and end.let_go():
            self._drop((key, number), end)

    def _drop(self, which: tuple[bytes, int], end: End) -> None:
        with self._lock:
            if self.get(which) is end:
                del self[which]

    def close(self, failure: BaseException) -> None:
        """Give all of them up; who waits on a loop or a reactor gets `failure`."""
        while self:
            self.popitem()[1].fail(failure)

    def forget(self) -> None:
        """In a child that was forked: the ends are its parent's, and its own handles take them anew."""
        self._lock = threading.Lock()
        for end in list(self.values()):
            end.forget()


class End:
    """One of them; the handles that have it are counted here."""

    def __init__(self, home: Home, key: bytes, number: int) -> None:
        self._home = home
        self._key = key
        self._number = number
        self._handles = 0
        self._lock = threading.RLock()
        self._closed = False
        self._channel: Channel | None = None
        #: Whether its messages pass no broker.
        self.is_direct = False
        self._data: Any = None
        #: Who looks at the conduit, by what for; one thread uses each at a time.
        self._polls: dict[int, list[Any]] = {events: [] for events in (0, select.POLLIN, select.POLLOUT)}
        #: Readable while the other end is gone; its other side is the broker's.
        self._sign = -1
        self.waiting: set[_Wait] = set()

    # -- taking it, and giving it up -------------------------------------------------------------------------

    def open(self) -> Reply | None:
        """A handle takes it; None where it was given up."""
        with self._lock:
            if self._closed:
                return None
            reply = self._taken()
            self._handles += reply.status == Status.OK
            return reply

    def _taken(self) -> Reply:
        """Have the broker know that this process has it."""
        with self._lock:
            if self._channel is not None:
                return _OK
            channel = self._home.opened()
            reply, descriptors = channel.handed(_OPEN, self._key, self._number)
            if reply.status == Status.OK:
                if descriptors:
                    self._data = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=descriptors[0])
                    self._sign = descriptors[1]
                    self.is_direct = True
                self._channel = channel
            return reply

    def let_go(self) -> bool:
        """A handle is closed; whether it was the last one."""
        with self._lock:
            self._handles -= 1
            if self._handles > 0:
                return False
            self._closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            # Asked, so that whoever is told of it finds it so; the descriptors go with the last who waits at them.
            with contextlib.suppress(BrokerLost):
                channel.ask(_HANG_UP, self._key, 0, self._number, 0, ())
            channel.socket.close()
        return True

    def fail(self, failure: BaseException) -> None:
        """The place is left."""
        self._closed = True
        for wait in list(self.waiting):
            wait.settle(failure)

    def forget(self) -> None:
        """It is the parent's."""
        self._lock = threading.RLock()
        self._channel = None
        self.waiting.clear()
        self._drop()

    def _drop(self) -> None:
        self.is_direct = False
        self._polls = {events: [] for events in self._polls}
        data, self._data = self._data, None
        sign, self._sign = self._sign, -1
        if data is not None:
            data.close()
            os.close(sign)

    def __del__(self) -> None:
        self._drop()

    # -- verbs -----------------------------------------------------------------------------------------------

    def retaken(self) -> bool:
        """Whether its messages pass no broker, where that has to be asked: in a child that was forked.

        Raises:
            LimitExceeded: it could not be taken.
        """
        if self._channel is None and not self._closed:
            reply = self._taken()
            if reply.status != Status.OK:
                raise LimitExceeded(f"{self._home.url}: an end of a pipe cannot be taken: {reply.fields[0].decode()}")
        return self.is_direct

    def ask(self, verb: int, timeout: float | None, fields: Any) -> Reply:
        """Have a verb done, and block this thread until its reply."""
        reply = self.tried(verb, fields)
        if reply is not None:
            return reply
        until = None if timeout is None else time.monotonic() + timeout
        while timeout is None or timeout > 0:
            self._look(select.POLLOUT if verb == _SEND else select.POLLIN, timeout)
            reply = self.tried(verb, fields)
            if reply is not None:
                return reply
            if until is not None:
                timeout = until - time.monotonic()
        return _LATE

    def start(self, done: Any, verb: int, timeout: float | None, fields: Any) -> _Wait:
        """Have a verb done, or call `done` with `AGAIN` when that is worth a try; see `Place.start`."""
        reply = self.tried(verb, fields)
        if reply is None and timeout is not None and timeout <= 0:
            reply = _LATE
        return _Wait(self, done, verb, timeout, reply)

    def tried(self, verb: int, fields: Any) -> Reply | None:
        """What comes of a verb at once; None if it would have to wait."""
        data = self._data
        if data is None:
            raise ClosedError(f"{self._home.url}: this end of the pipe is closed")
        if verb == _SEND:
            message = fields[0]
            # A large one has the buffer to itself, or many of them would wait there, in memory that is not its.
            events = select.POLLOUT if len(message) > PACKET else 0
            ready, gone = self._look(events, 0)
            if gone:
                return _CLOSED
            try:
                return _OK if (ready or not events) and transmit(data, message) else None
            except ConnectionError as error:
                # The broker keeps both sides open for as long as it lives.
                raise self._lost(error) from error
        ready, gone = self._look(select.POLLIN, 0)
        if not ready and not gone:
            return None
        if verb == _POLL:
            return _OK
        message = receive(data)
        if message:
            return Reply(0, 0, (message,))
        if message is not None:
            raise self._lost(None)
        return _CLOSED if gone else None

    def _look(self, events: int, timeout: float | None) -> tuple[bool, bool]:
        """Whether the conduit is ready for `events`, and whether the other end is gone, after at most `timeout`."""
        polls = self._polls[events]
        try:
            poll = polls.pop()
        except IndexError:
            poll = select.poll()
            if events:
                poll.register(self._data, events)
            poll.register(self._sign, select.POLLIN)
        found = poll.poll(None if timeout is None else timeout * 1000)
        polls.append(poll)
        if not found:
            return False, False
        if len(found) == 1 and found[0][0] != self._sign:
            return True, False
        ready = gone = False
        for descriptor, state in found:
            if descriptor != self._sign:
                ready = True
            elif state & (select.POLLHUP | select.POLLERR):
                raise self._lost(None)
            else:
                gone = True
        return ready, gone

    def _lost(self, error: BaseException | None) -> Exception:
        if self._closed:
            return ClosedError(f"{self._home.url}: this end of the pipe is closed")
        return self._home.lose(error)

    def descriptors(self) -> tuple[int, int]:
        """Those of the conduit and of the sign."""
        return self._data.fileno(), self._sign


class _Wait:
    """A verb that waits on a loop or a reactor."""

    def __init__(self, end: End, done: Any, verb: int, timeout: float | None, reply: Reply | None) -> None:
        self._end = end
        self._done = done
        self._undoing: list[Callable[[], object]] = []
        if reply is not None:
            done(reply)
            return
        try:
            for original, writable in zip(end.descriptors(), (verb == _SEND, False), strict=True):
                # A loop watches each number once.
                number = os.dup(original)
                self._undoing.append(lambda number=number: os.close(number))  # type: ignore[misc]
                self._undoing.append(watched(_Descriptor(number), self._ready, writable=writable))
            if timeout is not None:
                self._undoing.append(called_later(timeout, lambda: self.settle(_LATE)).cancel)
        except BaseException:
            self._undo()
            raise
        end.waiting.add(self)

    def _ready(self, _events: int = 0) -> None:
        self.settle(_AGAIN)

    def cancel(self) -> None:
        """Ask for its end."""
        self.settle(_CANCELLED)

    def settle(self, outcome: Reply | BaseException) -> None:
        """It waits no more."""
        if self not in self._end.waiting:
            return
        self._end.waiting.discard(self)
        self._undo()
        self._done(outcome)

    def _undo(self) -> None:
        while self._undoing:
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._undoing.pop()()


class _Descriptor:
    """A bare descriptor, as loops and reactors watch it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """Its number."""
        return self._number
