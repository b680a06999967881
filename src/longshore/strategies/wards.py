"""One child as the serving process sees it: its wire, its pid, its death.

A child is asked for, lives, and is buried, as the spawners tell (`lineage.py`); in between it is spoken to over its
wire.  What it is for, its owner knows.  Nothing here waits.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import socket
from typing import TYPE_CHECKING, Any, Protocol

from longshore.strategies.wire import CHUNK, Messages, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.portable import PortableReactor
    from longshore.strategies.lineage import Lineage

__all__ = ("Child", "Owner")

_numbers = itertools.count(1)


class Owner(Protocol):
    """Whom a child works for."""

    label: str

    def heard(self, verb: str, *args: Any) -> None:
        """The child has said something."""

    def child_over(self, outcome: int | OSError | None) -> None:
        """It is dead: its exit status (negative: a signal), None if nobody knows, or why there never was one."""


class Child:
    """One child, its wire, and its death; `welcome` is what it gets to know, `sock` what it gets.

    It is in `siblings` as long as it lives.
    """

    def __init__(
        self,
        reactor: PortableReactor,
        lineage: Lineage,
        siblings: set[Child],
        owner: Owner,
        welcome: dict[str, Any],
        sock: socket.socket | None,
    ) -> None:
        self.number = next(_numbers)
        self.pid: int | None = None
        self.slot = lineage.slots.take()
        self.owner = owner
        self._siblings = siblings
        self._lineage = lineage
        self._reactor = reactor
        self._welcome = welcome
        #: Our copy of its connection, kept until it says that it lives: till then another child may take its place.
        self._sock = sock
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._messages = Messages()
        self._outgoing = bytearray()
        #: What was said to it and may have to be said again.
        self._unheard: list[bytes] = []
        self._greeted = self._orphan = self._doomed = False
        self.over = False

    def begin(self) -> None:
        """Have it forked."""
        self._siblings.add(self)
        self.tell("welcome", self._welcome | {"slot": self.slot.index})
        self._fork()

    def _fork(self) -> None:
        if self._lineage.extinct:
            self._finish(OSError("no process is left that could fork one"))
            return
        try:
            self._ours, self._theirs = socket.socketpair()
        except OSError as error:
            self._finish(error)
            return
        self._ours.setblocking(False)
        self._orphan = False
        self._messages = Messages()
        self._outgoing = bytearray(b"".join(self._unheard))
        self._lineage.fork(self, [self._theirs] if self._sock is None else [self._theirs, self._sock])
        self._flush()

    # -- the wire --------------------------------------------------------------------------------------

    def tell(self, verb: str, *args: Any) -> None:
        """Say something to it; from any thread."""
        data = encode(verb, *args)
        if self._reactor.on_thread:
            self._say(data)
        else:
            self._reactor.post(self._say, data)

    def _say(self, data: bytes) -> None:
        if not self._greeted:
            self._unheard.append(data)
        if self._ours is not None:
            self._outgoing += data
            self._flush()

    def _flush(self) -> None:
        if self._ours is None:
            return
        try:
            while self._outgoing:
                del self._outgoing[: self._ours.send(self._outgoing)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # It is gone, as the end of its stream tells.
            self._outgoing.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        self._reactor.watch(self._ours, events, self.ready)

    @property
    def source(self) -> tuple[socket.socket, Callable[[int], object]] | None:
        """What to watch if the reactor does not."""
        return None if self._ours is None else (self._ours, self.ready)

    def ready(self, events: int) -> None:
        """The wire can be written, or has something to read."""
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ:
            self._read()

    def _read(self) -> bool:
        """Take what has come; False if there was nothing."""
        if self._ours is None:
            return False
        try:
            data = self._ours.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            if self._orphan:
                self._stream_ended()
            return False
        for verb, args in self._messages.feed(data):
            if verb == "hello":
                self._hello(*args)
            else:
                self.owner.heard(verb, *args)
        return True

    def _hello(self, pid: int) -> None:
        self.pid = pid
        self._greeted = True
        self._unheard.clear()
        self._let_go()

    def _let_go(self) -> None:
        """Close our copies of what the child has."""
        self._close_theirs()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def _hang_up(self) -> None:
        if self._ours is not None:
            self._reactor.watch(self._ours, 0, self.ready)
            self._ours.close()
            self._ours = None

    # -- its life, as the spawners tell it ---------------------------------------------------------------

    def forked(self, pid: int) -> None:
        """It lives; its connection is kept until it says so itself."""
        self.pid = pid
        self._close_theirs()
        if self._doomed:
            self.kill()

    def refused(self, error: OSError) -> None:
        """The system does not let it be forked."""
        self._finish(error)

    def died(self, status: int) -> None:
        """It is dead: take what it has left behind."""
        while self._read():
            pass
        self._finish(status)

    def orphaned(self) -> None:
        """Its spawner is dead, and whether it was forked at all is told by its wire."""
        self._orphan = True
        self._close_theirs()
        if self._ours is None:
            self._stream_ended()

    def _stream_ended(self) -> None:
        if self.over:
            return
        if self._greeted or self.pid is not None:
            self._finish(None)
        else:
            # It never lived, so nobody has read a byte of its connection: let another one be forked.
            self._fork()

    def kill(self) -> None:
        """End it for sure, at the latest when it has been forked."""
        self._doomed = True
        if self.pid is None or self.over:
            return
        self._lineage.kill(self.pid)
        if self._lineage.extinct and self._ours is not None:
            # Somebody holds the other end of its wire, so it lives, and its number is its own.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def give_up(self) -> None:
        """Wait no longer to be told of its death."""
        self._finish(None)

    def _finish(self, outcome: int | OSError | None) -> None:
        if self.over:
            return
        self.over = True
        self._let_go()
        self._hang_up()
        self._lineage.forget(self)
        self._siblings.discard(self)
        self.owner.child_over(outcome)
        self._lineage.slots.give_back(self.slot)
