"""How a descriptor is looked at on a thread that must not block: by the thread's own loop or reactor.

The only file of the shared primitives that asks either to watch, or to call later.
"""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("called_later", "watched")


def watched(source: Any, callback: Callable[..., object], *, writable: bool = False) -> Callable[[], object]:
    """Call `callback` whenever `source` is readable (or `writable`); what is returned stops that.

    Raises:
        InternalError: this thread has neither a loop nor a reactor.
    """
    loop = runs.running_loop()
    if loop is not None:
        number = source.fileno()
        if writable:
            loop.add_writer(number, callback)
            return lambda: loop.is_closed() or loop.remove_writer(number)
        loop.add_reader(number, callback)
        return lambda: loop.is_closed() or loop.remove_reader(number)
    reactor = _reactor()
    reactor.watch(source, selectors.EVENT_WRITE if writable else selectors.EVENT_READ, callback)
    return lambda: reactor.closed or reactor.watch(source, 0, callback)


def called_later(seconds: float, callback: Callable[[], object]) -> Any:
    """Call `callback` in `seconds`, unless what is returned is cancelled before."""
    loop = runs.running_loop()
    return (_reactor() if loop is None else loop).call_later(seconds, callback)


def _reactor() -> Any:
    reactor = runs.reactor()
    if reactor is None:
        raise InternalError("nothing on this thread could watch the broker's replies")
    return reactor
