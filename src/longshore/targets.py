"""What a server is asked to listen on, checked before anything is bound.

The only place that judges addresses, handler, framing and TLS together.  It opens nothing.
"""

from __future__ import annotations

import contextlib
from socket import socket
from typing import TYPE_CHECKING, Any

from longshore.addresses import Address, inherited_descriptors, parse
from longshore.errors import ConfigError, LongshoreError
from longshore.framing.fields import check_framing
from longshore.handlers import check_addresses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from longshore.certificates import Certificates
    from longshore.config import TLS
    from longshore.framing import Framing
    from longshore.handlers import Handler
    from longshore.listeners import Listener

__all__ = ("Targets", "check_parts")


class Targets:
    """Addresses, ready-made sockets and bound listeners, in the order given.

    Raises:
        ConfigError: there are none, a URL is no good, the handler cannot serve one, or TLS has no certificate, or the
            certificate no address.
    """

    def __init__(
        self,
        given: Iterable[str | socket | Listener],
        handler: Handler,
        framing: Framing | None,
        tls: TLS | None,
    ) -> None:
        check_framing(framing)
        self.items = [parse(item) if isinstance(item, str) else item for item in given]
        if not self.items:
            raise ConfigError("a server needs an address", hint='For instance "tcp://127.0.0.1:5000".')
        addresses = [item for item in self.items if isinstance(item, Address)]
        # What a socket, an inherited one too, turns out to be is seen once it is bound.
        known = [item for item in addresses if item.scheme not in ("fd", "systemd")]
        check_addresses(handler, framing, [(_kind(item), item.text) for item in known])
        #: The `ssl.SSLContext` of the addresses that speak TLS; None if none does.
        self.tls_context: Any = None
        #: What that context was made from.
        self.certificates: Certificates | None = None
        if any(getattr(item, "is_tls", False) for item in self.items):
            from longshore.certificates import Certificates
            from longshore.config import TLS

            self.certificates = Certificates(tls or TLS())
            self.tls_context = self.certificates.context
        elif tls is not None:
            # Whoever gives a certificate must not serve in clear without knowing.
            raise ConfigError(
                "tls= is given, and no address of this server speaks TLS",
                hint='Write tls://host:port, or ?tls=1 behind another URL ("unix:///path?tls=1", "fd://3?tls=1").',
            )

    @property
    def descriptors(self) -> set[int]:
        """Those that this process was given, or has made, before the server binds."""
        found: set[int] = set()
        for item in self.items:
            if isinstance(item, socket):
                found.add(item.fileno())
            elif not isinstance(item, Address):
                found |= item.descriptors
            elif item.scheme in ("fd", "systemd"):
                # Whoever binds says what is wrong with it.
                with contextlib.suppress(LongshoreError):
                    found.update(inherited_descriptors(item))
        return found - {-1}


def check_parts(workers: Any, shared: Any, pool: Any) -> None:
    """Check what a server that is part of a program gets from it.

    Raises:
        ConfigError: more workers than one, or what is no place or no pool.
    """
    if workers != 1:
        raise ConfigError(
            f"workers={workers!r}: a Server that is part of a program is one process",
            hint="serve(handler, ..., workers=N) and longshore serve --workers N run more.",
        )
    if shared is not None and not hasattr(shared, "url"):
        raise ConfigError(f"shared={shared!r}: is no place", hint="Pass shared.join(url); serve() takes the URL.")
    if pool is not None and not callable(getattr(pool, "submit", None)):
        raise ConfigError(f"pool={pool!r}: a server takes a pool", hint="Pass Pool(...); serve() and --pool make one.")


def _kind(address: Address) -> str:
    if address.is_stream:
        return "stream"
    return "seqpacket" if address.scheme == "seqpacket" else "datagram"
