"""What a line of input sends, and what a reply prints: the three ways to converse over a connection.

The only place where text meets messages.  Bytes as they are (a stream without framing), messages cut by a
framing, and the whole messages of datagram addresses.  Nothing here knows terminals, pipes or threads.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from longshore.connection import Connection
    from longshore.framing import Framing

__all__ = ("Conversation", "conversation")


class Conversation(Protocol):
    """How one connection is talked over."""

    by_line: bool
    """Whether `say` takes lines, or bytes cut anywhere."""
    ends_when_quiet: bool
    """Whether nothing but silence shows the end, because there is no stream that could end."""

    def say(self, data: bytes) -> int:
        """Send what was put in; how many messages that was.

        Raises:
            ValueError: it is no message of the framing.
        """

    def end(self) -> None:
        """Say that no more will be put in."""

    def replies(self) -> Iterator[bytes]:
        """What to print, as it comes, to the end of the stream."""


def conversation(connection: Connection, framing: Framing | None, datagrams: bool) -> Conversation:
    """The way that fits the address and the framing."""
    if datagrams or framing is not None:
        return _Messages(connection, framing, datagrams)
    return _Bytes(connection)


class _Bytes:
    """A stream as it is."""

    by_line = False
    ends_when_quiet = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, data: bytes) -> int:
        self._connection.sendall(data)
        return 1

    def end(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)

    def replies(self) -> Iterator[bytes]:
        while data := self._connection.recv(65_536):
            yield data


class _Messages:
    """A line is a message, a reply is a line."""

    by_line = True

    def __init__(self, connection: Connection, framing: Framing | None, datagrams: bool) -> None:
        from longshore.framing import Json, MsgPack

        self._connection = connection
        self.ends_when_quiet = datagrams
        # Their messages are values, and values are typed and shown as JSON.
        self._values = isinstance(framing, (Json, MsgPack))

    def say(self, data: bytes) -> int:
        line = data.removesuffix(b"\n")
        message: Any = line.removesuffix(b"\r")
        if self._values:
            if not line.strip():
                return 0
            import json

            try:
                message = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"not JSON: {line.decode(errors='replace')!r} ({error})", hint="Each line is one JSON value."
                ) from error
        self._connection.send(message)
        return 1

    def end(self) -> None:
        if not self.ends_when_quiet:
            self._connection.shutdown(socket.SHUT_WR)

    def replies(self) -> Iterator[bytes]:
        while True:
            yield self._shown(self._connection.receive()) + b"\n"

    def _shown(self, message: Any) -> bytes:
        if isinstance(message, (bytes, bytearray)) and not self._values:
            return bytes(message)
        if isinstance(message, str) and not self._values:
            return message.encode()
        import json

        return json.dumps(message, ensure_ascii=False, default=repr).encode()
