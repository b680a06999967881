"""Counting and deadlines: how many are in, and when somebody has taken too long.

Pure: numbers and "now" go in, decisions come out.  No socket, no thread, no clock.  The reactor asks a
`Watch` when to look again; the server asks a `Gate` whether one more may come in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from longshore.errors import HandshakeTimeout, ReadTimeout, Timeout, WriteTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.config import Timeouts

__all__ = ("CALM", "NEAR", "Brink", "Gate", "Watch", "overdue")

#: A message is not judged by `min_rate` before it has had this long (seconds): a first packet says nothing of a rate.
RATE_GRACE = 5.0
#: The share of a limit at which it is told that it is near, and the one below which that may be told again: what
#: wavers about the first is told once.
NEAR, CALM = 0.8, 0.6


class Gate:
    """An exact count of at most `maximum` (None: unbounded)."""

    __slots__ = ("_near", "_warned", "count", "maximum", "name")

    #: Seconds after which it is worth to look again, if `hold` was refused though there is room.
    retry_in: float | None = None

    def __init__(self, name: str, maximum: int | None, near: Callable[[str, int, int], None] | None = None) -> None:
        self.name = name
        self.maximum = maximum
        self.count = 0
        self._near = near
        self._warned = False

    @property
    def full(self) -> bool:
        """Whether nobody else may come in."""
        return self.maximum is not None and self.count >= self.maximum

    def enter(self) -> bool:
        """Take one place; False if there is none."""
        maximum, count = self.maximum, self.count
        if maximum is not None:
            if count >= maximum:
                return False
            if not self._warned and count + 1 >= NEAR * maximum:
                self._warn(count + 1)
        self.count = count + 1
        return True

    def leave(self) -> None:
        """Give one place back."""
        self.count -= 1
        if self._warned:
            self._calm(self.count)

    def hold(self) -> bool:
        """Take a place in advance, where others could take it meanwhile; here it is enough that there is one."""
        return self.maximum is None or self.count < self.maximum

    def settle(self) -> None:
        """Give back what was held for somebody who did not come."""

    def clamp(self, maximum: int) -> None:
        """The system does not allow more than `maximum`."""
        self.maximum = maximum

    def _warn(self, count: int) -> None:
        if not self._warned and self.maximum is not None and count >= NEAR * self.maximum:
            self._warned = True
            if self._near is not None:
                self._near(self.name, count, self.maximum)

    def _calm(self, count: int) -> None:
        if self.maximum is None or count < CALM * self.maximum:
            self._warned = False


class Brink:
    """Says once that something is near its limit, and again only after it was far below."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told = False

    def reached(self, value: int, maximum: int) -> bool:
        """Whether `value` is near `maximum`, and that was not said before."""
        told = self._told
        self._told = value >= (CALM if told else NEAR) * maximum
        return self._told and not told


class Watch:
    """The deadlines of one connection; every time is in seconds on the reactor's clock.

    Bytes only ever move deadlines later, so whoever armed a timer for `deadline()` may leave it and ask again
    when it fires; only `wait`, `output`, the last of it that leaves and, under `min_rate`, the first byte of a message
    can bring one nearer.
    """

    __slots__ = (
        "closing_since",
        "first",
        "fresh",
        "handshaking",
        "last_byte",
        "last_progress",
        "opened",
        "partial_bytes",
        "partial_since",
        "pending",
        "ready",
        "timeouts",
        "waiting",
    )

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self.timeouts = timeouts
        self.opened = now
        self.ready = now
        self.handshaking = False
        self.first = True
        self.fresh = False
        self.last_byte = now
        self.last_progress = now
        self.waiting = False
        self.pending = False
        self.partial_since: float | None = None
        self.partial_bytes = 0
        self.closing_since: float | None = None

    def begin_handshake(self, now: float) -> None:
        """A TLS handshake is to be made from now on; again does nothing until it is over."""
        if not self.handshaking:
            self.handshaking = True
            self.ready = now

    def received(self, count: int, now: float) -> None:
        """`count` bytes came."""
        self.first = False
        self.fresh = True
        self.last_byte = now
        if self.partial_since is None:
            self.partial_since = now
            self.partial_bytes = 0
        self.partial_bytes += count

    def wait(self, now: float) -> None:
        """A handler waits for input from now on.

        The time that it spent on what came before is its own, not the peer's silence, so the first wait after
        input starts the idle clock anew.
        """
        self.waiting = True
        if self.fresh:
            self.fresh = False
            self.last_byte = now

    def whole(self) -> None:
        """No message is partial any more."""
        self.partial_since = None

    def output(self, now: float) -> None:
        """Output is pending from now on."""
        if not self.pending:
            self.pending = True
            self.last_progress = now

    def sent(self, now: float, *, left: bool) -> None:
        """The kernel took bytes; `left` says whether output is still pending."""
        self.last_byte = self.last_progress = now
        self.pending = left

    def deadline(self) -> tuple[float, str]:
        """When the next timeout falls due, and its name in `Timeouts` ("" with infinity if none will)."""
        limits = self.timeouts
        found = math.inf
        name = ""
        if limits.lifetime is not None:
            found, name = self.opened + limits.lifetime, "lifetime"
        if self.handshaking:
            if limits.handshake is not None and self.ready + limits.handshake < found:
                found, name = self.ready + limits.handshake, "handshake"
            return found, name
        if self.pending and limits.write is not None and self.last_progress + limits.write < found:
            found, name = self.last_progress + limits.write, "write"
        if self.closing_since is not None:
            # The peer has its time from our last byte on, however long it took to leave.
            sent = max(self.closing_since, self.last_progress)
            if not self.pending and limits.linger is not None and sent + limits.linger < found:
                found, name = sent + limits.linger, "linger"
            return found, name
        if self.waiting:
            if self.first and limits.first_byte is not None and self.ready + limits.first_byte < found:
                found, name = self.ready + limits.first_byte, "first_byte"
            # What the peer leaves untaken is for `write` to judge: it is not silence.
            if limits.idle is not None and not self.pending and self.last_byte + limits.idle < found:
                found, name = self.last_byte + limits.idle, "idle"
            if limits.min_rate is not None and self.partial_since is not None:
                due = self.partial_since + RATE_GRACE + self.partial_bytes / limits.min_rate
                if due < found:
                    found, name = due, "min_rate"
        return found, name


def overdue(name: str, timeouts: Timeouts, peer: str) -> Timeout:
    """The error for the timeout called `name` in `Timeouts`, naming peer, setting and value."""
    value = getattr(timeouts, name)
    setting = f"Timeouts.{name}={value:g}"
    if name == "handshake":
        return HandshakeTimeout(f"{peer} did not finish the TLS handshake in time ({setting})")
    if name == "write":
        return WriteTimeout(f"{peer} took no byte in time ({setting})")
    what = {
        "first_byte": "sent nothing at all",
        "idle": "was silent for too long",
        "lifetime": "has been connected for too long",
        "min_rate": "sends its message too slowly",
    }[name]
    return ReadTimeout(f"{peer} {what} ({setting})")
