"""The local place: verbs over a Unix socket to the broker of this machine.

Each thread has a channel of its own: one socket, on which it writes a request and reads the reply itself, without any
other thread between.  So a thread that ends takes what it holds along, a blocked one needs no help, and requests of
one thread are done in order.  Where a greenlet or a task waits, the thread's reactor or loop watches the channel.

A channel that is busy (a signal handler, or a finaliser, came between) is left alone: another is opened meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from longshore import runs
from longshore.errors import BrokerLost, ClosedError, ConfigError, InternalError
from longshore.shared.places import Reply, Status
from longshore.shared.undoing import undo
from longshore.shared.wire import CANCEL, END, HELLO, encode_request, read_reply

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("LocalPlace",)

_LENGTH = struct.Struct("<I")
#: Bytes read at once.
_CHUNK = 65536
#: Seconds that connecting and the greeting may take.
_GREETING = 10.0
#: Seconds that whoever joins waits for a broker that is being started again, and the pauses in which it looks.  A
#: broker that will not come back has taken its key along.
_RETURN, _AGAIN = 2.0, 0.01
_places: WeakSet[LocalPlace] = WeakSet()


class _Channel:
    """One connection to the broker, which one thread uses."""

    def __init__(self, place: LocalPlace) -> None:
        self.place = place
        self.socket = place.connected()
        self._ids = itertools.count(1)
        self._buffer = bytearray()
        self._replies: dict[int, Reply] = {}
        self._waiting: dict[int, Callable[[Reply | BaseException], object]] = {}
        self._backlog: deque[bytes] = deque()
        self._sending = False
        self._unwatch: Callable[[], object] | None = None
        self.busy = False
        place.channels.add(self)

    # -- verbs -----------------------------------------------------------------------------------------------

    def ask(self, verb: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Any) -> Reply:
        """Have a verb done, and block for its reply."""
        name = next(self._ids) & 0xFFFFFFFF or next(self._ids)
        request = encode_request(verb, name, key, holder, number, timeout, fields)
        self.busy = True
        try:
            self.send(request)
            return self._await(name)
        except BaseException as error:
            if not isinstance(error, (BrokerLost, InternalError)):
                self._interrupted(name, verb, key, holder, number, fields)
            raise
        finally:
            self.busy = False

    def _interrupted(self, name: int, verb: int, key: bytes, holder: int, number: int, fields: Any) -> None:
        """Take back what was asked, as nobody waits for it any more."""
        with contextlib.suppress(BrokerLost):
            self.send(encode_request(CANCEL, 0, b"", holder, name, 0, ()))
            undo(self.place, verb, key, holder, number, self._await(name))

    def _await(self, name: int) -> Reply:
        receive = self.socket.recv
        buffer = self._buffer
        while True:
            try:
                data = receive(_CHUNK)
            except BlockingIOError:
                # uvloop makes the descriptors that it watches non-blocking, for good.
                self._until_readable()
                continue
            except OSError as error:
                raise self.lost(error) from error
            if not data:
                raise self.lost(None)
            if not buffer and len(data) >= 4 and _LENGTH.unpack_from(data)[0] == len(data) - 4:
                # One whole reply: what comes nearly always.
                found, reply = read_reply(data[4:])
                if found == name:
                    return reply
                self._arrived(found, reply)
            else:
                buffer += data
                self._cut()
            if name in self._replies:
                return self._replies.pop(name)

    def _until_readable(self) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.poll()

    def start(self, done: Any, verb: int, key: bytes, holder: int, number: int, timeout: Any, fields: Any) -> int:
        """Have a verb done, and call `done` with what comes of it."""
        name = next(self._ids) & 0xFFFFFFFF or next(self._ids)
        self._waiting[name] = done
        try:
            self.send(encode_request(verb, name, key, holder, number, timeout, fields))
            self._watch()
        except BaseException:
            self._waiting.pop(name, None)
            raise
        return name

    def cancel(self, name: int, holder: int) -> None:
        """Ask for the end of a verb."""
        if name in self._waiting:
            self.send(encode_request(CANCEL, 0, b"", holder, name, 0, ()))

    def send(self, frame: bytes) -> None:
        """Send a frame; one that comes between the parts of another goes after it."""
        if self._sending:
            self._backlog.append(frame)
            return
        self._sending = True
        try:
            self._send(frame)
            while self._backlog:
                self._send(self._backlog.popleft())
        except OSError as error:
            raise self.lost(error) from error
        finally:
            self._sending = False

    def _send(self, frame: bytes) -> None:
        sent = 0
        try:
            sent = self.socket.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        if sent == len(frame):
            return
        rest = memoryview(frame)[sent:]
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | select.POLLOUT)
        while rest:
            ((_, ready),) = poll.poll()
            if ready & select.POLLIN:
                # The broker may take no more before somebody takes its replies.
                data = self.socket.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError("the broker has closed")
                self._buffer += data
                self._cut()
            if ready & (select.POLLOUT | select.POLLERR):
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.socket.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]

    # -- replies ---------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        buffer = self._buffer
        at = 0
        try:
            while len(buffer) - at >= 4:
                (size,) = _LENGTH.unpack_from(buffer, at)
                if len(buffer) - at - 4 < size:
                    return
                message = bytes(buffer[at + 4 : at + 4 + size])
                at += 4 + size
                self._arrived(*read_reply(message))
        finally:
            del buffer[:at]

    def _arrived(self, name: int, reply: Reply) -> None:
        done = self._waiting.pop(name, None)
        if done is None:
            self._replies[name] = reply
        else:
            done(reply)

    def _watch(self) -> None:
        """Have this thread's loop or reactor look at the channel."""
        if self._unwatch is not None:
            return
        loop = runs.running_loop()
        if loop is not None:
            loop.add_reader(self.socket.fileno(), self._ready)
            self._unwatch = lambda: loop.is_closed() or loop.remove_reader(self.socket.fileno())
            return
        reactor = runs.reactor()
        if reactor is None:
            raise InternalError("nothing on this thread could watch the broker's replies")
        reactor.watch(self.socket, select.POLLIN, self._ready)
        self._unwatch = lambda: reactor.closed or reactor.watch(self.socket, 0, self._ready)

    def _ready(self, _events: int = 0) -> None:
        if self.busy:
            return
        try:
            data = self.socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(error)
            return
        if not data:
            self.lost(None)
            return
        self._buffer += data
        self._cut()
        if not self._waiting:
            self._let_go()

    def _let_go(self) -> None:
        if self._unwatch is not None:
            unwatch, self._unwatch = self._unwatch, None
            unwatch()

    def lost(self, error: BaseException | None) -> BaseException:
        """The stream has ended: everybody who waits hears it."""
        failure = self.place.lose(error)
        self.close(failure)
        return failure

    def close(self, failure: BaseException) -> None:
        """Close it; who waits gets `failure`."""
        with contextlib.suppress(ValueError, OSError):
            self._let_go()
        self.socket.close()
        while self._waiting:
            _, done = self._waiting.popitem()
            done(failure)

    def __del__(self) -> None:
        self.socket.close()


class _Wait:
    """A verb on its way."""

    __slots__ = ("_channel", "_holder", "_name")

    def __init__(self, channel: _Channel, name: int, holder: int) -> None:
        self._channel, self._name, self._holder = channel, name, holder

    def cancel(self) -> None:
        """Ask for its end."""
        with contextlib.suppress(BrokerLost):
            self._channel.cancel(self._name, self._holder)


class LocalPlace:
    """The objects of one broker on this machine; see `Place`.

    Raises:
        BrokerLost: nobody serves there.
        ConfigError: there is no key for it that this user may read.
    """

    is_prompt = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = url.removeprefix("local://")
        key = Path(self.path).parent / "key"
        try:
            self._secret = key.read_bytes()
        except FileNotFoundError as error:
            raise BrokerLost(f"{url}: there is no broker any more", hint="Is its owner still running?") from error
        except OSError as error:
            raise ConfigError(
                f"{url}: its key cannot be read: {error.strerror}", hint=f"Only the user of the broker may read {key}."
            ) from error
        self.epoch = 0
        self.max_item = 0
        #: Until when somebody is waited for who serves there.
        self._patience = time.monotonic() + _RETURN
        self.channels: WeakSet[_Channel] = WeakSet()
        self._local = threading.local()
        self._lost: str | None = None
        self._closed = False
        self._channel()
        self._patience = 0.0
        _places.add(self)

    @property
    def is_lost(self) -> bool:
        """Whether the broker is gone."""
        return self._lost is not None

    # -- the contract ------------------------------------------------------------------------------------------

    def ask(
        self, verb: int, key: bytes, holder: int = 0, number: int = 0, timeout: float | None = 0, fields: Any = ()
    ) -> Reply:
        """See `Place.ask`."""
        return self._channel().ask(verb, key, holder, number, timeout, fields)

    def start(
        self,
        done: Any,
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: Any = (),
    ) -> _Wait:
        """See `Place.start`."""
        channel = self._channel()
        return _Wait(channel, channel.start(done, verb, key, holder, number, timeout, fields), holder)

    def tell(self, verb: int, key: bytes, holder: int = 0, number: int = 0, fields: Any = ()) -> None:
        """See `Place.tell`."""
        self._channel(calm=False).send(encode_request(verb, 0, key, holder, number, 0, fields))

    def end(self, holder: int) -> None:
        """See `Place.end`."""
        channel = getattr(self._local, "channel", None)
        if channel is not None and self._lost is None:
            with contextlib.suppress(BrokerLost):
                channel.send(encode_request(END, 0, b"", holder, 0, 0, ()))

    def close(self) -> None:
        """See `Place.close`."""
        self._closed = True
        for channel in list(self.channels):
            channel.close(ClosedError(f"{self.url} was left"))
        self._local = threading.local()

    # -- channels ----------------------------------------------------------------------------------------------

    def _channel(self, calm: bool = True) -> _Channel:
        """This thread's channel; where `calm`, one on which nothing is going on."""
        if self._lost is not None:
            raise BrokerLost(self._lost, hint="Join again: shared.join(url).")
        channel: _Channel | None = getattr(self._local, "channel", None)
        if channel is None:
            channel = self._local.channel = self._open()
        elif calm and channel.busy:
            spare: _Channel | None = getattr(self._local, "spare", None)
            if spare is None or spare.busy:
                spare = self._local.spare = self._open()
            return spare
        return channel

    def connected(self) -> socket.socket:
        """A connection to the broker."""
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(_GREETING)
                sock.connect(self.path)
                sock.settimeout(None)
                return sock
            except OSError as error:
                sock.close()
                if time.monotonic() > self._patience:
                    raise self.lose(error) from error
                time.sleep(_AGAIN)

    def _open(self) -> _Channel:
        if self._closed:
            raise ClosedError(f"{self.url} was left", hint="shared.join(url) joins again.")
        channel = _Channel(self)
        channel.socket.settimeout(_GREETING)
        reply = channel.ask(HELLO, self._secret, 0, 0, 0, ())
        channel.socket.settimeout(None)
        if reply.status != Status.OK:
            raise self.lose(None)
        if self.epoch not in (0, reply.number):
            channel.close(BrokerLost("another broker"))
            raise self.lose(None)
        self.epoch = reply.number
        self.max_item = int(reply.fields[0])
        return channel

    def lose(self, error: BaseException | None) -> BrokerLost:
        """The broker is gone, and stays gone for this place."""
        if self._closed:
            return BrokerLost(f"{self.url} was left")
        why = f" ({error})" if error else ""
        if self._lost is None:
            self._lost = f"{self.url}: the broker of the shared primitives is gone{why}"
        return BrokerLost(self._lost, hint="Join again: shared.join(url).")

    def forget(self) -> None:
        """In a child that was forked: the connections are its parent's."""
        for channel in list(self.channels):
            with contextlib.suppress(OSError):
                channel.socket.close()
        self.channels = WeakSet()
        self._local = threading.local()


def _forked() -> None:
    for place in list(_places):
        place.forget()


os.register_at_fork(after_in_child=_forked)
