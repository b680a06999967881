"""Sockets for handlers that wait in the kernel, on a thread that nobody can interrupt.

The only place that overrides what sockets do.  A guarded socket is a `socket.socket` (or an `ssl.SSLSocket`)
that tells its `Guard` when it waits and what came and went, and raises what the guard was told.  Nothing
here decides when a wait has lasted too long, and nothing here runs a handler.

Facts, and what follows from them:

* close(2) with unread input resets the connection, and the reply with it.  So close() gives the descriptor
  to a plain socket for whoever ends the connection in order.
* send(2) of much data on a blocking descriptor returns when all of it is taken, and shows no progress until
  then.  So large writes take what fits and wait in poll(2) for more.
* OpenSSL's objects must not be used by two threads at once, and a thread may wait for input for hours while
  another writes.  So TLS keeps the descriptor non-blocking, and holds its lock for single steps only.
"""

from __future__ import annotations

import functools
import math
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from longshore.errors import LongshoreError
from longshore.guard import Guard

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ("GuardedSocket", "guarded", "guarded_tls_class", "upgrade")


def _count(got: Any) -> int:
    """How many bytes the result of one of the `recv...` calls stands for."""
    if isinstance(got, int):
        return got
    return _count(got[0]) if isinstance(got, tuple) else len(got)


def _poll(sock: socket.socket, events: int, seconds: float | None) -> bool:
    """Wait until `sock` is ready for `events`, or in trouble; False if that takes too long."""
    poller = select.poll()
    poller.register(sock, events)
    return bool(poller.poll(None if seconds is None else math.ceil(max(0.0, seconds) * 1000)))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _wait(sock: socket.socket, events: int, deadline: float | None, what: str) -> None:
    if not _poll(sock, events, None if deadline is None else deadline - time.monotonic()):
        raise TimeoutError(what)


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
            got = step(*args, flags)
        except OSError:
            guard.check()
            raise
        finally:
            guard.end_wait()
        if not flags & socket.MSG_PEEK:
            guard.came(_count(got))
        return got

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

    # -- output ----------------------------------------------------------------------------------------

    def _send(self, guard: Guard, data: Any, flags: int, deadline: float | None, timeout: float | None) -> int:
        guard.check()
        try:
            while True:
                # send() with a timeout set waits by itself, where nobody sees it: look before.
                if not timeout or _poll(self, select.POLLOUT, 0):
                    try:
                        count = super().send(data, flags | socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        if timeout == 0:
                            raise
                    else:
                        guard.went(count)
                        return count
                guard.begin_output()
                _wait(self, select.POLLOUT, deadline, "timed out")
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
            if self.gettimeout() and not _poll(self, select.POLLOUT, 0):
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


@functools.cache
def guarded_tls_class() -> Any:
    """The class `GuardedSSLSocket`; made when it is first asked for, because `import longshore` imports no ssl."""
    import ssl

    from longshore.tls import TLSError, describe

    class GuardedSSLSocket(ssl.SSLSocket):
        """A TLS socket whose waits the reactor can see and end, and which two threads may read and write at once."""

        guard: Guard | None = None
        _sslobj: Any
        _patience: float | None = None
        _stepping: threading.Lock
        #: Plaintext that was read before anybody asked for it.
        _arrived: bytearray

        def _arm_guard(self, guard: Guard) -> None:
            self._stepping = threading.Lock()
            self._arrived = bytearray()
            super().settimeout(0.0)
            self._patience = None
            guard.adopt(self)

        # -- timeouts: the descriptor never blocks, we do ----------------------------------------------

        def settimeout(self, value: float | None, /) -> None:
            if self.guard is None:
                super().settimeout(value)
                return
            if value is not None and value < 0:
                raise ValueError("Timeout value out of range")
            self._patience = None if value is None else float(value)

        def gettimeout(self) -> float | None:
            return super().gettimeout() if self.guard is None else self._patience

        @property
        def timeout(self) -> float | None:
            return self.gettimeout()

        def setblocking(self, flag: bool, /) -> None:
            if self.guard is None:
                super().setblocking(flag)
            else:
                self._patience = None if flag else 0.0

        def getblocking(self) -> bool:
            return super().getblocking() if self.guard is None else self._patience != 0

        def _patiently(self, guard: Guard, step: Callable[[], Any], what: str, *, output: bool = False) -> Any:
            """Try `step` until it goes through, waiting between the tries for what OpenSSL asks for."""
            timeout = self._patience
            deadline = _deadline(timeout)
            try:
                while True:
                    guard.check()
                    with self._stepping:
                        try:
                            return step()
                        except ssl.SSLWantReadError:
                            events = select.POLLIN
                            if timeout == 0:
                                raise
                        except ssl.SSLWantWriteError:
                            events = select.POLLOUT
                            if timeout == 0:
                                raise
                    if output:
                        guard.begin_output()
                    _wait(self, events, deadline, f"The {what} operation timed out")
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                guard.check()
                if what == "handshake":
                    raise TLSError(f"{guard.peer}: TLS handshake failed: {describe(error)}") from error
                raise TLSError(f"{guard.peer}: TLS failed: {describe(error)}") from error
            except OSError:
                guard.check()
                raise

        def do_handshake(self, block: bool = False) -> None:
            guard = self.guard
            if guard is None:
                super().do_handshake(block)
                return
            watch = guard.watch
            watch.begin_handshake(guard.now())
            guard.arm()
            handshake = super().do_handshake
            try:
                self._patiently(guard, handshake, "handshake")
            finally:
                watch.ready = watch.last_byte = guard.now()
                watch.handshaking = False

        # -- input: recv and recv_into of the standard library end here --------------------------------

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            guard = self.guard
            if guard is None:
                return super().read(len, buffer)
            read = super().read
            guard.begin_wait()
            try:
                if self._arrived:
                    got = self._take_arrived(len, buffer)
                else:
                    got = self._patiently(guard, lambda: read(len, buffer), "read")
            finally:
                guard.end_wait()
            guard.came(_count(got))
            return got

        def _take_arrived(self, count: int, buffer: Any) -> Any:
            with self._stepping:
                if buffer is not None:
                    count = min(count or memoryview(buffer).nbytes, memoryview(buffer).nbytes)
                data = bytes(self._arrived[:count])
                del self._arrived[:count]
            if buffer is None:
                return data
            memoryview(buffer).cast("B")[: len(data)] = data
            return len(data)

        # -- output --------------------------------------------------------------------------------------

        def write(self, data: Any) -> int:
            guard = self.guard
            if guard is None:
                return super().write(data)
            write = super().write
            with guard.writing:
                try:
                    count: int = self._patiently(guard, lambda: write(data), "write", output=True)
                finally:
                    guard.watch.pending = False
            guard.went(count)
            return count

        def send(self, data: Any, flags: int = 0) -> int:
            if flags:
                raise ValueError("non-zero flags not allowed in calls to send() on a TLS socket")
            return self.write(data)

        def sendall(self, data: Any, flags: int = 0) -> None:
            guard = self.guard
            if guard is None:
                super().sendall(data, flags)
                return
            with guard.writing:
                super().sendall(data, flags)

        def send_now(self, data: Any) -> int:
            guard = self.guard
            assert guard is not None
            if not guard.writing.acquire(blocking=False):
                raise BlockingIOError("another thread is writing")
            try:
                with self._stepping:
                    count = super().write(data)
                guard.went(count)
                return count
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                raise BlockingIOError("the peer does not keep up") from error
            finally:
                guard.writing.release()

        # -- the end ---------------------------------------------------------------------------------------

        def _notify(self) -> None:
            """Say that we send no more (close_notify), as far as that goes without waiting."""
            session = self._sslobj
            if session is None or self.fileno() < 0:
                return
            with self._stepping:
                try:
                    session.shutdown()
                except (OSError, ValueError):
                    # The peer's own is not there yet, or the peer is gone: what we owe is done either way.
                    pass

        def _keep_arrived(self) -> None:
            """Read what has come: OpenSSL's SSL_shutdown looks for the peer's close_notify and drops what it finds."""
            with self._stepping:
                try:
                    while self._sslobj is not None and (data := self._sslobj.read(65_536)):
                        self._arrived += data
                except OSError:
                    # Nothing more is there, or the stream has ended: the next read says which.
                    pass

        def shutdown(self, how: int) -> None:
            # SSLSocket.shutdown forgets the TLS session, and what came later would be read as ciphertext.
            if self.guard is not None and how in (socket.SHUT_WR, socket.SHUT_RDWR):
                self._keep_arrived()
                self._notify()
            socket.socket.shutdown(self, how)

        def interrupt(self, cause: str, error: BaseException, how: int = socket.SHUT_RDWR) -> None:
            assert self.guard is not None
            self.guard.interrupt(cause, error, how)

        def _real_close(self, *args: Any) -> None:
            if self.guard is None:
                super()._real_close(*args)  # type: ignore[misc]
                return
            self._notify()
            self.guard.closed()

        def surrender(self) -> socket.socket | None:
            if self.guard is None:
                return None
            self._notify()
            return self.guard.release()

    return GuardedSSLSocket


def guarded(sock: socket.socket, guard: Guard, context: ssl.SSLContext | None = None) -> Any:
    """Take over `sock`, guarded: plain in blocking mode; with a `context`, as a TLS server before its handshake.

    Returns:
        A `GuardedSocket` or a `GuardedSSLSocket`; `sock` itself is detached.

    Raises:
        OSError: with TLS, the peer has gone already; the socket is closed then.
    """
    if context is not None:
        return upgrade(sock, guard, context)
    taken = GuardedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    taken.setblocking(True)
    guard.adopt(taken)
    return taken


def upgrade(sock: socket.socket, guard: Guard, context: ssl.SSLContext) -> Any:
    """A `GuardedSSLSocket` in the place of `sock`, on the server's side; the handshake is still to be made.

    Raises:
        OSError: the peer has gone already; the socket is closed then.
        LongshoreError: it was closed on our side.
    """
    with guard.lock:
        if sock.fileno() < 0:
            raise LongshoreError(f"the connection to {guard.peer} is closed, so it cannot start TLS")
        # Through the class, not context.wrap_socket(): that would want context.sslsocket_class changed, and the
        # context may be the user's own.
        taken = guarded_tls_class()._create(sock=sock, server_side=True, do_handshake_on_connect=False, context=context)
        taken._arm_guard(guard)
    return taken
