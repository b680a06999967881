"""Giving back what a verb did for somebody who does not wait any more: the only place that knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.shared.places import Status, Verb

if TYPE_CHECKING:
    from longshore.shared.places import Place, Reply

__all__ = ("undo",)


def undo(place: Place, verb: int, key: bytes, holder: int, number: int, reply: Reply) -> None:
    """Undo what `reply` says was done; `number` is that of the request."""
    if reply.status != Status.OK:
        return
    if verb == Verb.ACQUIRE:
        place.tell(Verb.RELEASE, key, holder)
    elif verb == Verb.GET and reply.number:
        place.tell(Verb.REQUEUE, key, holder, reply.number)
    elif verb == Verb.GET:
        place.tell(Verb.UNGET, key, holder, 0, (reply.fields[0],))
    elif verb == Verb.TAKE_MESSAGE:
        place.tell(Verb.UNSEND, key, holder, number, (reply.fields[0],))
