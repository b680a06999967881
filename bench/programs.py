"""The compiled programs: the load generator and the limit in Rust, and the peer in Go."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Programs", "Unavailable", "build")

_HERE = Path(__file__).resolve().parent
_NATIVE = _HERE / "native"
_GO = _HERE / "peers" / "go"


class Unavailable(Exception):
    """The benchmark cannot run here; says what is missing."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the compiled programs are; `go` is None where there is no Go, and `go_missing` says why."""

    load: Path
    limit: Path
    go: Path | None
    go_missing: str = ""


def build() -> Programs:
    """Compile what has changed.

    Raises:
        Unavailable: there is no cargo, or it fails.
    """
    if shutil.which("cargo") is None:
        raise Unavailable(
            "cargo is not installed, and the load generator is written in Rust: install Rust from your system's "
            "packages or https://rustup.rs"
        )
    manifest = str(_NATIVE / "Cargo.toml")
    done = subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", manifest],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"cargo could not build {manifest}:\n{done.stderr}")
    target = _NATIVE / "target" / "release"
    go, missing = _build_go()
    return Programs(target / "load", target / "limit", go, missing)


def _build_go() -> tuple[Path | None, str]:
    if shutil.which("go") is None:
        return None, "go is not installed"
    output = _HERE / ".build" / "echo"
    done = subprocess.run(["go", "build", "-o", str(output), "."], cwd=_GO, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"go could not build it: {done.stderr.strip()}"
    return output, ""
