"""The certificate that a server shows: loaded, checked, and loaded again when its files have changed.

The only place that decides whether a new certificate takes the place of the one before.  A context is never changed
while it is used: another one is made, and connections that are there keep theirs.  Nothing here has a timer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.tls import server_context

if TYPE_CHECKING:
    from longshore.config import TLS

__all__ = ("Certificates", "expiry_of")


class Certificates:
    """The context of one server's certificate.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, tls: TLS) -> None:
        self.tls = tls
        #: When it was loaded, counted from 0.
        self.generation = -1
        #: When the certificate expires, in seconds since 1970; None where only its own context knows.
        self.expires: float | None = None
        self.context: Any = None
        self._stamp: Any = None
        self.load(tls)

    def load(self, tls: TLS) -> None:
        """Take what `tls` says, files read anew; after an error everything is as before.

        Raises:
            ConfigError: the files cannot be used, or belong not together.
        """
        # Taken before reading: what changes meanwhile has another one, and is seen next time.
        stamp = _stamp(tls)
        try:
            context = server_context(tls)
            expires = None if tls.context is not None else expiry_of(_read(tls.certfile))
        except ConfigError:
            self._stamp = stamp
            raise
        self.tls, self.context, self.expires, self._stamp = tls, context, expires, stamp
        self.generation += 1

    @property
    def changed(self) -> bool:
        """Whether the files are not those that were looked at last."""
        return bool(_stamp(self.tls) != self._stamp)


def _stamp(tls: TLS) -> Any:
    """What changes when somebody replaces or rewrites one of the files; a link counts as what it leads to."""
    found = []
    for name in (tls.certfile, tls.keyfile, tls.client_ca):
        try:
            status = os.stat(name) if name else None
        except OSError:
            status = None
        found.append(status and (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev))
    return found


def _read(name: str | None) -> str:
    try:
        with open(name or "", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"TLS cannot use {name!r}: {error.strerror}") from error


def expiry_of(pem: str) -> float | None:
    """When the first certificate in `pem` expires, in seconds since 1970; None if there is none that can be read.

    RFC 5280, section 4.1: Certificate, in it TBSCertificate, and there behind version, number, algorithm and issuer
    the validity: two times.  `ssl` tells this of a peer's certificate only.
    """
    import calendar
    import ssl
    import time

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    if start < 0 or stop < 0:
        return None
    try:
        inside = _value(_value(ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)])))
        if inside[0] == 0xA0:
            inside = _rest(inside)
        for _ in ("number", "algorithm", "issuer"):
            inside = _rest(inside)
        text = _value(_rest(_value(inside))).decode("ascii")
        if len(text) == 13:
            # UTCTime has two digits of the year: those from 50 on are of the last century.
            text = ("19" if text >= "5" else "20") + text
        return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
    except (ValueError, IndexError):
        return None


def _sizes(data: bytes) -> tuple[int, int]:
    """Where the value of the first element (X.690, DER) starts, and where it ends."""
    if data[1] < 0x80:
        return 2, 2 + data[1]
    count = data[1] & 0x7F
    return 2 + count, 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def _value(data: bytes) -> bytes:
    start, stop = _sizes(data)
    return data[start:stop]


def _rest(data: bytes) -> bytes:
    return data[_sizes(data)[1] :]
