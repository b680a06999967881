"""One stream connection on the portable reactor: buffers both ways, TLS in between, deadlines, the end.

The only place where a non-blocking stream socket is read and written.  Reading goes ahead of whoever
consumes by a bounded amount only, and stops altogether while the peer leaves more than
`max_pending_bytes` of our output untaken: this is the backpressure on peers that pipeline.

Facts, and what follows from them:

* close(2) with unread input makes the kernel send a reset, which destroys output that the peer has not
  read yet.  So a stream ends in steps: flush, shutdown(SHUT_WR), read and drop, close.
* A peer's half-close says nothing about what it still reads.  So it only ends the input.
* Bytes move deadlines later, never earlier.  So one timer per stream is enough: it asks the `Watch` again.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore.buffers import InputBuffer, PacketBuffer, closed, peer_closed, shut
from longshore.lifecycle import CONNECTION, Machine
from longshore.limits import Brink, Watch, overdue
from longshore.packets import Packets, send_packets
from longshore.reactor.dispatch import Dispatch
from longshore.reactor.taking import DONE, taking, taking_line, taking_some
from longshore.reactor.waiters import Waiters
from longshore.tls import Session, TLSError, bound, hung_up, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.config import Limits, Timeouts
    from longshore.framing import Framing
    from longshore.reactor import Sink
    from longshore.reactor.clock import Timer
    from longshore.reactor.dispatch import Receiver
    from longshore.reactor.portable import PortableReactor

__all__ = ("Stream",)

#: Bytes asked of the kernel at once, and read ahead of whoever consumes them.
CHUNK = 65_536
#: Put-off output is sent once there is this much of it.
COALESCE = 65_536
#: Bytes that are read and dropped for a peer that goes on sending after we closed.
LINGER_BYTES = 1 << 20


class Stream:
    """A stream socket owned by a reactor; every method belongs to the reactor's thread."""

    # For coroutines.
    taking, taking_line, taking_some, DONE = taking, taking_line, taking_some, DONE

    def __init__(
        self,
        reactor: PortableReactor,
        sock: socket.socket,
        peer: str,
        *,
        sink: Sink,
        limits: Limits,
        timeouts: Timeouts,
        framing: Framing | None = None,
        tls: Session | None = None,
        packets: bool = False,
    ) -> None:
        self.reactor = reactor
        self.socket = sock
        self.peer, self.sink, self.limits = peer, sink, limits
        #: Where each read and each write is a packet of its own; None: where they are not.
        self._packets = Packets(sock) if packets else None
        self.input = (
            InputBuffer(peer, framing)
            if self._packets is None
            else PacketBuffer(peer, framing, separate=not self._packets.ends)
        )
        self.watch = Watch(timeouts, reactor.now())
        self.tls = tls
        self.error: BaseException | None = None
        self.received = self.sent = self._events = 0
        #: Whether anything came since our last write: then the peer is owed an answer.
        self.owing = False
        #: Whether writes may wait for the end of the callback that makes them.
        self.coalescing = False
        #: Whether the sink wants to be told of everything; a portable stream always tells.
        self.telling = False
        #: Messages that `dispatch` has handed out.
        self.messages = 0
        #: Why it ended, as `ConnectionClosed` has it.
        self.cause = "finished"
        self._dispatch: Dispatch | None = None
        waiters = Waiters(self)
        self.park, self.unpark = waiters.park, waiters.unpark
        self.expect, self.wake, self.rests = waiters.expect, waiters.wake, waiters.rests
        self.in_shares, self.sated, self.excuse = waiters.in_shares, waiters.sated, waiters.excuse
        self._corked = self._deferred = self._hungry = self._held = self._write_ended = False
        self._machine, self._brink, self._armed = Machine(CONNECTION), Brink(), math.inf
        self._plain, self._wire = bytearray(), bytearray()
        #: The lengths of the packets in `_wire`.
        self._lengths: deque[int] = deque()
        #: Whether TLS has been told that we send no more.
        self._farewell = False
        #: Bytes that came after our last one had left; infinite once the peer has ended its side, too.
        self._dropped: float = 0
        self._timer: Timer | None = None

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: with the TLS handshake if there is a session, else ready at once."""
        self._arm()
        if self.tls is not None:
            self._begin_handshake()
        else:
            self._machine.to("open")
            self._tell_opened()
        self._update()

    def start_tls(self, session: Session) -> None:
        """Speak TLS from the next byte on; `sink.opened` tells when the handshake is done.

        What is buffered was sent after the peer asked for TLS, so it can only belong to the handshake: it is
        given to it, and plaintext that somebody slipped in makes it fail.
        """
        self._machine.to("opening")
        self.tls = session
        early = self.input.take_all()
        if early:
            session.feed(early)
        self._begin_handshake()
        self._update()

    def continue_as(self, other: Any, *, unread: bytes, unsent: bytes, ended: bool) -> None:
        """Take the place of another stream on the same socket, with all that it knew."""
        if self.tls is None or self.tls.ready:
            self._machine.to("open")
        else:
            self.watch.begin_handshake(self.reactor.now())
        self.received, self.sent, self.messages = other.received, other.sent, other.messages
        self.owing, self.coalescing, self.telling = other.owing, other.coalescing, other.telling
        self.watch.first, self.watch.opened = not self.received, other.watch.opened
        self.input.feed(unread)
        self.input.ended = ended
        self._wire += unsent
        self._arm()
        self._update()

    @property
    def state(self) -> str:
        """One of `lifecycle.CONNECTION`."""
        return self._machine.state

    def traffic(self) -> tuple[int, int, int]:
        """Bytes received, sent, and written that the kernel has not taken."""
        return self.received, self.sent, self.pending

    @property
    def pending(self) -> int:
        """Bytes written that the kernel has not taken."""
        return len(self._plain) + len(self._wire)

    @property
    def spent(self) -> bool:
        """Whether it ends, or has ended, and nothing is left to take."""
        return self.state in ("closing", "closed") and not self.input.size

    def failure(self) -> BaseException:
        """The error for whoever uses a stream that has ended."""
        return self.error or (peer_closed if self.cause == "peer closed" else closed)(self.peer)

    # -- messages --------------------------------------------------------------------------------------

    def dispatch(self, call: Callable[..., Any], subject: Any, receiver: Receiver, *, batches: bool = False) -> None:
        """Hand the messages of this stream to a handler from now on; see `Dispatch`."""
        self._dispatch = Dispatch(self, call, subject, receiver, batches=batches)
        self._dispatch.go_on()

    def go_on(self) -> None:
        """Go on with the messages, because something changed."""
        if self._dispatch is not None:
            self._dispatch.go_on()

    # -- telling ---------------------------------------------------------------------------------------

    def _tell_opened(self) -> None:
        self.wake()
        self.sink.opened()

    def _tell_arrived(self) -> None:
        if not self.rests():
            self.wake()
        # The sink would wake whoever rests before it is his turn.
        if self.telling or not self.rests():
            self.sink.arrived()
        self.go_on()

    # -- input -----------------------------------------------------------------------------------------

    def want_input(self, hungry: bool) -> None:
        """Say whether a handler waits for input: it is what `idle` counts, and it always reads on."""
        if hungry is self._hungry:
            return
        self._hungry = hungry
        if hungry:
            self.watch.wait(self.reactor.now())
            if not self.input.unread:
                self.watch.whole()
        else:
            self.watch.waiting = False
        self._update()

    def hold(self, held: bool) -> None:
        """Read nothing for now, or read again as before."""
        self._held = held
        self._update()

    def take_arrived(self) -> None:
        """Read what the kernel has already, without waiting for it to tell: it counts as arrived."""
        if self.state == "open" and self._events & selectors.EVENT_READ:
            self._read()

    def end_input(self) -> None:
        """Read no more: the handler sees the end of the stream."""
        self.input.end()
        self._update()

    def _read(self) -> None:
        try:
            data = self.socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(getattr(error, "cause", "reset" if isinstance(error, ConnectionError) else "error"), error)
            return
        if self.state == "closing":
            self._drop(data)
            return
        if data:
            self.received += len(data)
            self.watch.received(len(data), self.reactor.now())
        if self._packets is not None:
            self._deliver(self._packets.payload(data), ended=not data and self._packets.ends)
        elif self.tls is None:
            self._deliver(data, ended=not data)
        else:
            self._read_tls(self.tls, data)

    def _read_tls(self, session: Session, data: bytes) -> None:
        # The end of the stream is not fed: OpenSSL takes one without close_notify for an attack and refuses to send
        # from then on, but a peer that half-closed is still owed its replies.
        ciphertext = data
        if not session.ready:
            session.feed(data)
            self._handshake()
            if not session.ready:
                if not data and self.state == "opening":
                    self.fail("handshake", hung_up(self.peer))
                return
            ciphertext = b""
        try:
            plain, ended, owed = session.receive(ciphertext)
        except TLSError as error:
            self._take_outgoing()
            self._send_wire()
            self.fail("error", error)
            return
        self._wire += owed
        if plain or ended or not data:
            self._deliver(plain, ended=ended or not data)

    def _deliver(self, data: bytes, *, ended: bool) -> None:
        if self.input.ended:
            return
        if data or (self._packets is not None and not ended):
            self.owing = True
            self.input.feed(data)
        if ended:
            self.input.end()
        self._update()
        self._tell_arrived()

    def _drop(self, data: bytes) -> None:
        if not data:
            self._dropped = math.inf
        elif not self.pending:
            self._dropped += len(data)
        if not self._lingers and self.pending:
            # The end of their side, or of our patience with it, says nothing about what they still read.
            self._update()
        elif not self._lingers:
            self._finish()

    @property
    def _lingers(self) -> bool:
        """Whether the peer may go on sending, once we have closed."""
        return not self.input.ended and self._dropped <= LINGER_BYTES

    # -- output ----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue `data`, and send what can be sent unless it may be coalesced with what follows.

        Raises:
            ClosedError: the stream was closed on our side.
            ValueError: a packet is empty, where that would be the end of the connection.
            LongshoreError, OSError: what ended the stream before.
        """
        if self.state != "open" or self._write_ended:
            raise self.failure() if self.state != "open" else shut(self.peer)
        if self._packets is not None:
            self._packets.check(data, self.peer)
            self._lengths.append(len(data))
        elif not data:
            return
        self.owing = False
        (self._wire if self.tls is None else self._plain).extend(data)
        if self._corked:
            return
        if self.coalescing and self.pending < COALESCE and self.input.unread:
            if not self._deferred:
                self._deferred = True
                self.reactor.put_off(self)
            return
        self.flush()

    def offer(self, data: bytes) -> bool:
        """Write, if that needs no waiting and nobody else's thread; False, and nothing done, where it takes more."""
        if self.state != "open" or self._write_ended or type(data) is not bytes or not self.reactor.on_thread:
            return False
        if self.pending + len(data) > self.limits.max_pending_bytes:
            return False
        self.write(data)
        return True

    @contextlib.contextmanager
    def corked(self) -> Iterator[None]:
        """Send all that is written inside as one piece."""
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
            if self.state == "open":
                self.flush()

    def flush(self) -> None:
        """Send what the kernel takes now."""
        self._deferred = False
        if self.state == "closed":
            return
        if self._plain and self.tls is not None and self.tls.ready:
            try:
                self._wire += self.tls.send(bytes(self._plain))
            except TLSError as error:
                self.fail("error", error)
                return
            self._plain.clear()
        self._send_wire()

    def shutdown_output(self) -> None:
        """Send the end of our side after what is pending; the peer may go on sending."""
        if self._write_ended or self.state == "closed":
            return
        self._write_ended = True
        self.flush()

    def _take_outgoing(self) -> None:
        if self.tls is not None:
            self._wire += self.tls.outgoing()

    def _send_wire(self) -> None:
        if self.state == "closed":
            return
        wire, maximum = self._wire, self.limits.max_pending_bytes
        near = drained = False
        if wire or self._lengths:
            before = self.pending
            try:
                with memoryview(wire) as view:
                    if self._packets is None:
                        count = self.socket.send(view)
                    else:
                        count = send_packets(self.socket, view, self._lengths)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError as error:
                self.fail("reset" if isinstance(error, ConnectionError) else "error", error)
                return
            now = self.reactor.now()
            if count:
                del wire[:count]
                self.sent += count
                self.watch.sent(now, left=bool(wire))
            if wire:
                self.watch.output(now)
                self._arm()
            near = self._brink.reached(self.pending, maximum)
            drained = before > maximum // 2 >= self.pending or (before > 0 and not self.pending)
        self._update()
        self._output_sent()
        if near:  # Told only now, as whoever hears it may end the stream.
            self.sink.near()
        if drained:
            self.wake()
            self.sink.drained()
            self.go_on()

    def _output_sent(self) -> None:
        """Go on with what waits for the last byte to leave: our end of the stream, then the linger."""
        if self.pending or not self._write_ended or self.state == "closed":
            return
        if self.tls is not None and self.tls.ready and not self._farewell:
            # The session stays: the peer may go on sending, and that is ciphertext as before.
            self._farewell = True
            self.tls.end()
            self._take_outgoing()
            if self._wire:
                self._send_wire()
                return
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The peer is gone already, and then there is nobody to tell.
            if self.state == "closing":
                self._finish()
                return
        if self.state == "closing" and not self._lingers:
            self._finish()

    # -- the end ---------------------------------------------------------------------------------------

    def close(self, cause: str = "finished", error: BaseException | None = None, *, linger: bool = True) -> None:
        """Flush, end our side, let the peer read it, close.

        Without `linger`, for a peer that has sent nothing unanswered, the last steps are one.
        """
        if self.state in ("closing", "closed"):
            return
        self.cause = cause
        self.error = self.error or error
        if self.state == "opening":
            self._finish()
            return
        self._machine.to("closing")
        self.watch.closing_since = self.reactor.now()
        self._write_ended = True
        if not linger and not self.pending:
            self._finish()
            return
        self._arm()
        self.flush()
        self._update()

    def abort(self, cause: str = "aborted", error: BaseException | None = None) -> None:
        """Reset the connection: the peer gets an RST, and what is pending is lost."""
        if self.state == "closed":
            return
        # Sockets without it (AF_UNIX on some systems) just close.
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.fail(cause, error)

    def fail(self, cause: str, error: BaseException | None) -> None:
        """End at once; waiters and later calls get `error`."""
        if self.state == "closed":
            return
        if self.state != "closing":
            self.cause = cause
            self.error = self.error or error
        self._finish()

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket away, with the bytes that were read and not consumed.

        Raises:
            ClosedError: the stream is closed.
            LongshoreError: TLS is spoken, whose state cannot go with a socket.
        """
        if self.state != "open":
            raise closed(self.peer)
        if self.tls is not None:
            raise bound()
        self.flush()
        unread = self.input.take_all()
        self._release()
        self.wake()
        self.sink.closed("finished", None)
        return self.socket, unread

    def _release(self) -> None:
        self._machine.to("closed")
        if self._events:
            self.reactor.watch(self.socket, 0, self._on_ready)
            self._events = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self) -> None:
        self._release()
        self.socket.close()
        self.wake()
        self.sink.closed(self.cause, self.error)

    # -- TLS handshake -----------------------------------------------------------------------------------

    def _begin_handshake(self) -> None:
        self.watch.begin_handshake(self.reactor.now())
        self._arm()
        self._handshake()

    def _handshake(self) -> None:
        session = self.tls
        assert session is not None
        try:
            done = session.handshake()
        except TLSError as error:
            # The alert that explains the refusal is in the outgoing buffer.
            self._take_outgoing()
            self._send_wire()
            self.fail("handshake", refused(self.peer, error))
            return
        self._take_outgoing()
        self._send_wire()
        if done and self.state == "opening":
            now = self.reactor.now()
            self.watch.handshaking = False
            self.watch.ready = self.watch.last_byte = now
            self.watch.first = True
            self.watch.whole()
            self._machine.to("open")
            self._tell_opened()

    # -- the reactor's side --------------------------------------------------------------------------------

    def _on_ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self.flush()
        if events & selectors.EVENT_READ and self._events & selectors.EVENT_READ:
            self._read()

    def _update(self) -> None:
        """Watch the socket for just what can be done now."""
        state = self.state
        if state == "closed":
            return
        ahead = self._hungry or self.input.size < min(CHUNK, self.limits.max_pending_bytes)
        wanted = ahead and not (self._held or self.input.ended) and self.pending <= self.limits.max_pending_bytes
        events = 0
        if self._lingers if state == "closing" else state == "opening" or wanted:
            events = selectors.EVENT_READ
        if (self._wire or self._lengths) and not self._deferred:
            events |= selectors.EVENT_WRITE
        if events != self._events:
            self.reactor.watch(self.socket, events, self._on_ready)
            self._events = events
        if self._hungry or self._wire or state != "open":
            self._arm()

    def _arm(self) -> None:
        when, _ = self.watch.deadline()
        if when >= self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = when
        self._timer = self.reactor.call_at(when, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer, self._armed = None, math.inf
        if self.state == "closed":
            return
        when, name = self.watch.deadline()
        if when > self.reactor.now():
            self._arm()
            return
        if name == "linger" or self.state == "closing":
            self._finish()
            return
        if name == "idle":
            self.sink.idled()
            if self.state != "open" or self.watch.deadline()[0] > self.reactor.now() or self.pending:
                self._arm()
                return
        error: Any = overdue(name, self.watch.timeouts, self.peer)
        if name == "handshake":
            self.fail("handshake", error)
        elif name == "write":
            self.abort("timeout", error)
        else:
            # Whoever was silent for so long is not in the middle of sending, so there is nothing to linger for.
            self.close("timeout", error, linger=False)
            self._tell_arrived()
