"""The Redis place: named objects on a Redis or Valkey server, for processes of any machine.

A folder with one place.  `RedisPlace` is what primitives ask; `courier.py` is its thread and connections, `server.py`
its URL and refusals, and the Lua files are the verbs, a family of objects each, done atomically on the server.

What differs from the local place: nobody sees a process of another machine die, so each has a lease, which it renews in
the background; what it held is free when that has run out.  A process that was stopped for longer than its lease, and
goes on, may find a second holder: the fence tells them apart.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

from longshore import runs
from longshore.errors import AddressError, BrokerLost, ClosedError, ConfigError
from longshore.shared.places import FENCE_BITS, KINDS, Verb
from longshore.shared.redis.courier import Courier, Errand
from longshore.shared.redis.scripts import CLIENTS, script_of
from longshore.shared.redis.server import RedisServer
from longshore.shared.undoing import undo

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.places import Reply

__all__ = ("RedisPlace",)

_GRANTING = frozenset({Verb.ACQUIRE, Verb.WAIT})
_SEMAPHORE = KINDS["Semaphore"][0]
_places: WeakSet[RedisPlace] = WeakSet()
#: The highest epoch that this process has seen of each place: what is joined after a loss is above it.
_epochs: dict[str, int] = {}


class _Blocked:
    """A thread that waits for a reply."""

    __slots__ = ("_gate", "_reply")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._reply: Reply | BaseException | None = None

    def __call__(self, reply: Reply | BaseException) -> None:
        self._reply = reply
        self._gate.release()

    def result(self) -> Reply:
        """Block until the reply is there."""
        if self._reply is None:
            self._gate.acquire()
        reply = self._reply
        assert reply is not None
        if isinstance(reply, BaseException):
            raise reply
        return reply


class _Wait:
    """A verb on its way."""

    __slots__ = ("_courier", "_errand")

    def __init__(self, courier: Courier, errand: Errand) -> None:
        self._courier, self._errand = courier, errand

    def cancel(self) -> None:
        """Ask for its end."""
        self._courier.cancel(self._errand)


class RedisPlace:
    """The objects of one database of a Redis or Valkey server; see `Place`, and `RedisServer` for the URL.

    Raises:
        ConfigError: redis-py is missing, the URL is none, or the server cannot keep a place.
        AddressUnavailable: nobody answers there.
        PermissionNeeded: the server wants another password.
    """

    def __init__(self, url: str) -> None:
        self._server = RedisServer(url)
        self.url = self._server.url
        self.max_item = self._server.max_item
        self._lost: BaseException | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._courier: Courier | None = Courier(self._server, _epochs.get(self.url, 0), self._on_lost)
        self.epoch = self._courier.epoch
        _epochs[self.url] = self.epoch
        _places.add(self)
        _farewell()

    @property
    def is_lost(self) -> bool:
        """Whether every verb raises, until `shared.join()` makes another place."""
        return self._lost is not None

    @property
    def is_prompt(self) -> bool:
        """Whether the caller blocks for a verb that does not wait: for a round trip, but not where it can park.

        A reactor's thread does, and a loop's: a message handler that counts works over Redis, too.
        """
        return runs.parking() is None

    # -- the contract ------------------------------------------------------------------------------------------

    def ask(
        self,
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: tuple[bytes, ...] = (),
    ) -> Reply:
        """See `Place.ask`."""
        blocked = _Blocked()
        waiting = self.start(blocked, verb, key, holder, number, timeout, fields)
        try:
            return blocked.result()
        except (BrokerLost, ClosedError):
            raise
        except BaseException:
            if blocked._reply is None or not isinstance(blocked._reply, BaseException):
                waiting.cancel()
                undo(self, verb, key, holder, number, blocked.result())
            raise

    def start(
        self,
        done: Callable[[Reply | BaseException], object],
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: tuple[bytes, ...] = (),
    ) -> _Wait:
        """See `Place.start`."""
        courier = self._running()
        if verb == Verb.SUBSCRIBE:
            fields = (*fields, b"%d" % self.max_item)
        base = self.epoch << FENCE_BITS if verb in _GRANTING and key[0] != _SEMAPHORE else 0
        errand = Errand(script_of(verb, key), done, verb, key, holder, number, timeout, fields, base)
        courier.carry(errand)
        return _Wait(courier, errand)

    def tell(self, verb: int, key: bytes, holder: int = 0, number: int = 0, fields: tuple[bytes, ...] = ()) -> None:
        """See `Place.tell`."""
        self._running().carry(Errand(script_of(verb, key), None, verb, key, holder, number, 0, fields))

    def end(self, holder: int) -> None:
        """See `Place.end`."""
        courier = self._courier
        if courier is not None and courier.lost is None:
            courier.carry(Errand(CLIENTS, None, 0, b"end", holder))

    def close(self) -> None:
        """See `Place.close`."""
        self._closed = True
        courier, self._courier = self._courier, None
        if courier is not None:
            courier.close()

    # -- the courier -------------------------------------------------------------------------------------------

    def _running(self) -> Courier:
        """The courier of this process; a child that was forked gets one when it needs it."""
        courier = self._courier
        if courier is not None and courier.lost is None:
            return courier
        if self._closed:
            raise ClosedError(f"{self.url} was left", hint="shared.join(url) joins again.")
        if self._lost is not None:
            raise _again(self._lost)
        with self._lock:
            if self._courier is None:
                try:
                    courier = Courier(self._server, self.epoch, self._on_lost)
                except (AddressError, ConfigError) as error:
                    self._lost = BrokerLost(f"{self.url}: the place is lost: {error}", hint="shared.join(url)")
                    raise _again(self._lost) from error
                if courier.epoch != self.epoch:
                    courier.close()
                    self._lost = BrokerLost(
                        f"{self.url}: the server has lost its objects", hint="Join again: shared.join(url)."
                    )
                    raise _again(self._lost)
                self._courier = courier
                _farewell()
            return self._courier

    def _on_lost(self, failure: BaseException) -> None:
        if isinstance(failure, BrokerLost):
            self._lost = failure

    def forget(self) -> None:
        """In a child that was forked: it is another process to the server, with a lease of its own."""
        self._lock = threading.RLock()
        courier, self._courier = self._courier, None
        if courier is not None:
            courier.forget()


def _again(failure: BaseException) -> BaseException:
    """The same error, without the traceback of who saw it before."""
    return BrokerLost(*failure.args, hint=getattr(failure, "hint", ""))


def _forked() -> None:
    for place in list(_places):
        place.forget()


def _leave_all() -> None:
    for place in list(_places):
        place.close()


def _farewell() -> None:
    """Leave when this process ends in an orderly way, so that nobody waits for its lease."""
    atexit.unregister(_leave_all)
    atexit.register(_leave_all)
    # Children of multiprocessing end without atexit.
    processes = sys.modules.get("multiprocessing.util")
    if processes is not None and sys.modules["multiprocessing"].parent_process() is not None:
        processes.Finalize(None, _leave_all, exitpriority=0)


os.register_at_fork(after_in_child=_forked)
