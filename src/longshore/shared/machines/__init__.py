"""The objects of the local broker: a folder with one contract, `Machine`, and a family of them per file.

Pure: verbs in, replies out, no socket, thread or clock.  A machine keeps one named object; who waits for it stands in
lines, in order of arrival.  It answers and lets wait through the `Core`, which knows clients, holders and time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from longshore.shared.places import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from longshore.shared.core import Core, Owner
    from longshore.shared.wire import Request

__all__ = ("MOST_LENT", "Line", "Machine")

#: Values or items that an object may have to be lent.
MOST_LENT = 1024


class Line(OrderedDict[Any, None]):
    """Requests that wait, in order; any of them may leave at any time."""

    def first(self) -> Request:
        """Take the one that has waited longest."""
        request: Request = self.popitem(last=False)[0]
        request.line = None
        return request


class Machine:
    """One named object."""

    def __init__(self, core: Core, parameters: bytes) -> None:
        self.core = core
        self.parameters = parameters

    def left(self, request: Request, status: Status | None) -> None:
        """A request that waited is out of its line: late, cancelled, or (None) its holder or client is gone."""
        if status is not None:
            self.core.reply(request, status)

    def snapshot(self, client: object) -> list[bytes] | None:
        """All of it, as `client` may know it, to be lent; None if it cannot be, or somebody waits."""
        return None

    def restore(self, parts: Sequence[bytes], owner: Callable[[int], Owner]) -> None:
        """Be what `snapshot` has told; `owner` gives the client's holders by number."""
        raise NotImplementedError(f"{type(self).__name__} is never lent")

    def released(self, owner: Owner, held: Any) -> None:
        """A holder has ended that still has `held` of this object, as noted in `Owner.held`."""

    def client_gone(self, client: object) -> None:
        """A client that this object was to be told of (`Core.watch`) is gone."""
