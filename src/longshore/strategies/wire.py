"""What the serving process and one of its children say to each other: a length, then a pickled tuple.

The only place that pickles.  Both ends of a wire are this program: it is a socket pair that was made here and handed
to a process that was forked from here, and nothing that a peer sends is ever unpickled.  What is said, and what is
done about it, is for `processes.py` and `child.py` to know.

An exception is more than its pickle.  Its traceback stays behind, so its text goes along; and some cannot be pickled,
or not be made again from what they pickle to, so their type's name and their message go along too.
"""

from __future__ import annotations

import pickle
import struct
import threading
import traceback
from typing import TYPE_CHECKING, Any

from longshore.errors import LongshoreError

if TYPE_CHECKING:
    import socket

__all__ = ("ChildError", "ChildTraceback", "Messages", "Wire", "encode", "pack_error", "unpack_error")

_LENGTH = struct.Struct("=I")
#: Bytes asked of the kernel at once.
CHUNK = 65_536


class ChildError(LongshoreError):
    """An exception of a handler in a child that cannot be pickled: its message; its type has the same name."""


class ChildTraceback(Exception):
    """The traceback that an exception had in the child, as text: the cause of the exception that came from there."""

    def __str__(self) -> str:
        return f"in the child process:\n\n{self.args[0]}"


def encode(verb: str, *args: Any) -> bytes:
    """One message as bytes."""
    payload = pickle.dumps((verb, args))
    return _LENGTH.pack(len(payload)) + payload


class Messages:
    """Cuts what comes through a wire into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[str, tuple[Any, ...]]]:
        """The messages that are whole now: verb and arguments."""
        buffer = self._buffer
        buffer += data
        found = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(buffer, start)[0]
            if end > len(buffer):
                break
            with memoryview(buffer) as view:
                found.append(pickle.loads(view[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return found


class Wire:
    """The child's end.  Sending blocks, which is safe from any thread: the serving process never does, and reads."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self.socket = sock
        self._messages = Messages()
        self._sending = threading.Lock()

    def send(self, verb: str, *args: Any) -> None:
        """Send one message.

        Raises:
            Exception: an argument cannot be pickled; nothing was sent.
        """
        data = encode(verb, *args)
        with self._sending:
            try:
                self.socket.sendall(data)
            except OSError:
                # The serving process is gone, which this process learns by the end of the same stream.
                pass

    def receive(self, *, wait: bool = False) -> list[tuple[str, tuple[Any, ...]]] | None:
        """What has come (at least one message with `wait`); None at the end of the stream."""
        import socket

        found: list[tuple[str, tuple[Any, ...]]] = []
        while not found:
            try:
                data = self.socket.recv(CHUNK, 0 if wait else socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return found
            except OSError:
                return None
            if not data:
                return None
            found = self._messages.feed(data)
            if not wait:
                break
        return found


def pack_error(error: BaseException | None) -> Any:
    """An exception as plain data that can always be pickled."""
    if error is None:
        return None
    try:
        pickled = pickle.dumps(error)
        # Many can be pickled and not be made again, as their arguments are not those of their __init__.
        pickle.loads(pickled)
    except Exception:
        pickled = b""
    text = "".join(traceback.format_exception(error)) if error.__traceback__ is not None else ""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return pickled, type(error).__qualname__, message, text


def unpack_error(packed: Any) -> BaseException | None:
    """The exception again, or one of the same name and message; what was its traceback is the text of its cause."""
    if packed is None:
        return None
    pickled, name, message, text = packed
    error: BaseException
    try:
        error = pickle.loads(pickled)
    except Exception:
        error = type(name, (ChildError,), {})(message)
    if text:
        error.__cause__ = ChildTraceback(text)
    return error
