"""A channel between two processes of one program: JSON messages, each with descriptors if it needs them.

The only place that passes messages between the supervisor and its children.  One message is one packet of a Unix
socket pair (SOCK_SEQPACKET keeps borders, and tells the end where SOCK_DGRAM would not), so nothing is framed here
and a descriptor (SCM_RIGHTS, unix(7)) arrives with its own message.

Nothing waits: what the kernel does not take is kept and sent later, because the other side may be stopped, and
whoever commands it must not stop with it.  It knows nothing of what the messages mean.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("Channel",)

#: Bytes of one message; the kernel's own limit is net.core.wmem_default, 208 KiB on Linux.
LARGEST = 128 * 1024
#: Messages that are kept for a side that does not read; beyond, the oldest are forgotten.
BACKLOG = 1000
#: Descriptors that one message may carry.
MAX_FDS = 4


class Channel:
    """One end of a channel; `socket` is to be watched for reading, and for writing while `pending`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.ended = False
        self._backlog: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends of a new channel.

        Raises:
            ConfigError: the system has no such sockets.
        """
        one, other = pair()
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor."""
        return self.socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether messages wait until the other side reads."""
        return bool(self._backlog)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send `message` now, or as soon as there is room; `fds` may be closed by the caller afterwards.

        Raises:
            ValueError: the message is over 128 KiB of JSON, or has more than 4 descriptors.
        """
        data = json.dumps(message, separators=(",", ":"), default=str).encode()
        if len(data) > LARGEST or len(fds) > MAX_FDS:
            raise ValueError(f"a message of {len(data)} bytes with {len(fds)} descriptors is too large for a channel")
        if self.ended:
            return
        if not self._backlog and self._try(data, fds):
            return
        # Copies, because the caller's own end here.
        self._backlog.append((data, [os.dup(fd) for fd in fds]))
        if len(self._backlog) > BACKLOG:
            _close(self._backlog.popleft()[1])

    def flush(self) -> None:
        """Send what was kept, as far as there is room."""
        while self._backlog and self._try(*self._backlog[0]):
            _close(self._backlog.popleft()[1])

    def receive(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """The messages that are there, with their descriptors, which are the caller's to close; sets `ended`."""
        while not self.ended:
            space = array.array("i")
            try:
                data, ancillary, _flags, _ = self.socket.recvmsg(
                    LARGEST, socket.CMSG_SPACE(MAX_FDS * space.itemsize), socket.MSG_DONTWAIT
                )
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                # It ended without reading everything of ours; that is told once, and before what it has said.
                continue
            except OSError:
                data, ancillary = b"", []
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    space.frombytes(content[: len(content) - len(content) % space.itemsize])
            fds = list(space)
            for fd in fds:
                # recvmsg(2) takes them over as they come, and programs that are exec'd must not.
                os.set_inheritable(fd, False)
            if not data:
                _close(fds)
                self.ended = True
                return
            yield json.loads(data), fds

    def close(self) -> None:
        """Close this end; the other one reads its end."""
        self.ended = True
        while self._backlog:
            _close(self._backlog.popleft()[1])
        self.socket.close()

    def _try(self, data: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], ancillary, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # The other side is gone; its end is read in its turn.
            pass
        return True


def pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of Unix packet sockets.

    Raises:
        ConfigError: the system has none.
    """
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise ConfigError(f"worker processes need Unix packet sockets, which this system lacks: {error}") from error


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
