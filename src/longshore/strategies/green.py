"""Blocking handlers on greenlets: one per connection, all on the reactor's thread.

A wait of a connection parks its greenlet and lets the reactor turn; the handler is plain blocking code and
nothing is monkey-patched.  What is not ours to see (time.sleep, a lock, a database driver) blocks
everybody, and the watchdog names it.  Greenlets park here, in Python code; the one other place is native
(`rust/src/python/shortcuts.rs`) and holds nothing but references while its greenlet rests.
"""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING, Any, Protocol

import greenlet

from longshore import runs
from longshore.errors import LongshoreError, PeerClosed
from longshore.events import HandlerFailed
from longshore.framing import NEED_MORE
from longshore.links.streams import SHARE, StreamLink
from longshore.reactor.dispatch import LARGE_BATCH
from longshore.strategies import IN_ORDER
from longshore.strategies.classes import run_class
from longshore.strategies.streams import StreamSession, tls_version

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from longshore.config import Limits
    from longshore.strategies import Host, Session

__all__ = ("GreenLink", "GreenSession", "GreenStrategy", "Home", "Parking", "parking")


class _Parked(greenlet.greenlet):
    """A greenlet that knows where it waits; a slot, as a dictionary for each would cost more than that."""

    __slots__ = ("parking",)

    parking: Parking


class Parking:
    """Where greenlets of one reactor wait: a greenlet of its own switches to its parent, the hub."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor

    def spawn(self, function: Callable[..., Any], *args: Any, context: Any = None) -> greenlet.greenlet:
        """Run `function` in a new greenlet, at once, until it first waits."""
        fresh = _Parked(function, _hub())
        if context is not None:
            fresh.gr_context = context
        fresh.parking = self
        fresh.switch(*args)
        return fresh

    def sleep(self, seconds: float) -> None:
        """Park the current greenlet for `seconds`."""
        me = greenlet.getcurrent()
        timer = self.reactor.call_later(seconds, me.switch)
        try:
            _hub().switch()
        finally:
            timer.cancel()

    def wait_for_thread(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Park the current greenlet while a thread calls `function`."""
        me = greenlet.getcurrent()
        context = contextvars.copy_context()
        outcome: list[Any] = []

        def work() -> None:
            try:
                outcome.extend((context.run(function, *args, **kwargs), None))
            except BaseException as error:
                outcome.extend((None, error))
            self.reactor.post(me.switch)

        threading.Thread(target=work, name="longshore-to-thread", daemon=True).start()
        while not outcome:
            _hub().switch()
        result, error = outcome
        if error is not None:
            raise error
        return result


def parking() -> Parking | None:
    """The parking of the greenlet that runs now; None outside of green handlers."""
    return getattr(greenlet.getcurrent(), "parking", None)


def _hub() -> greenlet.greenlet:
    """The greenlet that turns the reactor: the root of those on this thread."""
    current = greenlet.getcurrent()
    while current.parent is not None:
        current = current.parent
    return current


class GreenLink(StreamLink):
    """A link whose waits park the greenlet; other threads wait as they do on any stream."""

    __slots__ = ("draining", "ended_for_drain")

    share = SHARE

    def __init__(self) -> None:
        super().__init__()
        self.draining = self.ended_for_drain = False

    def _wake(self) -> None:
        super()._wake()
        self.stream.wake()

    def _may_wait(self) -> bool:
        return not self.stream.reactor.on_thread or greenlet.getcurrent().parent is not None

    def _pause(self, timeout: float | None, what: str, over: Callable[[], object]) -> None:
        me = greenlet.getcurrent()
        stream = self.stream
        hub = me.parent
        if hub is None or not stream.reactor.on_thread:
            super()._pause(timeout, what, over)
            return
        if timeout == 0:
            raise self._late(timeout, what)
        wake = me.switch
        timer = None if timeout is None else stream.reactor.call_later(timeout, wake, True)
        stream.park(wake)
        late: Any = True
        try:
            late = hub.switch()
        finally:
            if late is True:
                stream.unpark(wake)
            if timer is not None:
                timer.cancel()
        if late is True:
            raise self._late(timeout, what)

    def wait_input(self, timeout: float | None) -> None:
        """Park until more input came; while the server drains, what owes nothing sees the end of the stream."""
        if self.draining and not self.stream.owing and not self.stream.input.unread:
            self.end_for_drain()
            return
        me = greenlet.getcurrent()
        hub = me.parent
        stream = self.stream
        # The way that nearly every wait goes, in as few calls as it takes.
        wanted = timeout is None or stream.sated()
        if not wanted or hub is None or not stream.expect(wake := me.switch):
            if not stream.excuse():
                super().wait_input(timeout)
            return
        try:
            hub.switch()
        except BaseException:
            stream.unpark(wake)
            raise
        if stream.spent and stream is self.stream:
            raise stream.failure()

    def end_for_drain(self) -> None:
        """End the input, because the server drains."""
        self.ended_for_drain = True
        self.stream.end_input()


class _BatchLink(GreenLink):
    """The same for handlers that take all messages at once."""

    __slots__ = ()

    share = LARGE_BATCH


class Home(Protocol):
    """Where greenlets of sessions live: the strategy, or whoever stands for it."""

    host: Host

    @property
    def parking(self) -> Parking:
        """Where the handlers' greenlets wait."""

    #: The sessions that were cut, and whose handler has not returned.
    running: set[GreenSession]


class GreenSession(StreamSession):
    """One connection and its greenlet."""

    def __init__(self, strategy: Home, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        link = _BatchLink() if strategy.host.handler.takes_batches else GreenLink()
        super().__init__(strategy.host, sock, peer, local, tls, link)
        self._home = strategy
        self._greenlet: greenlet.greenlet | None = None

    link: GreenLink
    #: The `MessageHandler` whose hooks are called; functions and classes have none.
    _handler: Any = None

    def opened(self) -> None:
        """Start the handler; a later handshake of its own (`start_tls`) starts nothing."""
        super().opened()
        if not self.handler_running and self._greenlet is None:
            self.begun(tls_version(self.link))
            self.handler_running = True
            # In a turn of its own, so that accepting goes on before the handler does.
            self.host.reactor.again(self._start)

    def idled(self) -> None:
        """Call the hook; what it sends keeps the connection."""
        if self._handler is not None:
            self._handler.idle()

    def _start(self) -> None:
        self.host.reactor.current = self
        # A plain function: the call of a method would be one more frame on the stack that is copied.
        self._home.parking.spawn(GreenSession._run, self, context=self.host.context())

    def _run(self) -> None:
        self._greenlet = greenlet.getcurrent()
        cause: str = "finished"
        error: BaseException | None = None
        try:
            try:
                cause = self._call()
            except Exception as failure:
                error = failure
                if self.stream.state == "open" or not isinstance(failure, (LongshoreError, OSError)):
                    self.failed(failure)
                    cause = self._failure[0] if self._failure else "handler failed"
            except greenlet.GreenletExit:
                cause = "cut"
            else:
                if cause == "finished" and self.link.ended_for_drain:
                    cause = "drained"
        finally:
            if runs.touched:
                runs.over()
            # A peer that is owed nothing when the server drains is not sending, so there is nothing to wait for.
            self.stream.close(cause, error, linger=self.is_owed or not self.connection.draining)
            self._home.running.discard(self)
            self.handler_returned()

    def _call(self) -> str:
        """Run the handler; the cause of the closing event, if nothing else caused it."""
        host = self.host
        if host.handler.takes_messages:
            return self._converse()
        if host.handler.kind == "class":
            run_class(host.handler.target, self.connection, self.client_address, host.facade)
        else:
            host.handler.target(self.connection)
        return "finished"

    def _converse(self) -> str:
        """Run a message handler over its own blocking connection."""
        host = self.host
        connection = self.connection
        handler = self._handler = host.handler.session_for(connection, host.facade, self.client_address)
        error: BaseException | None = None
        try:
            handler.connected()
            while True:
                if runs.touched:
                    runs.over()
                try:
                    message = connection.receive()
                except PeerClosed:
                    return "drained" if connection.draining else "peer closed"
                if host.handler.takes_batches:
                    replies = handler.messages([message, *self._more_messages()])
                else:
                    reply = handler.message(message)
                    replies = () if reply is None else (reply,)
                with connection.corked():
                    for reply in replies or ():
                        connection.send(reply)
                # It was handled, whether or not the handler had something to say to it.
                self.stream.owing = self.stream.input.unread
        except BaseException as failure:
            error = failure
            if isinstance(failure, LongshoreError) and self.stream.state in ("closing", "closed"):
                cause: str = self.stream.cause if self._gone is None else self._gone[0]
                if cause in IN_ORDER:
                    error = None
                return cause
            raise
        finally:
            handler.disconnected(error)

    def _more_messages(self) -> Iterator[Any]:
        """What has arrived beside the first message of a batch."""
        for _ in range(LARGE_BATCH - 1):
            try:
                message = self.link.input.take_message()
            except LongshoreError:
                # The next receive() says the same again, once what came before it is handled.
                return
            if message is NEED_MORE:
                return
            self.connection.messages += 1
            yield message

    def drain(self, deadline: float | None) -> None:
        """Call the hook; whoever waits and owes nothing sees the end of the stream."""
        self.stream.take_arrived()
        # From now on each wait is judged here.
        self.stream.telling = True
        self.connection.draining = True
        self.link.draining = True
        if self._handler is not None:
            self._handler.draining(deadline)
        if self.stream.state == "opening":
            self.stream.close("drained")
        elif self.stream.watch.waiting and not self.stream.owing and not self.stream.input.unread:
            self.link.end_for_drain()
            self.link.arrived()

    def cut(self) -> None:
        """Close the connection, and throw into what does not wait for it."""
        self.stream.close("cut", self.stopping(), linger=bool(self.stream.pending))
        self.link.arrived()
        if self.handler_running:
            self._home.running.add(self)
        if self.handler_running and self._greenlet is not None and not self._greenlet.dead:
            self.host.reactor.call_later(0.05, self._throw)

    def _throw(self) -> None:
        """End a greenlet that waits for something else than its connection."""
        if self.handler_running and self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.throw(self.stopping())


class GreenStrategy:
    """Runs blocking handlers and message handlers on greenlets."""

    name = "green"
    on_streams = True

    def __init__(self, host: Host) -> None:
        self.host = host
        self.parking = Parking(host.reactor)
        self.running: set[GreenSession] = set()
        self._datagrams = 0

    def capacity(self, limits: Limits) -> int | None:
        """No bound but `max_connections`."""
        return None

    def run(self) -> None:
        """Turn the reactor; its greenlet is the hub."""
        self.host.reactor.run()

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session on a stream."""
        return GreenSession(self, sock, peer, local, tls)

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram in a greenlet of its own."""
        if self._datagrams >= self.host.limits.max_connections:
            return False
        self._datagrams += 1
        self.parking.spawn(self._handle, data, reply, address, context=self.host.context())
        return True

    def _handle(self, data: bytes, reply: Any, address: Any) -> None:
        try:
            self.host.handler.call_datagram(data, reply, address, self.host.facade)
        except Exception as error:
            reply.failed(error, len(data))
        finally:
            self._datagrams -= 1
            reply.handled()

    def call(self, function: Callable[[], Any]) -> None:
        """Call it in a greenlet."""
        self.parking.spawn(self._call, function, context=self.host.context())

    def _call(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:
            name = getattr(function, "__qualname__", repr(function))
            self.host.emit(HandlerFailed(handler=name, peer=None, error=error))

    def close(self) -> tuple[str, ...]:
        """The names of the handlers that have caught what was thrown at them, and wait on."""
        return tuple(sorted(f"{self.host.handler.name} for {session.peer}" for session in self.running))
