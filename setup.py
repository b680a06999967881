"""The native reactor, where it can be built: everything else about the package stands in pyproject.toml.

`LONGSHORE_NATIVE=require` makes its absence an error, `=off` builds pure Python; otherwise it is tried, and one line
says so where it is left out.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from setuptools import setup

WISH = os.environ.get("LONGSHORE_NATIVE", "")


def left_out(reason: str) -> list[Any]:
    """No extension, and why; an error where one is required."""
    if WISH == "require":
        raise SystemExit(f"LONGSHORE_NATIVE=require, but the native reactor cannot be built: {reason}")
    print(f"longshore: built without the native reactor: {reason}", file=sys.stderr)
    return []


def extensions() -> list[Any]:
    """The native reactor, or nothing."""
    if WISH == "off":
        return left_out("LONGSHORE_NATIVE=off")
    if not sys.platform.startswith("linux"):
        return left_out("it is for Linux")
    if shutil.which("cargo") is None:
        return left_out("there is no Rust (cargo) here")
    try:
        from setuptools_rust import Binding, RustExtension
    except ImportError:
        return left_out("setuptools-rust is not installed")
    return [
        RustExtension(
            "longshore._native",
            path="rust/Cargo.toml",
            binding=Binding.PyO3,
            features=["python"],
            args=["--locked"],
            debug=False,
            optional=WISH != "require",
        )
    ]


setup(rust_extensions=extensions())
