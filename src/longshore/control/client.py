"""The other side of the control socket: what `longshore ctl` and `longshore top` ask with.

The only place that connects to it.  It knows verbs by name only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from longshore.client import connect
from longshore.control.commands import FRAMING, default_path
from longshore.errors import AddressUnavailable, LongshoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Commanded", "Disobeyed")


class Disobeyed(LongshoreError):
    """The server said no; the message and the hint are its own."""


class Commanded:
    """A connection to one server's control socket; a context manager.

    Args:
        path: the socket's file; None looks where `LONGSHORE_CONTROL` says, then in the user's runtime directory.
        timeout: seconds for each answer.

    Raises:
        ConfigError: there is no path to look at.
        AddressError: nobody listens there, or not for this user.
    """

    def __init__(self, path: str | None = None, timeout: float = 310.0) -> None:
        self.path = path or os.environ.get("LONGSHORE_CONTROL", "") or default_path()
        if self.path == "default":
            self.path = default_path()
        url = self.path if "://" in self.path else f"unix://{os.path.abspath(self.path)}"
        try:
            self._connection = connect(url, FRAMING, timeout)
        except AddressUnavailable as error:
            raise AddressUnavailable(
                f"no server listens for commands at {self.path}",
                hint="Start it with longshore serve ... --control PATH, and name the same path here.",
            ) from error

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The result of one command.

        Raises:
            Disobeyed: the server cannot, or will not.
            PeerClosed: it has ended meanwhile.
            ReadTimeout: it does not answer.
        """
        self._connection.send({"verb": verb, **arguments})
        while "ok" not in (answer := self._connection.receive()):
            pass
        if not answer["ok"]:
            raise Disobeyed(answer.get("error", "refused"), hint=answer.get("hint", ""))
        return answer.get("result")

    def told(self) -> Iterator[dict[str, Any]]:
        """What is told unasked, after `trace`, until the server ends; waits for as long as it takes."""
        self._connection.settimeout(None)
        yield from self._connection

    def close(self) -> None:
        """Ask no more."""
        self._connection.close()

    def __enter__(self) -> Commanded:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
