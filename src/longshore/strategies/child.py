"""What runs in a child: one handler, on one connection or one datagram, and then the end of the process.

A child is forked by a spawner, so its memory is that of the server's start: handler, framing, TLS certificates and
the value of the lifespan are there, the server itself is not.  What has changed since comes with the first message,
and what the handler asks of its server goes to the serving process.  The handler has the main thread; a reactor on a
second one keeps its deadlines, as under `inline`, and hears what the serving process says.

Nothing here forks, and nothing here knows of other children.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import selectors
import socket
import threading
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from longshore.connection import Connection
from longshore.errors import ClosedError, WouldBlock
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.links.packets import PacketLink
from longshore.links.sockets import SocketLink
from longshore.packets import are_packets
from longshore.reactor.clock import Clock
from longshore.reactor.portable import PortableReactor
from longshore.strategies.blocking import BlockingSession
from longshore.strategies.forwarding import forwarding
from longshore.strategies.slots import SharedGuard
from longshore.strategies.threads import Refused
from longshore.strategies.wire import Wire, pack_error, unpack_error
from longshore.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.events import Event
    from longshore.strategies import Host, Session
    from longshore.strategies.slots import Slot, Slots

__all__ = ("serve",)

#: Seconds that a handler has to end when the serving process is gone.
GRACE = 1.0


def serve(host: Host, tls: Any, slots: Slots, sockets: list[socket.socket]) -> None:
    """Do what a child is for: `sockets` are its end of the wire and, unless it has a datagram, its connection."""
    wire = Wire(sockets[0])
    wire.send("hello", os.getpid())
    # The first message is there before the fork; what may have come with it is heard once the reactor turns.
    heard = wire.receive(wait=True)
    if heard is None:
        return
    (_, (welcome,)), *more = heard
    child = _Child(host, wire, welcome, slots)
    if len(sockets) == 1:
        job: _Job = _DatagramJob(child, welcome)
    else:
        job = _ConnectionJob(child, sockets[1], welcome, tls)
    child.run(job, more)


class _Job(Protocol):
    """What a child is for."""

    def begin(self) -> None:
        """Before the reactor turns."""

    def run(self) -> None:
        """On the main thread, while it turns."""

    def heard(self, verb: str, *args: Any) -> None:
        """The serving process has said something; on the reactor's thread."""

    def cut(self) -> None:
        """Let every wait of the handler raise."""


class _Follower(Clock):
    """The clock of a server whose time somebody turns by hand, as the serving process tells it."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def wait_for(self, deadline: float) -> float | None:
        return 0.0 if deadline <= self.time else None


class _Child:
    """The host of the one session of this process."""

    def __init__(self, host: Host, wire: Wire, welcome: dict[str, Any], slots: Slots) -> None:
        self._host = host
        self.wire = wire
        self.handler = host.handler
        self.framing = host.framing
        self.limits = welcome["limits"]
        self.timeouts = welcome["timeouts"]
        self.draining = welcome["draining"]
        self.addresses: tuple[str, ...] = welcome["addresses"]
        self.slot: Slot = slots.at(welcome["slot"])
        self._follower = None if welcome["now"] is None else _Follower(welcome["now"])
        self.reactor = PortableReactor(self._follower)
        self.facade = forwarding(host.facade, self)
        self._job: _Job
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Question] = {}

    def run(self, job: _Job, heard: Iterable[tuple[str, tuple[Any, ...]]]) -> None:
        """Do `job`."""
        self._job = job
        job.begin()
        for verb, args in heard:
            self.reactor.post(self._hear, verb, *args)
        # Posted as well: a turn looks at its sockets first, and what came later must not be heard before.
        self.reactor.post(self.reactor.watch, self.wire.socket, selectors.EVENT_READ, self._listen)
        helper = threading.Thread(target=self._turn, name="longshore-reactor", daemon=True)
        helper.start()
        job.run()
        helper.join()
        self.reactor.close()

    def _turn(self) -> None:
        try:
            self.reactor.run()
        except BaseException:
            # A bug of ours.  Without deadlines and ears this process could live for ever, so it ends, and is reported.
            traceback.print_exc()
            os._exit(1)

    # -- the serving process -----------------------------------------------------------------------------

    def _listen(self, _events: int) -> None:
        heard = self.wire.receive()
        if heard is None:
            self._alone()
            return
        for verb, args in heard:
            self._hear(verb, *args)

    def _hear(self, verb: str, *args: Any) -> None:
        if verb == "answer":
            number, value, error = args
            self._asked.pop(number).answer(value, error)
        elif verb == "time":
            assert self._follower is not None
            (self._follower.time,) = args
        elif verb == "cut":
            self._job.cut()
        else:
            self._job.heard(verb, *args)

    def _alone(self) -> None:
        """The serving process is gone: nobody would ever end this one."""
        self.reactor.watch(self.wire.socket, 0, self._listen)
        for question in self._asked.values():
            question.answer(None, pack_error(ClosedError("the server is gone")))
        # Real time, whatever clock the server goes by.
        timer = threading.Timer(GRACE, os._exit, (1,))
        timer.daemon = True
        timer.start()
        self._job.cut()

    def ask(self, name: str, *args: Any, **named: Any) -> Any:
        """Have the serving process call something of its server, and wait for what it returns."""
        if self.reactor.on_thread:
            raise WouldBlock(f"server.{name} waits for the serving process, which must not be done here")
        number = next(self._numbers)
        question = self._asked[number] = _Question()
        self.wire.send("ask", number, name, args, named)
        return question.wait()

    # -- for the session ---------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Tell the serving process, where the subscribers are."""
        if isinstance(event, ConnectionOpened):
            self.wire.send("opened", event.tls)
        elif isinstance(event, HandlerFailed):
            self.wire.send("failed", pack_error(event.error))
        elif isinstance(event, ConnectionClosed):
            figures = event.received, event.sent, event.unsent, event.messages
            self.wire.send("closed", event.cause, pack_error(event.error), *figures)

    def wants(self, kind: type[Event]) -> bool:
        """The serving process does."""
        return True

    def session_ended(self, session: Session) -> None:
        """All is said."""
        self.reactor.stop()

    def handler_freed(self) -> None:
        """The place is free when this process is gone."""

    def near_pending(self, count: int) -> None:
        """The serving process sees what is pending there."""

    def take_handshake(self) -> bool:
        """There are never more of them than children."""
        return True

    def handshake_over(self) -> None:
        """The serving process counts."""

    def take_place(self) -> bool:
        """No other connection comes here."""
        return False

    def calling(self) -> Any:
        """Verbs never wait here."""
        return contextlib.nullcontext()

    def context(self) -> Any:
        """A copy of the context that the server was made in."""
        return self._host.context()


class _Question:
    """Something asked of the serving process."""

    def __init__(self) -> None:
        self._answered = threading.Event()
        self._value: Any = None
        self._error: Any = None

    def answer(self, value: Any, error: Any) -> None:
        self._value, self._error = value, error
        self._answered.set()

    def wait(self) -> Any:
        self._answered.wait()
        error = unpack_error(self._error)
        if error is not None:
            raise error
        return self._value


# -- a connection ---------------------------------------------------------------------------------------------


class _ChildConnection(Connection):
    """A connection whose framing the serving process gets to know, as it encodes what it sends to many."""

    child: _Child

    @property
    def framing(self) -> Any:
        """What cuts and encodes messages."""
        return self._link.input.framing

    @framing.setter
    def framing(self, framing: Any) -> None:
        self._link.input.framing = framing
        try:
            # Asked, not told: whoever has seen the new framing gets nothing in the old one any more.
            self.child.ask("framing", framing, True)
        except (pickle.PicklingError, AttributeError, TypeError):
            # Of a class that only exists here: broadcasts leave this connection out.
            self.child.ask("framing", None, False)


class _Told(SocketLink):
    """A link that tells how much of what the serving process gave it is still pending."""

    wire: Wire
    slot: Slot

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Bytes that the serving process gave.
        self._given = 0
        #: Held while the slot is brought up to date: both threads of this process do that.
        self._counting = threading.Lock()

    def give(self, data: bytes) -> None:
        """Send `data` for the serving process, without waiting."""
        self._given += len(data)
        self.try_write(data)
        self.count()

    def count(self, *, tell: bool = True) -> None:
        """Bring the slot up to date, and wake whoever waits for that."""
        with self._counting:
            before, self.slot.done = self.slot.done, self._given - self.pending
            tell = tell and self.slot.done > before
        if tell:
            self.wire.send("progress")

    def _send_now(self, data: bytes) -> int:
        # Before: a peer that has got this must not be thought to lack what went before it.
        self.count(tell=False)
        return super()._send_now(data)

    def _write(self, data: bytes | None, timeout: float | None) -> None:
        # What the serving process gave goes along.
        super()._write(data, timeout)
        if self._given:
            self.count()


class _ToldPackets(_Told, PacketLink):
    """The same where each write is a packet."""


class _ChildSession(BlockingSession):
    """A blocking session that the serving process can look at."""

    host: Any
    connection_class = _ChildConnection
    link: _Told

    def make_link(self, request: Any) -> _Told:
        kind = _ToldPackets if are_packets(request) else _Told
        return kind(request, self.peer, self.host.framing, max_pending=self.host.limits.max_pending_bytes)

    def make_guard(self) -> SharedGuard:
        return SharedGuard(self.host.slot, self.peer, self.host.timeouts, self.host.reactor.now)

    def _output_ready(self, events: int) -> None:
        super()._output_ready(events)
        self.link.count()


class _ConnectionJob:
    """The handler of one connection."""

    def __init__(self, child: _Child, sock: socket.socket, welcome: dict[str, Any], tls: Any) -> None:
        self._run: Callable[[], object] | None = None
        peer, local = welcome["peer"], welcome["local"]
        context = tls if welcome["tls"] else None
        if context is not None and welcome["renewed"] is not None:
            # The one in this memory is that of the server's start.
            context = server_context(welcome["renewed"])
        sock.setblocking(False)
        if welcome["suspect"]:
            from longshore.prologue import Suspected

            sock = Suspected.over(sock, peer)
        try:
            session: Session = _ChildSession(child, sock, peer, local, context, self._submit)
        except OSError as error:
            session = Refused(child, peer, local, error)
        else:
            session.connection.id = welcome["id"]
            session.connection.child = child
            if "introduction" in welcome:
                session.introduce(*welcome["introduction"])
            session.link.wire, session.link.slot = child.wire, child.slot  # type: ignore[attr-defined]
        self._child = child
        self._session = session

    def _submit(self, session: BlockingSession) -> None:
        self._run = session.run

    def begin(self) -> None:
        """Begin the session; its handler waits for `run`."""
        self._session.begin()

    def run(self) -> None:
        """Run the handler."""
        if self._run is not None:
            self._run()

    def cut(self) -> None:
        """Let every wait of the handler raise."""
        self._session.cut()

    def heard(self, verb: str, *args: Any) -> None:
        """Do what the serving process wants of this connection."""
        session = self._session
        link = getattr(session, "link", None)
        if verb == "drain":
            self._child.draining = True
            session.drain(*args)
        elif verb == "evict":
            session.evict()
        elif link is None:
            return
        elif verb == "write":
            link.give(*args)
        elif verb == "shutdown":
            session.connection.shutdown(*args)
        elif verb in ("close", "abort"):
            cause, error = args
            getattr(link, verb)(cause, unpack_error(error))


# -- a datagram -----------------------------------------------------------------------------------------------


class _DatagramJob:
    """The handler of one datagram."""

    def __init__(self, child: _Child, welcome: dict[str, Any]) -> None:
        self._child = child
        self._welcome = welcome

    def begin(self) -> None:
        """There is nothing to prepare."""

    def run(self) -> None:
        """Run the handler."""
        child, welcome = self._child, self._welcome
        request = welcome["data"], _ReplySocket(child.wire, welcome["name"])
        try:
            child.context().run(child.handler.target, request, welcome["address"], child.facade)
        except SystemExit:
            pass
        except BaseException as error:
            child.wire.send("failed", pack_error(error))
        finally:
            child.reactor.stop()

    def cut(self) -> None:
        """A datagram has nothing to wait for."""

    def heard(self, verb: str, *args: Any) -> None:
        """Nothing is wanted of it."""


class _ReplySocket:
    """What a datagram handler of the standard library does with the server's socket, which the server keeps."""

    def __init__(self, wire: Wire, name: Any) -> None:
        self._wire = wire
        self._name = name

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """As `socket.socket.sendto`; the serving process sends it, from the address that was asked."""
        data = bytes(data)
        self._wire.send("reply", data, flags_and_address)
        return len(data)

    def getsockname(self) -> Any:
        """As `socket.socket.getsockname`."""
        return self._name
