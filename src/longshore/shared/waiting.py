"""Where a verb waits: on the thread, in a greenlet, or in a task.

The only place that knows who may block.  On a thread that turns a reactor or an asyncio loop nothing waits: what would
raises `WouldBlock`, and what is answered at once may be asked where the place is prompt.  Whoever stops waiting gives
back what the verb did in the meantime; a wait of a condition comes back first, as it comes back with the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.errors import WouldBlock
from longshore.shared.places import Verb
from longshore.shared.undoing import undo

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.places import Place, Reply

__all__ = ("ask", "await_reply", "wait")

#: What is awaited in the place of a method, where it is not the same name with an `a` in front.
_TWINS = {"Event.wait": "await_set", "Condition.wait": "await_notified", "Barrier.wait": "await_all"}


def ask(
    place: Place,
    verb: int,
    key: bytes,
    holder: int,
    number: int,
    fields: tuple[bytes, ...],
    what: Callable[[int], str],
) -> Reply:
    """Have a verb done that does not wait; `what(verb)` is what the caller calls it.

    Raises:
        WouldBlock: the place takes its time, and this thread has none.
    """
    if place.is_prompt:
        return place.ask(verb, key, holder, number, 0, fields)
    return wait(place, verb, key, holder, number, 0, fields, what)


def wait(
    place: Place,
    verb: int,
    key: bytes,
    holder: int,
    number: int,
    timeout: float | None,
    fields: tuple[bytes, ...],
    what: Callable[[int], str],
) -> Reply:
    """Have a verb done that may wait: block the thread, or park the greenlet.

    Raises:
        WouldBlock: this thread turns a reactor or a loop.
    """
    if timeout == 0 and place.is_prompt:
        return place.ask(verb, key, holder, number, 0, fields)
    parking = runs.parking()
    if parking is not None:
        return _park(parking, place, verb, key, holder, number, timeout, fields)
    if runs.running_loop() is not None:
        called = what(verb)
        name, _, method = called.rpartition(".")
        twin = f"await {name}.{_TWINS.get(called, 'a' + method)}()"
        if method == "acquire":
            twin = f"`async with`, or {twin}"
        raise WouldBlock(f"{called}() could wait, and this thread runs an event loop", hint=f"Take {twin}.")
    if runs.reactor() is not None:
        raise WouldBlock(
            f"{what(verb)}() could wait, and this thread turns a reactor",
            hint='Serve with strategy="threads" or "green", or call it with timeout=0.',
        )
    return place.ask(verb, key, holder, number, timeout, fields)


class _Outcome:
    """What came of a verb, or who will deal with it."""

    __slots__ = ("_undo", "abandoned", "reply", "wake")

    def __init__(self, wake: Any, *undoing: Any) -> None:
        self.reply: Reply | BaseException | None = None
        self.wake = wake
        self.abandoned = False
        self._undo: Any = undoing

    def __call__(self, reply: Reply | BaseException) -> None:
        self.reply = reply
        if self.abandoned:
            self.give_back()
        else:
            self.wake()

    def give_back(self) -> None:
        """Undo what was done for somebody who is gone."""
        if self.reply is not None and not isinstance(self.reply, BaseException):
            try:
                place, verb, key, holder, number = self._undo
                undo(place, verb, key, holder, number, self.reply)
            except ConnectionError:
                # The place is gone, and what was done with it.
                pass

    def abandon(self) -> None:
        """Nobody waits any more."""
        self.abandoned = True
        self.give_back()

    def result(self) -> Reply:
        """The reply."""
        reply = self.reply
        assert reply is not None
        if isinstance(reply, BaseException):
            raise reply
        return reply


def _park(
    parking: Any,
    place: Place,
    verb: int,
    key: bytes,
    holder: int,
    number: int,
    timeout: float | None,
    fields: tuple[bytes, ...],
) -> Reply:
    import greenlet

    me = greenlet.getcurrent()
    hub = me.parent
    assert hub is not None
    parked, started = [False], [False]

    def resume() -> None:
        if parked[0]:
            me.switch()

    def wake() -> None:
        # What is done at once, on what is lent, needs nobody to be woken.
        if started[0]:
            parking.reactor.post(resume)

    outcome = _Outcome(wake, place, verb, key, holder, number)
    on_its_way = place.start(outcome, verb, key, holder, number, timeout, fields)
    started[0] = True
    thrown: BaseException | None = None
    while outcome.reply is None:
        parked[0] = True
        try:
            hub.switch()
        except BaseException as error:
            on_its_way.cancel()
            thrown = thrown or error
            if verb != Verb.WAIT:
                outcome.abandon()
                raise
        finally:
            parked[0] = False
    if thrown is not None:
        raise thrown
    return outcome.result()


async def await_reply(
    place: Place,
    verb: int,
    key: bytes,
    holder: int,
    number: int = 0,
    timeout: float | None = 0,
    fields: tuple[bytes, ...] = (),
) -> Reply:
    """Have a verb done, and await its reply."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if runs.running_loop() is loop:
            settle()
        else:
            loop.call_soon_threadsafe(settle)

    def settle() -> None:
        if not future.done():
            future.set_result(None)

    outcome = _Outcome(wake, place, verb, key, holder, number)
    on_its_way = place.start(outcome, verb, key, holder, number, timeout, fields)
    cancelled: asyncio.CancelledError | None = None
    while outcome.reply is None:
        try:
            await future
        except asyncio.CancelledError as error:
            on_its_way.cancel()
            cancelled = cancelled or error
            if verb != Verb.WAIT:
                outcome.abandon()
                raise
            future = loop.create_future()
        except BaseException:
            on_its_way.cancel()
            outcome.abandon()
            raise
    if cancelled is not None:
        raise cancelled
    return outcome.result()
