"""Framings whose messages have a length that is known before they come: `LengthPrefixed`, `FixedSize`, `Netstring`.

The only place that reads a length a peer announced.  An announced length is compared with the limit and never
used to take memory: what is buffered is what has come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from longshore.errors import ConfigError, FramingError, MessageTooLarge
from longshore.framing.contract import Decoder
from longshore.framing.cutting import CuttingDecoder
from longshore.framing.fields import (
    KIB,
    MIB,
    OnOversize,
    as_bytes,
    brief_repr,
    check_max_size,
    check_number,
    check_on_oversize,
    check_within,
)

__all__ = ("FixedSize", "LengthPrefixed", "Netstring")

SIZES = (1, 2, 3, 4, 8, "varint")

#: A LEB128 number of 64 bits has at most this many bytes.
VARINT_BYTES = 10
#: Enough decimal digits for any length of 63 bits.
NETSTRING_DIGITS = 19
COMMA = 0x2C
COLON = 0x3A
ZERO, NINE = 0x30, 0x39


@dataclass(frozen=True)
class LengthPrefixed:
    r"""Each message comes behind its length, an unsigned binary number that does not count itself.

    Args:
        size: bytes of the length: 1, 2, 3, 4 or 8; or "varint" for LEB128 (7 bits a byte, the lowest first).
        byteorder: "big" or "little"; a varint has an order of its own.
        max_size: bytes a message may have.
        on_oversize: "close" raises `MessageTooLarge`, "skip" drops the message and goes on with the next.

    >>> from longshore import LengthPrefixed
    >>> LengthPrefixed(2).encode(b"hello")
    b'\x00\x05hello'

    Raises:
        ConfigError: a field cannot work.
    """

    size: Literal[1, 2, 3, 4, 8, "varint"] = 4
    byteorder: Literal["big", "little"] = "big"
    max_size: int = 16 * MIB
    on_oversize: OnOversize = "close"

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        # By type as well, for True and 1.0 are equal to 1.
        if type(self.size) not in (int, str) or self.size not in SIZES:
            raise ConfigError(f"LengthPrefixed(size={self.size!r}): must be 1, 2, 3, 4, 8 or 'varint'")
        if self.byteorder not in ("big", "little"):
            raise ConfigError(f"LengthPrefixed(byteorder={self.byteorder!r}): must be 'big' or 'little'")
        check_max_size(self)
        check_on_oversize(self)

    def encode(self, message: Any) -> bytes:
        """The message behind its length.

        Raises:
            ValueError: it is over `max_size`, or its length does not fit into `size` bytes.
            TypeError: it is not bytes.
        """
        content = as_bytes(self, message)
        length = len(content)
        check_within(self, length)
        if self.size == "varint":
            return _varint(length) + content
        most = (1 << 8 * self.size) - 1
        if length > most:
            raise ValueError(
                f"a message of {length} bytes is over the {most} that a length of size={self.size} can say; "
                f"use a larger LengthPrefixed(size=...) at both ends"
            )
        return length.to_bytes(self.size, self.byteorder) + content

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return LengthPrefixedDecoder(self)


@dataclass(frozen=True)
class FixedSize:
    """Every `n` bytes are a message.

    >>> from longshore import FixedSize
    >>> FixedSize(4).encode(b"ping")
    b'ping'

    Raises:
        ConfigError: `n` is not a whole number of at least 1.
    """

    n: int

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        check_number(self, "n")

    def encode(self, message: Any) -> bytes:
        """The message itself.

        Raises:
            ValueError: it has not exactly `n` bytes.
            TypeError: it is not bytes.
        """
        content = as_bytes(self, message)
        if len(content) != self.n:
            raise ValueError(f"a message of {self!r} has exactly {self.n} bytes, not {len(content)}; pad or split it")
        return content

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return FixedSizeDecoder(self)


@dataclass(frozen=True)
class Netstring:
    """Each message is a netstring: its length in decimal digits, a colon, the bytes, a comma.

    Args:
        max_size: bytes a message may have.
        on_oversize: "close" raises `MessageTooLarge`, "skip" drops the message and goes on with the next.

    >>> from longshore import Netstring
    >>> Netstring().encode(b"hello")
    b'5:hello,'

    Raises:
        ConfigError: a field cannot work.
    """

    max_size: int = 64 * KIB
    on_oversize: OnOversize = "close"

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        check_max_size(self)
        check_on_oversize(self)

    def encode(self, message: Any) -> bytes:
        """The message as a netstring.

        Raises:
            ValueError: it is over `max_size`.
            TypeError: it is not bytes.
        """
        content = as_bytes(self, message)
        check_within(self, len(content))
        return b"%d:%b," % (len(content), content)

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return NetstringDecoder(self)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class SkippingDecoder(CuttingDecoder):
    """A decoder that knows how many bytes of an oversized message are still to come."""

    __slots__ = ("_left",)

    def __init__(self, framing: Any, awaited: str) -> None:
        super().__init__(framing, awaited)
        self._left = 0

    def _discard(self) -> bool:
        count = min(self._left, len(self._pending))
        self._consume(count)
        self._left -= count
        return self._left == 0

    def _refuse(self, length: int, whole: int) -> None:
        """Raise for an announced length over the limit, or skip the `whole` bytes that go with it."""
        if self._framing.on_oversize == "close":
            self._too_large(f"a message of {length} bytes was announced")
        self._left = whole
        self._skip()


class LengthPrefixedDecoder(SkippingDecoder):
    """The decoder of `LengthPrefixed`."""

    __slots__ = ("_byteorder", "_max_size", "_size")

    def __init__(self, framing: LengthPrefixed) -> None:
        super().__init__(framing, "all that its length announces")
        self._size = framing.size
        self._byteorder: Literal["big", "little"] = framing.byteorder
        self._max_size = framing.max_size

    def _locate(self) -> tuple[int, int, int] | None:
        while not self._skipping:
            header = self._header()
            if header is None:
                return None
            start, length = header
            stop = start + length
            if length <= self._max_size:
                return (start, stop, stop) if len(self._pending) >= stop else None
            self._refuse(length, stop)
        return None

    def _header(self) -> tuple[int, int] | None:
        """The length's own size, and the length."""
        if self._size != "varint":
            if len(self._pending) < self._size:
                return None
            return self._size, int.from_bytes(self._pending.copy(0, self._size), self._byteorder)
        length = 0
        for at, byte in enumerate(self._pending.copy(0, min(VARINT_BYTES, len(self._pending)))):
            length |= (byte & 0x7F) << 7 * at
            if byte < 0x80:
                if length >> 64:
                    self._fail(FramingError, f"the varint length {length} is over 64 bits")
                return at + 1, length
        if len(self._pending) >= VARINT_BYTES:
            self._fail(FramingError, f"the varint length has no end within {VARINT_BYTES} bytes")
        return None


class FixedSizeDecoder(CuttingDecoder):
    """The decoder of `FixedSize`; nothing can be oversized or wrong, only incomplete."""

    __slots__ = ("_n",)

    def __init__(self, framing: FixedSize) -> None:
        super().__init__(framing, f"all of its {framing.n}")
        self._n = framing.n

    def _locate(self) -> tuple[int, int, int] | None:
        return (0, self._n, self._n) if len(self._pending) >= self._n else None


class NetstringDecoder(SkippingDecoder):
    """The decoder of `Netstring`."""

    __slots__ = ("_comma_due", "_max_size")

    def __init__(self, framing: Netstring) -> None:
        super().__init__(framing, "all that its length announces")
        self._max_size = framing.max_size
        self._comma_due = False

    def _locate(self) -> tuple[int, int, int] | None:
        while not self._skipping:
            if self._comma_due:
                # The one behind a skipped message: without it the bytes that follow mean nothing.
                if not self._pending:
                    return None
                self._check_comma(0)
                self._consume(1)
                self._comma_due = False
            header = self._header()
            if header is None:
                return None
            start, length = header
            stop = start + length
            if length > self._max_size:
                self._comma_due = True
                self._refuse(length, stop)
            elif len(self._pending) > stop:
                self._check_comma(stop)
                return start, stop, stop + 1
            else:
                return None
        return None

    def _check_comma(self, at: int) -> None:
        byte = self._pending.byte(at)
        if byte != COMMA:
            self._fail(FramingError, f"a netstring ends in {bytes([byte])!r}, not in b','")

    def _header(self) -> tuple[int, int] | None:
        """The size of the digits and the colon, and the length."""
        length = 0
        for at, byte in enumerate(self._pending.copy(0, min(NETSTRING_DIGITS + 1, len(self._pending)))):
            if byte == COLON and at:
                return at + 1, length
            if not ZERO <= byte <= NINE:
                self._fail(
                    FramingError, f"a netstring's length has {bytes([byte])!r} at byte {at}, not a digit or b':'"
                )
            if at and not length:
                self._fail(FramingError, "a netstring's length begins with b'0', which only b'0:,' may")
            length = length * 10 + byte - ZERO
        if len(self._pending) > NETSTRING_DIGITS:
            # Skipping would need the whole number, and no message is that long: it is garbage made of digits.
            self._fail(
                MessageTooLarge,
                f"a netstring's length has more than {NETSTRING_DIGITS} digits, over max_size={self._max_size}",
            )
        return None
