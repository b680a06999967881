"""The reactor: the one place that waits for the kernel.

A folder with one contract and its implementations.  `portable.py` is the readable specification, on
`selectors`; a native twin obeys the same contract.  A reactor owns its sockets, their buffers and their
timers, runs on one thread, and calls a `Sink` when something happened.  It knows nothing of handlers,
strategies, servers or events.

Two rules.  Every method of a stream belongs to the reactor's thread; `post` is the only call for others.
And every callback runs with nothing of the reactor half done, so it may call anything, close included.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from longshore.reactor.clock import Clock
    from longshore.reactor.portable import PortableReactor

__all__ = ("Sink", "create")


class Sink(Protocol):
    """Who is told about one stream; all calls come on the reactor's thread."""

    def opened(self) -> None:
        """The stream is ready for plaintext: at once, or after its TLS handshake."""

    def arrived(self) -> None:
        """Input came, or the stream ended (`stream.input.ended`), or failed (`stream.error`)."""

    def drained(self) -> None:
        """Pending output fell to where writing may go on."""

    def idled(self) -> None:
        """`Timeouts.idle` has passed; unless this writes something, the stream ends."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """The stream is gone, for one of the causes of `ConnectionClosed`; called exactly once."""


def create(clock: Clock | None = None) -> tuple[PortableReactor, str]:
    """A reactor and the reason why it is this one.

    `LONGSHORE_REACTOR=portable` asks for one by name, and nothing else is taken then.

    Raises:
        ConfigError: the one asked for does not exist here.
    """
    from longshore.reactor.portable import PortableReactor

    wanted = os.environ.get("LONGSHORE_REACTOR", "")
    if wanted not in ("", "portable"):
        raise ConfigError(
            f"LONGSHORE_REACTOR={wanted!r}: this release has the portable reactor only",
            hint="Unset LONGSHORE_REACTOR, or set it to 'portable'.",
        )
    return PortableReactor(clock), "LONGSHORE_REACTOR asks for it" if wanted else "it is the only one in this release"
