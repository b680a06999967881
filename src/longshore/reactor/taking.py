"""Taking input of a stream in coroutines: the readable specification of `longshore._native.Taking`.

These are methods of `Stream`.  They try first, and wait by their link only where that finds too little; a native stream
makes no coroutine for what has come already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.framing import NEED_MORE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from longshore.reactor.stream import Stream

__all__ = ("DONE", "taking", "taking_line", "taking_some")


async def taking(
    stream: Stream, link: Any, timeout: float | None, take: Callable[..., Any], first: Any = None, second: Any = None
) -> Any:
    """What `take(first, second)` answers; as long as that is `NEED_MORE`, `link.input_came(timeout)` is awaited."""
    given = tuple(argument for argument in (first, second) if argument is not None)
    while (piece := take(*given)) is NEED_MORE:
        await link.input_came(timeout)
    return piece


def taking_line(stream: Stream, link: Any, timeout: float | None, limit: int) -> Coroutine[Any, Any, bytes]:
    """As `taking` a line."""
    return taking(stream, link, timeout, link.input.take_line, limit)


def taking_some(stream: Stream, link: Any, timeout: float | None, count: int) -> Coroutine[Any, Any, bytes]:
    """As `taking` what is there, up to `count` bytes."""
    return taking(stream, link, timeout, link.input.take_some, count)


class _Done:
    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


#: An awaitable with nothing to wait for; one serves all.
DONE = _Done()
