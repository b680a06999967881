"""Children that `ForkingMixIn` has forked, and their end.

A child is reaped as soon as it ends, whether or not another request comes: a descriptor of the process (pidfd_open(2))
tells the serving loop.  Where the system has none, `service_actions` does it, as in the standard library.
"""

from __future__ import annotations

import contextlib
import os
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.portable import PortableReactor

__all__ = ("Children",)


class Children:
    """The children of one server that have not been reaped."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()

    def watch(self, child: int, loop: PortableReactor, ended: Callable[[], object]) -> None:
        """Call `ended()` on the loop once the child has ended, and was reaped."""
        if not hasattr(os, "pidfd_open"):
            ended()
            return
        descriptor = os.pidfd_open(child)
        self._descriptors.add(descriptor)

        def reap(_events: int) -> None:
            loop.watch(descriptor, 0, reap)
            self._close(descriptor)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
            ended()

        loop.watch(descriptor, selectors.EVENT_READ, reap)

    def _close(self, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        os.close(descriptor)

    def release(self) -> None:
        """Watch no more; whoever is left must be waited for by other means."""
        for descriptor in tuple(self._descriptors):
            self._close(descriptor)
