"""Datagrams: whole messages with an address each way; the readable specification.

The only place that knows the control messages of recvmsg(2): where a datagram was sent to (PKTINFO), so
that a reply leaves from there, and whether it was cut short (MSG_TRUNC).  It has no sessions and no queue:
what cannot be sent at once is given back to the sender as an error, as datagrams have no backpressure.

The native twin (`rust/src/python/datagrams.rs`) takes and sends them by the batch: while it hands a batch over, answers
wait for its end, and what the system refuses then is told to `send_failed`.
"""

from __future__ import annotations

import selectors
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

from longshore.packets import Packets

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.portable import PortableReactor

__all__ = ("DatagramOwner", "Datagrams")

#: The largest UDP payload is 65,507 bytes over IPv4 and 65,527 over IPv6; Unix sockets may send more.
BUFFER = 65_535
#: Datagrams per turn, so that a flood on one socket leaves time for all.
BURST = 64

_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", 50)
_CONTROL = 128


class DatagramOwner(Protocol):
    """Who gets the datagrams; all calls come on the reactor's thread."""

    def received(self, batch: list[bytes], address: Any, info: Any) -> None:
        """Datagrams of one peer, in their order; `info` is given back to `send` to reply from the address asked.

        Here it is always one.  The native twin gives all that stand in a row, or all of the peer's that have come if
        that was asked for (`batches`).
        """

    def truncated(self, size: int, address: Any) -> None:
        """A datagram was longer than the buffer; `size` bytes of it came, which nobody gets."""

    def receive_failed(self, error: OSError) -> None:
        """The kernel reported an error, as it does when an earlier reply found nobody (ICMP)."""

    def send_failed(self, size: int, address: Any, error: OSError) -> None:
        """A reply of `size` bytes that `send` had put off was refused."""

    def peer(self, address: Any, info: Any) -> Any:
        """What a handler that was given to `dispatch` sees of a sender."""

    def failed(self, peer: Any, error: BaseException, size: int) -> None:
        """That handler, or sending what it returned, raised an `Exception`; anything else leaves the reactor."""


class Datagrams:
    """One datagram socket on a reactor; starts running."""

    def __init__(self, reactor: PortableReactor, sock: socket.socket, owner: DatagramOwner) -> None:
        self._reactor = reactor
        self.socket = sock
        self._owner = owner
        self._packets = Packets(sock)
        self._running = False
        self._call: Callable[[bytes, Any], Any] | None = None
        #: Datagrams that have come.
        self.count = 0
        sock.setblocking(False)
        self.resume()

    def dispatch(self, call: Callable[[bytes, Any], Any] | None = None, *, batches: bool = False) -> None:
        """Hand each datagram to `call(data, peer)` and send what it returns; without one, all go to the owner.

        `batches` says that the owner takes what has come of each peer at once, whatever came from others in between.
        """
        self._call = call

    def keep(self) -> None:
        """Say that something was left in the peer whose datagram is being handled.

        The native twin gives one peer object again and again to a handler that keeps nothing of it.
        """

    def pause(self) -> None:
        """Read nothing until `resume`; the kernel's buffer holds what comes, and drops what does not fit."""
        if self._running:
            self._running = False
            self._reactor.watch(self.socket, 0, self._ready)

    def resume(self) -> None:
        """Read again."""
        if not self._running:
            self._running = True
            self._reactor.watch(self.socket, selectors.EVENT_READ, self._ready)

    def receive_queued(self) -> None:
        """Read all that is in the kernel's buffer now."""
        self._burst(1 << 16)

    def send(self, data: bytes, address: Any, info: Any = None) -> None:
        """Send one datagram, from any thread.

        Raises:
            OSError: the kernel refused it; BlockingIOError when its buffer is full.
        """
        if info is None:
            if address:
                self.socket.sendto(data, address)
            else:
                self.socket.send(data)
        else:
            self.socket.sendmsg([data], [info], 0, address)

    def _ready(self, _events: int) -> None:
        self._burst(BURST)

    def _burst(self, limit: int) -> None:
        for _ in range(limit):
            if not self._running:
                return
            try:
                data, control, flags, address = self.socket.recvmsg(BUFFER, _CONTROL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._owner.receive_failed(error)
                return
            self.count += 1
            data, info = self._packets.payload(data), _reply_info(control)
            if flags & socket.MSG_TRUNC:
                self._owner.truncated(len(data), address)
            elif self._call is None:
                self._owner.received([data], address, info)
            else:
                self._handle(self._call, data, self._owner.peer(address, info))

    def _handle(self, call: Callable[[bytes, Any], Any], data: bytes, peer: Any) -> None:
        try:
            reply = call(data, peer)
            if reply is not None:
                peer.send(reply)
        except Exception as error:
            self._owner.failed(peer, error, len(data))


def _reply_info(control: list[tuple[int, int, bytes]]) -> tuple[int, int, bytes] | None:
    """The control message that makes a reply leave from where the datagram arrived (ip(7), ipv6(7))."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # in_pktinfo: interface, local address to send from, address in the header.  The interface is left to
            # routing: naming it would break replies through another one.
            _interface, local, _header = struct.unpack("=I4s4s", data[:12])
            return level, kind, struct.pack("=I4s4s", 0, local, b"\0\0\0\0")
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            address, interface = data[:16], data[16:20]
            # A link-local address means nothing without its interface.
            scoped = address[0] == 0xFE and address[1] & 0xC0 == 0x80
            return level, kind, address + (interface if scoped else b"\0\0\0\0")
    return None
