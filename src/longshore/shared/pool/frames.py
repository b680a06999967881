"""What a pool and one of its processes say to each other: a kind, a length, a payload.

Each process has a socket pair of its own, over which one task goes at a time.  So a process that dies in the middle of
a frame spoils nobody else's, and there is no lock that it could take along.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ("FAILED", "HEAD", "LEAVING", "READY", "RESULT", "SETUP", "TASK", "UNFIT", "Inbox", "frame")

HEAD = struct.Struct("=cQ")
#: To the process: how it is to be, and a call.
SETUP, TASK = b"S", b"T"
#: From it: it takes tasks (its pid); the initializer failed; what a task returned; what it raised; the same, and the
#: process takes no more tasks.
READY, UNFIT, RESULT, FAILED, LEAVING = b"+", b"-", b"r", b"x", b"X"

#: Bytes asked of the kernel at once.
CHUNK = 65_536


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame as bytes."""
    return HEAD.pack(kind, len(payload)) + payload


class Inbox:
    """Cuts what comes from the other side into frames; a large payload is received into its place at once."""

    __slots__ = ("_buffer", "_got", "_kind", "_payload")

    def __init__(self) -> None:
        self._buffer = b""
        self._kind = b""
        self._payload: bytearray | None = None
        self._got = 0

    def receive(self, sock: socket.socket) -> tuple[bytes, bytes | bytearray] | bool:
        """Receive once: a frame if one is whole now, True if there may be more, False at the end of the stream.

        Raises:
            BlockingIOError: nothing has come.
        """
        payload = self._payload
        if payload is not None:
            with memoryview(payload) as view:
                count = sock.recv_into(view[self._got :])
            if not count:
                return False
            self._got += count
            if self._got < len(payload):
                return True
            self._payload = None
            return self._kind, payload
        if len(self._buffer) < HEAD.size or not self._whole():
            data = sock.recv(CHUNK)
            if not data:
                return False
            self._buffer += data
            if len(self._buffer) < HEAD.size:
                return True
        kind, size = HEAD.unpack_from(self._buffer)
        end = HEAD.size + size
        if len(self._buffer) >= end:
            found = self._buffer[HEAD.size : end]
            self._buffer = self._buffer[end:]
            return kind, found
        self._kind, self._payload, self._got = kind, bytearray(size), len(self._buffer) - HEAD.size
        self._payload[: self._got] = self._buffer[HEAD.size :]
        self._buffer = b""
        return True

    def _whole(self) -> bool:
        size: int = HEAD.unpack_from(self._buffer)[1]
        return len(self._buffer) >= HEAD.size + size

    @property
    def holds(self) -> bool:
        """Whether another frame is here already, so that the socket need not be readable for it."""
        return len(self._buffer) >= HEAD.size and self._whole()
