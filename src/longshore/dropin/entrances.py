"""Entrances: how requests come to a `socketserver`, whose `get_request` may be anybody's.

One contract, opened on the serving loop and closed with it: `Front` accepts connections through admission, `Hatch`
takes whatever else a server's descriptor tells of.  Neither calls a hook by itself.
"""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING, Any

from longshore.addresses import AddressOptions
from longshore.limits import Gate
from longshore.listeners import url_of
from longshore.reactor.acceptor import as_accept_failure

if TYPE_CHECKING:
    import socket

    from longshore.dropin.hosting import Hosting
    from longshore.reactor.portable import PortableReactor
    from longshore.strategies.hooked import Arrival

__all__ = ("Front", "Hatch")


class Front:
    """The listening socket of a server, whose connections come through its `get_request`."""

    is_tls = False
    #: `get_request` is called only when the kernel has told of somebody, as in the standard library.
    burst = 1
    #: Whether small writes are sent at once is for handlers to say (`disable_nagle_algorithm`).
    options = AddressOptions(nodelay=False)
    hands_down = True

    def __init__(self, hosting: Hosting, sock: socket.socket) -> None:
        self._hosting = hosting
        self.socket = sock
        self.family = int(sock.family)
        self.url = hosting.url = url_of(sock)

    def accept(self) -> tuple[Arrival, Any]:
        """The next request, and its peer's address.

        Raises:
            OSError: there is none; what `get_request` gave up on is a connection that died in between.
        """
        try:
            arrival = self._hosting.next_arrival()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                self._hosting.attempted()
            raise as_accept_failure(error) from error
        return arrival, arrival.client_address


class Hatch:
    """Any other source of requests (datagrams, descriptors of all kinds): one each time that it is ready."""

    def __init__(self, hosting: Hosting, loop: PortableReactor) -> None:
        self._hosting = hosting
        self._loop = loop
        self._gate = Gate(hosting.manner.bound or "", hosting.attributes.capacity(hosting.limits))
        self._descriptor = hosting.server.fileno()
        self._open = True
        self._watch(True)

    def _watch(self, wanted: bool) -> None:
        self._loop.watch(self._descriptor, selectors.EVENT_READ if wanted else 0, self._ready)

    def _ready(self, _events: int) -> None:
        if not self._gate.enter():
            self._watch(False)
            return
        try:
            arrival = self._hosting.next_arrival()
        except OSError:
            # As in the standard library: it was nothing, or nothing that could be served.
            self._gate.leave()
            self._hosting.attempted()
            return
        arrival.take_place(lambda: self._hosting.post(self._left))
        self._hosting.welcome(arrival)

    def _left(self) -> None:
        self._gate.leave()
        if self._open:
            self._watch(True)

    def close(self) -> None:
        """Watch no more."""
        self._watch(False)
        self._open = False
