"""The native reactor, in Rust: what `longshore.reactor.native` makes a reactor of.

The names and what they promise are those of `longshore.reactor.portable` and `longshore.reactor.stream`, which are
the readable specification.  Nothing here is for users.  Times are seconds, sizes are bytes.
"""

from collections.abc import Callable
from socket import socket as Socket
from typing import Any, final

from typing_extensions import disjoint_base

from longshore.config import Limits, Timeouts
from longshore.tls import Session

__all__ = [
    "Accepting",
    "Arrival",
    "DONE",
    "Datagrams",
    "Done",
    "Framing",
    "Incoming",
    "Ledger",
    "Lines",
    "Origin",
    "Reactor",
    "Stream",
    "Taking",
    "Timer",
    "shorten",
]

@final
class Accepting:
    """What takes the connections of one listening socket, by one call of the system each."""

    def __new__(cls, listener: Socket, *, bare: bool = False) -> Accepting: ...
    def accept(self) -> tuple[Any, Any]:
        """The next connection, in non-blocking mode, and its peer's address; errors are the system's own.

        A `bare` one is an `Incoming`, which knows that address itself: it comes with None.
        """

@final
class Arrival:
    """A future, for one task, that a stream fulfils; made by a `Taking` whose input has not come."""

    _asyncio_future_blocking: bool
    @property
    def _loop(self) -> Any: ...
    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def result(self) -> None: ...
    def done(self) -> bool: ...
    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Let the task go on, now."""

@final
class Incoming:
    """A connection that was accepted and has no socket object: `Stream` takes it as one, and makes that when asked.

    It owns the descriptor until somebody takes it.
    """

    @property
    def peer(self) -> str:
        """The peer's address, as `addresses.format_peer` has it."""
    @property
    def address(self) -> Any:
        """The peer's address, as accept(2) gives it."""
    def fileno(self) -> int: ...
    def send(self, data: bytes) -> int: ...
    def close(self) -> None: ...
    def detach(self) -> Socket:
        """The socket object, non-blocking, which owns the connection from now on."""

@final
class Origin:
    """What an answer to a datagram needs beside its address; only `Datagrams.send` knows what that is."""

@final
class Datagrams:
    """A datagram socket owned by a native reactor; as `longshore.reactor.datagrams.Datagrams`.

    `segments` says whether datagrams of one size from or to one peer go through the kernel as one.
    """

    def __new__(cls, reactor: Reactor, sock: Socket, owner: Any, segments: bool) -> Datagrams: ...
    @property
    def socket(self) -> Socket: ...
    @property
    def count(self) -> int: ...
    def dispatch(self, call: Callable[[bytes, Any], Any] | None = None, *, batches: bool = False) -> None: ...
    def keep(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def receive_queued(self) -> None: ...
    def send(self, data: Any, address: Any, info: Origin | None = None) -> None: ...
    def _ready(self, _events: int) -> None: ...

@final
class Framing:
    """The native twin of a built-in framing; made by `longshore.reactor.native.translate`."""

    @staticmethod
    def none() -> Framing:
        """There are no messages."""

    @staticmethod
    def raw() -> Framing:
        """What arrives is a message."""

    @staticmethod
    def delimited(delimiter: bytes, strip_return: bool, keep_end: bool, max_size: int, skip: bool) -> Framing:
        """A delimiter ends a message; an empty one is a ValueError."""

    @staticmethod
    def prefixed(size: int, little: bool, max_size: int, skip: bool) -> Framing:
        """The length comes first: `size` bytes of it, 0 for a varint."""

    @staticmethod
    def fixed(size: int) -> Framing:
        """Every `size` bytes are a message; 0 is a ValueError."""

    @staticmethod
    def netstring(max_size: int, skip: bool) -> Framing:
        """A netstring."""

    def encode(self, message: bytes) -> bytes | None:
        """What this framing puts on the wire for `message`; None if it cannot express it."""

    def decode(self, pieces: list[bytes], ends: bool) -> tuple[list[bytes], bool, int]:
        """The messages in `pieces`, fed one after the other; whether all went well; how many bytes are left."""

@final
class Ledger:
    """The words of what is lent, on shared memory; as `longshore.shared.ledger.Ledger`."""

    def __new__(cls, memory: Any) -> Ledger: ...
    def close(self) -> None: ...
    def next_fence(self) -> int: ...
    def lend(self, slot: int, client: int, state: int) -> None: ...
    def take_back(self, slot: int) -> int: ...
    def state(self, slot: int) -> int: ...
    def take(self, slot: int, client: int, holder: int, socket: int) -> int: ...
    def step(self, slot: int, client: int, before: int, after: int, socket: int) -> int: ...

@final
class Lines:
    """The lines of a connection, up to the end of its stream; they wait as its `readline` does."""

    def __iter__(self) -> Lines: ...
    def __next__(self) -> bytes: ...

@final
class Taking:
    """A coroutine that takes input; see `Stream.taking`."""

    def __await__(self) -> Taking: ...
    def __iter__(self) -> Taking: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any) -> Any:
        """As a coroutine's."""

    def throw(self, *error: Any) -> Any:
        """As a coroutine's."""

    def close(self) -> None:
        """As a coroutine's."""

@final
class Done:
    """An awaitable with nothing to wait for."""

    def __await__(self) -> Done: ...
    def __iter__(self) -> Done: ...
    def __next__(self) -> None: ...

#: The one that serves all.
DONE: Done

@final
class Timer:
    """One call that is due at `when`."""

    @property
    def when(self) -> float:
        """Seconds on the reactor's clock."""

    def cancel(self) -> None:
        """Never call it; twice is fine."""

@disjoint_base
class Reactor:
    """The native half of a reactor: sources, timers and streams."""

    def __new__(cls, clock: Any = None) -> Any: ...
    def run(self) -> None:
        """Turn until `stop`; exceptions that leave a callback leave this too."""

    def run_ready(self) -> float | None:
        """Do what can be done without waiting; 0 if it must be called again at once.

        Under the system's clock the descriptor is readable when the next deadline has come, so None is the only
        other answer; under a clock that is turned by hand it is as the portable one.
        """

    def stop(self) -> None:
        """End `run` after this turn; from any thread."""

    def flush(self) -> None:
        """Send what was put off for the sake of coalescing."""

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it on the reactor's thread, soon; from any thread, also from a signal handler."""

    def wake(self) -> None:
        """End the wait that goes on."""

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to do."""

    @property
    def descriptors(self) -> set[int]:
        """Its own, and all that it watches; none once it is closed."""

    def now(self) -> float:
        """Seconds on the reactor's clock."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it at `when`."""

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it in `seconds`."""

    def again(self, callback: Callable[[], object]) -> None:
        """Call it in the next turn, after everybody else had theirs."""

    def watch(self, sock: Socket, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` while the socket is ready for `events`; 0 watches no more."""

    def counters(self) -> dict[str, Any]:
        """What was counted: connections, bytes, messages, what ended them, and the latency histogram.

        Bucket `n` of `latency` counts the batches of messages that took less than 2**n microseconds from reading to
        having answered.
        """

    def close(self) -> None:
        """Give everything back; what was posted and not yet called is forgotten."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""

    @property
    def on_thread(self) -> bool:
        """Whether the caller is on the thread that turns this reactor."""

    @property
    def thread(self) -> int | None:
        """The thread that turns this reactor."""

    @thread.setter
    def thread(self, thread: int | None) -> None: ...
    @property
    def busy_since(self) -> float | None:
        """Since when something that was called has not come back."""

    @property
    def blocked_for(self) -> float:
        """Seconds for which something that was called has not come back; from any thread."""

    @property
    def current(self) -> Any:
        """Whose handler is being called."""

    @current.setter
    def current(self, current: Any) -> None: ...
    @property
    def flush_soon(self) -> Callable[[], object] | None:
        """Called when output was put off outside of a turn."""

    @flush_soon.setter
    def flush_soon(self, soon: Callable[[], object] | None) -> None: ...
    @property
    def turning(self) -> bool:
        """Whether a turn is going on."""

@disjoint_base
class Stream:
    """A stream socket owned by a native reactor; it is its own `input`."""

    def __new__(
        cls,
        reactor: Reactor,
        sock: Socket | Incoming,
        peer: str,
        sink: Any,
        limits: Limits,
        timeouts: Timeouts,
        framing: Any,
        tls: Session | None = None,
    ) -> Any: ...

    # As `longshore.reactor.stream.Stream`.
    @property
    def reactor(self) -> Any: ...
    @property
    def socket(self) -> Socket: ...
    @property
    def peer(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def input(self) -> Stream: ...
    @property
    def tls(self) -> Session | None: ...
    @property
    def state(self) -> str: ...
    @property
    def cause(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def received(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def pending(self) -> int: ...
    def traffic(self) -> tuple[int, int, int]: ...
    @property
    def messages(self) -> int: ...
    @property
    def watch(self) -> Any: ...
    @property
    def owing(self) -> bool: ...
    @owing.setter
    def owing(self, owing: bool) -> None: ...
    @property
    def coalescing(self) -> bool: ...
    @coalescing.setter
    def coalescing(self, coalescing: bool) -> None: ...
    @property
    def telling(self) -> bool: ...
    @telling.setter
    def telling(self, telling: bool) -> None: ...
    def failure(self) -> BaseException: ...
    def start(self) -> None: ...
    def start_tls(self, session: Session) -> None: ...
    def want_input(self, hungry: bool) -> None: ...
    def hold(self, held: bool) -> None: ...
    def park(self, waiter: Callable[[], object]) -> None: ...
    def unpark(self, waiter: Callable[[], object]) -> None: ...
    def wake(self) -> None: ...
    def expect(self, waiter: Callable[[], object]) -> bool: ...
    def in_shares(self, share: int) -> Stream: ...
    def sated(self) -> bool: ...
    def excuse(self) -> bool: ...
    @property
    def spent(self) -> bool: ...
    def offer(self, data: Any) -> bool: ...
    def take_arrived(self) -> None: ...
    def end_input(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def shutdown_output(self) -> None: ...
    def close(self, cause: str | None = None, error: BaseException | None = None, *, linger: bool = True) -> None: ...
    def abort(self, cause: str | None = None, error: BaseException | None = None) -> None: ...
    def fail(self, cause: str, error: BaseException | None) -> None: ...
    def detach(self) -> tuple[Socket, bytes]: ...
    def dispatch(self, call: Callable[..., Any], subject: Any, receiver: Any, *, batches: bool = False) -> None: ...
    def go_on(self) -> None: ...
    def taking(
        self, link: Any, timeout: float | None, take: Callable[..., Any], first: Any = None, second: Any = None
    ) -> Taking: ...
    def taking_line(self, link: Any, timeout: float | None, limit: int) -> Taking: ...
    def taking_some(self, link: Any, timeout: float | None, count: int) -> Taking: ...

    # What a stream that takes this one's place needs.
    def take_output(self) -> bytes:
        """Take out what was written and not sent."""

    def release(self) -> tuple[bytes, Socket]:
        """Let go of the socket without a word: what was read and not consumed, and the socket."""

    def surrender(self) -> tuple[Any, tuple[Callable[..., Any], Any, Any, bool] | None]:
        """Take out the sink, and what `dispatch` was given."""

    # As `longshore.buffers.InputBuffer`.
    @property
    def framing(self) -> Any: ...
    @framing.setter
    def framing(self, framing: Any) -> None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def unread(self) -> bool: ...
    def feed(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def discard(self) -> None: ...
    def take_all(self) -> bytes: ...
    def take_some(self, count: int) -> Any: ...
    def take_exactly(self, count: int) -> Any: ...
    def take_line(self, limit: int) -> Any: ...
    def take_line_up_to(self, size: int) -> Any: ...
    def peek(self) -> Any: ...
    def take_until(self, separator: bytes, limit: int) -> Any: ...
    def take_message(self) -> Any: ...

def shorten(kind: type) -> None:
    """Put native shortcuts into the place of methods of a class of ours; see `longshore.shortcuts`.

    Raises:
        TypeError: there are none for a class of this name, or it has them already.
    """
