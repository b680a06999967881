"""The states of a connection and of a server, as two tables.

Two rules: everything that changes a state goes through a `Machine` of this file, and this file does not
know who asks.  A transition that is not in the table is a bug of ours, never of the user, so it is an
`InternalError`.
"""

from __future__ import annotations

from typing import Final

from longshore.errors import InternalError

__all__ = ("CONNECTION", "SERVER", "Machine")

#: A connection: `opening` is its TLS handshake, `closing` flushes and lingers.
CONNECTION: Final[dict[str, frozenset[str]]] = {
    "opening": frozenset({"open", "closing", "closed"}),
    "open": frozenset({"opening", "closing", "closed"}),
    "closing": frozenset({"closed"}),
    "closed": frozenset(),
}

#: A server: `draining` waits for what is owed, `stopping` ends what is left.
SERVER: Final[dict[str, frozenset[str]]] = {
    "new": frozenset({"starting", "stopped"}),
    "starting": frozenset({"serving", "stopping", "stopped"}),
    "serving": frozenset({"paused", "draining", "stopping"}),
    "paused": frozenset({"serving", "draining", "stopping"}),
    "draining": frozenset({"stopping"}),
    "stopping": frozenset({"stopped"}),
    "stopped": frozenset(),
}


class Machine:
    """One state of one table; starts in the table's first."""

    __slots__ = ("_table", "state")

    def __init__(self, table: dict[str, frozenset[str]]) -> None:
        self._table = table
        self.state = next(iter(table))

    def to(self, state: str) -> None:
        """Move to `state`.

        Raises:
            InternalError: the table has no such transition.
        """
        if state not in self._table[self.state]:
            raise InternalError(f"no way leads from {self.state!r} to {state!r}")
        self.state = state
