"""The supervisor: a parent that owns the sockets and keeps its workers, and what both sides of it share."""

from __future__ import annotations

__all__ = ()
