"""A link over a socket in blocking mode: the calling thread waits in the kernel.

`SocketLink` fulfils the contract of `links.Link` for handlers that own a thread, and for clients.  Like every link
it knows no framings, handlers or servers.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.buffers import InputBuffer
from longshore.errors import ClosedError, HandshakeTimeout, LongshoreError, ReadTimeout, WriteTimeout
from longshore.limits import NEAR
from longshore.links import LATER

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as Socket

    from longshore.framing import Framing

__all__ = ("SocketLink",)

#: Bytes asked of the kernel at once.
CHUNK = 65_536


class SocketLink:
    """A link over a socket in blocking mode: the calling thread waits in the kernel.

    Whoever enforces deadlines does so through the socket (see `sockets.Guarded`); a client's deadline is
    the socket's own timeout.
    """

    def __init__(self, sock: socket.socket, peer: str, framing: Framing | None, *, max_pending: int = 1 << 20) -> None:
        self._socket = sock
        self._peer = peer
        self._max_pending = max_pending
        self._writing = threading.RLock()
        self._unsent = bytearray()
        #: What `try_write` was given while somebody else was writing.
        self._late: deque[bytes] = deque()
        self._closed: BaseException | None = None
        self.input = InputBuffer(peer, framing)
        #: Whoever writes to a socket in blocking mode may have to wait.
        self.output = LATER
        #: Every message goes through the connection.
        self.handled = 0
        self.cause: tuple[str, BaseException | None] | None = None
        #: Who is asked to send the rest of an output that nobody may wait for; None: nobody.
        self.finish_later: Callable[[SocketLink], object] | None = None

    #: The `strategies.Session` that is told of handshakes and of what is pending; a client has none.
    session: Any = None

    @property
    def socket(self) -> Socket:
        """The socket."""
        return self._socket

    @property
    def pending(self) -> int:
        """Bytes that were queued by `try_write` and that the kernel has not taken."""
        return len(self._unsent) + sum(map(len, tuple(self._late))) + self._behind

    @property
    def _behind(self) -> int:
        """Bytes that a TLS socket has encrypted and not sent."""
        return getattr(self._socket, "behind", 0)

    @property
    def tls_object(self) -> Any:
        """The `ssl` socket, or None."""
        return self._socket if hasattr(self._socket, "selected_alpn_protocol") else None

    def _check(self) -> None:
        if self._closed is not None:
            raise self._closed

    def wait_input(self, timeout: float | None) -> None:
        """Read once from the kernel."""
        self._check()
        self._be_patient(timeout)
        guard = getattr(self._socket, "guard", None)
        if guard is not None and not self.input.unread:
            guard.watch.whole()
        try:
            data = self._socket.recv(CHUNK)
        except TimeoutError as error:
            if isinstance(error, LongshoreError):
                raise
            raise ReadTimeout(f"{self._peer} sent nothing in {timeout:g} s") from None
        self._arrived(data)

    def _arrived(self, data: bytes) -> None:
        if data:
            self.input.feed(data)
        else:
            self._check()
            self.input.end()

    def _be_patient(self, timeout: float | None) -> None:
        # Setting a timeout is a system call, and it is nearly always the one that is set.
        if self._socket.gettimeout() != timeout:
            self._socket.settimeout(timeout)

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        self._write(data, timeout)

    def _write(self, data: bytes | None, timeout: float | None) -> None:
        self._check()
        with self._writing:
            self._be_patient(timeout)
            try:
                self._send(data)
            except TimeoutError as error:
                if isinstance(error, LongshoreError):
                    raise
                raise WriteTimeout(f"{self._peer} took nothing in {timeout:g} s") from None
        if self._late:
            self._send_late()

    def _send(self, data: bytes | None) -> None:
        """Send what is unsent, then `data`; the caller holds the lock."""
        if self._unsent:
            data = bytes(self._unsent) + (data or b"")
            self._unsent.clear()
        self._socket.sendall(data or b"")

    def _queued(self) -> bool:
        """Put what came in late behind what is unsent; whether anything is."""
        while self._late:
            self._unsent += self._late.popleft()
        return bool(self._unsent or self._behind)

    @property
    def ended(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closed is not None

    def try_write(self, data: bytes) -> bool:
        """Send what goes at once; the rest is queued, within `max_pending_bytes`."""
        if self._closed is not None or self.pending > self._max_pending or (self._unsent and self.finish_later is None):
            return False
        self._late.append(bytes(data))
        try:
            self._send_late()
        except OSError:
            return False
        if self.session is not None and self.pending >= NEAR * self._max_pending:
            self.session.host.near_pending(self.pending)
        return True

    def _send_late(self) -> None:
        """Send what came in while somebody was writing; who finds the lock taken leaves it to its holder.

        No message is forgotten: a holder looks here again after it has let the lock go.
        """
        while self._late and self._writing.acquire(blocking=False):
            try:
                if not self.send_unsent():
                    if self.finish_later is not None:
                        self.finish_later(self)
                    return
            finally:
                self._writing.release()

    def send_unsent(self) -> bool:
        """Send what was queued as far as the kernel takes it now; True once nothing is left."""
        if not self._writing.acquire(blocking=False):
            # Whoever writes has taken what was queued, and sends it first.
            return True
        try:
            while self._queued():
                del self._unsent[: self._send_now(bytes(self._unsent))]
            return True
        except (BlockingIOError, InterruptedError):
            return False
        finally:
            self._writing.release()

    def take_behind(self) -> bytes:
        """What TLS has encrypted and not sent, for whoever takes the socket over."""
        take_behind = getattr(self._socket, "take_behind", None)
        return b"" if take_behind is None else take_behind()

    def take_unsent(self) -> bytes:
        """What was queued and is not sent, for whoever takes the socket over."""
        unsent = bytes(self._unsent)
        self._unsent.clear()
        return unsent

    def _send_now(self, data: bytes) -> int:
        send_now = getattr(self._socket, "send_now", None)
        if send_now is not None:
            return int(send_now(data))
        return self._socket.send(data, socket.MSG_DONTWAIT)

    def flush(self, timeout: float | None = None) -> None:
        """Send what was queued."""
        if self._unsent:
            self._write(None, timeout)

    def end_output(self) -> None:
        """Send the end of our side, after what is queued."""
        self.flush()
        self._socket.shutdown(socket.SHUT_WR)

    def end_input(self) -> None:
        """Take no more from the peer."""
        self._socket.shutdown(socket.SHUT_RD)

    def close(self, cause: str = "finished", error: BaseException | None = None) -> None:
        """End our side; a thread that waits on the socket is woken."""
        if self._closed is None:
            self._closed = error or ClosedError(f"the connection to {self._peer} is closed")
            self.cause = (cause, error)
            self.input.discard()
            self._wake_and_close()

    def _wake_and_close(self) -> None:
        guard = getattr(self._socket, "guard", None)
        if guard is None:
            self._socket.close()
        elif self._closed is not None:
            # The descriptor stays open until the handler has returned, so that the peer reads what was sent.
            self.send_unsent_quietly()
            guard.end(self._closed, self.cause[0] if self.cause else "finished")

    def send_unsent_quietly(self) -> None:
        """As `send_unsent`, where an error would tell nobody anything new."""
        try:
            self.send_unsent()
        except OSError:
            pass

    def abort(self, cause: str = "aborted", error: BaseException | None = None) -> None:
        """End with a reset."""
        if self._closed is None:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                # Not a socket that resets; then it just closes.
                pass
            self.close(cause, error)

    def detach(self) -> tuple[Socket, bytes]:
        """Give the socket away with the bytes that were read and not consumed."""
        self._check()
        sock = self._socket
        guard = getattr(sock, "guard", None)
        if guard is not None:
            if self.tls_object is not None:
                raise LongshoreError("a TLS connection cannot be detached: its keys stay with this object")
            self.flush()
            released = guard.release()
            if released is None:
                raise ClosedError(f"the connection to {self._peer} is closed")
            sock = released
            sock.setblocking(True)
        self._closed = ClosedError(f"the connection to {self._peer} was detached")
        return sock, self.input.take_all()

    def start_tls(self, context: Any, *, server_side: bool, hostname: str | None, timeout: float | None) -> None:
        """Speak TLS from here on; nothing may have been read beyond this point.

        Raises:
            LimitExceeded: there are `Limits.max_handshakes` already, and the connection ends.
            TLSError, HandshakeTimeout: the handshake failed.
        """
        if self.session is None:
            self._start_tls(context, server_side, hostname, timeout)
            return
        self.session.handshake_begins(self)
        try:
            self._start_tls(context, server_side, hostname, timeout)
        finally:
            self.session.handshake_over()

    def _start_tls(self, context: Any, server_side: bool, hostname: str | None, timeout: float | None) -> None:
        from longshore.tls import TLSError, describe

        if self.input.unread:
            raise TLSError(f"{self._peer} sent plain text after it was to start TLS")
        self.flush(timeout)
        guard = getattr(self._socket, "guard", None)
        if guard is not None and server_side:
            from longshore.sockets import upgrade

            taken: Any = upgrade(self._socket, guard, context)
        else:
            from longshore.tls_sockets import TLSSocket

            taken = TLSSocket.over(self._socket, context, self._peer, server_side=server_side, hostname=hostname)
        # Before the handshake: whatever comes of that, the old object has lost its descriptor.
        self._socket = taken
        taken.settimeout(timeout)
        try:
            taken.do_handshake()
        except LongshoreError:
            raise
        except TimeoutError as error:
            if timeout is None:
                # Not our deadline: the kernel has given up on the peer.
                raise TLSError(f"{self._peer}: TLS handshake failed: {describe(error)}") from error
            raise HandshakeTimeout(f"{self._peer} did not finish the TLS handshake in {timeout:g} s") from None
        except OSError as error:
            self._check()
            raise TLSError(f"{self._peer}: TLS handshake failed: {describe(error)}") from error
