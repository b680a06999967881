"""What the decoders that buffer bytes have in common.

The only place that holds the bytes of a partial message, so the promises every framing makes stand here once:
cutting is lazy, errors come last and stay, and neither searching nor consuming touches a byte again and again.
Where a message ends is not known here: that is each framing's `_locate`.
"""

from __future__ import annotations

from typing import Any, NoReturn

from longshore.errors import FramingError, IncompleteMessage, MessageTooLarge
from longshore.framing.contract import NEED_MORE

__all__ = ("ByteQueue", "CuttingDecoder")

#: Consumed bytes (of at least half the buffer) from which moving the rest to the front is worth it.
COMPACT_FROM = 64 * 1024


class ByteQueue:
    """Bytes appended at the end and dropped at the front; offsets count from the first byte not dropped."""

    __slots__ = ("data", "start")

    def __init__(self) -> None:
        self.data = bytearray()
        self.start = 0

    def __len__(self) -> int:
        return len(self.data) - self.start

    def append(self, data: bytes) -> None:
        """Append any bytes-like object."""
        self.data += data

    def byte(self, at: int) -> int:
        """The byte at an offset."""
        return self.data[self.start + at]

    def copy(self, start: int, stop: int) -> bytes:
        """The bytes between two offsets."""
        return bytes(memoryview(self.data)[self.start + start : self.start + stop])

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """The offset of the first `wanted` that lies wholly between two offsets, or -1."""
        at = self.data.find(wanted, self.start + start, self.start + stop)
        return at if at < 0 else at - self.start

    def drop(self, count: int) -> None:
        """Drop bytes at the front."""
        self.start += count
        if self.start == len(self.data):
            self.data.clear()
            self.start = 0
        elif self.start >= COMPACT_FROM and self.start * 2 >= len(self.data):
            # At most as many bytes move as were consumed since the last time, so all moves together cost no
            # more than the stream is long, however small its messages are.
            del self.data[: self.start]
            self.start = 0


class CuttingDecoder:
    """A `Decoder` whose framing says only where the first message lies.

    `_locate` answers with offsets and consumes no message, so `end` can look ahead without taking anything from
    `rest`.  An oversized message that is to be skipped is dropped as it comes: `feed` passes what arrives to
    `_discard` until that answers that the message is gone.
    """

    __slots__ = ("_awaited", "_discarded", "_ended", "_failure", "_framing", "_pending", "_skipping")

    def __init__(self, framing: Any, awaited: str) -> None:
        self._framing = framing
        self._awaited = awaited
        self._pending = ByteQueue()
        self._failure: tuple[type[FramingError], str, str] | None = None
        self._ended = False
        self._skipping = False
        self._discarded = 0

    def __repr__(self) -> str:
        return f"<decoder of {self._framing!r}, {len(self._pending)} bytes buffered>"

    @property
    def buffered(self) -> int:
        """How many bytes `rest` would give."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Append bytes as they came."""
        if self._failure is not None:
            # The stream cannot be understood any more, so nothing of it is worth memory.
            return
        self._pending.append(data)
        if self._skipping:
            self._go_on_skipping()

    def next_message(self) -> Any:
        """The next message, or `NEED_MORE`."""
        if self._failure is not None:
            self._raise()
        found = self._locate()
        if found is None:
            if self._ended:
                self._check_complete()
            return NEED_MORE
        start, stop, size = found
        message = self._pending.copy(start, stop)
        self._consume(size)
        return message

    def end(self) -> None:
        """The stream has ended."""
        self._ended = True
        if self._failure is not None:
            self._raise()
        if self._locate() is None:
            self._check_complete()

    def rest(self) -> bytes:
        """The bytes not yet consumed."""
        return self._pending.copy(0, len(self._pending))

    def _locate(self) -> tuple[int, int, int] | None:
        """Where the first message starts and stops, and how many bytes go with it; None: need more."""
        raise NotImplementedError

    def _discard(self) -> bool:
        """Drop what is there of an oversized message; True when all of it is gone."""
        raise NotImplementedError

    def _consume(self, count: int) -> None:
        self._pending.drop(count)

    def _skip(self) -> bool:
        """Begin to skip the first message; True when all of it is gone already."""
        self._skipping = True
        self._discarded = 0
        return self._go_on_skipping()

    def _go_on_skipping(self) -> bool:
        before = len(self._pending)
        self._skipping = not self._discard()
        self._discarded += before - len(self._pending)
        return not self._skipping

    def _too_large(self, happened: str) -> NoReturn:
        name = type(self._framing).__name__
        self._fail(
            MessageTooLarge,
            f"{happened}, over max_size={self._framing.max_size} of {name}",
            hint=f"If the peer is right, raise {name}(max_size=...); on_oversize='skip' drops such messages instead.",
        )

    def _check_complete(self) -> None:
        if self._skipping:
            self._fail(
                IncompleteMessage,
                f"the stream ended in an oversized message, {self._discarded + len(self._pending)} bytes of which "
                f"were skipped, over max_size={self._framing.max_size}",
                hint=self._suspicion(),
            )
        if self._pending:
            self._fail(
                IncompleteMessage,
                f"the stream ended in the middle of a message: {len(self._pending)} bytes came, "
                f"but not {self._awaited}",
                hint=self._suspicion(),
            )

    def _suspicion(self) -> str:
        return f"The peer closed too early, or speaks another framing than {self._framing!r}."

    def _fail(self, kind: type[FramingError], text: str, hint: str = "") -> NoReturn:
        self._failure = (
            kind,
            text,
            hint or f"The peer speaks another framing than {self._framing!r}, or sends garbage.",
        )
        self._raise()

    def _raise(self) -> NoReturn:
        # A new error each time: one that is kept would keep the frames of its first traceback, and grow.
        assert self._failure is not None
        kind, text, hint = self._failure
        raise kind(text, hint=hint)
