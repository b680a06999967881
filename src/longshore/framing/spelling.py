r"""Framings spelled as text: `lines`, `length-prefixed:2`, `delimited:\r\n`, `json:length-prefixed:4`.

The only place that knows these spellings.  It imports no module of the user's: `module:NAME` is the command
line's affair.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, cast

from longshore.errors import ConfigError
from longshore.framing.contract import Framing
from longshore.framing.delimiters import Delimited, Lines
from longshore.framing.lengths import FixedSize, LengthPrefixed, Netstring
from longshore.framing.raw import Raw
from longshore.framing.values import Json, MsgPack

__all__ = ("SPELLINGS", "parse_framing")

#: Every spelling by example, in the order in which help and errors list them.
SPELLINGS = (
    "lines",
    "raw",
    "length-prefixed",
    "length-prefixed:2",
    "length-prefixed:varint",
    "fixed:16",
    "netstring",
    r"delimited:\r\n",
    "json",
    "json:length-prefixed:4",
    "msgpack",
)

ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
PIECE = re.compile(r"\\x(?P<hex>[0-9a-fA-F]{2})|\\(?P<escape>[rnt0\\])|(?P<plain>[^\\])", re.DOTALL)


def parse_framing(text: str) -> Framing:
    r"""The framing that `text` spells.

    The name comes first, then after a colon what it needs: the size of the length for `length-prefixed` (1, 2, 3,
    4, 8 or varint), the bytes for `fixed`, the delimiter for `delimited` (escapes: ``\r \n \t \0 \\ \xHH``), the
    inner framing for `json` and `msgpack`.

    >>> from longshore.framing import parse_framing
    >>> parse_framing("length-prefixed:2")
    LengthPrefixed(size=2)

    Raises:
        ConfigError: it spells none; the message lists what is known.
    """
    if not isinstance(text, str):
        raise ConfigError(f"a framing is spelled as text, not as {text!r}; known are {', '.join(SPELLINGS)}")
    try:
        return _parse(text)
    except ValueError as error:
        # The maker's own sentence, behind the spelling that it is about.
        hint = error.hint if isinstance(error, ConfigError) else ""
        raise ConfigError(f"framing {text!r}: {error}; known are {', '.join(SPELLINGS)}", hint=hint) from None


def _parse(text: str) -> Framing:
    name, colon, argument = text.partition(":")
    make = MAKERS.get(name)
    if make is None:
        raise ValueError(f"there is no framing {name!r}")
    return make(argument if colon else None)


def _alone(framing: Callable[[], Framing]) -> Callable[[str | None], Framing]:
    def make(argument: str | None) -> Framing:
        if argument is not None:
            raise ValueError(f"takes nothing after the colon, not {argument!r}")
        return framing()

    return make


def _number(argument: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", argument):
        raise ValueError(f"{argument!r} is no number of bytes")
    return int(argument)


def _length_prefixed(argument: str | None) -> Framing:
    if argument is None:
        return LengthPrefixed()
    # Any other number is refused by LengthPrefixed itself, which says what it may be.
    return LengthPrefixed("varint" if argument == "varint" else cast("Literal[1, 2, 3, 4, 8]", _number(argument)))


def _fixed(argument: str | None) -> Framing:
    if argument is None:
        raise ValueError("needs the bytes of a message, such as fixed:16")
    return FixedSize(_number(argument))


def _delimited(argument: str | None) -> Framing:
    if not argument:
        raise ValueError(r"needs the delimiter, such as delimited:\r\n")
    delimiter = b""
    at = 0
    while at < len(argument):
        piece = PIECE.match(argument, at)
        if piece is None:
            raise ValueError(rf"unknown escape {argument[at : at + 2]!r}; known are \r \n \t \0 \\ \xHH")
        if piece["hex"]:
            delimiter += bytes.fromhex(piece["hex"])
        elif piece["escape"]:
            delimiter += ESCAPES[piece["escape"]]
        else:
            # An argument that was no text in the locale comes with surrogates, which stand for its bytes.
            delimiter += piece["plain"].encode(errors="surrogateescape")
        at = piece.end()
    return Delimited(delimiter)


def _json(argument: str | None) -> Framing:
    return Json() if argument is None else Json(_parse(argument))


def _msgpack(argument: str | None) -> Framing:
    return MsgPack() if argument is None else MsgPack(_parse(argument))


MAKERS: dict[str, Callable[[str | None], Framing]] = {
    "lines": _alone(Lines),
    "raw": _alone(Raw),
    "length-prefixed": _length_prefixed,
    "fixed": _fixed,
    "netstring": _alone(Netstring),
    "delimited": _delimited,
    "json": _json,
    "msgpack": _msgpack,
}
