"""TLS on a blocking socket that nobody guards: a client's, or one that turns to TLS in the middle.

The only place where a blocking caller drives a `tls.Session`.  A `TLSSocket` is a `socket.socket` whose reads and
writes are plaintext.  Nothing here connects, and nothing here knows links or handlers.

Facts, and what follows from them:

* `ssl.SSLSocket.shutdown` forgets the TLS session, and `unwrap()` over a socket reads while it waits for the peer's
  close_notify, and throws away what it reads.  So OpenSSL works on memory here, and all that was fed to it is
  decrypted before close_notify is made: a half-close loses nothing, and reading goes on.
* OpenSSL's objects must not be used by two threads at once, and a thread may wait for input for hours while another
  writes.  So the descriptor never blocks, nobody waits with the lock held, and waiting is poll(2).
* Ciphertext must leave in the order in which it was made.  So it queues in one buffer, and one lock is held by
  whoever sends; a reader that owes the peer an answer (a key update) leaves it to that sender.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from longshore.tls import Session, TLSError

if TYPE_CHECKING:
    import ssl

__all__ = ("TLSSocket",)

#: Bytes asked of the kernel at once.
CHUNK = 65_536
#: Plaintext that is encrypted at once: the most that one record holds.
RECORD = 16_384


class TLSSocket(socket.socket):
    """Blocking TLS, for one thread that reads and one that writes at a time; timeouts are per call, in seconds."""

    _session: Session
    _peer: str

    @classmethod
    def over(
        cls, sock: socket.socket, context: ssl.SSLContext, peer: str, *, server_side: bool, hostname: str | None
    ) -> TLSSocket:
        """Take over `sock`, which is detached; the handshake is still to be made.

        Raises:
            AddressError: no certificate can be checked for such a `hostname`; `sock` is left alone.
        """
        session = Session(context, server_side=server_side, hostname=hostname)
        timeout = sock.gettimeout()
        taken = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        socket.socket.setblocking(taken, False)
        taken._session = session
        taken._context = context
        taken._peer = peer
        taken._patience = timeout
        taken._stepping = threading.Lock()
        taken._sending = threading.Lock()
        taken._plain = b""
        taken._wire = bytearray()
        taken._ended = taken._notified = False
        return taken

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._context: Any = None
        self._patience: float | None = None
        #: Held for single steps of OpenSSL, and for what belongs to them.
        self._stepping: threading.Lock
        #: Held while ciphertext is on its way, however long that takes.
        self._sending: threading.Lock
        #: Decrypted and not yet read.
        self._plain = b""
        #: Encrypted and not yet sent.
        self._wire = bytearray()
        self._ended = False
        #: Whether close_notify was made: nothing more can be sent.
        self._notified = False

    # -- what was agreed on ----------------------------------------------------------------------------

    @property
    def context(self) -> Any:
        """The `ssl.SSLContext`."""
        return self._context

    def version(self) -> str | None:
        """As `ssl.SSLSocket.version`."""
        return self._session.object.version()  # type: ignore[no-any-return]

    def cipher(self) -> tuple[str, str, int] | None:
        """As `ssl.SSLSocket.cipher`."""
        return self._session.object.cipher()  # type: ignore[no-any-return]

    def getpeercert(self, binary_form: bool = False) -> Any:
        """As `ssl.SSLSocket.getpeercert`."""
        return self._session.object.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """As `ssl.SSLSocket.selected_alpn_protocol`."""
        return self._session.object.selected_alpn_protocol()  # type: ignore[no-any-return]

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """As `ssl.SSLSocket.get_channel_binding`."""
        return self._session.object.get_channel_binding(cb_type)  # type: ignore[no-any-return]

    # -- timeouts: the descriptor never blocks, we do --------------------------------------------------

    def settimeout(self, value: float | None, /) -> None:
        """As `socket.socket.settimeout`."""
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._patience = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        """As `socket.socket.gettimeout`."""
        return self._patience

    @property
    def timeout(self) -> float | None:
        """As `socket.socket.timeout`."""
        return self._patience

    def setblocking(self, flag: bool, /) -> None:
        """As `socket.socket.setblocking`."""
        self._patience = None if flag else 0.0

    def getblocking(self) -> bool:
        """As `socket.socket.getblocking`."""
        return self._patience != 0

    def _deadline(self) -> float | None:
        return None if self._patience is None else time.monotonic() + self._patience

    def _wait(self, events: int, deadline: float | None) -> None:
        """Return once the descriptor is ready for `events`, or in trouble."""
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        poller = select.poll()
        try:
            poller.register(self, events)
        except ValueError:
            # Closed by another thread in between.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        if not poller.poll(None if seconds is None else math.ceil(seconds * 1000)):
            if self._patience == 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            raise TimeoutError("timed out")

    # -- the handshake ---------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Make the handshake, within the timeout.

        Raises:
            TLSError: it failed, or the peer closed the connection meanwhile.
            TimeoutError: it took too long.
            OSError: the connection broke.
        """
        deadline = self._deadline()
        while True:
            with self._stepping:
                try:
                    done = self._session.handshake()
                except TLSError as error:
                    failure: TLSError | None = self._named(error)
                else:
                    failure = None
                # Of a failure too: the alert tells the peer what is wrong.
                self._wire += self._session.outgoing()
            if failure is not None:
                self._send_without_waiting()
                raise failure
            with self._sending:
                self._send_wire(deadline)
            if done:
                return
            while (data := self._receive()) is None:
                self._wait(select.POLLIN, deadline)
            if not data:
                raise TLSError(f"{self._peer}: TLS handshake failed: the peer closed the connection")
            with self._stepping:
                self._session.feed(data)

    def _named(self, error: TLSError) -> TLSError:
        named = TLSError(f"{self._peer}: {error}")
        named.__cause__ = error
        return named

    # -- input -----------------------------------------------------------------------------------------

    def _receive(self) -> bytes | None:
        """Ciphertext that is there; None: none yet."""
        try:
            return super().recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return None

    def _decrypt(self) -> None:
        """Decrypt all that was fed; the caller holds `_stepping`."""
        try:
            plain, ended = self._session.decrypt()
        except TLSError as error:
            raise self._named(error) from error.__cause__
        finally:
            self._wire += self._session.outgoing()
        self._plain += plain
        self._ended = self._ended or ended

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As `socket.socket.recv`; b"" once the peer has ended its side, or the connection.

        Raises:
            TLSError: what came is no TLS, or the peer gave up with an alert.
            TimeoutError: nothing came in time.
        """
        if flags:
            raise ValueError("recv() of a TLS socket takes no flags")
        deadline = self._deadline()
        try:
            while True:
                with self._stepping:
                    if not self._plain and not self._ended:
                        # The handshake may have left input behind, so OpenSSL is asked before the kernel.
                        self._decrypt()
                    if not self._plain and not self._ended and (data := self._receive()) is not None:
                        if data:
                            self._session.feed(data)
                            self._decrypt()
                        else:
                            # Not fed: OpenSSL would refuse to send from then on, and the peer may only have
                            # half-closed.
                            self._ended = True
                        if not self._plain and not self._ended:
                            continue
                    if self._plain or self._ended:
                        data, self._plain = self._plain[:bufsize], self._plain[bufsize:]
                        return data
                self._wait(select.POLLIN, deadline)
        finally:
            if self._wire:
                self._send_without_waiting()

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        with memoryview(buffer) as view, view.cast("B") as octets:
            data = self.recv(nbytes or len(octets), flags)
            octets[: len(data)] = data
        return len(data)

    # -- output ----------------------------------------------------------------------------------------

    def _send_wire(self, deadline: float | None) -> None:
        """Send all ciphertext, waiting until `deadline`; the caller holds `_sending`."""
        while self._wire:
            with self._stepping:
                piece = bytes(self._wire[: 4 * CHUNK])
            try:
                count = super().send(piece)
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT, deadline)
                continue
            with self._stepping:
                del self._wire[:count]

    def _send_without_waiting(self) -> None:
        """Send the ciphertext that the kernel takes now; whoever is sending already sends the rest of it too."""
        if self._sending.acquire(blocking=False):
            try:
                while self._wire:
                    with self._stepping:
                        piece = bytes(self._wire)
                    count = super().send(piece)
                    with self._stepping:
                        del self._wire[:count]
            except OSError:
                # The next write meets the same, and there is somebody to tell; this one was our own idea.
                pass
            finally:
                self._sending.release()

    def _encrypt(self, data: memoryview) -> None:
        with self._stepping:
            if self._notified:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                self._session.encrypt(data)  # type: ignore[arg-type]  # any buffer will do
            except TLSError as error:
                raise self._named(error) from error.__cause__
            self._wire += self._session.outgoing()

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As `socket.socket.sendall`.

        Raises:
            TimeoutError: the peer did not take all of it in time; what was encrypted goes out with the next write.
            BrokenPipeError: our side has ended.
        """
        if flags:
            raise ValueError("sendall() of a TLS socket takes no flags")
        deadline = self._deadline()
        with self._sending, memoryview(data) as view, view.cast("B") as octets:
            self._send_wire(deadline)
            for start in range(0, len(octets), RECORD):
                self._encrypt(octets[start : start + RECORD])
                self._send_wire(deadline)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As `socket.socket.send`, of one TLS record at most."""
        with memoryview(data) as view, view.cast("B") as octets:
            self.sendall(octets[:RECORD], flags)
            return min(len(octets), RECORD)

    def send_now(self, data: Any) -> int:
        """Take one record's worth of `data` if nothing is left to be sent; from any thread.

        Raises:
            BlockingIOError: the kernel takes nothing, or another thread is in the middle of a write.
        """
        if not self._sending.acquire(blocking=False):
            raise BlockingIOError("another thread is writing")
        try:
            # A record cannot be taken back once it is made, so one may stay behind, but never two.
            for piece in (b"", bytes(data[:RECORD])):
                if piece:
                    self._encrypt(memoryview(piece))
                while self._wire:
                    with self._stepping:
                        wire = bytes(self._wire)
                    try:
                        count = super().send(wire)
                    except (BlockingIOError, InterruptedError):
                        if piece:
                            return len(piece)
                        raise BlockingIOError("the peer does not keep up") from None
                    with self._stepping:
                        del self._wire[:count]
            return len(piece)
        finally:
            self._sending.release()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `socket.socket.sendfile`; through `send`, because the kernel cannot encrypt."""
        return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    # -- the end ---------------------------------------------------------------------------------------

    def _notify(self) -> None:
        """Make close_notify, after whatever has come is decrypted."""
        with self._stepping:
            if self._notified or not self._session.ready:
                return
            try:
                self._decrypt()
            except TLSError:
                # Whoever reads on is told the same.
                pass
            self._notified = True
            self._session.end()
            self._wire += self._session.outgoing()

    def shutdown(self, how: int) -> None:
        """As `socket.socket.shutdown`; the end of our side is close_notify, and reading goes on after it."""
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            deadline = self._deadline()
            with self._sending:
                self._notify()
                self._send_wire(deadline)
        super().shutdown(how)

    def say_goodbye(self) -> None:
        """Send close_notify as far as that goes without waiting, before the socket is closed; raises nothing."""
        self._notify()
        self._send_without_waiting()
        try:
            # Session tickets that nobody has read would make close(2) reset the connection, and what we sent with it.
            super().recv(CHUNK)
        except OSError:
            pass

    # -- what would go past TLS ------------------------------------------------------------------------

    def _refuse(self, *_args: Any, **_options: Any) -> NoReturn:
        raise NotImplementedError("a TLS socket has recv, recv_into, send, sendall, sendfile and makefile only")

    recvfrom = recvfrom_into = recvmsg = recvmsg_into = sendto = sendmsg = dup = _refuse
