"""Who hears of a server's events, and what becomes of failures that nobody hears of.

The only place in the core that logs, and only failures for which there is no subscriber.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.events import HandlerFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.events import Event

__all__ = ("Subscribers", "log_failure")


class Subscribers:
    """The observers of one server."""

    def __init__(self) -> None:
        #: Each with the kinds of events that it wants; none are all.
        self._observers: tuple[tuple[Callable[[Event], object], tuple[type[Event], ...]], ...] = ()
        #: The kinds that somebody wants by name, and whether somebody wants all.
        self._kinds: frozenset[type[Event]] = frozenset()
        self._all = False
        #: How many handlers have failed.
        self.failures = 0

    def add(self, observer: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call `observer(event)` for every event, or for those of these `kinds`; returns how to stop that."""
        entry = (observer, kinds)
        self._set((*self._observers, entry))

        def remove() -> None:
            self._set(tuple(item for item in self._observers if item is not entry))

        return remove

    def _set(self, observers: tuple[tuple[Callable[[Event], object], tuple[type[Event], ...]], ...]) -> None:
        self._observers = observers
        self._kinds = frozenset(kind for _, kinds in observers for kind in kinds)
        self._all = any(not kinds for _, kinds in observers)

    def wants(self, kind: type[Event]) -> bool:
        """Whether somebody would hear of an event of this kind: one that is frequent need not be made else."""
        return self._all or kind in self._kinds

    def emit(self, event: Event) -> None:
        """Hand `event` to everybody who wants it; without anybody, a failure goes to the `longshore` logger."""
        if isinstance(event, HandlerFailed):
            self.failures += 1
        kind, unheard = type(event), True
        for observer, kinds in self._observers:
            if kinds and kind not in kinds:
                continue
            unheard = False
            try:
                observer(event)
            except Exception as error:
                # An observer that fails must not harm what it observes; it is told on the one channel left.
                log_failure(HandlerFailed(handler=f"the observer {observer!r}", peer=None, error=error))
        if unheard:
            log_failure(event)


def log_failure(event: Event) -> None:
    """Log one line if `event` is a warning or an error, with the traceback if a handler failed."""
    if event.level not in ("WARNING", "ERROR"):
        return
    try:
        import logging
    except OSError:
        # Without a descriptor it cannot be read, and whoever has failed for want of one goes on.
        return
    logger = logging.getLogger("longshore")
    fields = event.as_dict()
    name = fields.pop("event")
    error = fields.pop("error", None)
    if isinstance(event, HandlerFailed):
        where = "" if event.peer is None else f" for {event.peer}"
        logger.error("%s failed%s", event.handler, where, exc_info=event.error)
    else:
        text = ", ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        logger.warning("%s: %s%s", name, text, "" if error is None else f": {error}")
