"""What two threads know together about one socket: the handler's, which waits, and the reactor's, which may end that.

The only place where a wait in the kernel is interrupted.  A guarded socket tells its `Guard` when it waits
and what came and went; the reactor's thread reads the guard's deadlines, and acts through it.  It neither
reads nor writes, and it does not decide when a wait has lasted too long.

Facts, and what follows from them:

* A descriptor number may belong to somebody else by the time that it is used.  So a wait is ended by
  shutdown(2) on the object, under the lock that closing it takes too, and never by a number.
* shutdown(2) makes recv return b"" and send fail with EPIPE, which would tell the handler that its peer had
  gone.  So the reason is noted first, and whoever wakes up raises that.
"""

from __future__ import annotations

import math
import socket
import threading
from typing import TYPE_CHECKING, Any

from longshore.readiness import Signals, on_main_thread, ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.limits import Watch

__all__ = ("Guard",)


class Guard:
    """What the reactor's thread and the handler's thread know together about one socket.

    `waiting` and `draining` are each written by one thread and then the other is read, in opposite order on
    the two threads, so at least one of them sees that both hold: no lock is needed for a drain to arrive.
    """

    __slots__ = (
        "armed",
        "draining",
        "failure",
        "fresh",
        "input_ended",
        "lock",
        "now",
        "on_deadline",
        "on_release",
        "owing",
        "peer",
        "received",
        "released",
        "sent",
        "signals",
        "socket",
        "suspicion",
        "waiting",
        "watch",
        "writing",
    )

    def __init__(self, peer: str, watch: Watch, now: Callable[[], float]) -> None:
        self.peer = peer
        self.watch = watch
        self.now = now
        self.socket: socket.socket | None = None
        #: Notices what this peer must not begin with; None: it may begin with anything.
        self.suspicion: Any = None
        #: Held while the descriptor changes hands, and while somebody shuts it down.
        self.lock = threading.RLock()
        #: Held while one piece of output is on its way, however long that takes.
        self.writing = threading.RLock()
        #: Why the socket was interrupted: a cause of `ConnectionClosed`, and the error to raise.
        self.failure: tuple[str, BaseException] | None = None
        self.received = 0
        self.sent = 0
        #: Whether a thread waits for input.
        self.waiting = False
        #: Whether bytes came since our last write: then the peer is owed an answer.
        self.owing = False
        #: Whether bytes came since the last wait began.
        self.fresh = False
        self.draining = False
        #: Whether `end_of_input` has ended the input.
        self.input_ended = False
        self.released = False
        #: Tells a wait on the main thread of signals; made when there is one.
        self.signals: Signals | None = None
        #: When the timer on the reactor fires; `on_deadline` is called once a wait needs an earlier one.
        self.armed = math.inf
        self.on_deadline: Callable[[], object] | None = None
        #: Called with the plain socket once the handler itself has closed this one.
        self.on_release: Callable[[socket.socket], object] | None = None

    # -- for the reactor's thread ----------------------------------------------------------------------

    def interrupt(self, cause: str, error: BaseException, how: int = socket.SHUT_RDWR) -> None:
        """Make every wait, and every later call, raise `error`; only the first interruption counts."""
        with self.lock:
            if self.failure is None:
                self.failure = (cause, error)
            self.shut(how)

    def end(self, error: BaseException, cause: str) -> None:
        """Close in order on behalf of any thread: later calls raise `error`, and threads that wait are woken.

        `cause` is that of the closing event.
        """
        with self.lock:
            if self.failure is None:
                self.failure = (cause, error)
            if self.socket is None or self.released:
                return
            # Without a thread to wake, input stays open: the peer may send on while it reads our last bytes.
            aborts = cause == "aborted"
            try:
                if self.waiting or self.watch.pending or aborts:
                    self.shut(socket.SHUT_RDWR if self.watch.pending or not aborts else socket.SHUT_RD)
                else:
                    say_goodbye = getattr(self.socket, "say_goodbye", None)
                    if say_goodbye is not None:
                        say_goodbye()
                    socket.socket.shutdown(self.socket, socket.SHUT_WR)
            except OSError:
                # The peer has gone before.
                pass

    def shut(self, how: int) -> None:
        """Shut the descriptor down below TLS; nothing happens if it is closed already."""
        with self.lock:
            if self.socket is not None and not self.released:
                try:
                    socket.socket.shutdown(self.socket, how)
                except OSError:
                    # Closed, or the peer has gone: then nobody waits, or is waking up already.
                    pass

    def drain(self) -> None:
        """End the input as soon as the handler waits for it and owes nothing."""
        self.draining = True
        if self.waiting and not self.owing:
            self.end_of_input()

    def end_of_input(self) -> None:
        """Let recv return b"" once what the kernel has already is read."""
        self.input_ended = True
        self.shut(socket.SHUT_RD)

    # -- for the guarded sockets -----------------------------------------------------------------------

    def check(self) -> None:
        """Raise the error of an interruption."""
        if self.failure is not None:
            raise self.failure[1].with_traceback(None)

    def begin_wait(self) -> None:
        """The handler is about to wait for input."""
        self.check()
        watch = self.watch
        if self.fresh:
            # Idle time begins when the handler is done with what came, not when it came.
            self.fresh = False
            watch.last_byte = self.now()
        self.waiting = watch.waiting = True
        if self.draining and not self.owing:
            self.end_of_input()
        self.arm()

    def end_wait(self) -> None:
        """The handler waits no more."""
        self.waiting = self.watch.waiting = False

    def look(self, data: Any) -> None:
        """Interrupt a peer that begins with what it must not, and raise that.

        Raises:
            ProxyError: it did.
        """
        try:
            self.suspicion.look(bytes(data[:16]))
        except ConnectionError as error:
            self.suspicion = None
            self.interrupt("proxy", error)
            raise
        if self.suspicion.over:
            self.suspicion = None

    def came(self, count: int) -> None:
        """`count` bytes came; none at the end of the stream, or because somebody interrupted."""
        if not count:
            self.check()
            return
        self.received += count
        self.owing = self.fresh = True
        self.watch.received(count, self.now())

    def wait_ready(self, sock: socket.socket, events: int, deadline: float | None) -> bool:
        """Wait for `events` as `readiness.ready` does; on the main thread signals are heard meanwhile."""
        if not on_main_thread():
            return ready(sock, events, deadline)
        # Whoever waits holds it too, so that its descriptors stay open when another thread closes the socket.
        signals = self.signals
        if signals is None:
            signals = self.signals = Signals()
        return signals.ready(sock, events, deadline)

    def begin_output(self) -> None:
        """The kernel takes no more for now, and the handler waits until it does."""
        self.watch.output(self.now())
        self.arm()

    def went(self, count: int) -> None:
        """The kernel took `count` bytes."""
        self.sent += count
        self.owing = False
        watch = self.watch
        watch.whole()
        watch.sent(self.now(), left=False)

    def arm(self) -> None:
        """Tell the reactor if its timer would fire too late."""
        when, _ = self.watch.deadline()
        if when < self.armed and self.on_deadline is not None:
            self.armed = when
            self.on_deadline()

    def adopt(self, sock: socket.socket) -> None:
        """Guard `sock` from now on."""
        with self.lock:
            self.socket = sock
            sock.guard = self  # type: ignore[attr-defined]

    def release(self) -> socket.socket | None:
        """The descriptor in a plain, non-blocking socket; None if it was given away or closed before."""
        with self.lock:
            sock = self.socket
            if sock is None or self.released or sock.fileno() < 0:
                return None
            self.released = True
            self.signals = None
            family, kind, proto = sock.family, sock.type, sock.proto
            plain = socket.socket(family, kind, proto, fileno=socket.socket.detach(sock))
        plain.setblocking(False)
        return plain

    def closed(self) -> None:
        """The handler has closed its socket: pass the descriptor on, or close it where nobody wants it."""
        plain = self.release()
        if plain is None:
            return
        if self.on_release is None:
            plain.close()
        else:
            self.on_release(plain)
