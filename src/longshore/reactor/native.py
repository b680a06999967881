"""The native reactor: `longshore._native` in the shape of the contract.

Streams over IPv4, IPv6 and Unix sockets with a built-in framing are native, with TLS too; whatever else comes is
served by the portable `Stream` on the native reactor's watches, connection by connection.  The native half asks this
file for its words: every error is made here, from the same text that the portable one uses.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from socket import socket as Socket
from typing import TYPE_CHECKING, Any

from longshore import _native, runs
from longshore._native import Incoming
from longshore.addresses import format_peer
from longshore.buffers import closed, cut_short, named, no_framing, no_separator, peer_closed, shut, too_long
from longshore.errors import FramingError, IncompleteMessage, InternalError
from longshore.framing import NEED_MORE, Delimited, FixedSize, LengthPrefixed, Lines, Netstring, Raw
from longshore.limits import overdue
from longshore.packets import family_of
from longshore.reactor.acceptor import Acceptor
from longshore.reactor.clock import Clock
from longshore.reactor.datagrams import Datagrams
from longshore.reactor.stream import Stream
from longshore.tls import TLSError, bound, hung_up, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.config import Limits, Timeouts
    from longshore.reactor import Sink
    from longshore.reactor.datagrams import DatagramOwner

__all__ = (
    "NEED_MORE",
    "NativeReactor",
    "NativeStream",
    "Socket",
    "bound",
    "closed",
    "closed_socket",
    "cut_short",
    "format_peer",
    "hand_over",
    "hung_up",
    "malformed",
    "no_framing",
    "no_separator",
    "overdue",
    "panicked",
    "peer_closed",
    "refused",
    "shut",
    "too_long",
    "translate",
)

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})
#: Whether datagrams of one size from or to one peer go through the kernel as one (UDP_GRO, UDP_SEGMENT).
SEGMENTS = True
#: A limit that no stream reaches, so that sums with it stay numbers of the machine.
_LARGEST = 1 << 62


class NativeStream(_native.Stream):
    """A stream whose bytes, framing and deadlines are native; the contract is that of `Stream`."""

    __slots__ = ()

    #: Packets are the portable stream's.
    in_packets = False
    DONE = _native.DONE


class NativeReactor(_native.Reactor):
    """A reactor on epoll, in Rust; Linux only."""

    name = "native"

    def __new__(cls, clock: Clock | None = None) -> NativeReactor:
        """A reactor that reads the system's clock itself, unless it is given one to go by."""
        made: NativeReactor = super().__new__(cls, None if clock is None or type(clock) is Clock else clock)
        return made

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.clock.attach(self.wake)
        self._put_off: list[Stream] = []
        #: Called when a signal came, where the reactor turns beside the main thread.
        self.on_signal: Callable[[], object] | None = None

    def run(self) -> None:
        """Turn until `stop`, which may have come before; exceptions that leave a callback leave this too."""
        with self.hearing_signals(), runs.turned_by(self):
            super().run()

    @contextlib.contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """While the main thread is inside, signals end the reactor's wait, unless somebody else has arranged that.

        A signal that comes after Python last looked at its flag and before the kernel waits interrupts nothing.
        Python writes one byte per signal, which an eventfd refuses, so it takes a socket pair.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with contextlib.ExitStack() as stack:
            reader, writer = map(stack.enter_context, socket.socketpair())
            reader.setblocking(False)
            writer.setblocking(False)
            previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            if previous != -1:
                signal.set_wakeup_fd(previous, warn_on_full_buffer=False)
                yield
                return

            def heard(_events: int) -> None:
                with contextlib.suppress(BlockingIOError):
                    reader.recv(4096)
                if self.on_signal is not None:
                    self.on_signal()

            # The reactor may turn on another thread, whose business it is to watch.
            self.post(self.watch, reader, 1, heard)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                if not self.closed:
                    self.watch(reader, 0, heard)

    # -- sources ---------------------------------------------------------------------------------------

    def accept(
        self,
        listener: socket.socket,
        owner: Any,
        accept: Callable[[], tuple[Any, Any]],
        *,
        burst: int,
        bare: bool = False,
    ) -> Acceptor:
        """Accept on `listener` for `owner` by calling `accept`, natively where that asks the system only."""
        if getattr(accept, "is_plain", False):
            accept = _native.Accepting(listener, bare=bare).accept
        return Acceptor(self, listener, owner, accept, burst)  # type: ignore[arg-type]

    def stream(
        self,
        sock: Any,
        peer: str,
        *,
        sink: Sink,
        limits: Limits,
        timeouts: Timeouts,
        framing: Any = None,
        tls: Any = None,
        packets: bool = False,
    ) -> Any:
        """Own `sock` as a stream: a native one where that serves it, else a portable one."""
        bare = type(sock) is Incoming
        if not packets and type(framing) in _NATIVE and (bare or _is_ordinary(sock)):
            return NativeStream(self, sock, peer, sink, limits, timeouts, framing, tls)
        return Stream(
            self,  # type: ignore[arg-type]
            sock.detach() if bare else sock,
            peer,
            sink=sink,
            limits=limits,
            timeouts=timeouts,
            framing=framing,
            tls=tls,
            packets=packets,
        )

    def datagrams(self, sock: socket.socket, owner: DatagramOwner) -> Any:
        """Own `sock` as datagrams: natively over IPv4, IPv6 and Unix sockets; see `Datagrams`."""
        if sock.type != socket.SOCK_DGRAM or sock.family not in _FAMILIES:
            return Datagrams(self, sock, owner)  # type: ignore[arg-type]
        sock.setblocking(False)
        datagrams = _native.Datagrams(self, sock, owner, SEGMENTS)
        datagrams.resume()
        return datagrams

    # -- for portable streams --------------------------------------------------------------------------

    def put_off(self, stream: Stream) -> None:
        """Flush a portable stream once the present callback is over."""
        self._put_off.append(stream)
        if len(self._put_off) == 1:
            self.again(self._flush_put_off)

    def _flush_put_off(self) -> None:
        put_off, self._put_off = self._put_off, []
        for stream in put_off:
            stream.flush()

    def close(self) -> None:
        """Give everything back; what was posted and not yet called is forgotten."""
        if not self.closed:
            self.clock.detach(self.wake)
            self._put_off.clear()
        super().close()


# -- what is served natively ------------------------------------------------------------------------------------

_NATIVE = frozenset({Lines, Delimited, LengthPrefixed, FixedSize, Netstring, Raw, type(None)})


def _is_ordinary(sock: Any) -> bool:
    """Whether nobody has to look at what is read from a socket before the stream does."""
    return family_of(sock) in _FAMILIES and getattr(sock, "suspicion", None) is None


def closed_socket() -> socket.socket:
    """What stands for the socket of a connection that has ended before anybody has asked for its object."""
    sock = Socket()
    sock.close()
    return sock


def serves(framing: Any) -> bool:
    """Whether a framing has a native twin; by its very type, as a subclass may do anything."""
    return type(framing) in _NATIVE


def translate(framing: Any) -> _native.Framing | None:
    """The native twin of a framing; None if it has none."""
    kind = type(framing)
    if framing is None:
        return _native.Framing.none()
    if kind is Raw:
        return _native.Framing.raw()
    if kind is FixedSize:
        return _native.Framing.fixed(min(framing.n, _LARGEST))
    if not serves(framing):
        return None
    size, skip = min(framing.max_size, _LARGEST), framing.on_oversize == "skip"
    if kind is Lines:
        return _native.Framing.delimited(framing.delimiter, framing.strips_return, framing.keep_end, size, skip)
    if kind is Delimited:
        return _native.Framing.delimited(framing.delimiter, False, False, size, skip)
    if kind is Netstring:
        return _native.Framing.netstring(size, skip)
    length = 0 if framing.size == "varint" else framing.size
    return _native.Framing.prefixed(length, framing.byteorder == "little", size, skip)


# -- words ---------------------------------------------------------------------------------------------------


def malformed(peer: str, framing: Any, rest: bytes, ended: bool, skipped: int | None) -> FramingError:
    """The error for input that the native half found to be no message.

    The framing's own decoder says what is wrong, given the same bytes.

    Raises:
        InternalError: it finds nothing wrong, so one of the two is.
    """
    if skipped is not None:
        return IncompleteMessage(
            f"{peer}: the stream ended in an oversized message, {skipped + len(rest)} bytes of which were skipped, "
            f"over max_size={framing.max_size}",
            hint=f"The peer closed too early, or speaks another framing than {framing!r}.",
        )
    decoder = framing.decoder()
    try:
        decoder.feed(rest)
        decoder.next_message()
        if ended:
            decoder.end()
    except FramingError as error:
        return named(peer, error)
    raise InternalError(f"{framing!r} and its native twin disagree about {rest[:64]!r} from {peer}")


def panicked(text: str) -> InternalError:
    """The error that stands for a panic."""
    return InternalError(f"the native reactor broke a promise of its own: {text}", hint="Please report it.")


# -- where the native reactor ends ---------------------------------------------------------------------------


def hand_over(native: _native.Stream) -> Stream:
    """Put a portable stream into the place of a native one, which is forgotten: it knows any framing.

    Raises:
        LongshoreError, OSError: the stream has ended.
    """
    native.flush()
    if native.state not in ("opening", "open"):
        raise native.failure()
    said, over, owed = b"", False, b""
    if native.tls is not None and native.tls.ready and native.tls.unread:
        # Whoever is told that the handshake is over gets in before what came with the last of it.
        try:
            said, over, owed = native.tls.receive(b"")
        except TLSError as error:
            native.fail("error", error)
            raise
    # Whoever waits looks again, and goes on to wait on the other one.
    native.wake()
    sink, plan = native.surrender()
    unsent = native.take_output() + owed
    ended = native.ended or over
    unread, sock = native.release()
    unread += said
    stream = Stream(
        native.reactor,
        sock,
        native.peer,
        sink=sink,
        limits=native.limits,
        timeouts=native.watch.timeouts,
        framing=native.framing,
        tls=native.tls,
    )
    stream.continue_as(native, unread=unread, unsent=unsent, ended=ended)
    sink.attach(stream)
    if plan is not None:
        call, subject, receiver, batches = plan
        # In a turn of its own: the handler that asked for this may still be at work.
        stream.reactor.again(lambda: stream.dispatch(call, subject, receiver, batches=batches))
    return stream
