"""The local place: verbs over a Unix socket to the broker of this machine.

Each thread has a channel of its own: one socket, on which it writes a request and reads the reply itself, without any
other thread between.  So a thread that ends takes what it holds along, a blocked one needs no help, and requests of
one thread are done in order.  Where a greenlet or a task waits, the thread's reactor or loop watches the channel.

A channel that is busy (a signal handler, or a finaliser, came between) is left alone: another is opened meanwhile.

A lock that is lent to a channel is taken and given back in the memory that it shares with the broker (`ledger.py`);
verbs of other objects that are lent to it are done by its borrower (`borrowing.py`), and messages of a pipe pass the
broker by (`ends.py`).
"""

from __future__ import annotations

import contextlib
import errno
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

from longshore.errors import BrokerLost, ClosedError, ConfigError, InternalError
from longshore.shared.borrowing import Borrower
from longshore.shared.ends import Ends
from longshore.shared.journal import LENDABLE
from longshore.shared.ledger import Ledger, open_ledger
from longshore.shared.places import Reply, Status, Verb
from longshore.shared.undoing import undo
from longshore.shared.watching import watched
from longshore.shared.wire import CANCEL, END, HELLO, encode_request, read_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.ends import End
    from longshore.shared.places import Wait

__all__ = ("LocalPlace",)

_LENGTH = struct.Struct("<I")
#: Bytes read at once: what nearly any reply fits into, and what the rest of a longer one comes in.  Python allocates
#: as much as may come, which is costly beyond the first.
_REPLY, _CHUNK = 4096, 1 << 18
_ACQUIRE, _RELEASE = int(Verb.ACQUIRE), int(Verb.RELEASE)
#: Verbs of pipes are from here on.
_OPEN, _HANG_UP = int(Verb.OPEN), int(Verb.HANG_UP)
#: Made a plain number once: adding flags is a search in an enumeration.
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
#: Seconds that connecting and the greeting may take.
_GREETING = 10.0
#: Seconds that whoever joins waits for a broker that is being started again, and the pauses in which it looks.  A
#: broker that will not come back has taken its key along.
_RETURN, _AGAIN = 5.0, 0.01
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
        #: What it is called in the ledger, and the words of the locks that were lent to it.
        self.number = 0
        #: What does verbs without asking; None where nothing can be lent.
        self.borrower: Borrower | None = None
        #: How many frames were sent.
        self.sent = 0
        self._lent: dict[bytes, int] = {}
        self.busy = False
        place.channels.add(self)

    # -- verbs -----------------------------------------------------------------------------------------------

    def ask(self, verb: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Any) -> Reply:
        """Have a verb done, and block for its reply."""
        if verb == _ACQUIRE:
            return self._taken(key, holder) or self._noted(key, self._asked(verb, key, holder, 1, timeout, fields))
        if verb in LENDABLE and self.borrower is not None:
            reply = self.borrower.do(self, verb, key, holder, number, timeout, fields)
            if reply is not None:
                return reply
        return self._asked(verb, key, holder, number, timeout, fields)

    def _asked(self, verb: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Any) -> Reply:
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

    # -- locks that are lent ---------------------------------------------------------------------------------

    def _taken(self, key: bytes, holder: int) -> Reply | None:
        """Take a lock that is lent; None if the broker must be asked."""
        slot = self._lent.get(key)
        ledger = self.place.ledger
        if slot is None or ledger is None:
            return None
        fence = ledger.take(slot, self.number, holder, self.socket.fileno())
        if fence > 0:
            return Reply(Status.OK, fence, ())
        del self._lent[key]
        if fence < 0:
            raise self.lost(None)
        return None

    def give(self, key: bytes, holder: int) -> bool:
        """Let go of a lock that is lent; False if the broker must be told."""
        slot = self._lent.get(key)
        ledger = self.place.ledger
        if slot is None or ledger is None:
            return False
        given = ledger.step(slot, self.number, holder, 0, self.socket.fileno())
        if given > 0:
            return True
        del self._lent[key]
        if given < 0:
            raise self.lost(None)
        return False

    def _noted(self, key: bytes, reply: Any) -> Any:
        """Note that a lock is lent, where the reply says so."""
        if not isinstance(reply, BaseException) and len(reply.fields) == 2 and reply.status == Status.OK:
            self._lent[key] = int(reply.fields[1])
        return reply

    # -- verbs, on the way ------------------------------------------------------------------------------------

    def _interrupted(self, name: int, verb: int, key: bytes, holder: int, number: int, fields: Any) -> None:
        """Take back what was asked, as nobody waits for it any more."""
        with contextlib.suppress(BrokerLost):
            self.send(encode_request(CANCEL, 0, b"", holder, name, 0, ()))
            undo(self.place, verb, key, holder, number, self._await(name))

    def _await(self, name: int) -> Reply:
        receive = self.socket.recv
        buffer = self._buffer
        size = _REPLY
        while True:
            try:
                data = receive(size)
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
                size = _CHUNK
                self._cut()
            if name in self._replies:
                return self._replies.pop(name)

    def handed(self, verb: int, key: bytes, number: int) -> tuple[Reply, list[int]]:
        """Have a verb done that may hand over descriptors, which come before the reply; for a channel of its own.

        Raises:
            OSError: this process has no descriptors left.
        """
        name = next(self._ids)
        self.send(encode_request(verb, name, key, 0, number, 0, ()))
        try:
            data, descriptors, flags, _ = socket.recv_fds(self.socket, 1, 2, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except OSError as error:
            raise self.lost(error) from error
        if not data:
            raise self.lost(None)
        if flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:
                os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), self.place.url)
        if not descriptors:
            self._buffer += data
        return self._await(name), descriptors

    def _until_readable(self) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.poll()

    def start(self, done: Any, verb: int, key: bytes, holder: int, number: int, timeout: Any, fields: Any) -> int:
        """Have a verb done, and call `done` with what comes of it."""
        name = next(self._ids) & 0xFFFFFFFF or next(self._ids)
        if verb == _ACQUIRE:
            taken = self._taken(key, holder)
            if taken is not None:
                done(taken)
                return name
            asker, number = done, 1

            def done(reply: Reply | BaseException) -> None:
                asker(self._noted(key, reply))
        elif verb in LENDABLE and self.borrower is not None:
            reply = self.borrower.do(self, verb, key, holder, number, timeout, fields)
            if reply is not None:
                done(reply)
                return name

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
        self.sent += 1
        if self._sending:
            self._backlog.append(frame)
            return
        self._sending = True
        try:
            try:
                sent = self.socket.send(frame, _AT_ONCE)
            except BlockingIOError:
                sent = 0
            if sent != len(frame):
                self._send_rest(memoryview(frame)[sent:])
            while self._backlog:
                self._send_rest(memoryview(self._backlog.popleft()))
        except OSError as error:
            raise self.lost(error) from error
        finally:
            self._sending = False

    def _send_rest(self, rest: memoryview) -> None:
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
                    rest = rest[self.socket.send(rest, _AT_ONCE) :]

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
        if self._unwatch is None:
            self._unwatch = watched(self.socket, self._ready)

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
        self.ledger: Ledger | None = None
        #: Until when somebody is waited for who serves there.
        self._patience = time.monotonic() + _RETURN
        self.channels: WeakSet[_Channel] = WeakSet()
        self._local = threading.local()
        self._lost: str | None = None
        self._closed = False
        self._ends = Ends(self)
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
        if verb >= _OPEN:
            end = self._end(key, number)
            if verb == _OPEN:
                return self._ends.open(key, number)
            if end.is_direct or end.retaken():
                return end.ask(verb, timeout, fields)
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
    ) -> Wait:
        """See `Place.start`."""
        if verb > _OPEN:
            end = self._end(key, number)
            if end.is_direct or end.retaken():
                return end.start(done, verb, timeout, fields)
        channel = self._channel()
        return _Wait(channel, channel.start(done, verb, key, holder, number, timeout, fields), holder)

    def tell(self, verb: int, key: bytes, holder: int = 0, number: int = 0, fields: Any = ()) -> None:
        """See `Place.tell`."""
        if verb == _HANG_UP:
            self._ends.hang_up(key, number)
            return
        channel = self._channel(calm=False)
        if verb != _RELEASE or not channel.give(key, holder):
            if channel.borrower is not None:
                channel.borrower.told(key)
            channel.send(encode_request(verb, 0, key, holder, number, 0, fields))

    def end(self, holder: int) -> None:
        """See `Place.end`."""
        channel = getattr(self._local, "channel", None)
        if channel is not None and self._lost is None:
            if channel.borrower is not None:
                channel.borrower.ends(holder)
            with contextlib.suppress(BrokerLost):
                channel.send(encode_request(END, 0, b"", holder, 0, 0, ()))

    def close(self) -> None:
        """See `Place.close`."""
        self._closed = True
        left = ClosedError(f"{self.url} was left")
        self._ends.close(left)
        for channel in list(self.channels):
            channel.close(left)
        self._local = threading.local()

    def _end(self, key: bytes, number: int) -> End:
        """An end of a pipe, as this process has it."""
        if self._lost is not None:
            raise self._gone()
        return self._ends[key, number]

    # -- channels ----------------------------------------------------------------------------------------------

    def _channel(self, calm: bool = True) -> _Channel:
        """This thread's channel; where `calm`, one on which nothing is going on."""
        if self._lost is not None:
            raise self._gone()
        channel: _Channel | None = getattr(self._local, "channel", None)
        if channel is None:
            channel = self._local.channel = self.opened()
        elif calm and channel.busy:
            spare: _Channel | None = getattr(self._local, "spare", None)
            if spare is None or spare.busy:
                spare = self._local.spare = self.opened()
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

    def opened(self) -> _Channel:
        """Another channel.

        Raises:
            BrokerLost: nobody serves there any more.
            ClosedError: the place was left.
        """
        if self._lost is not None:
            raise self._gone()
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
        if self.epoch == 0:
            self.epoch = reply.number
            self.max_item = int(reply.fields[0])
        if self.ledger is None:
            self.ledger = open_ledger(Path(self.path).parent, self.epoch)
        channel.number = int(reply.fields[1])
        if self.ledger is not None:
            channel.borrower = Borrower(self.ledger)
        return channel

    def lose(self, error: BaseException | None) -> BrokerLost:
        """The broker is gone, and stays gone for this place."""
        if self._closed:
            return BrokerLost(f"{self.url} was left")
        why = f" ({error})" if error else ""
        if self._lost is None:
            self._lost = f"{self.url}: the broker of the shared primitives is gone{why}"
        return self._gone()

    def _gone(self) -> BrokerLost:
        return BrokerLost(self._lost, hint="Join again: shared.join(url).")

    def forget(self) -> None:
        """In a child that was forked: the connections are its parent's."""
        self._ends.forget()
        for channel in list(self.channels):
            with contextlib.suppress(OSError):
                channel.socket.close()
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None
        self.channels = WeakSet()
        self._local = threading.local()


def _forked() -> None:
    for place in list(_places):
        place.forget()


os.register_at_fork(after_in_child=_forked)
