"""TLS: contexts from options, and a TLS session that does no I/O.

The only place that knows `ssl`.  `Session` turns ciphertext into plaintext and back over memory buffers,
which is how the reactor speaks TLS on any stream; blocking strategies wrap their socket with the same
contexts.  Nothing here reads or writes a socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshore.errors import AddressError, ConfigError, PeerError

if TYPE_CHECKING:
    import ssl

    from longshore.config import TLS

__all__ = ("Session", "TLSError", "client_context", "describe", "server_context")


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


class Session:
    """One TLS connection over memory buffers.

    Where OpenSSL calls something an error of the system, `ssl` raises what `errno` happens to say (since Python 3.13),
    which over memory means nothing: a session that has failed may say `BlockingIOError`.  So every `OSError` is TLS's.

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
        except (OSError, ssl.CertificateError) as error:
            raise TLSError(f"TLS handshake failed: {describe(error)}") from error
        self.ready = True
        return True

    def decrypt(self) -> tuple[bytes, bool]:
        """All plaintext that is there, and whether the peer has ended its side.

        Raises:
            TLSError: the peer broke the protocol.
        """
        import ssl

        parts: list[bytes] = []
        while True:
            try:
                data = self.object.read(65536)
            except ssl.SSLWantReadError:
                return b"".join(parts), False
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b"".join(parts), True
            except OSError as error:
                raise TLSError(f"TLS failed: {describe(error)}") from error
            if not data:
                return b"".join(parts), True
            parts.append(data)

    def encrypt(self, plaintext: bytes) -> None:
        """Encrypt `plaintext` towards `outgoing()`."""
        view = memoryview(plaintext)
        while view:
            try:
                view = view[self.object.write(view) :]
            except OSError as error:
                raise TLSError(f"TLS failed: {describe(error)}") from error

    def end(self) -> None:
        """Say that we send no more (close_notify)."""
        try:
            self.object.unwrap()
        except OSError:
            # The peer's own close_notify is not there yet; ours is on its way, and that is all we owe.
            pass

    def outgoing(self) -> bytes:
        """Ciphertext to be sent."""
        return self._out.read()
