"""How the values of users become bytes and back: the only place that pickles, and it is on the client's side.

Keys of a `Dict` have one form for all that Python calls equal, whatever the serialiser: text, bytes, numbers, None and
tuples of them.
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

from longshore.errors import ConfigError, LimitExceeded, NotSerialisable

__all__ = ("Serialiser", "checked", "dump_key", "load_key", "serialiser")

_PICKLE = pickle.HIGHEST_PROTOCOL


class Serialiser(Protocol):
    """Values and bytes."""

    def dump(self, value: Any) -> bytes:
        """The bytes that stand for `value`."""

    def load(self, data: bytes) -> Any:
        """What `dump` was given."""


class _Pickle:
    """Any object that pickle knows; to be shared with nobody who is not trusted."""

    def dump(self, value: Any) -> bytes:
        return pickle.dumps(value, _PICKLE)

    def load(self, data: bytes) -> Any:
        return pickle.loads(data)


def serialiser(name: str) -> Serialiser:
    """The serialiser of this name.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    if name == "pickle":
        return _Pickle()
    if name == "json":
        from longshore.framing import Json

        return Json()
    if name == "msgpack":
        from longshore.framing import MsgPack

        return MsgPack()
    raise ConfigError(f"serializer={name!r}: there is none of this name", hint='There are "pickle", "json", "msgpack".')


def checked(handle: Any, serialiser: Serialiser, value: Any, limit: int) -> bytes:
    """`value` as bytes.

    Raises:
        NotSerialisable: it cannot be; the message names it.
        LimitExceeded: it has more than `limit` bytes.
    """
    try:
        data = serialiser.dump(value)
    except (RecursionError, TypeError, ValueError, AttributeError, pickle.PicklingError, OverflowError) as error:
        shown = repr(value)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
        raise NotSerialisable(f"{handle!r} cannot take {shown}: {error}") from error
    if len(data) > limit:
        raise LimitExceeded(
            f"{handle!r} cannot take a {type(value).__name__} of {len(data)} bytes: max_item={limit}",
            hint="Put it into a file or a database, and its name in here; or start the broker with a larger max_item.",
        )
    return data


def _plain(key: Any) -> bool:
    kind = type(key)
    if kind is tuple:
        return all(map(_plain, key))
    return key is None or kind in (str, bytes, int, float, bool)


def _normal(key: Any) -> Any:
    """The same for all that are equal."""
    kind = type(key)
    if kind is tuple:
        return tuple(map(_normal, key))
    if kind is bool or (kind is float and key.is_integer()):
        return int(key)
    return key


def dump_key(handle: Any, key: Any) -> bytes:
    """A key of a dict as bytes.

    Raises:
        NotSerialisable: it is of another type than keys have.
    """
    if type(key) is str:
        return b"s" + key.encode("utf-8", "surrogatepass")
    if not _plain(key):
        raise NotSerialisable(
            f"{handle!r} cannot have the key {key!r}: keys are text, bytes, numbers, None and tuples of them"
        )
    return b"r" + repr(_normal(key)).encode("utf-8", "surrogatepass")


def load_key(data: bytes) -> Any:
    """What `dump_key` was given, or what is equal to it."""
    text = data[1:].decode("utf-8", "surrogatepass")
    if data[:1] == b"s":
        return text
    from ast import literal_eval

    return float(text) if text in ("nan", "inf", "-inf") else literal_eval(text)
