"""When a server's certificate is loaded again: when it is told to, and when the files have changed.

The only place that tells of certificates.  It looks at the files from a timer of the reactor, and what it finds
serves the connections to come.  Whether a certificate is good is `certificates.py`'s decision.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError
from longshore.events import CertificateExpires, CertificateRefused, CertificateRenewed

if TYPE_CHECKING:
    from longshore.admission import Admission
    from longshore.certificates import Certificates
    from longshore.config import TLS
    from longshore.strategies import Host

__all__ = ("Renewal",)

#: Seconds before the end of a certificate from which on its server warns, when it loads it.
SOON = 14 * 86_400.0


class Renewal:
    """Keeps one server's certificate fresh."""

    def __init__(self, host: Host, admission: Admission, certificates: Certificates) -> None:
        self._host = host
        self._admission = admission
        self._certificates = certificates

    @property
    def expires(self) -> float | None:
        """When the certificate expires, in seconds since 1970; None where that is not known."""
        return self._certificates.expires

    @property
    def renewed(self) -> TLS | None:
        """What the certificate is made from, if it is not the first one any more."""
        return self._certificates.tls if self._certificates.generation else None

    def begin(self) -> None:
        """Warn of a certificate that ends soon, and look at its files from now on."""
        self._warn()
        self._wait()

    def renew(self, tls: TLS) -> None:
        """Take what `tls` says for connections to come.

        Raises:
            ConfigError: it cannot be used; the certificate before is kept, and there is an event.
        """
        try:
            self._certificates.load(tls)
        except ConfigError as error:
            self._host.emit(CertificateRefused(certfile=tls.certfile, error=error))
            raise
        self._admission.tls_context = self._certificates.context
        self._host.emit(CertificateRenewed(certfile=tls.certfile, expires=self._certificates.expires))
        self._warn()

    def _wait(self) -> None:
        tls: Any = self._certificates.tls
        if tls.context is None and tls.certificate_check is not None:
            self._host.reactor.call_later(tls.certificate_check, self._look)

    def _look(self) -> None:
        if self._certificates.changed:
            try:
                self.renew(self._certificates.tls)
            except ConfigError:
                # Told already; looked at again when the files change once more.
                pass
        self._wait()

    def _warn(self) -> None:
        expires, certfile = self._certificates.expires, self._certificates.tls.certfile
        seconds = SOON if expires is None else expires - time.time()
        if expires is not None and seconds < SOON:
            self._host.emit(CertificateExpires(certfile=certfile, expires=expires, seconds=seconds))
