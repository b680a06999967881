"""Bytes that came and are not consumed yet, and every way to cut them.

The only place where input is cut: into lines, counts, up to a separator, or into messages by a framing.
Each `take_...` answers at once with a piece, with `NEED_MORE`, or with an error; whoever asks does the
waiting, so the blocking and the async connection share all of this.  It reads no socket.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.errors import ClosedError, ConfigError, FramingError, IncompleteMessage, MessageTooLarge, PeerClosed
from longshore.framing import NEED_MORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.framing import Decoder, Framing

__all__ = (
    "InputBuffer",
    "PacketBuffer",
    "closed",
    "cut_short",
    "named",
    "no_framing",
    "no_separator",
    "octets",
    "peer_closed",
    "shut",
    "too_long",
)


def octets(data: Any) -> bytes:
    """`data`, which is bytes or lends them, as bytes.

    Raises:
        TypeError: it is anything else; a number would be so many zeros to `bytes`.
    """
    return data if type(data) is bytes else bytes(memoryview(data))


def closed(peer: str) -> ClosedError:
    """The error for whoever uses a stream that was closed on our side."""
    return ClosedError(f"the connection to {peer} is closed")


def shut(peer: str) -> ClosedError:
    """The error for whoever writes after the end of our side."""
    return ClosedError(f"output to {peer} was shut down")


def peer_closed(peer: str) -> PeerClosed:
    """The stream ended where more was asked for."""
    return PeerClosed(f"{peer} has closed the connection")


def cut_short(peer: str, size: int, wanted: str) -> IncompleteMessage:
    """The stream ended after `size` bytes of what was `wanted`."""
    return IncompleteMessage(f"{peer} closed the connection after {size} bytes, where {wanted}")


def too_long(peer: str, size: int, separator: bytes, limit: int) -> MessageTooLarge:
    """There are `size` bytes without `separator`, and the limit is less."""
    return MessageTooLarge(
        f"{peer} sent {size} bytes without {separator!r}; the limit is {limit}",
        hint="Pass a larger limit to the call, if the peer is right.",
    )


def no_framing() -> ConfigError:
    """Messages were asked for, and nothing says what one is."""
    return ConfigError(
        "messages need a framing and this connection has none",
        hint="Pass framing=Lines() (or another) to the server or to connect().",
    )


def no_separator() -> ValueError:
    """A separator was given that is none."""
    return ValueError("read_until needs a separator of at least one byte")


def _check_count(count: int) -> None:
    if count < 0:
        raise ValueError(f"{count} bytes were asked for, which is less than none")


def named(peer: str, error: FramingError) -> FramingError:
    """The same error, with the peer's name in front."""
    text = str(error)
    return error if peer in text else type(error)(f"{peer}: {text}", hint=error.hint)


class InputBuffer:
    """Input of one connection, in order, with the framing that cuts its messages."""

    __slots__ = ("_decoder", "_fed", "_framing", "_raw", "_scanned", "_sought", "ended", "peer")

    #: Whether each read, and each write, is a packet of its own.
    in_packets = False

    def __init__(self, peer: str, framing: Framing | None = None) -> None:
        self.peer = peer
        self.ended = False
        self._raw = bytearray()
        self._framing = framing
        self._decoder: Decoder | None = None
        self._fed = False
        #: Bytes in which `_sought` does not end.
        self._scanned = 0
        self._sought = b""

    @property
    def framing(self) -> Framing | None:
        """What cuts messages; a new one applies from the byte after the last message taken."""
        return self._framing

    @framing.setter
    def framing(self, framing: Framing | None) -> None:
        self._unfeed()
        self._framing = framing
        self._decoder = None

    def feed(self, data: bytes) -> None:
        """Append what came."""
        self._raw += data

    def end(self) -> None:
        """The stream has ended: there will be no more."""
        self.ended = True

    @property
    def size(self) -> int:
        """Bytes that wait to be taken; those of a message that is still partial are its framing's business."""
        return len(self._raw)

    @property
    def unread(self) -> bool:
        """Whether anything at all is buffered, a partial message included."""
        if self._raw:
            return True
        if not self._fed or self._decoder is None:
            return False
        buffered = getattr(self._decoder, "buffered", None)
        return bool(self._decoder.rest()) if buffered is None else bool(buffered)

    def take_all(self) -> bytes:
        """Everything that is buffered."""
        self._unfeed()
        data = bytes(self._raw)
        self._raw.clear()
        return data

    def discard(self) -> None:
        """Forget everything that is buffered: whoever closed wants no more of it."""
        self._decoder = None
        self._fed = False
        self._raw.clear()

    def take_some(self, count: int) -> Any:
        """Up to `count` bytes; b"" at the end of the stream."""
        _check_count(count)
        self._unfeed()
        if not self._raw and not self.ended and count:
            return NEED_MORE
        return self._cut(min(count, len(self._raw)))

    def take_exactly(self, count: int) -> Any:
        """`count` bytes.

        Raises:
            PeerClosed: the stream ended before the first of them.
            IncompleteMessage: the stream ended in the middle.
        """
        _check_count(count)
        self._unfeed()
        if len(self._raw) >= count:
            return self._cut(count)
        return self._short(f"{count} bytes were asked for")

    def take_line(self, limit: int) -> Any:
        """A line with its end; the rest at the end of the stream, then b"".

        Raises:
            MessageTooLarge: no line end within `limit` bytes.
        """
        self._unfeed()
        end = self._find(b"\n", limit)
        if end >= 0:
            return self._cut(end)
        if self.ended:
            return self._cut(len(self._raw))
        return NEED_MORE

    def take_line_up_to(self, size: int) -> Any:
        """A line with its end, or its first `size` bytes if it is longer."""
        self._unfeed()
        end = self._search(b"\n", size)
        if end >= 0:
            return self._cut(end)
        if len(self._raw) >= size or self.ended:
            return self._cut(min(size, len(self._raw)))
        return NEED_MORE

    def peek(self) -> Any:
        """What is there, without taking it; b"" at the end of the stream."""
        self._unfeed()
        if not self._raw and not self.ended:
            return NEED_MORE
        return bytes(self._raw)

    def take_until(self, separator: bytes, limit: int) -> Any:
        """Bytes up to and with `separator`.

        Raises:
            MessageTooLarge: no separator within `limit` bytes.
            PeerClosed: the stream ended before the first byte.
            IncompleteMessage: the stream ended before the separator.
        """
        if not separator:
            raise no_separator()
        self._unfeed()
        end = self._find(separator, limit)
        if end >= 0:
            return self._cut(end)
        return self._short(f"{separator!r} was awaited")

    def take_message(self) -> Any:
        """The next message of the framing.

        Raises:
            ConfigError: there is no framing.
            FramingError: what came is no message.
            IncompleteMessage: the stream ended in the middle of one.
            PeerClosed: the stream ended.
        """
        decoder = self._decoder
        if decoder is None:
            if self._framing is None:
                raise no_framing()
            decoder = self._decoder = self._framing.decoder()
        try:
            message = decoder.next_message() if self._fed else NEED_MORE
            if message is NEED_MORE and self._raw:
                decoder.feed(bytes(self._raw))
                self._raw.clear()
                self._fed = True
                message = decoder.next_message()
            if message is NEED_MORE and self.ended:
                decoder.end()
                raise peer_closed(self.peer)
        except FramingError as error:
            raise named(self.peer, error) from None
        return message

    def _short(self, wanted: str) -> Any:
        if not self.ended:
            return NEED_MORE
        if not self._raw:
            raise peer_closed(self.peer)
        raise cut_short(self.peer, len(self._raw), wanted)

    def _find(self, separator: bytes, limit: int) -> int:
        """The offset behind `separator`, or -1; over the limit that is an error."""
        end = self._search(separator, limit)
        if end < 0 and len(self._raw) >= limit:
            raise too_long(self.peer, len(self._raw), separator, limit)
        return end

    def _search(self, separator: bytes, limit: int) -> int:
        """The offset behind `separator`, or -1; where it was sought before is not searched again."""
        start = max(0, self._scanned - len(separator) + 1) if separator == self._sought else 0
        at = self._raw.find(separator, start, limit)
        if at >= 0:
            return at + len(separator)
        self._scanned, self._sought = min(len(self._raw), limit), separator
        return -1

    def _cut(self, count: int) -> bytes:
        # bytearray drops bytes at its front by moving a pointer, so this does not copy the rest.
        data = bytes(memoryview(self._raw)[:count])
        del self._raw[:count]
        self._scanned = 0
        return data

    def _unfeed(self) -> None:
        """Take back what the decoder has not made into messages."""
        if self._fed and self._decoder is not None:
            self._raw[:0] = self._decoder.rest()
            self._decoder = None
            self._fed = False
            self._scanned = 0


class PacketBuffer(InputBuffer):
    """Input that comes in packets: each is one message, or holds those of the framing and nothing else.

    What cuts by itself (`take_exactly`, `take_line`, `take_until`) reads across the borders of packets, from one
    to the next; `take_some` and `take_message` keep them.

    Datagrams have nothing to do with each other, so what is malformed is told once and the next begins anew; on a
    connection (not `separate`) it is told again and again, as on a stream.
    """

    __slots__ = ("_fault", "_packets", "_separate", "_waiting")

    in_packets = True

    def __init__(self, peer: str, framing: Framing | None = None, *, separate: bool = False) -> None:
        super().__init__(peer, framing)
        self._separate = separate
        self._fault: FramingError | None = None
        self._packets: deque[bytes] = deque()
        #: Bytes in `_packets`, and one more for each, so that a flood of empty packets fills the buffer as well.
        self._waiting = 0

    def feed(self, data: bytes) -> None:
        """Append one packet."""
        self._packets.append(data)
        self._waiting += len(data) + 1

    def _next_packet(self) -> bytes:
        packet = self._packets.popleft()
        self._waiting -= len(packet) + 1
        return packet

    @property
    def size(self) -> int:
        """Bytes that wait to be taken."""
        return super().size + self._waiting

    @property
    def unread(self) -> bool:
        """Whether anything at all is buffered."""
        return bool(self._packets) or super().unread

    def take_all(self) -> bytes:
        """Everything that is buffered."""
        data = super().take_all() + b"".join(self._packets)
        self._packets.clear()
        self._waiting = 0
        return data

    def discard(self) -> None:
        """Forget everything that is buffered."""
        super().discard()
        self._packets.clear()
        self._waiting = 0

    def take_some(self, count: int) -> Any:
        """One packet, or the rest of one, cut to `count` bytes as recv(2) does; b"" at the end."""
        if not super().unread and self._packets:
            _check_count(count)
            return self._next_packet()[:count]
        return super().take_some(count)

    def take_exactly(self, count: int) -> Any:
        """As on a stream."""
        return self._across(super().take_exactly, count)

    def take_line(self, limit: int) -> Any:
        """As on a stream."""
        return self._across(super().take_line, limit)

    def take_line_up_to(self, size: int) -> Any:
        """As on a stream."""
        return self._across(super().take_line_up_to, size)

    def take_until(self, separator: bytes, limit: int) -> Any:
        """As on a stream."""
        return self._across(super().take_until, separator, limit)

    def peek(self) -> Any:
        """As on a stream, of one packet."""
        return self._across(super().peek)

    def _across(self, take: Callable[..., Any], *args: Any) -> Any:
        """Take from packet after packet until there is enough."""
        while self._packets:
            # While there are packets, this is not the end yet.
            ended, self.ended = self.ended, False
            try:
                piece = take(*args)
            finally:
                self.ended = ended
            if piece is not NEED_MORE:
                return piece
            super().feed(self._next_packet())
        return take(*args)

    def take_message(self) -> Any:
        """One packet, or the next message that the framing finds in it.

        Raises:
            IncompleteMessage: the framing leaves something over.
            As `InputBuffer.take_message`.
        """
        if self.framing is None:
            if self._packets:
                return self._next_packet()
            if self.ended:
                raise peer_closed(self.peer)
            return NEED_MORE
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        try:
            while super().unread or self._packets:
                message = self._message_of_packet()
                if message is not NEED_MORE:
                    return message
            return super().take_message()
        except FramingError as error:
            super().discard()
            if not self._separate:
                self._fault = error
            raise

    def _message_of_packet(self) -> Any:
        """The next message of the present packet, or of the next one; `NEED_MORE` once it is used up."""
        if not super().unread:
            super().feed(self._next_packet())
        # The end of the connection is no matter of this packet's.
        ended, self.ended = self.ended, False
        try:
            message = super().take_message()
        finally:
            self.ended = ended
        if message is NEED_MORE:
            rest = len(super().take_all())
            if rest:
                raise IncompleteMessage(f"{self.peer}: the last {rest} bytes of a packet are no message")
        return message
