"""The fields that framings share: how they are checked, shown, and how messages are taken as bytes.

The only place that words the refusal of a framing's argument.  It knows no particular framing and cuts nothing.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Literal

from longshore.errors import ConfigError
from longshore.framing.contract import Framing

__all__ = (
    "KIB",
    "MIB",
    "OnOversize",
    "as_bytes",
    "brief_repr",
    "check_delimiter",
    "check_framing",
    "check_max_size",
    "check_number",
    "check_on_oversize",
    "check_within",
)

KIB = 1024
MIB = 1024 * KIB

OnOversize = Literal["close", "skip"]


def brief_repr(framing: Any) -> str:
    """The call that makes this framing, without the fields that have their default: `Lines(max_size=80)`."""
    shown = (
        f"{item.name}={getattr(framing, item.name)!r}"
        for item in fields(framing)
        if item.default is MISSING or getattr(framing, item.name) != item.default
    )
    return f"{type(framing).__name__}({', '.join(shown)})"


def check_framing(framing: Any, name: str = "framing") -> None:
    """Refuse what is given in the place of a framing."""
    if isinstance(framing, type):
        raise ConfigError(f"{name}={framing.__name__}: is a class, not a framing", hint=f"Write {framing.__name__}().")
    if framing is not None and not isinstance(framing, Framing):
        raise ConfigError(
            f"{name}={framing!r}: is no framing", hint="Such as Lines(), or one with encode() and decoder()."
        )


def check_number(framing: Any, name: str) -> None:
    """Refuse a field that is not a whole number of at least 1."""
    value = getattr(framing, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{type(framing).__name__}({name}={value!r}): must be a whole number of bytes, at least 1",
        )


def check_max_size(framing: Any) -> None:
    """Refuse a `max_size` that is no number of bytes."""
    check_number(framing, "max_size")


def check_on_oversize(framing: Any) -> None:
    """Refuse an `on_oversize` that is neither of the two."""
    if framing.on_oversize not in ("close", "skip"):
        raise ConfigError(
            f"{type(framing).__name__}(on_oversize={framing.on_oversize!r}): must be 'close' or 'skip'",
            hint="'close' ends the connection with an error, 'skip' drops the message and goes on behind it.",
        )


def check_delimiter(framing: Any) -> None:
    """Refuse a `delimiter` that is no bytes or empty."""
    delimiter = framing.delimiter
    if not isinstance(delimiter, bytes) or not delimiter:
        raise ConfigError(
            f"{type(framing).__name__}(delimiter={delimiter!r}): must be bytes, at least one, such as b'\\n'",
        )


def as_bytes(framing: Any, message: Any) -> bytes:
    """`message` as bytes.

    Raises:
        TypeError: it is not bytes-like.
    """
    if isinstance(message, bytes):
        return message
    if isinstance(message, (bytearray, memoryview)):
        return bytes(message)
    cure = "; encode the text first" if isinstance(message, str) else ""
    raise TypeError(f"a message of {framing!r} is bytes, not {type(message).__name__}{cure}")


def check_within(framing: Any, size: int) -> None:
    """Refuse to send a message that the peer's decoder would find too large.

    Raises:
        ValueError: `size` is over the framing's `max_size`.
    """
    if size > framing.max_size:
        raise ValueError(
            f"a message of {size} bytes is over max_size={framing.max_size} of {type(framing).__name__}; "
            f"raise max_size at both ends"
        )
