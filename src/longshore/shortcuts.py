"""Methods that are tried natively first.

A frame costs the interpreter more than finding a line or queueing one.  So where the native half is there, some methods
of connections and their files begin in it (`rust/src/python/shortcuts.rs`): what a native stream can do alone is done
then, and everything else, as if there were no shortcut, by the method as it stands in its class.  That one is the
specification: a shortcut raises no error of its own and knows no option.  This file knows neither the classes nor what
is tried.
"""

from __future__ import annotations

import os
from typing import TypeVar

__all__ = ("shortened",)

_Class = TypeVar("_Class", bound=type)


def shortened(kind: _Class) -> _Class:
    """The same class, its methods shortened if there is something native to shorten them."""
    if os.environ.get("LONGSHORE_REACTOR") != "portable":
        try:
            from longshore import _native
        except ImportError:
            # It was not built, or cannot be loaded; whoever asks for a native reactor is told why.
            return kind
        _native.shorten(kind)
    return kind
