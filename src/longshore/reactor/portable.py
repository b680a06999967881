"""The portable reactor: pure Python on `selectors`.

The readable specification of what a reactor does: it turns, and in each turn it takes what the kernel
has, what is due, what other threads posted and what earlier turns left over, in this order.

Facts, and what follows from them:

* A level-triggered selector reports what is left again and again.  So nothing needs to be read to the
  end, and each source takes a bounded bite per turn: floods starve nobody.
* Bytes that we have read already, and messages cut from them, are unknown to the kernel.  So whoever stops
  with work left says `again`, and the next turn does not sleep.
* Another thread cannot interrupt a sleeping selector.  So `post` writes one byte to a socket pair, once
  until it is read: `deque.append` and `send` are both safe in a signal handler.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from longshore import runs
from longshore.reactor.acceptor import Acceptor
from longshore.reactor.clock import Clock, Timer, Timers
from longshore.reactor.datagrams import Datagrams
from longshore.reactor.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from longshore.reactor.datagrams import DatagramOwner

__all__ = ("PortableReactor",)

#: Seconds that what earlier turns left over gets before everybody else has another turn.
BUDGET = 0.001


class PortableReactor:
    """A reactor on the best selector that the system has."""

    name = "portable"

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.now: Callable[[], float] = self.clock.now
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._again: deque[Callable[[], object]] = deque()
        self._dirty: list[Stream] = []
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._woken = False
        self._woken_at = 0.0
        self._stopping = False
        self._closed = False
        self._turning = False
        self.thread: int | None = None
        #: Called when output was put off outside of a turn; an embedding loop sets it to call `flush` soon.
        self.flush_soon: Callable[[], object] | None = None
        #: Called when a signal came, where the reactor turns beside the main thread.
        self.on_signal: Callable[[], object] | None = None
        #: What is being called right now, and since when: read by the watchdog from another thread.
        self.busy_since: float | None = None
        #: Whose handler is being called; likewise for the watchdog.
        self.current: Any = None
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._on_wake)
        self.clock.attach(self.wake)

    # -- turning ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop`, which may have come before; exceptions that leave a callback leave this too.

        May be called again afterwards, also on another thread.
        """
        self.thread = threading.get_ident()
        with self.hearing_signals(), runs.turned_by(self):
            while not self._stopping:
                self._turn(self._sleep())
            self._stopping = False

    @contextlib.contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """While the main thread is inside, signals end the reactor's sleep, unless somebody else has arranged that.

        A signal that comes after Python last looked at its flag and before the selector sleeps interrupts nothing, and
        its handler would run when the next client happens to come.
        """
        mine = False
        if threading.current_thread() is threading.main_thread():
            previous = signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
            mine = previous == -1
            if not mine:
                signal.set_wakeup_fd(previous, warn_on_full_buffer=False)
        try:
            yield
        finally:
            if mine:
                signal.set_wakeup_fd(-1)

    def run_ready(self) -> float | None:
        """Do what can be done without waiting, for a loop that watches `fileno()`.

        Returns:
            Seconds until it must be called again even if the descriptor stays silent; None: never.
        """
        self.thread = threading.get_ident()
        self._turn(0)
        return None if self._stopping else self._sleep()

    def stop(self) -> None:
        """End `run` after this turn; from any thread."""
        self._stopping = True
        self.wake()

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing that is posted now will ever be called."""
        return self._closed

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to do."""
        return self._selector.fileno()

    def _sleep(self) -> float | None:
        if self._again or self._posted:
            return 0
        due = self._timers.next()
        return None if due is None else self.clock.wait_for(due)

    def _turn(self, timeout: float | None) -> None:
        self.busy_since = None
        ready = self._selector.select(timeout)
        self.busy_since = time.monotonic()
        self._turning = True
        try:
            for key, events in ready:
                # An earlier callback of this turn may have closed this one, or changed what it waits for.
                present = self._selector.get_map().get(key.fd)
                if present is not None and present.fileobj is key.fileobj and events & present.events:
                    present.data(events & present.events)
                    if self._dirty:
                        self.flush()
            for timer in self._timers.due(self.now()):
                callback = timer.callback
                if callback is not None:
                    callback(*timer.args)
            for _ in range(len(self._posted)):
                posted, args = self._posted.popleft()
                posted(*args)
            began = time.monotonic()
            for _ in range(len(self._again)):
                self._again.popleft()()
                if self._dirty:
                    self.flush()
                if time.monotonic() - began > BUDGET:
                    break
        finally:
            self._turning = False
            self.flush()
            self.busy_since = None
            self.current = None

    def flush(self) -> None:
        """Send what was put off for the sake of coalescing."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for stream in dirty:
                stream.flush()

    def put_off(self, stream: Stream) -> None:
        """Flush `stream` once the present callback is over."""
        self._dirty.append(stream)
        if not self._turning and self.flush_soon is not None and len(self._dirty) == 1:
            self.flush_soon()

    # -- from other threads, and signal handlers ------------------------------------------------------

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it on the reactor's thread, soon; from any thread, also from a signal handler."""
        self._posted.append((callback, args))
        self.wake()

    def wake(self) -> None:
        """End the selector's sleep."""
        if self._woken:
            return
        self._woken_at = time.monotonic()
        self._woken = True
        try:
            self._wake_writer.send(b"\0")
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            if not self._closed:
                raise

    def _on_wake(self, _events: int) -> None:
        try:
            came = self._wake_reader.recv(4096)
        except BlockingIOError:
            came = b""
        # After reading, not before: a byte sent in between would be eaten, and nobody would send another.  Whoever
        # finds this still set has posted already, and this very turn calls what was posted.
        self._woken = False
        # Our own bytes are zeros; Python writes the numbers of signals.
        if self.on_signal is not None and came.strip(b"\0"):
            self.on_signal()

    @property
    def on_thread(self) -> bool:
        """Whether the caller is on the thread that turns this reactor."""
        return self.thread == threading.get_ident()

    @property
    def blocked_for(self) -> float:
        """Seconds for which something that was called has not come back; from any thread.

        Inside of an event loop, handlers run between the turns: what tells then is a wake-up that nobody has answered.
        """
        since = self.busy_since
        if since is None:
            if not self._woken:
                return 0.0
            since = self._woken_at
        return time.monotonic() - since

    # -- time ------------------------------------------------------------------------------------------

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it at `when` on the reactor's clock."""
        timer = self._timers.add(when, callback, *args)
        if not self._turning:
            self.wake()
        return timer

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call it in `seconds`."""
        return self.call_at(self.now() + seconds, callback, *args)

    def again(self, callback: Callable[[], object]) -> None:
        """Call it in the next turn, after everybody else had theirs."""
        self._again.append(callback)
        if not self._turning:
            self.wake()

    # -- sources ---------------------------------------------------------------------------------------

    @property
    def descriptors(self) -> set[int]:
        """Its own, and all that it watches; none once it is closed."""
        if self._closed:
            return set()
        return {self.fileno(), self._wake_writer.fileno(), *(key.fd for key in self._selector.get_map().values())}

    def watch(self, sock: socket.socket | int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` while a socket or descriptor is ready for `events` (of `selectors`); 0 ends that."""
        known = self._selector.get_map().get(sock)
        if not events:
            if known is not None:
                self._selector.unregister(sock)
        elif known is None:
            self._selector.register(sock, events, callback)
        else:
            self._selector.modify(sock, events, callback)

    def accept(
        self,
        listener: socket.socket,
        owner: Any,
        accept: Callable[[], tuple[Any, Any]],
        *,
        burst: int,
        bare: bool = False,
    ) -> Acceptor:
        """Accept on `listener` for `owner` by calling `accept()`; see `Acceptor`.

        With `bare` the owner only hands on to `stream` what comes, or closes it: it may have no socket object, and then
        comes with None in the place of its address, which is its `address`, and as text its `peer`.
        """
        return Acceptor(self, listener, owner, accept, burst)

    def stream(self, sock: socket.socket, peer: str, **options: Any) -> Stream:
        """Own `sock` as a stream; see `Stream`."""
        return Stream(self, sock, peer, **options)

    def datagrams(self, sock: socket.socket, owner: DatagramOwner) -> Datagrams:
        """Own `sock` as datagrams; see `Datagrams`."""
        return Datagrams(self, sock, owner)

    def close(self) -> None:
        """Give everything back; what was posted and not yet called is forgotten."""
        if self._closed:
            return
        self._closed = True
        self.clock.detach(self.wake)
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()
        self._timers.clear()
        self._posted.clear()
        self._again.clear()
        self._dirty.clear()
