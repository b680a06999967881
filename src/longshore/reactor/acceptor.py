"""Accepting: bursts, and what to do when accept(2) fails.

accept(2) fails for three kinds of reason, and each wants another answer:

* The connection that was to be accepted is dead already (ECONNABORTED, EPROTO and the network errors that
  Linux passes on).  The next one may be fine: go on at once.
* The system is out of something (EMFILE, ENFILE, ENOBUFS, ENOMEM).  The connection stays in the queue and
  the listener stays readable, so going on at once would spin: give up the descriptor kept in reserve, accept
  and close one connection with it so that its client learns, take the reserve back, and pause for a while
  that doubles each time.
* Anything else is a bug, and is raised.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.portable import PortableReactor

__all__ = ("AcceptOwner", "Acceptor", "as_accept_failure")

_DEAD = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EPROTO",
        "ENETDOWN",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
        "EPERM",
    )
    if hasattr(errno, name)
)
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
#: Seconds that a burst may take: what is accepted may be costly to begin, or to turn away.
BUDGET = 0.001


def as_accept_failure(error: OSError) -> OSError:
    """What accept(2) could have said in the place of `error`, with which a user's own way to accept has failed.

    It was about one connection, so it must not end the server.
    """
    if isinstance(error, (BlockingIOError, InterruptedError)) or error.errno in _DEAD | _EXHAUSTED:
        return error
    return ConnectionAbortedError(errno.ECONNABORTED, f"{type(error).__name__}: {error}")


class AcceptOwner(Protocol):
    """Who decides about accepting, and gets what was accepted."""

    def may_accept(self, knocking: bool) -> bool:
        """Whether there is room, else the acceptor pauses until `resume`; `knocking`: somebody waits for sure."""

    def settled(self) -> None:
        """A burst is over, and what `may_accept` allowed last may not have come."""

    def accepted(self, sock: socket.socket, address: Any) -> None:
        """A connection; the socket is the owner's now."""

    def accept_failed(self, error: OSError, retry_in: float) -> None:
        """accept(2) failed; it is tried again in `retry_in` seconds."""


class Acceptor:
    """Accepts on one listening socket, by calling `accept()` when it is ready, `burst` times a turn; starts running."""

    def __init__(
        self,
        reactor: PortableReactor,
        listener: socket.socket,
        owner: AcceptOwner,
        accept: Callable[[], tuple[Any, Any]],
        burst: int,
    ) -> None:
        self._reactor = reactor
        self._listener = listener
        self._owner = owner
        self._accept = accept
        self._bite = burst
        self._pause = _FIRST_PAUSE
        self._running = False
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._closed = False
        self.resume()

    def pause(self) -> None:
        """Accept nothing until `resume`; the kernel's queue holds who comes."""
        if self._running:
            self._running = False
            self._reactor.watch(self._listener, 0, self._ready)

    def resume(self) -> None:
        """Accept again."""
        if not self._running and not self._closed:
            self._running = True
            self._reactor.watch(self._listener, selectors.EVENT_READ, self._ready)

    def accept_queued(self) -> None:
        """Accept all that is in the kernel's queue now, as far as there is room."""
        if not self._closed:
            self._burst(1 << 16, knocking=False)

    def close(self) -> None:
        """Stop for good; the listening socket itself is its owner's to close."""
        self.pause()
        self._closed = True
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _ready(self, _events: int) -> None:
        self._burst(self._bite, knocking=True)

    def _burst(self, limit: int, *, knocking: bool) -> None:
        try:
            self._accept_up_to(limit, knocking=knocking)
        finally:
            self._owner.settled()

    def _accept_up_to(self, limit: int, *, knocking: bool) -> None:
        clock, may_accept, accepted = time.monotonic, self._owner.may_accept, self._owner.accepted
        began = clock()
        queued = not knocking
        for _ in range(limit):
            if self._closed:
                return
            if not queued and clock() - began > BUDGET:
                # A flood: the kernel tells of the rest again, after everybody else had their turn.
                return
            # The kernel has told of the first one only.  Room for another is made when it tells of that one, so a
            # burst that ends for want of room leaves the listener watched.
            if not may_accept(knocking):
                if knocking:
                    self.pause()
                return
            knocking = False
            try:
                sock, address = self._accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _DEAD:
                    self._owner.accept_failed(error, 0.0)
                    continue
                if error.errno in _EXHAUSTED:
                    self._exhausted(error)
                    return
                raise
            self._pause = _FIRST_PAUSE
            accepted(sock, address)

    def _exhausted(self, error: OSError) -> None:
        self.pause()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
            self._turn_one_away()
        # The reserve is taken back afterwards, as whoever tells of it may have a module to read first.
        self._owner.accept_failed(error, self._pause)
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Somebody else took the descriptor; the next failure goes without the courtesy.
            pass
        self._reactor.call_later(self._pause, self.resume)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _turn_one_away(self) -> None:
        try:
            self._listener.accept()[0].close()
        except OSError:
            # Another process was faster, or memory is what is short: then there is nobody to tell.
            pass
