"""The way between the two ends of a pipe of the local place: messages that pass no broker.

The only file that knows its sockets.  The broker makes a *conduit* when an end is opened and hands each process that
opens one its descriptors.  It keeps them too, so what was sent and not yet received outlives both who sent it and who
was to receive it, and the next opener of that end gets it.

The rules:

* **A packet is a message**: the kernel hands each to one reader, whole, however many processes share the end.  What is
  larger than a packet may be has its rest in a file of memory that travels with it, so that it, too, goes as one.
* **A sign** stands beside each end: a kernel pipe, with a byte in it while the other end was open and is gone.  Nobody
  reads that byte but the broker, so everybody who waits sees it, and sees it go when the end is opened again.  Only the
  broker has its other side, so the broker's death is seen there too, by everybody, at once.
* **The sign is looked at first**: nothing is sent or taken once the broker is gone, and what arrived before the other
  end was gone is taken before its end is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from array import array
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("PACKET", "Conduit", "Taker", "can_conduct", "receive", "transmit")

#: Bytes of one packet: it must fit into the smallest buffer that a system gives a socket.
PACKET = 128 << 10
#: Bytes that the buffer of one direction is asked to have; the system may give less.
_ROOM = 1 << 20
_DESCRIPTORS = socket.CMSG_SPACE(array("i").itemsize)
_AT_ONCE = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
_TAKEN = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_own = threading.local()


def can_conduct() -> bool:
    """Whether this system has sockets of whole messages between processes."""
    return hasattr(socket, "SOCK_SEQPACKET") and hasattr(os, "memfd_create")


class Taker(Protocol):
    """A client of the broker's to which descriptors can be handed."""

    def hand_over(self, descriptors: Sequence[int]) -> None:
        """Send them; the reply comes after them."""


class Conduit:
    """The broker's side.

    Raises:
        OSError: it has no descriptors left.
    """

    def __init__(self) -> None:
        self._sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._signs: list[tuple[int, int]] = []
        self._shown = [False, False]
        try:
            for sock in self._sockets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
                self._signs.append(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def hand_over(self, end: int, taker: Taker) -> None:
        """Give a process its descriptors of `end`.

        Raises:
            OSError: they could not be sent.
        """
        taker.hand_over((self._sockets[end].fileno(), self._signs[end][0]))

    def show(self, end: int, gone: bool) -> None:
        """Tell those at `end` whether the other one is gone."""
        if self._shown[end] != gone:
            self._shown[end] = gone
            readable, writable = self._signs[end]
            if gone:
                os.write(writable, b"\0")
            else:
                # A client of another kind may have read it already, which is no reason to wait.
                with contextlib.suppress(BlockingIOError):
                    os.read(readable, 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing that was sent is still to be received."""
        poll = select.poll()
        for sock in self._sockets:
            poll.register(sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Nobody is there any more."""
        for sock in self._sockets:
            sock.close()
        while self._signs:
            for descriptor in self._signs.pop():
                os.close(descriptor)


def transmit(sock: socket.socket, message: bytes) -> bool:
    """Send a message without waiting; False if there is no room.

    Raises:
        OSError: the other side is closed, which the broker keeps open; or there is no memory for so large a message.
    """
    try:
        if len(message) <= PACKET:
            sock.send(message, _AT_ONCE)
        else:
            rest = os.memfd_create("longshore pipe")
            with os.fdopen(rest, "wb", buffering=0) as file:
                view = memoryview(message)[PACKET:]
                while view:
                    view = view[file.write(view) :]
                os.lseek(rest, 0, os.SEEK_SET)
                passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [rest]))]
                sock.sendmsg([message[:PACKET]], passed, _AT_ONCE)
    except BlockingIOError:
        return False
    return True


def receive(sock: socket.socket) -> bytes | None:
    """Take a message without waiting; None if there is none, b"" if the other side is closed.

    Raises:
        OSError: the descriptor that came with a message could not be taken, and with it the message.
    """
    # Taken out while it is in use: a signal's handler may receive in between, on this very thread.
    packet = _own.__dict__.pop("packet", None)
    if packet is None:
        packet = memoryview(bytearray(PACKET))
    try:
        return _received(sock, packet)
    finally:
        _own.packet = packet


def _received(sock: socket.socket, packet: memoryview) -> bytes | None:
    try:
        size, passed, flags, _ = sock.recvmsg_into([packet], _DESCRIPTORS, _TAKEN)
    except BlockingIOError:
        return None
    if flags & socket.MSG_CTRUNC:
        raise OSError(
            errno.EMFILE, "a message is lost, as its rest came as a descriptor and there was none left for it"
        )
    if not passed:
        return bytes(packet[:size])
    rest = array("i", passed[0][2])[0]
    with os.fdopen(rest, "rb", buffering=0) as file:
        return bytes(packet) + file.read()
