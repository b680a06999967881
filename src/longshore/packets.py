"""Packets: what is particular to sockets whose every read and write is one message.

The only place that knows how datagrams, SOCK_SEQPACKET and raw sockets differ there.  It waits for nothing.

Facts, and what follows from them:

* recv(2) gives 0 bytes for an empty datagram, and on SOCK_SEQPACKET at the end of the connection too.  So an empty
  datagram is a message like any other, and an empty packet cannot be sent on SOCK_SEQPACKET.
* A raw IPv4 socket receives the IP header before each packet, though it sends none; a raw IPv6 socket knows no header
  in either direction (raw(7); RFC 3542, section 3).  A handler should answer in the form in which it was asked, over
  both families.  So the header is taken off, unless the socket's user has switched headers on (IP_HDRINCL).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import deque

__all__ = ("PACKET", "Packets", "are_packets", "family_of", "send_packets")

# Those of the C class, as Python's own wrap each answer in an enumeration's member.
_family_of: Any = socket.SocketType.family.__get__
_type_of: Any = socket.SocketType.type.__get__

#: The largest packet that is read whole, in bytes.
PACKET = 65_536


def are_packets(sock: socket.socket) -> bool:
    """Whether each read and each write of `sock` is a message of its own; what has no socket object yet is a stream."""
    return isinstance(sock, socket.SocketType) and bool(_type_of(sock) != socket.SOCK_STREAM)


def family_of(sock: socket.socket) -> int:
    """The address family, as the plain number that it is: `socket.family` makes an enumeration's member each time."""
    return int(_family_of(sock))


class Packets:
    """How the packets of one socket are read and written."""

    __slots__ = ("_headed", "ends")

    def __init__(self, sock: socket.socket) -> None:
        #: Whether an empty packet is the end of the connection.
        self.ends = sock.type == socket.SOCK_SEQPACKET
        self._headed = (
            sock.type == socket.SOCK_RAW
            and sock.family == socket.AF_INET
            and not sock.getsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL)
        )

    def payload(self, packet: bytes) -> bytes:
        """The message in what recv(2) gave."""
        if not self._headed or not packet:
            return packet
        # The lower half of the first byte is the header's length in words of four bytes (RFC 791, section 3.1).
        return packet[(packet[0] & 0x0F) * 4 :]

    def check(self, data: bytes, peer: str) -> None:
        """Refuse what would not come out as one message on the other side.

        Raises:
            ValueError: it is empty, and would be taken for the end of the connection.
        """
        if not data and self.ends:
            raise ValueError(f"an empty message cannot be sent to {peer}: it would read as the end of the connection")


def send_packets(sock: socket.socket, view: memoryview, lengths: deque[int]) -> int:
    """Send what the kernel takes of the packets in `view`, which it takes whole or not at all; how many bytes.

    `lengths` loses those that were sent.

    Raises:
        OSError: the system refuses one.
    """
    done = 0
    try:
        while lengths:
            done += sock.send(view[done : done + lengths[0]])
            lengths.popleft()
    except (BlockingIOError, InterruptedError):
        pass
    return done
