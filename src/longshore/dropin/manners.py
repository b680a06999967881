"""What a `socketserver` says of itself: the attributes that Longshore reads, and how its class treats requests.

The only place that reads `limits`, `timeouts` and `tls` of a server that may be anybody's: a program that was written
without Longshore may mean something else by these names.  Nothing here serves.
"""

from __future__ import annotations

import os
import socketserver as standard
from dataclasses import dataclass, replace
from typing import Any

from longshore.config import TLS, Limits, Timeouts
from longshore.errors import ConfigError

__all__ = ("CHILDREN", "GREEN", "INLINE", "THREADS", "UNLIMITED", "Attributes", "Manner")

#: No timeout at all: quiet clients of programs that were written without them are not cut.
UNLIMITED = Timeouts(
    handshake=None,
    first_byte=None,
    idle=None,
    write=None,
    drain=None,
    lifetime=None,
    linger=None,
    blocked=None,
    min_rate=None,
)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a class of servers treats its requests."""

    #: What handlers get of a stream: a guarded "socket", a "connection" of the reactor, or (None) what accept(2) gave.
    requests: str | None
    #: Whether handlers run on the serving thread, which then does nothing else.
    holds_loop: bool = False
    #: What bounds the requests that are with their handlers at once; None: nothing but `max_connections`.
    bound: str | None = None


INLINE = Manner("socket", holds_loop=True)
THREADS = Manner("socket", bound="max_threads")
GREEN = Manner("connection")
CHILDREN = Manner(None, bound="max_children")


class Attributes:
    """The attributes of one server, as they are now."""

    def __init__(self, server: Any, manner: Manner) -> None:
        self._server = server
        self._manner = manner
        self._tls: tuple[TLS, Any] | None = None

    @property
    def limits(self) -> Limits:
        """`limits` of the server; a program that means something else by that name has the defaults."""
        limits = getattr(self._server, "limits", None)
        return limits if isinstance(limits, Limits) else Limits()

    @property
    def timeouts(self) -> Timeouts:
        """`timeouts` of the server; a program that means something else by that name has none."""
        timeouts = getattr(self._server, "timeouts", None)
        return timeouts if isinstance(timeouts, Timeouts) else UNLIMITED

    def tls_context(self) -> Any:
        """The context of the server's `tls`; None without.

        Raises:
            ConfigError: `tls` is something else: to serve in clear then would be worse than not to serve.
        """
        tls = getattr(self._server, "tls", None)
        if not tls:
            return None
        if not isinstance(tls, TLS):
            raise ConfigError(
                f"{type(self._server).__name__}.tls={tls!r}: must be TLS(certfile=..., keyfile=...) or None",
                hint="Pass a context of your own as TLS(context=...); give another attribute another name.",
            )
        if self._tls is None or self._tls[0] is not tls:
            from longshore.tls import server_context

            self._tls = tls, server_context(tls)
        return self._tls[1]

    def capacity(self, limits: Limits) -> int | None:
        """How many requests may be with their handlers at once; None where that is not bounded."""
        if self._manner.bound == "max_children":
            return int(self._server.max_children)
        return limits.max_threads if self._manner.bound == "max_threads" else None

    def has_deadlines(self) -> bool:
        """Whether a connection may be cut while its handler runs."""
        return replace(self.timeouts, linger=None, drain=None, blocked=None) != UNLIMITED

    def has_service_actions(self) -> bool:
        """Whether `service_actions` does something that is not done already."""
        function = getattr(self._server.service_actions, "__func__", None)
        if function is standard.BaseServer.service_actions:
            return False
        reaps = function is getattr(getattr(standard, "ForkingMixIn", None), "service_actions", None)
        return not (reaps and hasattr(os, "pidfd_open"))
