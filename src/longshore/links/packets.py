"""A blocking link over packets: every read and every write is one message.

It is `SocketLink` with other input and other borders; what packets are is in `packets.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.buffers import PacketBuffer
from longshore.links.sockets import SocketLink
from longshore.packets import Packets

if TYPE_CHECKING:
    import socket

    from longshore.framing import Framing

__all__ = ("PacketLink",)


class PacketLink(SocketLink):
    """A link over datagrams or SOCK_SEQPACKET, connected to one peer."""

    def __init__(self, sock: socket.socket, peer: str, framing: Framing | None, *, max_pending: int = 1 << 20) -> None:
        super().__init__(sock, peer, framing, max_pending=max_pending)
        self._packets = Packets(sock)
        self.input = PacketBuffer(peer, framing, separate=not self._packets.ends)

    def _arrived(self, data: bytes) -> None:
        if not data:
            # Or another thread has closed the socket, which wakes whoever reads it with nothing.
            self._check()
        if data or not self._packets.ends:
            self.input.feed(self._packets.payload(data))
        else:
            self.input.end()

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send one packet.

        Raises:
            ValueError: it is empty, where that would be the end of the connection.
            WriteTimeout: the peer took nothing in time.
        """
        self._packets.check(data, self._peer)
        super().write(data, timeout)

    def _send(self, data: bytes | None) -> None:
        while self._queued():
            self._socket.send(bytes(self._unsent))
            self._unsent.clear()
        if data is not None:
            self._socket.send(data)

    def _queued(self) -> bool:
        # The kernel takes a packet whole or not at all, so what is unsent is one packet and no other is put to it.
        if not self._unsent and self._late:
            self._unsent += self._late.popleft()
        return bool(self._unsent)
