"""The reactor: the one place that waits for the kernel.

A folder with one contract and its implementations.  `portable.py` is the readable specification, on
`selectors`; `native.py` obeys the same contract, in Rust.  A reactor owns its sockets, their buffers and their
timers, runs on one thread, and calls a `Sink` when something happened.  It knows nothing of handlers,
strategies, servers or events.

Two rules.  Every method of a stream belongs to the reactor's thread; `post` is the only call for others.
And every callback runs with nothing of the reactor half done, so it may call anything, close included.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from longshore.reactor.clock import Clock
    from longshore.reactor.portable import PortableReactor
    from longshore.reactor.stream import Stream

__all__ = ("Sink", "create")


class Sink(Protocol):
    """Who is told about one stream; all calls come on the reactor's thread.

    One whose stream is read by coroutines has a `link` besides, through which they wait.
    """

    def attach(self, stream: Stream) -> None:
        """`stream` is it: at first, and again where another takes the place of the one before."""

    def opened(self) -> None:
        """The stream is ready for plaintext: at once, or after its TLS handshake."""

    def arrived(self) -> None:
        """Input came, or the stream ended (`stream.input.ended`), or failed (`stream.error`).

        A native stream leaves this out where the messages are dispatched, or somebody is parked, and the portable one
        where he rests, unless `telling`.
        """

    def drained(self) -> None:
        """Pending output fell to where writing may go on.

        A native stream leaves this out where nobody could have seen output pending, unless `telling`.
        """

    def near(self) -> None:
        """Pending output has come to 80 % of its limit, for the first time since it was last below 60 %."""

    def idled(self) -> None:
        """`Timeouts.idle` has passed; unless this writes something, the stream ends."""

    def closed(self, cause: str, error: BaseException | None) -> None:
        """The stream is gone, for one of the causes of `ConnectionClosed`; called exactly once."""


def create(clock: Clock | None = None) -> tuple[PortableReactor, str]:
    """A reactor and the reason why it is this one.

    `LONGSHORE_REACTOR=native` or `portable` asks for one by name, and nothing else is taken then.  The type is that of
    the portable one, which is the contract; a native one has the same names.

    Raises:
        ConfigError: the one asked for does not exist here.
    """
    wanted = os.environ.get("LONGSHORE_REACTOR", "")
    if wanted not in ("", "portable", "native"):
        raise ConfigError(
            f"LONGSHORE_REACTOR={wanted!r}: there is no such reactor",
            hint="Unset LONGSHORE_REACTOR, or set it to 'native' or 'portable'.",
        )
    if wanted != "portable":
        try:
            from longshore.reactor.native import NativeReactor
        except ImportError as error:
            if wanted:
                raise ConfigError(
                    f"LONGSHORE_REACTOR='native': the native reactor cannot be loaded: {error}",
                    hint="Install Longshore from a wheel, or where Rust is; LONGSHORE_NATIVE=require says why not.",
                ) from error
        else:
            native: Any = NativeReactor(clock)
            return native, "LONGSHORE_REACTOR asks for it" if wanted else "it was built"
    from longshore.reactor.portable import PortableReactor

    return PortableReactor(clock), "LONGSHORE_REACTOR asks for it" if wanted else "the native one was not built"
