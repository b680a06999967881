"""What a framing is: two Protocols and the answer "need more".

The only place that defines what server, client, tests and command line may ask of a framing, so a framing of
your own needs these methods and nothing else.  It implements none.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, final, runtime_checkable

__all__ = ("NEED_MORE", "Decoder", "Framing", "NeedMore")


@final
class NeedMore:
    """The type of `NEED_MORE`, of which there is one value; compare it with `is`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEED_MORE"

    def __reduce__(self) -> str:
        # Copying and pickling go by the name, so that `is` holds for the copy as well.
        return "NEED_MORE"


#: What `Decoder.next_message` answers when no whole message is buffered.
NEED_MORE: Final = NeedMore()


@runtime_checkable
class Decoder(Protocol):
    r"""The cutting of one connection's stream; it belongs to that connection alone.

    Messages are cut lazily, one for each call of `next_message`: what follows a message stays untouched in
    `rest()`, where another framing can take over.

    >>> from longshore import Lines
    >>> decoder = Lines().decoder()
    >>> decoder.feed(b"one\ntwo\nthr")
    >>> decoder.next_message(), decoder.next_message(), decoder.next_message()
    (b'one', b'two', NEED_MORE)
    >>> decoder.rest()
    b'thr'
    """

    def feed(self, data: bytes) -> None:
        """Append bytes as they came, cut anywhere.  Bytes fed after an error are dropped."""
        ...

    def next_message(self) -> Any:
        """The next message, or `NEED_MORE`.

        Raises:
            FramingError: the bytes are no message; only after every earlier message was returned, and from
                then on at each call.
        """
        ...

    def end(self) -> None:
        """The stream has ended.

        Whole messages that are still buffered can be taken; what comes after them is judged when they are.

        Raises:
            IncompleteMessage: it ended in the middle of a message.
        """
        ...

    def rest(self) -> bytes:
        """The bytes not yet consumed: all that follows the last message returned."""
        ...


@runtime_checkable
class Framing(Protocol):
    """How messages and bytes become each other: an immutable value, shared by any number of connections."""

    def encode(self, message: Any) -> bytes:
        """The bytes that stand for `message` on the wire.

        Raises:
            ValueError: the decoder of this framing would not return it as this one message.
            TypeError: it is not of a type that this framing carries.
        """
        ...

    def decoder(self) -> Decoder:
        """A new decoder; one per connection."""
        ...
