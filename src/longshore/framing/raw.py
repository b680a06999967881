"""The framing that cuts nothing: `Raw`.

The only framing whose messages depend on how the bytes arrived.  It does not buffer across messages.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from longshore.framing.contract import NEED_MORE, Decoder
from longshore.framing.fields import as_bytes, brief_repr

__all__ = ("Raw",)


@dataclass(frozen=True)
class Raw:
    """Every chunk of bytes that arrives is a message.

    Cuts are not preserved: on a stream, what the peer sent at once may arrive in pieces, and what it sent in
    pieces at once, so a message is only "some bytes".  On datagram and seqpacket addresses each datagram
    arrives whole, and is one message.

    >>> from longshore import Raw
    >>> decoder = Raw().decoder()
    >>> decoder.feed(b"any bytes")
    >>> decoder.next_message()
    b'any bytes'
    """

    __repr__ = brief_repr

    def encode(self, message: Any) -> bytes:
        """The message itself.

        Raises:
            ValueError: it is empty, for no bytes never arrive.
            TypeError: it is not bytes.
        """
        content = as_bytes(self, message)
        if not content:
            raise ValueError("an empty message is no bytes at all, which no reader of Raw() would ever see")
        return content

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return RawDecoder()


class RawDecoder:
    """The decoder of `Raw`; a stream that ends is never incomplete to it."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"<decoder of Raw(), {self.buffered} bytes buffered>"

    @property
    def buffered(self) -> int:
        """How many bytes `rest` would give."""
        return sum(map(len, self._chunks))

    def feed(self, data: bytes) -> None:
        """Append one chunk; an empty one is nothing."""
        if data:
            # Through a memoryview, for bytes(7) would be seven zeros instead of a TypeError.
            self._chunks.append(bytes(memoryview(data)))

    def next_message(self) -> Any:
        """The next chunk, or `NEED_MORE`."""
        return self._chunks.popleft() if self._chunks else NEED_MORE

    def end(self) -> None:
        """The stream has ended; any chunk is whole."""

    def rest(self) -> bytes:
        """The chunks not yet returned, joined."""
        return b"".join(self._chunks)
