"""TLS: contexts from options, and a TLS session that does no I/O.

The only place that knows `ssl`.  `Session` turns ciphertext into plaintext and back over memory buffers,
which is how the reactor speaks TLS on any stream; blocking strategies wrap their socket with the same
contexts.  Nothing here reads or writes a socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.errors import AddressError, ConfigError, LongshoreError, PeerError

if TYPE_CHECKING:
    import ssl

    from longshore.config import TLS

__all__ = ("Session", "TLSError", "bound", "client_context", "describe", "hung_up", "refused", "server_context")

#: Bytes that a TLS record has at most (RFC 8446, 5.1).
RECORD = 16_384


class TLSError(PeerError, ConnectionError):
    """The handshake failed, or what came is no TLS."""


def server_context(tls: TLS) -> ssl.SSLContext:
    """The context for accepting.

    Raises:
        ConfigError: there is no certificate, or the files cannot be used.
    """
    import ssl

    if tls.context is not None:
        return tls.context
    if not tls.certfile:
        raise ConfigError(
            "a tls:// address needs a certificate",
            hint="Pass tls=TLS(certfile=..., keyfile=...), or say --certfile and --keyfile on the command line.",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _fill(context, tls)
    if tls.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: TLS | None) -> ssl.SSLContext:
    """The context for connecting; verification of certificate and name is on.

    Raises:
        ConfigError: the files cannot be used.
    """
    import ssl

    from longshore.config import TLS as Options

    options = tls or Options()
    if options.context is not None:
        return options.context
    context = ssl.create_default_context(cafile=None)
    if options.client_ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _fill(context, options)
    return context


def _fill(context: ssl.SSLContext, tls: TLS) -> None:
    import ssl

    context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[tls.minimum]
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    try:
        if tls.certfile:
            context.load_cert_chain(tls.certfile, tls.keyfile)
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(repr(name) for name in (tls.certfile, tls.keyfile, tls.client_ca) if name)
        raise ConfigError(
            f"TLS cannot use {names}: {error}",
            hint="All of them must be readable PEM files, key and certificate a pair.",
        ) from error


def describe(error: BaseException) -> str:
    """What went wrong in a handshake, in the words of the library that noticed."""
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error)
    return str(reason).lower().replace("_", " ")


def refused(peer: str, error: TLSError) -> TLSError:
    """The error for a handshake with `peer` that failed by `error`."""
    return type(error)(f"{peer}: {error}")


def hung_up(peer: str) -> TLSError:
    """The error for a peer that went away in the handshake."""
    return TLSError(f"{peer} closed the connection in the TLS handshake")


def bound() -> LongshoreError:
    """The error for whoever wants the socket of a connection that speaks TLS."""
    return LongshoreError("a TLS connection cannot be detached: its keys stay with this object")


class Session:
    """One TLS connection over memory buffers.

    Where OpenSSL calls something an error of the system, `ssl` raises what `errno` happens to say (since Python 3.13),
    which over memory means nothing: a session that has failed may say `BlockingIOError`.  And a context may have an
    `SSLObject` or callbacks of the user's own.  So whatever is raised is TLS's failure, and ends this connection only.

    `outgoing()` has what must be sent after any call; the owner sends it.
    """

    __slots__ = ("_in", "_out", "object", "ready")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, hostname: str | None = None) -> None:
        import ssl

        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        try:
            self.object: Any = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=hostname)
        except ValueError as error:
            raise AddressError(f"TLS to {hostname!r}: {error}") from error
        self.ready = False

    def feed(self, ciphertext: bytes) -> None:
        """Add what came from the peer."""
        self._in.write(ciphertext)

    @property
    def unread(self) -> int:
        """Bytes that were fed and that OpenSSL has not looked at: after the end, they are no TLS."""
        return self._in.pending

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is done.

        Raises:
            TLSError: it failed.
        """
        import ssl

        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except Exception as error:
            raise TLSError(f"TLS handshake failed: {describe(error)}") from error
        self.ready = True
        return True

    def receive(self, ciphertext: bytes) -> tuple[bytes, bool, bytes]:
        """What `ciphertext` says, whether the peer has ended its side, and what TLS itself has to answer.

        Raises:
            TLSError: the peer broke the protocol.
        """
        import ssl

        self._in.write(ciphertext)
        parts: list[bytes] = []
        ended = False
        try:
            # What tells of an end, or that there is no more, is an exception, so that is asked only where it may be.
            while self._in.pending or not parts or self.object.pending():
                data = self.object.read(RECORD)
                if not data:
                    ended = True
                    break
                parts.append(data)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            ended = True
        except Exception as error:
            raise TLSError(f"TLS failed: {describe(error)}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts), ended, self._out.read() if self._out.pending else b""

    def send(self, plaintext: bytes) -> bytes:
        """The ciphertext of `plaintext`.

        Raises:
            TLSError: the peer broke the protocol.
        """
        try:
            done = self.object.write(plaintext)
            while done < len(plaintext):
                done += self.object.write(memoryview(plaintext)[done:])
        except Exception as error:
            raise TLSError(f"TLS failed: {describe(error)}") from error
        return self._out.read()

    def end(self) -> None:
        """Say that we send no more (close_notify)."""
        try:
            self.object.unwrap()
        except Exception:
            # The peer's own close_notify is not there yet; ours is on its way, and that is all we owe.
            pass

    def outgoing(self) -> bytes:
        """Ciphertext to be sent."""
        return self._out.read()
