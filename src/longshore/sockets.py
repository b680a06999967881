"""Sockets for handlers that wait in the kernel, on a thread that nobody can interrupt.

A guarded socket is a `socket.socket` (with TLS an `ssl.SSLSocket`, see `tls_sockets.py`) that tells its `Guard` when
it waits and what came and went, and raises what the guard was told.  Nothing here decides when a wait has lasted too
long, and nothing here runs a handler.

Facts, and what follows from them:

* close(2) with unread input resets the connection, and the reply with it.  So close() gives the descriptor
  to a plain socket for whoever ends the connection in order.
* send(2) of much data on a blocking descriptor returns when all of it is taken, and shows no progress until
  then.  So large writes take what fits and wait in poll(2) for more.
* The main thread is where Python runs signal handlers, and recv(2) sleeps through a signal that comes just before
  it.  So there, a call that has to wait does so in `Guard.wait_ready`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from longshore.addresses import format_peer
from longshore.errors import LongshoreError
from longshore.guard import Guard
from longshore.packets import PACKET
from longshore.readiness import on_main_thread, ready

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ("GuardedSocket", "guarded", "guarded_tls_class", "upgrade")


def _count(got: Any) -> int:
    """How many bytes the result of one of the `recv...` calls stands for."""
    if isinstance(got, int):
        return got
    return _count(got[0]) if isinstance(got, tuple) else len(got)


def _octets(got: Any, args: tuple[Any, ...]) -> Any:
    """The first bytes that one of the `recv...` calls has brought."""
    first = got[0] if isinstance(got, tuple) else got
    return memoryview(args[0]).cast("B")[: min(first, 16)] if isinstance(first, int) else first


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


class GuardedSocket(socket.socket):
    """A socket in blocking mode whose waits the reactor can see and end."""

    #: None on a duplicate that the user has made: an ordinary socket then.
    guard: Guard | None = None

    # -- input -----------------------------------------------------------------------------------------

    def _receive(self, step: Callable[..., Any], flags: int, *args: Any) -> Any:
        guard = self.guard
        if guard is None:
            return step(*args, flags)
        guard.begin_wait()
        try:
            got = self._hearing_signals(guard, step, flags, args) if on_main_thread() else step(*args, flags)
        except OSError:
            guard.check()
            raise
        finally:
            guard.end_wait()
        if guard.suspicion is not None:
            guard.look(_octets(got, args))
        if not flags & socket.MSG_PEEK:
            guard.came(_count(got))
        return got

    def _hearing_signals(self, guard: Guard, step: Callable[..., Any], flags: int, args: tuple[Any, ...]) -> Any:
        """Receive on the main thread, where recv(2) would sleep through a signal that comes just before it."""
        timeout = self.gettimeout()
        if timeout == 0 or flags & (socket.MSG_DONTWAIT | socket.MSG_WAITALL):
            return step(*args, flags)
        deadline = _deadline(timeout)
        while True:
            if timeout is None:
                # Mostly something is there already, and then this is all.
                try:
                    return step(*args, flags | socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
            if not guard.wait_ready(self, select.POLLIN, deadline):
                raise TimeoutError("timed out")
            if timeout is not None:
                return step(*args, flags)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`; raises the error of an interruption."""
        return self._receive(super().recv, flags, bufsize)  # type: ignore[no-any-return]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        return self._receive(super().recv_into, flags, buffer, nbytes)  # type: ignore[no-any-return]

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As `socket.socket.recvfrom`."""
        return self._receive(super().recvfrom, flags, bufsize)  # type: ignore[no-any-return]

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As `socket.socket.recvfrom_into`."""
        return self._receive(super().recvfrom_into, flags, buffer, nbytes)  # type: ignore[no-any-return]

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """As `socket.socket.recvmsg`."""
        return self._receive(super().recvmsg, flags, bufsize, ancbufsize)

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        """As `socket.socket.makefile`; the buffer of a file takes a packet whole, where there are packets."""
        if self.type == socket.SOCK_SEQPACKET and buffering in (None, -1):
            # Room for one behind the rest of the one before, as recv(2) drops what does not fit.
            buffering = 2 * PACKET
        return super().makefile(mode, buffering, **text)  # type: ignore[call-overload]

    # -- output ----------------------------------------------------------------------------------------

    def _send(self, guard: Guard, data: Any, flags: int, deadline: float | None, timeout: float | None) -> int:
        guard.check()
        try:
            while True:
                # send() with a timeout set waits by itself, where nobody sees it: look before.
                if not timeout or ready(self, select.POLLOUT, 0):
                    try:
                        count = super().send(data, flags | socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        if timeout == 0:
                            raise
                    else:
                        guard.went(count)
                        return count
                guard.begin_output()
                if not guard.wait_ready(self, select.POLLOUT, deadline):
                    raise TimeoutError("timed out")
        except OSError:
            guard.check()
            raise
        finally:
            guard.watch.pending = False

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As `socket.socket.send`; raises the error of an interruption."""
        guard = self.guard
        if guard is None:
            return super().send(data, flags)
        timeout = self.gettimeout()
        with guard.writing:
            return self._send(guard, data, flags, _deadline(timeout), timeout)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As `socket.socket.sendall`."""
        guard = self.guard
        if guard is None:
            super().sendall(data, flags)
            return
        timeout = self.gettimeout()
        deadline = _deadline(timeout)
        with guard.writing, memoryview(data) as view, view.cast("B") as octets:
            at = self._send(guard, octets, flags, deadline, timeout)
            while at < len(octets):
                at += self._send(guard, octets[at:], flags, deadline, timeout)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `socket.socket.sendfile`, through `send`, so that deadlines see its progress."""
        guard = self.guard
        if guard is None:
            return super().sendfile(file, offset, count)
        with guard.writing:
            return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    def send_now(self, data: Any) -> int:
        """Send what the kernel takes at once; from any thread.

        Raises:
            BlockingIOError: it takes nothing, or another thread is in the middle of a write.
        """
        guard = self.guard
        assert guard is not None
        if not guard.writing.acquire(blocking=False):
            raise BlockingIOError("another thread is writing")
        try:
            if self.gettimeout() and not ready(self, select.POLLOUT, 0):
                raise BlockingIOError("the peer does not keep up")
            count = super().send(data, socket.MSG_DONTWAIT)
            guard.went(count)
            return count
        finally:
            guard.writing.release()

    # -- the end ---------------------------------------------------------------------------------------

    def interrupt(self, cause: str, error: BaseException, how: int = socket.SHUT_RDWR) -> None:
        """Make every wait, and every later call, raise `error`; from any thread."""
        assert self.guard is not None
        self.guard.interrupt(cause, error, how)

    def _real_close(self, *args: Any) -> None:
        if self.guard is None:
            super()._real_close(*args)  # type: ignore[misc]
        else:
            self.guard.closed()

    def surrender(self) -> socket.socket | None:
        """Give the descriptor away as a plain, non-blocking socket, for the connection's end.

        Files made of this socket stop working.  None if it was given away before.
        """
        return None if self.guard is None else self.guard.release()


def guarded_tls_class() -> Any:
    """The class of guarded TLS sockets; a function, because `import longshore` imports no ssl."""
    from longshore.tls_sockets import TLSSocket

    return TLSSocket


def guarded(sock: socket.socket, guard: Guard | None, context: ssl.SSLContext | None = None) -> Any:
    """Take over `sock`, guarded: plain in blocking mode; with a `context`, as a TLS server before its handshake.

    Without a `guard` it is an ordinary socket until one adopts it.

    Returns:
        A `GuardedSocket` or a `TLSSocket`; `sock` itself is detached.
    """
    if guard is not None:
        guard.suspicion = getattr(sock, "suspicion", None)
    if context is not None:
        return upgrade(sock, guard, context)
    taken = GuardedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    taken.setblocking(True)
    if guard is not None:
        guard.adopt(taken)
    return taken


def upgrade(sock: socket.socket, guard: Guard | None, context: ssl.SSLContext) -> Any:
    """A `TLSSocket` in the place of `sock`, on the server's side and patient; the handshake is still to be made.

    Raises:
        LongshoreError: it was closed on our side.
    """
    with contextlib.nullcontext() if guard is None else guard.lock:
        if sock.fileno() < 0:
            peer = "the peer" if guard is None else guard.peer
            raise LongshoreError(f"the connection to {peer} is closed, so it cannot start TLS")
        peer = _peer_of(sock) if guard is None else guard.peer
        taken = guarded_tls_class().over(sock, context, peer, server_side=True, hostname=None)
        taken.settimeout(None)
        if guard is not None:
            guard.adopt(taken)
    return taken


def _peer_of(sock: socket.socket) -> str:
    try:
        return format_peer(sock.family, sock.getpeername())
    except OSError:
        # The peer has reset the connection before anybody looked.
        return "the peer"
