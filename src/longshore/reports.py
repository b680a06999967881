"""What a server tells of itself when it is asked: frozen figures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("DrainReport", "Statistics")


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How a server ended: connections that finished by themselves, that were cut, and handlers left running."""

    finished: int
    cut: int
    abandoned: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A server's figures since its start; bytes and messages are of connections that have ended."""

    state: str
    connections: int
    accepted: int
    rejected: int
    failed: int
    received: int
    sent: int
    messages: int
    datagrams: int
    certificate_expires: float | None = None
    """When the certificate ends, in seconds since 1970; None without TLS, and with a context of your own."""
