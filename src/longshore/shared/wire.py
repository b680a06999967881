"""How verbs and replies of the local broker become bytes: a fixed head, a key, and fields.

The only file that knows the layout.  Each message is one of `FRAMING`.  A request is head, key, fields; its id is
the client's own, 0 where no reply is wanted.  One field is all of the rest; several have their lengths before them.
Nothing is unpickled: fields stay bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from longshore.errors import FramingError
from longshore.framing import LengthPrefixed
from longshore.shared.places import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = (
    "ABSORB",
    "BORROW",
    "CANCEL",
    "END",
    "FRAMING",
    "HEAD",
    "HELLO",
    "TELL",
    "Request",
    "encode_reply",
    "encode_request",
    "read_reply",
)

#: Verbs of the connection itself.  HELLO: the secret -> the epoch; in decimal, the largest item and the client's number
#: in the ledger.  CANCEL: the id as number.  END: the holder.  TELL, in the place of HELLO: the secret -> what
#: `figures.py` names, in decimal.  BORROW, of a key (`lending.py`): LATE, or -> the position where the journal begins;
#: in fields, the client's word, in decimal, the parameters, and what the object's machine says of itself.  ABSORB ->
#: the position up to which the journal has been absorbed.
HELLO, CANCEL, END, TELL, BORROW, ABSORB = 200, 201, 202, 203, 204, 205
#: What cuts the messages.
FRAMING = LengthPrefixed(size=4, byteorder="little", max_size=(1 << 30))

#: Length of the frame, verb, id, holder, number, timeout (negative: for ever), bytes of the key, fields.
HEAD = struct.Struct("<IBIIqdHI")
_REPLY = struct.Struct("<IBIqI")
_BODY = struct.Struct("<BIIqdHI")
_REPLY_BODY = struct.Struct("<BIqI")
_LENGTH = struct.Struct("<I")
_HEAD_SIZE = HEAD.size - 4
_REPLY_SIZE = _REPLY.size - 4


class Request:
    """A verb, as the broker has read it; while it waits, the place of its waiter."""

    __slots__ = (
        "client",
        "deadline",
        "fields",
        "holder",
        "id",
        "key",
        "line",
        "machine",
        "number",
        "outcome",
        "timeout",
        "verb",
    )

    def __init__(self, client: object, message: bytes) -> None:
        """Read `message`, which came from `client`.

        Raises:
            FramingError: it is no request.
        """
        try:
            self.verb, self.id, self.holder, self.number, self.timeout, size, count = _BODY.unpack_from(message)
        except struct.error:
            raise FramingError(f"{len(message)} bytes are no request of a client of the broker") from None
        start = _HEAD_SIZE + size
        self.key = message[_HEAD_SIZE:start]
        self.fields = _read_fields(message, start, count)
        self.client = client
        #: Where it waits.
        self.line: object = None
        self.machine: object = None
        self.deadline = 0.0
        self.outcome = b""


def encode_request(
    verb: int, id: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Sequence[bytes]
) -> bytes:
    """The frame of a request."""
    body = _join(fields)
    return (
        HEAD.pack(
            _HEAD_SIZE + len(key) + len(body),
            verb,
            id,
            holder,
            number,
            -1.0 if timeout is None else timeout,
            len(key),
            len(fields),
        )
        + key
        + body
    )


def encode_reply(id: int, status: int, number: int, fields: Sequence[bytes]) -> bytes:
    """A reply, without its frame."""
    return _REPLY_BODY.pack(status, id, number, len(fields)) + _join(fields)


def read_reply(message: bytes) -> tuple[int, Reply]:
    """The id and the reply in the body of a frame.

    Raises:
        FramingError: it is no reply.
    """
    try:
        status, name, number, count = _REPLY_BODY.unpack_from(message)
    except struct.error:
        raise FramingError(f"{len(message)} bytes are no reply of a broker") from None
    return name, Reply(status, number, _read_fields(message, _REPLY_SIZE, count) if count else ())


def _join(fields: Sequence[bytes]) -> bytes:
    if not fields:
        return b""
    if len(fields) == 1:
        return fields[0]
    pack = _LENGTH.pack
    if len(fields) == 2:
        # Most of those that have more than one.
        first, second = fields
        return pack(len(first)) + first + pack(len(second)) + second
    return b"".join([part for field in fields for part in (pack(len(field)), field)])


def _read_fields(message: bytes, at: int, count: int) -> tuple[bytes, ...]:
    if count == 0:
        if at != len(message):
            raise FramingError(f"{len(message) - at} bytes too many, or too few, in a message of the broker's")
        return ()
    if count == 1:
        if at > len(message):
            raise FramingError(f"{at - len(message)} bytes are missing in a message of the broker's")
        return (message[at:],)
    found = []
    for _ in range(count):
        if at + 4 > len(message):
            raise FramingError("fields are missing in a message of the broker's")
        (size,) = _LENGTH.unpack_from(message, at)
        at += 4
        if at + size > len(message):
            raise FramingError("a field of a message of the broker's is cut short")
        found.append(message[at : at + size])
        at += size
    if at != len(message):
        raise FramingError(f"{len(message) - at} bytes too many in a message of the broker's")
    return tuple(found)
