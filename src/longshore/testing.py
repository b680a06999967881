"""Testing support: a server on a port of its own, a client that misbehaves, and a clock to turn by hand.

The only place that makes life easier for tests.  Everything here uses real sockets and the real strategies:
what passes here passes in production.  Whoever leaves a server behind that left descriptors, threads or
children behind gets an `AssertionError` that names them.  It is a pytest plugin (fixtures `longshore_server`
and `longshore_clock`), but works without pytest too; it knows nothing of any other test runner.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from longshore import addresses as urls
from longshore.events import Event
from longshore.reactor.clock import Clock as RealClock
from longshore.server import DrainReport, Server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from longshore.connection import Connection

__all__ = ("Client", "Clock", "RecordedServer", "Recorder", "connected_pair", "no_leaks", "running_server")

#: Seconds that anything here waits at most before it says that it waited in vain.
PATIENCE = 5.0

E = TypeVar("E", bound=Event)


class Clock(RealClock):
    """Time that stands still until a test turns it; give it to `running_server(clock=...)`.

    Example:
        >>> clock = Clock()
        >>> with running_server(echo, clock=clock, timeouts=Timeouts(idle=600)) as server:
        ...     with Client(server.url) as client:
        ...         server.events.wait_for(ConnectionOpened)
        ...         clock.advance(600)
        ...         assert client.recv_until_closed() == b""
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sleepers: list[Callable[[], None]] = []

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return self._now

    def wait_for(self, deadline: float) -> float | None:
        """Nothing falls due by itself: 0 if `deadline` has come, else None."""
        return 0.0 if deadline <= self._now else None

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, for everybody at once; from any thread."""
        with self._lock:
            self._now += seconds
            sleepers = tuple(self._sleepers)
        for wake in sleepers:
            wake()

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever time passes."""
        with self._lock:
            self._sleepers.append(wake)

    def detach(self, wake: Callable[[], None]) -> None:
        """Undo `attach`."""
        with self._lock:
            if wake in self._sleepers:
                self._sleepers.remove(wake)


class Recorder:
    """An observer that keeps every event, and lets tests wait for one."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        """Keep `event`."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def of(self, kind: type[E]) -> list[E]:
        """All events of `kind` so far."""
        return [event for event in tuple(self._events) if isinstance(event, kind)]

    def wait_for(self, kind: type[E], predicate: Callable[[E], object] | None = None, timeout: float = PATIENCE) -> E:
        """The first event of `kind` that satisfies `predicate`; one that has happened already counts.

        Raises:
            AssertionError: there was none in `timeout` seconds; the message says what happened instead.
        """
        return self.wait_for_count(kind, 1, predicate, timeout)[0]

    def wait_for_count(
        self, kind: type[E], count: int, predicate: Callable[[E], object] | None = None, timeout: float = PATIENCE
    ) -> list[E]:
        """All events of `kind` that satisfy `predicate`, once there are at least `count`.

        Raises:
            AssertionError: there were fewer in `timeout` seconds; the message says what happened instead.
        """

        def found() -> list[E]:
            events = [event for event in self._events if isinstance(event, kind)]
            return events if predicate is None else [event for event in events if predicate(event)]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, timeout):
                seen = "\n".join(f"  {event}" for event in self._events) or "  nothing"
                raise AssertionError(
                    f"{len(found())} of {count} {kind.__name__} within {timeout:g} s; what happened:\n{seen}"
                )
            return found()


class RecordedServer(Server):
    """A `Server` whose events are kept."""

    def __init__(self, handler: Any, *addresses: str | socket.socket, **options: Any) -> None:
        super().__init__(handler, *addresses, **options)
        #: Everything that has happened to this server.
        self.events = Recorder()
        self.subscribe(self.events)

    @property
    def url(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]


@contextlib.contextmanager
def running_server(
    handler: Any, *addresses: str | socket.socket, clock: Clock | None = None, **options: Any
) -> Iterator[RecordedServer]:
    """Serve `handler` in the background while the block runs.

    Args:
        handler: as `Server` takes it.
        *addresses: as `Server` takes them; "tcp://127.0.0.1:0" if there are none.
        clock: what the server's deadlines go by; None is real time.
        **options: as `Server` takes them.

    Raises:
        AssertionError: after the server had stopped, descriptors, threads or children were left that were not
            there before, but for what its report names as abandoned.  What the block itself opens and leaves open
            counts too: close clients inside.

    Example:
        >>> with running_server(echo) as server, Client(server.url) as client:
        ...     client.send(b"hello")
        ...     assert client.recv_exactly(5) == b"hello"
    """
    server = RecordedServer(handler, *(addresses or ("tcp://127.0.0.1:0",)), **options)
    server.clock = clock
    if server.strategy_name == "async":
        _settle_event_loops()
    before = _Belongings()
    try:
        server.start()
        yield server
    except BaseException:
        # What the block left open after a failure is no news: the failure is.
        server.stop()
        raise
    before.compare(server.stop())


def _settle_event_loops() -> None:
    """Let libuv, under uvloop, open its pipe for signals: one per process, with the first loop and for ever."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


class _Belongings:
    """What this process has: descriptors, threads, children."""

    def __init__(self) -> None:
        self._descriptors = _descriptors()
        self._threads = set(threading.enumerate())
        self._children = _children()

    def compare(self, report: DrainReport | None) -> None:
        """Check that nothing has come since.

        Raises:
            AssertionError: something has.
        """
        abandoned = () if report is None else report.abandoned
        left = []
        deadline = time.monotonic() + 1.0
        for thread in threading.enumerate():
            if thread in self._threads or any(thread.name in name for name in abandoned):
                continue
            # A thread that has done its last work may still be on its way out.
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(f"thread {thread.name!r}")
        left += [f"child process {pid}" for pid in sorted(_children() - self._children)]
        opened = sorted(_descriptors().items() - self._descriptors.items())
        if len(opened) > len(abandoned):
            left += [f"descriptor {number} ({what})" for number, what in opened]
        if left:
            raise AssertionError(f"the server has stopped, but left behind: {', '.join(left)}")


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Check that what happens inside leaves no descriptor, thread or child behind.

    Raises:
        AssertionError: it does; the message names them.
    """
    before = _Belongings()
    yield
    before.compare(None)


def _descriptors() -> dict[int, str]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}") if folder.startswith("/proc") else "open"
        except OSError:
            # The descriptor of the listing itself.
            continue
    return found


def _children() -> set[int]:
    found: set[int] = set()
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        # Only Linux lists them without help from outside.
        return found
    for task in tasks:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as listing:
            found.update(map(int, listing.read().split()))
    return found


@contextlib.contextmanager
def connected_pair(
    handler: Any, framing: Any = None, strategy: str | None = None, **options: Any
) -> Iterator[Connection]:
    """A client's `Connection` to `handler`, over memory: no port, no network.

    The handler runs as in production, on the strategy asked for; the connection's `server` is the
    `RecordedServer` behind it.

    Example:
        >>> with connected_pair(shout, framing=Lines()) as connection:
        ...     assert connection.request(b"hello") == b"HELLO"
    """
    from longshore.client import connect

    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            url = f"unix://@longshore-{secrets.token_hex(8)}"
        else:
            url = f"unix://{stack.enter_context(tempfile.TemporaryDirectory())}/pair"
        server = stack.enter_context(running_server(handler, url, framing=framing, strategy=strategy, **options))
        connection = stack.enter_context(connect(url, framing=server.framing, timeout=PATIENCE))
        connection.server = server
        yield connection


class Client:
    """A blocking client on a bare socket, for what no good client does.

    Every wait ends after `timeout` seconds with a `TimeoutError`.

    Args:
        url: where to connect.
        timeout: seconds that each call may take.
        tls: the context for a `tls://` address; None trusts every certificate.
        receive_buffer: bytes that the kernel may hold for us, small for a client that will `stall`.
        source: the address of ours to come from; all of 127.0.0.0/8 is this machine.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = PATIENCE,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        address = urls.parse(url)
        endpoint = urls.resolve(address, passive=False)[0]
        sock = socket.socket(endpoint.family, endpoint.type)
        try:
            sock.settimeout(timeout)
            if receive_buffer is not None:
                # Before connecting: the first window that is offered follows from it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                sock.bind((source, 0))
            sock.connect(endpoint.sockaddr)
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        #: The socket itself.
        self.socket: socket.socket = sock
        self._kept = b""
        if address.is_tls:
            try:
                self.start_tls(tls)
            except BaseException:
                self.close()
                raise

    def start_tls(self, context: ssl.SSLContext | None = None, hostname: str = "localhost") -> None:
        """Speak TLS from here on; None trusts every certificate."""
        import ssl

        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket, server_hostname=hostname)

    # -- sending -----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.sendall(data)

    def split(
        self, data: bytes, sizes: Iterable[int] = (1,), *, clock: Clock | None = None, delay: float = 0.0
    ) -> None:
        """Send `data` in pieces of `sizes` bytes (the last size goes on), each in a packet of its own.

        With a `clock`, `delay` seconds pass between two pieces.
        """
        steps = iter(sizes)
        size = 1
        start = 0
        while start < len(data):
            size = next(steps, size)
            if start and clock is not None:
                clock.advance(delay)
            self.send(data[start : start + size])
            start += size

    # -- receiving ---------------------------------------------------------------------------------------

    def recv(self, count: int = 65536) -> bytes:
        """What is there, at most `count` bytes; b"" at the end of the stream."""
        if self._kept:
            data, self._kept = self._kept[:count], self._kept[count:]
            return data
        return self.socket.recv(count)

    def recv_exactly(self, count: int) -> bytes:
        """Just `count` bytes.

        Raises:
            EOFError: the stream ended before; the message has what came.
        """
        found = bytearray()
        while len(found) < count:
            data = self.recv(count - len(found))
            if not data:
                raise EOFError(f"{len(found)} of {count} bytes, then the end: {bytes(found)!r}")
            found += data
        return bytes(found)

    def recv_line(self) -> bytes:
        """Bytes up to and including the next newline; what there is at the end of the stream."""
        found = b""
        while b"\n" not in found:
            data = self.recv()
            if not data:
                return found
            found += data
        line, end, self._kept = found.partition(b"\n")
        return line + end

    def recv_until_closed(self) -> bytes:
        """All bytes up to the end of the stream."""
        found = bytearray()
        while data := self.recv():
            found += data
        return bytes(found)

    def request(self, line: bytes) -> bytes:
        """Send one line and return the line that comes back, both without their ends."""
        self.send(line + b"\n")
        return self.recv_line().rstrip(b"\n")

    # -- faults ------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Read no more, and let the kernel hold as little as it can: the peer's output backs up from now on."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    def half_close(self) -> None:
        """Send the end of our side, and go on receiving; under TLS without saying goodbye first."""
        # An SSLSocket's own shutdown() forgets its keys, and what comes later could not be read.
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish: the peer gets a reset where there is one (TCP), else just the end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


try:
    import pytest
except ImportError:
    # Without pytest there is nobody to ask for a fixture.
    pass
else:

    @pytest.fixture
    def longshore_clock() -> Clock:
        """A clock to turn by hand; servers of `longshore_server` in the same test go by it."""
        return Clock()

    @pytest.fixture
    def longshore_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., RecordedServer]]:
        """Start servers: `longshore_server(handler, *addresses, **options)`, as `running_server` takes them.

        All are stopped, and checked for leaks, when the test is over.
        """
        with contextlib.ExitStack() as stack:

            def start(handler: Any, *addresses: str | socket.socket, **options: Any) -> RecordedServer:
                if "longshore_clock" in request.fixturenames:
                    options.setdefault("clock", request.getfixturevalue("longshore_clock"))
                return stack.enter_context(running_server(handler, *addresses, **options))

            yield start
