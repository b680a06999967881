"""Framings whose messages end in a delimiter: `Lines` and `Delimited`.

The only place that searches for the end of a message.  It does not split a stream that has ended: an
unterminated last line is an `IncompleteMessage`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longshore.framing.contract import Decoder
from longshore.framing.cutting import CuttingDecoder
from longshore.framing.fields import (
    KIB,
    OnOversize,
    as_bytes,
    brief_repr,
    check_delimiter,
    check_max_size,
    check_on_oversize,
    check_within,
)

__all__ = ("Delimited", "Lines")

CARRIAGE_RETURN = 0x0D


@dataclass(frozen=True)
class Lines:
    r"""Each line is a message, as bytes without its end.

    Args:
        max_size: bytes a line may have, its end not counted.
        delimiter: what ends a line.  With the default, a ``\r`` in front of it belongs to the line end as well.
        keep_end: messages keep their line end, received and sent, as `file.readline` has it.
        on_oversize: "close" raises `MessageTooLarge`, "skip" drops the line and goes on with the next.

    An empty line is the message b"".

    >>> from longshore import Lines
    >>> Lines().encode(b"hello")
    b'hello\n'

    Raises:
        ConfigError: a field cannot work.
    """

    max_size: int = 64 * KIB
    delimiter: bytes = b"\n"
    keep_end: bool = False
    on_oversize: OnOversize = "close"

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        check_max_size(self)
        check_delimiter(self)
        check_on_oversize(self)

    @property
    def strips_return(self) -> bool:
        r"""Whether a ``\r`` belongs to the line end; another delimiter than the newline says all there is to it."""
        return self.delimiter == b"\n"

    def encode(self, message: Any) -> bytes:
        r"""The line with its end.

        Raises:
            ValueError: it has a line end inside, is over `max_size`, or ends in a ``\r`` that would be stripped;
                or `keep_end` is set and it has no line end.
            TypeError: it is not bytes.
        """
        line = as_bytes(self, message)
        if not self.keep_end:
            if self.strips_return and line.endswith(b"\r"):
                raise ValueError(
                    f"a line of {len(line)} bytes ends in b'\\r', which {self!r} strips at the other end; "
                    f"strip it first, or use Delimited(b'\\n')"
                )
            check_within(self, len(line))
            wire = line + self.delimiter
        else:
            if not line.endswith(self.delimiter):
                raise ValueError(
                    f"a line of {len(line)} bytes does not end in {self.delimiter!r}; with keep_end=True "
                    f"messages carry their line end"
                )
            content = len(line) - len(self.delimiter)
            if self.strips_return and line.endswith(b"\r\n"):
                content -= 1
            check_within(self, content)
            wire = line
        _check_one(self, wire)
        return wire

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return DelimiterDecoder(self, strip_return=self.strips_return, keep_end=self.keep_end)


@dataclass(frozen=True)
class Delimited:
    r"""Each message ends in `delimiter`, which is no part of it; nothing else is stripped.

    Args:
        delimiter: one byte or more.
        max_size: bytes a message may have, the delimiter not counted.
        on_oversize: "close" raises `MessageTooLarge`, "skip" drops the message and goes on with the next.

    >>> from longshore import Delimited
    >>> Delimited(b"\0").encode(b"hello")
    b'hello\x00'

    Raises:
        ConfigError: a field cannot work.
    """

    delimiter: bytes
    max_size: int = 64 * KIB
    on_oversize: OnOversize = "close"

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        check_delimiter(self)
        check_max_size(self)
        check_on_oversize(self)

    def encode(self, message: Any) -> bytes:
        """The message with its delimiter.

        Raises:
            ValueError: the delimiter begins inside it, or it is over `max_size`.
            TypeError: it is not bytes.
        """
        content = as_bytes(self, message)
        check_within(self, len(content))
        wire = content + self.delimiter
        _check_one(self, wire)
        return wire

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return DelimiterDecoder(self, strip_return=False, keep_end=False)


def _check_one(framing: Lines | Delimited, wire: bytes) -> None:
    # The search runs over message and delimiter together: of b"a-" and the delimiter b"--" a reader finds b"a".
    at = wire.find(framing.delimiter)
    if at != len(wire) - len(framing.delimiter):
        raise ValueError(
            f"the message has {framing.delimiter!r} at byte {at}, where {framing!r} would end it; "
            f"send it as several messages, or use LengthPrefixed()"
        )


class DelimiterDecoder(CuttingDecoder):
    """The decoder of `Lines` and `Delimited`."""

    __slots__ = ("_delimiter", "_keep_end", "_limit", "_max_size", "_scanned", "_strip_return")

    def __init__(self, framing: Lines | Delimited, *, strip_return: bool, keep_end: bool) -> None:
        super().__init__(framing, f"the {framing.delimiter!r} that ends it")
        self._delimiter = framing.delimiter
        self._max_size = framing.max_size
        self._strip_return = strip_return
        self._keep_end = keep_end
        # A delimiter that begins behind this offset ends an oversized message in any case.  The search never
        # looks further, so the answer does not depend on how much came at once.
        self._limit = framing.max_size + (1 if strip_return else 0)
        self._scanned = 0

    def _locate(self) -> tuple[int, int, int] | None:
        while True:
            if self._skipping:
                return None
            size = len(self._delimiter)
            window = min(len(self._pending), self._limit + size)
            at = self._pending.find(self._delimiter, self._scanned, window)
            if at >= 0:
                # Nothing is consumed yet: a second look finds it again at once.
                self._scanned = at
                stop = at
                if self._strip_return and at and self._pending.byte(at - 1) == CARRIAGE_RETURN:
                    stop -= 1
                if stop <= self._max_size:
                    return 0, at + size if self._keep_end else stop, at + size
            else:
                # Only the last bytes can still be the beginning of a delimiter.
                self._scanned = max(self._scanned, window - size + 1)
                if window < self._limit + size:
                    return None
            if self._framing.on_oversize == "close":
                self._too_large(f"a message of more than {self._max_size} bytes without {self._delimiter!r}")
            self._skip()

    def _consume(self, count: int) -> None:
        self._scanned = 0
        super()._consume(count)

    def _discard(self) -> bool:
        at = self._pending.find(self._delimiter, self._scanned, len(self._pending))
        if at >= 0:
            self._consume(at + len(self._delimiter))
            return True
        self._consume(max(0, len(self._pending) - len(self._delimiter) + 1))
        return False
