"""Results on disk: one JSON file for each reactor, so that runs of both stand side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ("FOLDER", "merge", "read", "reactor_of", "write")

FOLDER = Path(__file__).resolve().parent / "results"


def reactor_of(scenarios: Mapping[str, Any]) -> str:
    """Which reactor served Longshore's servers in a run."""
    names = sorted({name for entry in scenarios.values() for name in entry["reactors"].values()})
    return "-and-".join(names) or "none"


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write a run; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(_rounded(results), indent=1, sort_keys=True) + "\n")
    return path


def read(folder: Path) -> dict[str, Any]:
    """The last run in a folder, or one without scenarios."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"scenarios": {}}


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A run of some scenarios, put into the one before; each scenario keeps where and when it was measured."""
    return {**new, "scenarios": {**old["scenarios"], **new["scenarios"]}}


def _rounded(value: Any) -> Any:
    """Figures with six digits that count; the rest is noise and makes differences hard to read."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value
