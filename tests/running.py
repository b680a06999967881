"""Running `longshore` as its users do: in a process of its own, without what this environment says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ("COMMAND", "SOURCE", "environment")

SOURCE = Path(__file__).resolve().parents[1] / "src"
COMMAND = [sys.executable, "-m", "longshore"]


def environment(**variables: str) -> dict[str, str]:
    """This environment without what it says to Longshore, to Python or of this user's places, plus `variables`."""
    # PYTHONUNBUFFERED for one would have nothing left to flush at the end, where a full disk shows.
    dropped = ("LONGSHORE_", "COV_", "PYTHON", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "error", "TERM": "dumb"} | variables
