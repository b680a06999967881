"""Framings whose messages are values: `Json` and `MsgPack`, over a framing that cuts the bytes.

The only place that turns values into bytes.  What a peer may send is strict, so that every message can be sent
back: JSON without NaN, maps whose keys are text.  It cuts nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from longshore.errors import ConfigError, FramingError
from longshore.framing.contract import NEED_MORE, Decoder, Framing
from longshore.framing.delimiters import Lines
from longshore.framing.fields import brief_repr
from longshore.framing.lengths import LengthPrefixed

__all__ = ("Json", "MsgPack")


@dataclass(frozen=True)
class Json:
    r"""Each message is a JSON value, as UTF-8 inside the messages of `inner`; with `Lines()` it is JSON Lines.

    A message is what `json.loads` gives.  NaN and the infinities are no JSON, neither sent nor received.

    Args:
        inner: the framing that cuts the bytes; its `max_size` and `on_oversize` are the ones that count.

    >>> from longshore import Json
    >>> Json().encode({"answer": 42})
    b'{"answer":42}\n'

    Raises:
        ConfigError: `inner` is no framing of bytes.
    """

    inner: Framing = field(default=Lines())

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _check_inner(self)

    def encode(self, message: Any) -> bytes:
        """The value as JSON, in a message of `inner`.

        Raises:
            ValueError: it would come back as another value (a tuple, a key that is no text), has no JSON (NaN),
                or `inner` refuses it.
            TypeError: a type that JSON does not have.
        """
        return self.inner.encode(_encoded(self, message))

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return ValueDecoder(self)

    def dump(self, message: Any) -> bytes:
        """The value as JSON, without a frame."""
        # Imported at the first message: a server of lines starts without it.
        from json import dumps

        try:
            return dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            # A lone surrogate has no UTF-8; its escape is JSON all the same, and may have come like that.
            return dumps(message, allow_nan=False, separators=(",", ":")).encode()

    def load(self, data: bytes) -> Any:
        """The value of one JSON document in UTF-8."""
        from json import loads

        # Decoded here, for json.loads guesses at UTF-16 and UTF-32 where it is given bytes.
        return loads(data.decode(), parse_constant=_refuse_constant)


@dataclass(frozen=True)
class MsgPack:
    """Each message is a MessagePack value inside the messages of `inner`; needs the extra `longshore[msgpack]`.

    Keys of maps are text or bytes, for a peer could choose numbers that make a dict slow.

    Args:
        inner: the framing that cuts the bytes; its `max_size` and `on_oversize` are the ones that count.

    Raises:
        ConfigError: `inner` is no framing of bytes, or msgpack is not installed.
    """

    inner: Framing = field(default=LengthPrefixed())

    __repr__ = brief_repr

    def __post_init__(self) -> None:
        _check_inner(self)
        try:
            import msgpack  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"{self!r} needs the msgpack package, which is not installed",
                hint="pip install longshore[msgpack]",
            ) from None

    def encode(self, message: Any) -> bytes:
        """The value as MessagePack, in a message of `inner`.

        Raises:
            ValueError: it would come back as another value (a tuple, a key that is neither text nor bytes), is a
                number over 64 bits, or `inner` refuses it.
            TypeError: a type that MessagePack does not have.
        """
        return self.inner.encode(_encoded(self, message))

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        return ValueDecoder(self)

    def dump(self, message: Any) -> bytes:
        """The value as MessagePack, without a frame."""
        import msgpack

        packed: bytes = msgpack.packb(message, use_bin_type=True)
        return packed

    def load(self, data: bytes) -> Any:
        """The value of one MessagePack document."""
        import msgpack

        return msgpack.unpackb(data, raw=False, strict_map_key=True)


def _check_inner(framing: Json | MsgPack) -> None:
    inner, name = framing.inner, type(framing).__name__
    if isinstance(inner, type):
        raise ConfigError(
            f"{name}(inner={inner.__name__}): is a class, not a framing", hint=f"Write {inner.__name__}()."
        )
    if isinstance(inner, (Json, MsgPack)) or not isinstance(inner, Framing):
        raise ConfigError(
            f"{name}(inner={inner!r}): must be a framing of bytes",
            hint=f"Such as {name}(Lines()) or {name}(LengthPrefixed()).",
        )
    if isinstance(inner, Lines) and inner.keep_end:
        raise ConfigError(
            f"{name}(inner={inner!r}): {name} messages have no line end to keep", hint="Leave keep_end=True out."
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _encoded(framing: Json | MsgPack, message: Any) -> bytes:
    """The value as bytes that the decoder makes into this value again."""
    name = type(framing).__name__
    try:
        data = framing.dump(message)
        same = _same(message, framing.load(data))
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"{name} cannot send this value: {error}") from None
    if not same:
        raise ValueError(
            f"this {type(message).__name__} would not come back from {name} as the same value; "
            f"send lists for tuples, and dicts whose keys are text"
        )
    return data


def _same(sent: Any, got: Any) -> bool:
    """Equal, but that NaN, which MessagePack has, equals NaN."""
    if sent == got:
        return True
    if isinstance(sent, float) and isinstance(got, float):
        return sent != sent and got != got
    if isinstance(sent, list) and isinstance(got, list):
        return len(sent) == len(got) and all(map(_same, sent, got))
    if isinstance(sent, dict) and isinstance(got, dict):
        return sent.keys() == got.keys() and all(_same(value, got[key]) for key, value in sent.items())
    return False


class ValueDecoder:
    """The decoder of `Json` and `MsgPack`: the inner one's messages, loaded."""

    __slots__ = ("_failure", "_framing", "_inner")

    def __init__(self, framing: Json | MsgPack) -> None:
        self._framing = framing
        self._inner = framing.inner.decoder()
        self._failure = ""

    def __repr__(self) -> str:
        return f"<decoder of {self._framing!r}, {self.buffered} bytes buffered>"

    @property
    def buffered(self) -> int:
        """How many bytes `rest` would give."""
        count = getattr(self._inner, "buffered", None)
        return len(self._inner.rest()) if count is None else int(count)

    def feed(self, data: bytes) -> None:
        """Append bytes as they came."""
        if not self._failure:
            self._inner.feed(data)

    def next_message(self) -> Any:
        """The next value, or `NEED_MORE`."""
        if self._failure:
            raise self._error()
        data = self._inner.next_message()
        if data is NEED_MORE:
            return NEED_MORE
        try:
            return self._framing.load(data)
        except Exception as error:
            # What a parser raises for garbage is its own affair (ValueError, RecursionError, TypeError for a map's
            # key, MemoryError, types of its own), and all of it is the peer's doing.
            name = type(self._framing).__name__
            self._failure = f"a message of {len(data)} bytes is no {name} value: {str(error) or type(error).__name__}"
            raise self._error() from None

    def end(self) -> None:
        """The stream has ended."""
        if self._failure:
            raise self._error()
        self._inner.end()

    def rest(self) -> bytes:
        """The bytes not yet consumed."""
        return self._inner.rest()

    def _error(self) -> FramingError:
        return FramingError(
            self._failure, hint=f"The peer speaks another framing than {self._framing!r}, or sends garbage."
        )
