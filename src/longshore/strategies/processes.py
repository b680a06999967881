"""Blocking handlers in child processes: one for each connection, or for each datagram.

The serving process's side.  It accepts, counts, knows every deadline of its own and every event, and never reads a
byte of a connection: the socket goes to a child (`child.py`), which a spawner forks (`spawner.py`), and what the two
have to tell each other goes over a wire of the child's own (`wire.py`).  A place is free again only when the child
is dead and buried, so there are never more children than `max_processes`.

Nothing here waits but `close`, and nothing here forks.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from longshore.connection import Connection
from longshore.errors import InternalError, LimitExceeded, WorkerDied
from longshore.events import HandlerFailed
from longshore.reactor.clock import Clock
from longshore.strategies import Session
from longshore.strategies.crew import Crew
from longshore.strategies.lineage import turn
from longshore.strategies.remote import RemoteLink
from longshore.strategies.slots import CHILDREN
from longshore.strategies.threads import guarded_call
from longshore.strategies.wards import Child
from longshore.strategies.wire import pack_error, unpack_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from longshore.config import Limits
    from longshore.strategies import Host
    from longshore.strategies.lineage import Lineage
    from longshore.strategies.wards import Owner

__all__ = ("ProcessesStrategy",)

#: Seconds that `close` waits for children that still run, as for threads, and then for those that it has killed.
PATIENCE = 1.0
#: What a child may ask of its server beside figures, connections and broadcasts.
VERBS = ("drain", "pause", "reconfigure", "resume", "stop")


class _Session(Session):
    """One connection, with its handler in a child."""

    def __init__(self, strategy: ProcessesStrategy, sock: socket.socket, peer: str, local: str, tls: Any) -> None:
        host = strategy.host
        super().__init__(host, peer, local)
        self._strategy = strategy
        self.label = f"{host.handler.name} for {peer}"
        welcome = {"peer": peer, "local": local, "tls": tls is not None} | strategy.introduction()
        welcome["suspect"] = getattr(sock, "suspicion", None) is not None
        self._welcome = welcome
        self._child = strategy.child(self, welcome, sock)
        self.link = RemoteLink(
            self._child.tell,
            self._child.slot,
            peer,
            host.framing,
            max_pending=host.limits.max_pending_bytes,
            may_wait=lambda: not host.reactor.on_thread,
        )
        self.link.session = self
        self.connection = Connection(self.link, peer=peer, local=local, server=host.facade)
        welcome["id"] = self.connection.id
        self._report: tuple[str, BaseException | None, int, int, int, int] | None = None
        self._totals: tuple[int, int, int] | None = None
        self._evicted = False

    def introduce(self, header: Any, via: str) -> None:
        """It came through a proxy, and its child gets to know that too."""
        super().introduce(header, via)
        self._welcome["introduction"] = header, via

    def begin(self) -> None:
        """Have the child forked."""
        self.handler_running = True
        self._child.begin()

    # -- the server's side -----------------------------------------------------------------------------

    def drain(self, deadline: float | None) -> None:
        """Let the child end the input as soon as its handler waits for it and owes nothing."""
        self.connection.draining = True
        self._child.tell("drain", deadline)

    def cut(self) -> None:
        """Let every wait of the handler raise."""
        self._child.tell("cut")
        self._strategy.last_cut = time.monotonic()

    def overdrawn(self, error: LimitExceeded) -> None:
        """Have the child reset it."""
        self.link.abort("limit", error)

    def held(self) -> int:
        """Bytes that were given to the child, and that the peer has not taken."""
        return self.link.pending

    def evict(self) -> None:
        """Let the handler's wait for input raise."""
        self._evicted = True
        self._child.tell("evict")

    def idle_since(self) -> float | None:
        """When the last byte moved, while the handler waits for input and owes nothing."""
        slot = self._child.slot
        return slot.last_byte if slot.waiting and not slot.owing and not self._evicted else None

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, sent, unsent."""
        if self._totals is not None:
            return self._totals
        slot = self._child.slot
        return slot.received, slot.sent, self.link.pending

    # -- what the child says -----------------------------------------------------------------------------

    def heard(self, verb: str, *args: Any) -> None:
        """Act on one message."""
        if verb == "opened":
            self.begun(*args)
        elif verb == "failed":
            self._strategy.failed(self.peer, *args)
        elif verb == "closed":
            cause, error, *figures = args
            self._report = (cause, unpack_error(error), *figures)
            self.link.gone()
        elif verb == "progress":
            self.link.progressed(*args)
        elif verb == "ask" and args[1] == "framing":
            self.link.reframed(*args[2])
            self._child.tell("answer", args[0], None, None)
        else:
            self._strategy.obey(self._child, verb, *args)

    def child_over(self, outcome: int | OSError | None) -> None:
        """The child is dead: so is its connection."""
        self.link.gone()
        if self._report is None:
            self._report = (*self._explain(outcome), *self.traffic(), 0)
        cause, error, received, sent, unsent, self.connection.messages = self._report
        self._totals = received, sent, unsent
        self.host.handler_freed()
        self.gone(cause, error)
        self.handler_returned()

    def _explain(self, outcome: int | OSError | None) -> tuple[str, BaseException | None]:
        """Cause and error of a connection whose child has not told its end."""
        if self._child in self._strategy.abandoned:
            return "cut", None
        error = death(outcome, self._child.pid, self.label)
        if error is None:
            return "finished", None
        self.failed(error)
        return "error" if isinstance(outcome, OSError) else "handler failed", error


class _Datagram:
    """One datagram, with its handler in a child; replies leave through the server's socket."""

    def __init__(self, strategy: ProcessesStrategy, data: bytes, peer: str, reply: Any, address: Any) -> None:
        self._strategy = strategy
        self._reply = reply
        self._size = len(data)
        self.label = f"{strategy.host.handler.name} for {peer}"
        welcome = {"peer": peer, "data": data, "address": address, "local": reply.local}
        welcome["name"] = reply.socket_for_handler().getsockname()
        self.child = strategy.child(self, welcome | strategy.introduction(), None)

    def heard(self, verb: str, *args: Any) -> None:
        """Act on one message of the child."""
        if verb == "reply":
            data, where = args
            try:
                self._reply.socket_for_handler().sendto(data, *where)
            except OSError as error:
                self._reply.failed(error, self._size)
        elif verb == "failed":
            self._reply.failed(unpack_error(args[0]), self._size)
        else:
            self._strategy.obey(self.child, verb, *args)

    def child_over(self, outcome: int | OSError | None) -> None:
        """The child is dead."""
        error = death(outcome, self.child.pid, self.label)
        if error is not None and self.child not in self._strategy.abandoned:
            self._reply.failed(error, self._size)
        self._strategy.host.handler_freed()
        self._reply.handled()


def death(outcome: int | OSError | None, pid: int | None, label: str) -> WorkerDied | None:
    """What to say of a child that has ended without saying so; None if it meant to."""
    if isinstance(outcome, OSError):
        return WorkerDied(f"{label}: no child could be forked: {outcome.strerror or outcome}")
    if outcome == 0:
        # os._exit(0) in the handler.
        return None
    how = "died"
    if outcome is not None:
        how = f"was killed by {_signal_name(-outcome)}" if outcome < 0 else f"exited with status {outcome}"
    return WorkerDied(f"{label}: its process {pid} {how}", hint="Its connection is lost; no other one is touched.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ProcessesStrategy:
    """A child process for each connection and each datagram."""

    name = "processes"
    on_streams = False

    def __init__(self, host: Host, lineage: Lineage) -> None:
        self.host = host
        self.lineage = lineage
        self.children: set[Child] = set()
        #: Those that had to be killed, as they ended neither by themselves nor when they were asked to.
        self.abandoned: dict[Child, str] = {}
        #: When children were last asked to end, in real time.
        self.last_cut: float | None = None
        self._crew = Crew(lambda: host.limits.max_threads)
        clock = host.reactor.clock
        self._turned = type(clock) is not Clock
        clock.attach(self._time_passed)
        lineage.attach(host.reactor)

    def capacity(self, limits: Limits) -> int | None:
        """`max_processes`."""
        return min(limits.max_processes, CHILDREN)

    def run(self) -> None:
        """Turn the reactor."""
        self.host.reactor.run()

    def open(self, sock: socket.socket, peer: str, local: str, tls: Any) -> Session:
        """A session whose handler runs in a child."""
        return _Session(self, sock, peer, local, tls)

    def datagram(self, data: bytes, peer: str, reply: Any, address: Any) -> bool:
        """Handle a datagram in a child, if there may be one more."""
        if not self.host.take_place():
            return False
        _Datagram(self, data, peer, reply, address).child.begin()
        return True

    def call(self, function: Callable[[], Any]) -> None:
        """Call it here, on a thread, as what it does concerns the server and not one connection."""
        name = str(getattr(function, "__qualname__", repr(function)))
        self._crew.submit(name, lambda: self._call(name, function))

    def _call(self, name: str, function: Callable[[], Any]) -> None:
        leaving = guarded_call(self.host, name, None, function)
        if isinstance(leaving, KeyboardInterrupt):
            self.host.emit(HandlerFailed(handler=name, peer=None, error=leaving))

    def child(self, owner: Owner, welcome: dict[str, Any], sock: socket.socket | None) -> Child:
        """A child to be begun."""
        return Child(self.host.reactor, self.lineage, self.children, owner, welcome, sock)

    def introduction(self) -> dict[str, Any]:
        """What every child gets to know: its memory is that of the server's start."""
        host = self.host
        return {
            "limits": host.limits,
            "timeouts": host.timeouts,
            "draining": host.draining,
            "renewed": None if (renewal := getattr(host, "renewal", None)) is None else renewal.renewed,
            "addresses": getattr(host.facade, "addresses", ()),
            "now": host.reactor.now() if self._turned else None,
        }

    # -- what children say -------------------------------------------------------------------------------

    def failed(self, peer: str, packed: Any) -> None:
        """A handler has failed."""
        error = unpack_error(packed)
        if error is not None:
            self.host.emit(HandlerFailed(handler=self.host.handler.name, peer=peer, error=error))

    def obey(self, child: Child, verb: str, *args: Any) -> None:
        """Do what a handler asks of its server."""
        if verb != "ask":
            return
        number, name, positional, named = args
        if name == "submit":
            self._submit(child, number, positional, named)
            return
        try:
            # In a call of the server's own, verbs that end it request and return.
            with self.host.calling():
                answer = self._answer(name, positional, named)
        except Exception as error:
            child.tell("answer", number, None, pack_error(error))
        else:
            child.tell("answer", number, answer, None)

    def _submit(self, child: Child, number: int, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Give a task to the server's pool; the child hears when it is over."""

        def over() -> None:
            try:
                child.tell("answer", number, future.result(0), None)
            except BaseException as error:
                child.tell("answer", number, None, pack_error(error))

        try:
            future = self.host.facade.pool.submit(*positional, **named)
        except Exception as error:
            child.tell("answer", number, None, pack_error(error))
        else:
            reactor = self.host.reactor
            future.add_done_callback(lambda _: None if reactor.closed else reactor.post(over))

    def _answer(self, name: str, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        facade = self.host.facade
        if name == "broadcast":
            message, to, slow = positional
            known = {item.id: item for item in facade.connections}
            return facade.broadcast(message, None if to is None else [known[i] for i in to if i in known], slow)
        if name == "connections":
            return [(item.id, item.peer, item.local) for item in facade.connections]
        if name == "statistics":
            return facade.statistics()
        if name == "status":
            return facade.status
        if name in VERBS:
            return getattr(facade, name)(*positional, **named)
        raise InternalError(f"a child asked for {name!r}")

    # -- time ------------------------------------------------------------------------------------------

    def _time_passed(self) -> None:
        """A clock that somebody turns by hand has jumped: the children go by it too."""
        self.host.reactor.post(self._tell_time)

    def _tell_time(self) -> None:
        for child in tuple(self.children):
            child.tell("time", self.host.reactor.now())

    # -- the end ---------------------------------------------------------------------------------------

    def close(self) -> tuple[str, ...]:
        """End the children and the spawners; the names of what had to be killed, or cannot be ended."""
        self.host.reactor.clock.detach(self._time_passed)
        running = self._crew.close()
        now = time.monotonic()
        self._wait((now if self.last_cut is None else self.last_cut) + PATIENCE - now)
        for child in tuple(self.children):
            self.abandoned[child] = f"{child.owner.label} (process {child.pid}, killed)"
            child.kill()
        self._wait(PATIENCE)
        for child in tuple(self.children):
            child.give_up()
        self.lineage.close()
        return (*self.abandoned.values(), *running)

    def _wait(self, seconds: float) -> None:
        """Wait for the children to die, where the reactor turns no more."""
        deadline = time.monotonic() + seconds
        while self.children:
            sources = [*self.lineage.sources, *filter(None, [child.source for child in self.children])]
            if not sources or not turn(sources, deadline - time.monotonic()):
                return
