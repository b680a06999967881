"""Who waits for something to happen to a stream, and is called once when it does.

The only place that knows the parked of a portable stream.  Each is called in a callback of its own: whoever caused the
event must be through before anybody else goes on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.stream import Stream

__all__ = ("Waiters",)


class Waiters:
    """The parked of one stream."""

    __slots__ = ("_expecting", "_parked", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._parked: list[Callable[[], object]] = []
        #: Whether the first of them waits for input.
        self._expecting = False

    def park(self, waiter: Callable[[], object]) -> None:
        """Call `waiter` once, when next there is something to tell the sink."""
        self._parked.append(waiter)

    def expect(self, waiter: Callable[[], object]) -> bool:
        """Want input, and call `waiter` once as `park` does; False, and nothing done, where that takes more."""
        stream = self._stream
        if stream.state != "open" or self._parked or not stream.reactor.on_thread:
            return False
        self._expecting = True
        stream.want_input(True)
        self._parked.append(waiter)
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
            for waiter in parked:
                self._stream.reactor.again(functools.partial(self._resume, waiter))

    def _expected(self) -> None:
        if self._expecting:
            self._expecting = False
            self._stream.want_input(False)

    def _resume(self, waiter: Callable[[], object]) -> None:
        self._stream.reactor.current = self._stream
        waiter()
