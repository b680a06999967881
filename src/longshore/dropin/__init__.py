"""What stands behind `longshore.socketserver`: whose hooks are called, and what goes on beside them."""

from __future__ import annotations

__all__ = ()
