"""Who waits for something to happen to a stream, and is called once when it does.

The only place that knows the parked of a portable stream, and what share of its input they have in one turn.  Each is
called in a callback of its own: whoever caused the event must be through before anybody else goes on.

A piece that has come already is taken without a wait.  So whoever takes from a full buffer would go on to its end, and
all others of his thread would wait for that: after a share of it, the input says `NEED_MORE` to him once, and what he
waits for then is that the others had their turn.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from longshore.framing import NEED_MORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.stream import Stream

__all__ = ("Shares", "Waiters")


class Waiters:
    """The parked of one stream."""

    __slots__ = ("_expecting", "_parked", "_resting", "_shares", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._parked: list[Callable[[], object]] = []
        #: Whether the first of them waits for input.
        self._expecting = False
        #: Whether whoever waits is called when the others had their turn.
        self._resting = False
        self._shares: Shares | None = None

    def park(self, waiter: Callable[[], object]) -> None:
        """Call `waiter` once, when next there is something to tell the sink."""
        self._parked.append(waiter)

    def expect(self, waiter: Callable[[], object]) -> bool:
        """Want input, and call `waiter` once as `park` does; False, and nothing done, where that takes more.

        Who is sated wants no input, and is called when the others had their turn.
        """
        stream = self._stream
        if stream.state != "open" or self._parked or not stream.reactor.on_thread:
            return False
        self._parked.append(waiter)
        if not self.sated():
            self._expecting = True
            stream.want_input(True)
        elif not self._resting:
            self._resting = True
            stream.reactor.again(self._rested)
        return True

    def unpark(self, waiter: Callable[[], object]) -> None:
        """Call `waiter` no more; what another one expects stays expected."""
        if self._parked and self._parked[0] == waiter:
            self._expected()
        if waiter in self._parked:
            self._parked.remove(waiter)

    def wake(self) -> None:
        """Call whoever is parked."""
        if self._parked:
            parked, self._parked = self._parked, []
            self._expected()
            self.excuse()
            for waiter in parked:
                self._stream.reactor.again(functools.partial(self._resume, waiter))

    def _expected(self) -> None:
        if self._expecting:
            self._expecting = False
            self._stream.want_input(False)

    def _resume(self, waiter: Callable[[], object]) -> None:
        self._stream.reactor.current = self._stream
        waiter()

    # -- shares ----------------------------------------------------------------------------------------

    def in_shares(self, share: int) -> Any:
        """Hand out no more than `share` pieces of the input before others had their turn; the input that does so."""
        self._shares = Shares(self._stream, share)
        return self._shares

    def sated(self) -> bool:
        """Whether the input has more, and hands it out when others had their turn."""
        return self._shares is not None and self._shares.spent

    def excuse(self) -> bool:
        """Hand out another share at once, for whoever cannot wait; False if that is not what he waits for."""
        if self._shares is None:
            return False
        spent, self._shares.taken = self._shares.spent, 0
        return spent

    def rests(self) -> bool:
        """Whether whoever is parked only lets others have their turn, and is not called before it comes to him."""
        return self._resting and bool(self._parked)

    def _rested(self) -> None:
        self._resting = False
        self.wake()


class Shares:
    """The input of a stream as those see it who take turns on one thread."""

    __slots__ = ("_share", "_stream", "taken")

    def __init__(self, stream: Stream, share: int) -> None:
        self._stream = stream
        self._share = share
        #: Pieces that were taken since somebody last waited.
        self.taken = 0

    @property
    def spent(self) -> bool:
        """Whether there is more, and it is the turn of others."""
        stream = self._stream
        return self.taken >= self._share and stream.state == "open" and stream.input.unread

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.input, name)

    @property
    def framing(self) -> Any:
        """As the input's."""
        return self._stream.input.framing

    @framing.setter
    def framing(self, framing: Any) -> None:
        self._stream.input.framing = framing

    def _take(self, take: Callable[..., Any], *args: Any) -> Any:
        if self.spent and self._stream.reactor.on_thread:
            return NEED_MORE
        piece = take(*args)
        if piece is not NEED_MORE:
            self.taken += 1
        return piece

    def take_some(self, count: int) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_some, count)

    def take_exactly(self, count: int) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_exactly, count)

    def take_line(self, limit: int) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_line, limit)

    def take_line_up_to(self, size: int) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_line_up_to, size)

    def take_until(self, separator: bytes, limit: int) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_until, separator, limit)

    def take_message(self) -> Any:
        """As the input's."""
        return self._take(self._stream.input.take_message)

    def peek(self) -> Any:
        """As the input's, and a piece as well: whoever looks again and again lets others have their turn."""
        return self._take(self._stream.input.peek)
