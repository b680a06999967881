"""Handing the messages of a stream to a handler, one call per message: the readable specification.

The only place that decides which message is handled when.  A stream's messages are cut one by one, so nothing is
delivered after `close()` and a new framing applies from the next byte.  A batch is bounded, and a peer that does not
take its replies gets no further message handled, so neither flood nor sloth harms the others.  A native stream does
the same where no Python is needed but the handler's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from longshore.errors import PeerClosed
from longshore.framing import NEED_MORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.reactor.stream import Stream

__all__ = ("Dispatch", "Receiver")

#: Messages that one connection may have handled before the others get their turn.
BATCH = 64
#: The same, for handlers that take all that have arrived at once.
LARGE_BATCH = 256


class Receiver(Protocol):
    """Who is asked about the messages of a stream when something is unusual; all calls on the reactor's thread."""

    def send(self, reply: Any) -> object:
        """Send a reply that the stream does not encode itself."""

    def handler_failed(self, error: BaseException) -> None:
        """The handler, or the sending of what it returned, raised an `Exception`; anything else leaves the reactor."""

    def input_ended(self) -> None:
        """There will be no further message: the peer has closed."""

    def input_failed(self, error: Exception) -> None:
        """There will be no further message: what came is none."""

    def ran_dry(self) -> None:
        """All that has come was handled; a native stream says so only while its `telling` is set."""


class Dispatch:
    """The handler of one stream's messages.

    `call(message)` is called for each, or `call(message, subject)` where there is a subject, or `call(batch)` with
    all that have arrived; what is returned is sent.
    """

    def __init__(
        self, stream: Stream, call: Callable[..., Any], subject: Any, receiver: Receiver, *, batches: bool
    ) -> None:
        self._stream = stream
        self._call = call
        self._subject = () if subject is None else (subject,)
        self._receiver = receiver
        self._batches = batches
        self._busy = False
        self._scheduled = False

    def go_on(self) -> None:
        """Handle what is there, unless that is being done already (a handler may cause more events)."""
        if self._busy or self._scheduled:
            return
        self._busy = True
        stream = self._stream
        stream.reactor.current = stream
        try:
            more = self._batch() if self._batches else self._one_by_one()
        finally:
            self._busy = False
        if stream.state != "open":
            return
        if more:
            self._scheduled = True
            stream.reactor.again(self._resume)
        else:
            self._receiver.ran_dry()

    def _resume(self) -> None:
        self._scheduled = False
        self.go_on()

    def _one_by_one(self) -> bool:
        """Handle a message at a time; True if there may be more."""
        for _ in range(BATCH):
            message = self._next()
            if message is NEED_MORE:
                return False
            self._guarded(self._handle, message)
        return True

    def _batch(self) -> bool:
        """Handle all that are there at once; True if there may be more."""
        batch: list[Any] = []
        while len(batch) < LARGE_BATCH and (message := self._next(ending=not batch)) is not NEED_MORE:
            batch.append(message)
        if batch:
            self._guarded(self._handle_batch, batch)
        return bool(batch)

    def _next(self, *, ending: bool = True) -> Any:
        """The next message that may be handled now.

        Where the input ends or is no message, the connection does, but not before the messages of a batch that
        has begun were handled: a decoder says the same again when it is asked again.
        """
        stream = self._stream
        if stream.state != "open":
            return NEED_MORE
        if stream.pending > stream.limits.max_pending_bytes:
            stream.want_input(False)
            return NEED_MORE
        try:
            message = stream.input.take_message()
        except PeerClosed:
            if ending:
                self._receiver.input_ended()
            return NEED_MORE
        except Exception as error:
            if ending:
                self._receiver.input_failed(error)
            return NEED_MORE
        if message is NEED_MORE:
            # All that came was handled, whether or not the handler had something to say to it.
            stream.owing = stream.input.unread
            stream.want_input(True)
        else:
            stream.messages += 1
            stream.want_input(False)
        return message

    def _handle(self, message: Any) -> None:
        reply = self._call(message, *self._subject)
        if reply is not None:
            self._receiver.send(reply)

    def _handle_batch(self, batch: list[Any]) -> None:
        replies = self._call(batch, *self._subject)
        if replies is None:
            return
        with self._stream.corked():
            for reply in replies:
                self._receiver.send(reply)

    def _guarded(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._receiver.handler_failed(error)
