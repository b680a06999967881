"""The listening sockets of a program that has several processes: bound once, kept while processes come and go.

The only place that knows which sockets belong to which address, from one configuration to the next.  What is asked for
again stays as it is, with all that waits in its queue; what is new is bound; what is not asked for any more is closed
only once nobody serves it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from longshore.listeners import Listener, bind

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("Anchorage", "Target")

Target = str | socket.socket | Listener


class Anchorage:
    """Bound sockets by the address that they were asked for with."""

    def __init__(self) -> None:
        self._bound: dict[Target, list[Listener]] = {}

    def adopt(self, target: str, listener: Listener) -> None:
        """A socket that another process has bound for `target`."""
        self._bound.setdefault(target, []).append(listener)

    def bind(self, targets: Iterable[Target]) -> list[Listener]:
        """The sockets of `targets`, in their order; after an error there are those of before, and no others.

        Raises:
            AddressError: one of them cannot be bound.
        """
        before = set(self._bound)
        found: list[Listener] = []
        try:
            for target in targets:
                if target not in self._bound:
                    self._bound[target] = bind(target)
                found += self._bound[target]
        except BaseException:
            self.keep(before)
            raise
        return found

    def keep(self, targets: Iterable[Target]) -> None:
        """Close all others."""
        kept = set(targets)
        for target in [item for item in self._bound if item not in kept]:
            for listener in self._bound.pop(target):
                listener.close()

    @property
    def listeners(self) -> list[tuple[str, Listener]]:
        """All that are bound, each with what it was asked for as."""
        return [
            (target if isinstance(target, str) else listener.url, listener)
            for target, listeners in self._bound.items()
            for listener in listeners
        ]

    def hand_over(self) -> None:
        """Another program has them all, and their files: close nothing of theirs."""
        for _, listener in self.listeners:
            listener.hand_over()

    def close(self) -> None:
        """Close all."""
        self.keep(())
