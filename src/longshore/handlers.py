"""What a handler is: its shape, decided once, and the strategies that can run it.

The only place that looks at a handler's signature, and the only table of shape against strategy.  It runs
handlers for nobody: strategies do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longshore.errors import ConfigError, FramingError, IncompleteMessage
from longshore.framing import NEED_MORE

if TYPE_CHECKING:
    from longshore.framing import Framing

__all__ = (
    "NAMES",
    "RUNS",
    "Handler",
    "MessageHandler",
    "check_addresses",
    "messages",
    "settled",
    "stream",
    "understand",
)

#: The strategies that can run each shape, its default first.
RUNS: dict[str, tuple[str, ...]] = {
    "class": ("threads", "green", "inline", "processes"),
    "stream": ("threads", "green", "inline", "processes"),
    "message": ("reactor", "threads", "green"),
    "async stream": ("async",),
    "async message": ("async",),
}

#: Every strategy, by the name that users give it.
NAMES = ("reactor", "threads", "green", "async", "processes", "inline")

_WORDS = {
    "class": "a class handler",
    "stream": "a blocking function handler(connection)",
    "message": "a message handler",
    "async stream": "an async function handler(connection)",
    "async message": "an async message handler",
}


class MessageHandler:
    """One instance per connection (or per peer of a datagram address), one call per message.

    Every hook but `message` is optional.  `framing`, where set, is used if the server names none.

    Example:
        >>> class Counter(MessageHandler):
        ...     framing = Lines()
        ...     def connected(self): self.count = 0
        ...     def message(self, message):
        ...         self.count += 1
        ...         return b"%d" % self.count
    """

    framing: Framing | None = None
    #: The connection, or the peer of a datagram.
    connection: Any
    #: The server.
    server: Any
    #: The peer's address, as the socket gives it.
    client_address: Any

    def connected(self) -> Any:
        """The connection is ready; attributes are set."""

    def message(self, message: Any) -> Any:
        """One message; what is returned (but None) is the reply."""
        raise NotImplementedError(f"{type(self).__name__} needs a message() method")

    def messages(self, batch: list[Any]) -> Iterable[Any] | None:
        """All messages that have arrived; override it to take them at once and return the replies."""
        return [reply for reply in map(self.message, batch) if reply is not None]

    def idle(self) -> Any:
        """`Timeouts.idle` has passed; a connection to which this sends something lives on."""

    def draining(self, deadline: float | None) -> Any:
        """The server drains; `deadline` is on the clock of `time.monotonic` (seconds), None if there is none."""

    def disconnected(self, error: BaseException | None) -> Any:
        """The connection is over; `error` is why, None if it ended in order."""


class _FunctionSession(MessageHandler):
    """A message function, in the shape of a `MessageHandler`."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function

    def message(self, message: Any) -> Any:
        return self._function(message, self.connection)


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that has been understood.

    `kind` is "class", "stream", "message" (a function) or "session" (a `MessageHandler`).
    """

    target: Any
    kind: str
    is_async: bool
    name: str
    takes_batches: bool = False

    @property
    def shape(self) -> str:
        """The key of `RUNS`."""
        shape = "message" if self.takes_messages else self.kind
        return f"async {shape}" if self.is_async else shape

    @property
    def takes_messages(self) -> bool:
        """Whether it is called once per message."""
        return self.kind in ("message", "session")

    @property
    def framing(self) -> Framing | None:
        """The framing that the handler itself names."""
        return getattr(self.target, "framing", None) if self.kind == "session" else None

    def strategy(self, wanted: str | None) -> str:
        """The strategy to use: the one wanted, or this shape's default.

        Raises:
            ConfigError: the one wanted cannot run this handler.
        """
        runs = RUNS[self.shape]
        if wanted is None:
            return runs[0]
        if wanted not in NAMES:
            raise ConfigError(f"strategy={wanted!r}: there is no such strategy", hint=f"There are {', '.join(NAMES)}.")
        if wanted not in runs:
            able = " or ".join(f'"{name}"' for name in runs)
            raise ConfigError(
                f'strategy="{wanted}" cannot run {_WORDS[self.shape]} such as {self.name}',
                hint=f"Use strategy={able}.",
            )
        return wanted

    def session_for(self, connection: Any, server: Any, client_address: Any) -> MessageHandler:
        """A new `MessageHandler` for one connection or peer."""
        session: MessageHandler
        if self.kind == "message":
            session = _FunctionSession(self.target)
        else:
            session = self.target.__new__(self.target)
        session.connection = connection
        session.server = server
        session.client_address = client_address
        if self.kind == "session":
            session.__init__()  # type: ignore[misc]
        return session

    def call_datagram(self, data: bytes, peer: Any, address: Any, server: Any) -> None:
        """Run the handler for one datagram; `peer` is a `datagrams.Peer`."""
        if self.kind == "class":
            self.target((data, peer.socket_for_handler()), address, server)
            return
        session = self._datagram_session(peer, address, server)
        if self.takes_batches:
            batch, fault = _all_in(data, peer.framing)
            if batch:
                _send_all(peer, session.messages(batch))
            if fault is not None:
                raise fault
            return
        for message in _messages_in(data, peer.framing):
            reply = session.message(message)
            if reply is not None:
                peer.send(reply)
            if peer.session is not session:
                return

    def call_datagrams(self, batch: list[bytes], peer: Any, address: Any, server: Any) -> None:
        """Run a handler that takes batches for all datagrams that have come from `peer`."""
        session = self._datagram_session(peer, address, server)
        if peer.framing is not None:
            batch = [message for data in batch for message in _readable(data, peer)]
        if batch:
            _send_all(peer, session.messages(batch))

    async def call_datagram_async(self, data: bytes, peer: Any, address: Any, server: Any) -> None:
        """Run an async handler for one datagram."""
        session: MessageHandler | None = peer.session
        if session is None:
            session = peer.session = self.session_for(peer, server, address)
            await settled(session.connected())
        if self.takes_batches:
            batch, fault = _all_in(data, peer.framing)
            if batch:
                _send_all(peer, await settled(session.messages(batch)))
            if fault is not None:
                raise fault
            return
        for message in _messages_in(data, peer.framing):
            reply = await settled(session.message(message))
            if reply is not None:
                peer.send(reply)
            if peer.session is not session:
                return

    def _datagram_session(self, peer: Any, address: Any, server: Any) -> MessageHandler:
        if peer.session is None:
            peer.session = self.session_for(peer, server, address)
            peer.session.connected()
        session: MessageHandler = peer.session
        return session


async def settled(result: Any) -> Any:
    """What a function returned that may or may not be async."""
    return await result if inspect.isawaitable(result) else result


def _send_all(peer: Any, replies: Iterable[Any] | None) -> None:
    if replies is not None:
        for reply in replies:
            peer.send(reply)


def _readable(data: bytes, peer: Any) -> list[Any]:
    """The messages in one datagram; if it is malformed, that is told, and those before."""
    batch, fault = _all_in(data, peer.framing)
    if fault is not None:
        peer.failed(fault, len(data))
    return batch


def _all_in(data: bytes, framing: Framing | None) -> tuple[list[Any], FramingError | None]:
    """The messages in one datagram at once, and what is wrong behind them."""
    found: list[Any] = []
    try:
        found.extend(_messages_in(data, framing))
    except FramingError as error:
        return found, error
    return found, None


def _messages_in(data: bytes, framing: Framing | None) -> Iterator[Any]:
    """The messages in one datagram: itself, or what the framing finds in it, one after the other.

    Raises:
        FramingError: it is malformed, or something is left over, behind the messages before.
    """
    if framing is None:
        yield data
        return
    decoder = framing.decoder()
    decoder.feed(data)
    while (message := decoder.next_message()) is not NEED_MORE:
        yield message
    decoder.end()
    rest = decoder.rest()
    if rest:
        raise IncompleteMessage(f"{len(rest)} bytes are left over behind the messages of a datagram")


def stream(function: Callable[..., Any]) -> Handler:
    """Say that `function` is called once per connection, whatever its signature."""
    return Handler(function, "stream", _is_async(function), _name(function))


def messages(function: Callable[..., Any]) -> Handler:
    """Say that `function` is called once per message, whatever its signature."""
    return Handler(function, "message", _is_async(function), _name(function))


def understand(handler: Any) -> Handler:
    """Find out a handler's shape.

    Raises:
        ConfigError: it is no handler, or it could be of two shapes.
    """
    if isinstance(handler, Handler):
        return handler
    name = _name(handler)
    if isinstance(handler, type):
        if issubclass(handler, MessageHandler):
            batches = handler.messages is not MessageHandler.messages
            if not batches and handler.message is MessageHandler.message:
                raise ConfigError(f"{name} has no message() method", hint="A MessageHandler needs message().")
            return Handler(handler, "session", _is_async(handler.message), name, batches)
        return Handler(handler, "class", False, name)
    if isinstance(handler, MessageHandler):
        raise ConfigError(
            f"{name} is an instance; a MessageHandler has one per connection", hint=f"Pass the class: {name}."
        )
    if not callable(handler):
        raise ConfigError(f"{handler!r} is not a handler", hint="A handler is a class or a function.")
    bound = _unwrapped(handler)
    if isinstance(bound, type):
        # As functools.partial(SimpleHTTPRequestHandler, directory=...).
        if issubclass(bound, MessageHandler):
            raise ConfigError(
                f"a partial of {_name(bound)}: a MessageHandler is made without arguments",
                hint="Make a subclass that has them as attributes, and pass that.",
            )
        return Handler(handler, "class", False, _name(bound))
    required = _required_arguments(handler)
    if required == 1:
        return stream(handler)
    if required == 2:
        return messages(handler)
    raise ConfigError(
        f"{name} could be a stream handler or a message handler: it takes neither just one argument nor just two",
        hint="Say which: stream(f) for handler(connection), messages(f) for handler(message, connection).",
    )


def _required_arguments(function: Any) -> int | None:
    """How many positional arguments it must be given; None if that cannot be told, or it takes any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(item.kind is item.VAR_POSITIONAL for item in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(item.kind in positional and item.default is item.empty for item in parameters)


def _unwrapped(function: Any) -> Any:
    """What a `functools.partial` calls in the end."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    return function


def _is_async(function: Any) -> bool:
    function = _unwrapped(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _name(handler: Any) -> str:
    name = getattr(handler, "__qualname__", None) or getattr(handler, "__name__", None)
    return str(name or type(handler).__name__).rpartition("<locals>.")[2]


def check_addresses(handler: Handler, framing: Framing | None, kinds: Iterable[tuple[str, str]]) -> None:
    """Check that the handler can serve each `(kind, url)`.

    Raises:
        ConfigError: messages on a stream without a framing, or a stream function on a datagram address.
    """
    for kind, url in kinds:
        if handler.takes_messages and kind == "stream" and framing is None:
            raise ConfigError(
                f"{handler.name} takes messages, but nothing says how {url} is cut into messages",
                hint="Pass framing=Lines(), or say --framing lines on the command line, or take another framing.",
            )
        if handler.kind == "stream" and kind == "datagram":
            raise ConfigError(
                f"{handler.name} takes a connection, but {url} has datagrams, not connections",
                hint="Write handler(message, connection), or a MessageHandler.",
            )
