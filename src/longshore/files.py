"""Files over a connection, as `socket.makefile` makes them over a socket.

The only place that gives a connection the methods of a file.  A binary file keeps nothing that it reads: a buffer
between it and the connection would hide pipelined input, and the connection could not tell then when writes may be
coalesced.  Closing one leaves the connection open, as with sockets.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from longshore.shortcuts import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("make_file",)

#: The longest line (bytes) that a file reads without being given a size.
FILE_LINE = 1 << 20


def make_file(connection: Any, mode: str, buffering: int | None, **text: Any) -> Any:
    """A file over `connection`, a blocking one.

    Raises:
        ValueError: there is no such mode.
    """
    if not mode or not set(mode) <= set("rwbt") or {"b", "t"} <= set(mode):
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    file: Any = None
    if "w" in mode:
        file = _Writer(connection)
        if buffering is not None and buffering > 1:
            file = io.BufferedWriter(file, buffering)
    if "r" in mode or file is None:
        file = _Reader(connection) if file is None else _ReaderAndWriter(connection, file)
    return file if "b" in mode else io.TextIOWrapper(file, **text)


@shortened
class _Writer(io.RawIOBase):
    """The writing file."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._connection.fileno()  # type: ignore[no-any-return]

    def write(self, data: Any) -> int:
        if type(data) is bytes:
            self._connection.sendall(data)
            return len(data)
        with memoryview(data) as view:
            self._connection.sendall(view)
            return view.nbytes


class _Reader(io.BufferedIOBase):
    """The reading file, straight over the connection's input."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._connection.fileno()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[bytes]:
        """The lines up to the end."""
        return self._connection._lines(FILE_LINE)  # type: ignore[no-any-return]

    def readline(self, size: int | None = -1) -> bytes:
        """A line with its end, or its first `size` bytes.

        Raises:
            MessageTooLarge: without a `size`, no line end came within `FILE_LINE` bytes.
        """
        connection = self._connection
        if size is None or size < 0:
            return connection.readline(FILE_LINE)  # type: ignore[no-any-return]
        return connection._take(connection._link.input.take_line_up_to, size)  # type: ignore[no-any-return]

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end of the stream; all until then without a `size`."""
        parts = []
        while size is None or size != 0:
            data = self._connection.recv(65_536 if size is None or size < 0 else size)
            if not data:
                break
            parts.append(data)
            if size is not None and size > 0:
                size -= len(data)
        return b"".join(parts)

    def read1(self, size: int = -1) -> bytes:
        """What is there, at most `size` bytes."""
        return self._connection.recv(65_536 if size < 0 else size)  # type: ignore[no-any-return]

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readinto1(self, buffer: Any) -> int:
        return self._connection.recv_into(buffer)  # type: ignore[no-any-return]

    def peek(self, size: int = 0) -> bytes:
        """What would be read next, without reading it."""
        connection = self._connection
        data: bytes = connection._take(connection._link.input.peek)
        return data


class _ReaderAndWriter(_Reader):
    """Both in one; `io.BufferedRWPair` would wait until its own buffer is full."""

    __slots__ = ("_writer",)

    def __init__(self, connection: Any, writer: Any) -> None:
        super().__init__(connection)
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._writer.write(data)  # type: ignore[no-any-return]

    def flush(self) -> None:
        self._writer.flush()
