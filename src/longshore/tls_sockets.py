"""TLS on a socket whose caller waits: a handler's on a thread of its own, a client's, one that turns to TLS later.

The only place where a blocking caller drives a `tls.Session`.  A `TLSSocket` is an `ssl.SSLSocket` that lets
OpenSSL work on memory and moves the ciphertext itself; with a `Guard` the reactor can see its waits and end them.
Nothing here connects or accepts, and nothing here knows links or handlers.  Only who speaks TLS imports this
module, because it imports `ssl`.

Facts, and what follows from them:

* `ssl.SSLSocket.shutdown` forgets the TLS session, and OpenSSL's own shutdown over a socket reads while it looks for
  the peer's close_notify, and throws away what it reads.  So OpenSSL works on memory here, and all that was fed to it
  is decrypted before close_notify is made: a half-close loses nothing, and reading goes on.
* OpenSSL's objects must not be used by two threads at once, and a thread may wait for input for hours while another
  writes.  So the descriptor never blocks, nobody waits with the lock held, and waiting is poll(2).
* Ciphertext must leave in the order in which it was made.  So it queues in one buffer, and one lock is held by
  whoever sends; a reader that owes the peer an answer (a key update) leaves it to that sender.
* What `SSLSocket` tells about a session (getpeercert, cipher, ...) it asks the object of the `_ssl` module in
  `_sslobj`, and an `ssl.SSLObject` over memory has one of the same type.  So all of that is inherited.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from longshore.readiness import ready
from longshore.tls import Session, TLSError

if TYPE_CHECKING:
    from longshore.guard import Guard

__all__ = ("TLSSocket",)

#: Bytes asked of the kernel, and given to it, at once.
CHUNK = 65_536
#: Plaintext that is encrypted at once: the most that one record holds.
RECORD = 16_384


class TLSSocket(ssl.SSLSocket):
    """Blocking TLS, for one thread that reads and one that writes at a time; timeouts are per call, in seconds."""

    #: Whose deadlines count beside the caller's own; None: nobody's, and this is an ordinary socket.
    guard: Guard | None = None

    _tls: Session
    _peer: str
    #: What OpenSSL is asked through by all that is inherited.
    _sslobj: Any
    #: The timeout, in seconds.
    _patience: float | None
    #: Held for single steps of OpenSSL, and for what belongs to them.
    _stepping: threading.Lock
    #: Held while ciphertext is on its way, however long that takes.
    _sending: threading.RLock
    #: Decrypted and not yet read.
    _plain: bytes
    #: Encrypted and not yet sent.
    _wire: bytearray
    #: Whether there will be no more input.
    _ended: bool
    #: Whether close_notify was made: nothing more can be sent.
    _notified: bool
    # What SSLSocket's own methods look at, besides `_sslobj`.
    _context: ssl.SSLContext
    _session: None
    _connected: bool
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    @classmethod
    def over(
        cls, sock: socket.socket, context: ssl.SSLContext, peer: str, *, server_side: bool, hostname: str | None
    ) -> TLSSocket:
        """Take over `sock`, which is detached; the handshake is still to be made.

        Raises:
            AddressError: no certificate can be checked for such a `hostname`; `sock` is left alone.
        """
        tls = Session(context, server_side=server_side, hostname=hostname)
        family, kind, proto, timeout = sock.family, sock.type, sock.proto, sock.gettimeout()
        taken = cls.__new__(cls)
        # Past SSLSocket's __init__, which refuses; it makes its objects in this way too.
        socket.socket.__init__(taken, family, kind, proto, fileno=sock.detach())
        socket.socket.settimeout(taken, 0.0)
        taken._patience = timeout
        taken._peer = peer
        taken._tls = tls
        taken._stepping = threading.Lock()
        taken._sending = threading.RLock()
        taken._plain = b""
        taken._wire = bytearray()
        taken._ended = False
        taken._notified = False
        taken._context = context
        taken._session = None
        taken._connected = True
        taken._sslobj = tls.object._sslobj
        # What a callback of the context (server names) is given.
        taken._sslobj.owner = taken
        taken.server_side = server_side
        taken.server_hostname = hostname
        taken.do_handshake_on_connect = False
        taken.suppress_ragged_eofs = True
        return taken

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

    def _wait(self, events: int, deadline: float | None, what: str) -> None:
        """Return once the descriptor is ready for `events`, or in trouble."""
        if self._patience == 0:
            if events == select.POLLIN:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, f"The {what} operation did not complete")
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, f"The {what} operation did not complete")
        guard = self.guard
        try:
            done = ready(self, events, deadline) if guard is None else guard.wait_ready(self, events, deadline)
        except ValueError:
            # Closed by another thread in between.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        self._check()
        if not done:
            raise TimeoutError(f"The {what} operation timed out")

    def _check(self) -> None:
        """Raise the error of an interruption."""
        if self.guard is not None:
            self.guard.check()

    # -- the handshake ---------------------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """Make the handshake, within the timeout.

        Raises:
            TLSError: it failed, or the peer closed the connection meanwhile.
            TimeoutError: it took too long.
            OSError: the connection broke, or was interrupted.
        """
        guard = self.guard
        if guard is None:
            self._shake_hands()
            return
        watch = guard.watch
        watch.begin_handshake(guard.now())
        guard.arm()
        try:
            guard.check()
            self._shake_hands()
        except OSError:
            guard.check()
            raise
        finally:
            watch.ready = watch.last_byte = guard.now()
            watch.handshaking = False

    def _shake_hands(self) -> None:
        deadline = self._deadline()
        while True:
            failure: TLSError | None = None
            with self._stepping:
                try:
                    done = self._tls.handshake()
                except TLSError as error:
                    failure = self._named(error)
                # Of a failure too: the alert tells the peer what is wrong.
                self._wire += self._tls.outgoing()
            if failure is not None:
                self._send_without_waiting()
                raise failure
            with self._sending:
                self._send_wire(deadline, "handshake")
            if done:
                return
            while (data := self._receive()) is None:
                self._wait(select.POLLIN, deadline, "handshake")
            if not data:
                raise TLSError(f"{self._peer}: TLS handshake failed: the peer closed the connection")
            with self._stepping:
                self._tls.feed(data)

    def _named(self, error: TLSError) -> TLSError:
        named = TLSError(f"{self._peer}: {error}")
        named.__cause__ = error.__cause__
        return named

    # -- input: recv and recv_into of the standard library end here -------------------------------------

    def _receive(self, count: int = CHUNK) -> bytes | None:
        """Ciphertext that is there; None: none yet."""
        try:
            data = socket.socket.recv(self, count)
        except (BlockingIOError, InterruptedError):
            return None
        if self.guard is not None and self.guard.suspicion is not None:
            self.guard.look(data)
        return data

    def _decrypt(self) -> None:
        """Decrypt all that was fed; the caller holds `_stepping`."""
        try:
            plain, ended, owed = self._tls.receive(b"")
        except TLSError as error:
            self._wire += self._tls.outgoing()
            raise self._named(error) from error.__cause__
        self._wire += owed
        self._plain += plain
        self._ended = self._ended or ended

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As `ssl.SSLSocket.read`; b"" (or 0) once the peer has ended its side, or the connection.

        Raises:
            TLSError: what came is no TLS, or the peer gave up with an alert.
            TimeoutError: nothing came in time.
            OSError: the connection broke, or was interrupted.
        """
        return self._read(len) if buffer is None else self._read_into(buffer, len)

    def _read_into(self, buffer: Any, count: int) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            data = self._read(min(count or len(octets), len(octets)))
            octets[: len(data)] = data
        return len(data)

    def _read(self, count: int) -> bytes:
        guard = self.guard
        if guard is None:
            return self._read_plain(count)
        guard.begin_wait()
        try:
            data = self._read_plain(count)
        except OSError:
            guard.check()
            raise
        finally:
            guard.end_wait()
        guard.came(len(data))
        return data

    def _read_plain(self, count: int) -> bytes:
        deadline = self._deadline()
        try:
            while True:
                with self._stepping:
                    if not self._plain and not self._ended:
                        # The handshake may have left input behind, so OpenSSL is asked before the kernel.
                        self._decrypt()
                    if not self._plain and not self._ended and (data := self._receive()) is not None:
                        if data:
                            self._tls.feed(data)
                            self._decrypt()
                        else:
                            # Not fed: OpenSSL would refuse to send from then on, and the peer may only have
                            # half-closed.
                            self._ended = True
                        if not self._plain and not self._ended:
                            continue
                    if self._plain or self._ended:
                        data, self._plain = self._plain[:count], self._plain[count:]
                        return data
                self._wait(select.POLLIN, deadline, "read")
        finally:
            if self._wire:
                self._send_without_waiting()

    def pending(self) -> int:
        """As `ssl.SSLSocket.pending`: bytes that can be read without waiting for the peer."""
        with self._stepping:
            if not self._plain and not self._ended and self._tls.ready:
                self._decrypt()
            return len(self._plain)

    # -- output ----------------------------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """Bytes of ciphertext that were made and that the kernel has not taken."""
        return len(self._wire)

    def _send_wire(self, deadline: float | None, what: str = "write") -> None:
        """Send all ciphertext, waiting until `deadline`; the caller holds `_sending`."""
        guard = self.guard
        while self._wire:
            if self._send_some():
                if guard is not None and guard.watch.pending:
                    guard.watch.sent(guard.now(), left=True)
                continue
            if guard is not None:
                guard.begin_output()
            self._wait(select.POLLOUT, deadline, what)

    def _send_some(self) -> bool:
        """Give the kernel what it takes now; whether it took anything."""
        with self._stepping:
            piece = bytes(self._wire[:CHUNK])
        try:
            count = socket.socket.send(self, piece)
        except (BlockingIOError, InterruptedError):
            return False
        with self._stepping:
            del self._wire[:count]
        return True

    def _send_without_waiting(self) -> None:
        """Send the ciphertext that the kernel takes now; whoever is sending already sends the rest of it too."""
        if self._sending.acquire(blocking=False):
            try:
                while self._wire and self._send_some():
                    pass
            except OSError:
                # The next write meets the same, and there is somebody to tell; this one was our own idea.
                pass
            finally:
                self._sending.release()

    def _encrypt(self, data: Any) -> None:
        with self._stepping:
            if self._notified:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                self._wire += self._tls.send(data)
            except TLSError as error:
                raise self._named(error) from error.__cause__

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As `socket.socket.sendall`.

        Raises:
            TimeoutError: the peer did not take all of it in time; what was encrypted goes out with the next write.
            BrokenPipeError: our side has ended.
            OSError: the connection broke, or was interrupted.
        """
        if flags:
            raise ValueError("sendall() of a TLS socket takes no flags")
        deadline = self._deadline()
        guard = self.guard
        with self._sending, memoryview(data) as view, view.cast("B") as octets:
            self._check()
            try:
                self._send_wire(deadline)
                for start in range(0, len(octets), RECORD):
                    piece = octets[start : start + RECORD]
                    self._encrypt(piece)
                    self._send_wire(deadline)
                    if guard is not None:
                        guard.went(len(piece))
            except OSError:
                self._check()
                raise
            finally:
                if guard is not None:
                    guard.watch.pending = False

    def send(self, data: Any, flags: int = 0) -> int:
        """As `ssl.SSLSocket.send`, of one TLS record at most."""
        if flags:
            raise ValueError("send() of a TLS socket takes no flags")
        with memoryview(data) as view, view.cast("B") as octets:
            if self._patience == 0:
                # What is encrypted cannot be asked for again, so it counts as sent.
                try:
                    return self.send_now(octets)
                except BlockingIOError:
                    self._wait(select.POLLOUT, None, "write")
            piece = octets[:RECORD]
            self.sendall(piece)
            return len(piece)

    def write(self, data: Any) -> int:
        """As `ssl.SSLSocket.write`."""
        return self.send(data)

    def send_now(self, data: Any) -> int:
        """Take one record's worth of `data` if nothing is left to be sent; from any thread.

        A record cannot be taken back once it is made, so one may stay `behind`, but never two.

        Raises:
            BlockingIOError: the kernel takes nothing, or another thread is in the middle of a write.
        """
        if not self._sending.acquire(blocking=False):
            raise BlockingIOError("another thread is writing")
        try:
            self._check()
            while self._wire:
                if not self._send_some():
                    raise BlockingIOError("the peer does not keep up")
            piece = bytes(data[:RECORD])
            if piece:
                self._encrypt(piece)
                while self._wire and self._send_some():
                    pass
                if self.guard is not None:
                    self.guard.went(len(piece))
            return len(piece)
        finally:
            self._sending.release()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As `socket.socket.sendfile`; through `send`, because the kernel cannot encrypt."""
        with self._sending:
            return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    # -- the end ---------------------------------------------------------------------------------------

    def _notify(self) -> None:
        """Make close_notify, after whatever has come is decrypted."""
        with self._stepping:
            if self._notified or not self._tls.ready:
                return
            try:
                self._decrypt()
            except TLSError:
                # Whoever reads on is told the same.
                pass
            self._notified = True
            self._tls.end()
            self._wire += self._tls.outgoing()

    def shutdown(self, how: int) -> None:
        """As `socket.socket.shutdown`; the end of our side is close_notify, and reading goes on after it."""
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            deadline = self._deadline()
            with self._sending:
                self._notify()
                self._send_wire(deadline)
        socket.socket.shutdown(self, how)

    def say_goodbye(self) -> None:
        """Send close_notify as far as that goes without waiting, before the socket is closed; raises nothing."""
        self._notify()
        self._send_without_waiting()
        if self.guard is None:
            try:
                # Session tickets that nobody has read would make close(2) reset the connection, and what we sent
                # with it.  Whoever ends a guarded connection reads on.
                self._receive()
            except OSError:
                pass

    def take_behind(self) -> bytes:
        """Ciphertext that the kernel has not taken, for whoever goes on with the descriptor."""
        with self._stepping:
            wire = bytes(self._wire)
            self._wire.clear()
        return wire

    def unwrap(self) -> socket.socket:
        """End TLS on both sides, and go on in plain text with the socket that is returned.

        What the peer has still sent over TLS is dropped, as by `ssl.SSLSocket.unwrap`.

        Raises:
            TLSError: the peer did not wait with its plain text until TLS was over, so it was read as TLS.
            TimeoutError, OSError: as `read`.
        """
        deadline = self._deadline()
        with self._sending:
            self._notify()
            self._send_wire(deadline, "unwrap")
        while not self._ended:
            # Byte by byte: what follows the peer's close_notify is plain text already, and not ours to read.
            while (data := self._receive(1)) is None:
                self._wait(select.POLLIN, deadline, "unwrap")
            with self._stepping:
                if data:
                    self._tls.feed(data)
                    self._decrypt()
                else:
                    self._ended = True
        if self._tls.unread:
            raise TLSError(f"{self._peer} sent plain text before TLS had ended on both sides")
        guard, patience = self.guard, self._patience
        plain: Any = socket.socket(self.family, self.type, self.proto, fileno=socket.socket.detach(self))
        if guard is not None:
            from longshore.sockets import guarded

            plain = guarded(plain, guard)
        plain.settimeout(patience)
        return plain  # type: ignore[no-any-return]

    def interrupt(self, cause: str, error: BaseException, how: int = socket.SHUT_RDWR) -> None:
        """Make every wait, and every later call, raise `error`; from any thread."""
        assert self.guard is not None
        self.guard.interrupt(cause, error, how)

    def _real_close(self, *args: Any) -> None:
        if self.guard is None:
            socket.socket._real_close(self, *args)  # type: ignore[attr-defined]
            return
        self.say_goodbye()
        self.guard.closed()

    def surrender(self) -> socket.socket | None:
        """Give the descriptor away as a plain, non-blocking socket, for the connection's end.

        None if it was given away before.
        """
        if self.guard is None:
            return None
        self.say_goodbye()
        return self.guard.release()
