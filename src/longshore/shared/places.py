"""What a place is: the contract between the primitives and whatever keeps them.

The only file that says what `Lock`, `Queue` and the others may ask for.  A *place* keeps named objects; a *verb* is
one atomic step on one of them.  The primitives (`lock.py`, `queue.py`, …) turn methods into verbs and know no place; a
place carries verbs out and knows no primitive's class.  The local broker does each verb in a state machine
(`machines/`), Redis in one script.

The rules:

* **A key** is one letter for the type (`KINDS`) and the name in UTF-8, so names live per type.  Values, and the keys of
  a `Dict`, are opaque bytes: the primitives serialise them.
* **One verb, one reply.**  A verb that cannot be done now *waits* in the place, in order of arrival, for `timeout`
  seconds: 0 does not wait, None waits for ever.  When the time is over the reply is `LATE`.  The place keeps the time.
* **A holder** is a number that means one handler run, thread or task of this process, and is never used twice in it.
  A place adds what makes it unique beyond the process.  What it holds (locks, slots, deliveries) and what it waits for
  end with `end(holder)`, or when its process dies.
* **A fence** is a number that rises with every grant of a lock, for the place as a whole: `epoch << 32 | count`.  The
  *epoch* rises whenever a place has lost its objects, so a fence of before is lower than any of after.
* **Cancelling** is a request.  Whoever stops waiting calls `Wait.cancel()` and still gets exactly one reply:
  `CANCELLED` if the verb was not done and never will be, else what it did; then the primitive gives it back (see
  undo in `Verb`).  So a wake-up, an item or a slot is never lost in a waiter that is gone.
* **A lost place** raises `BrokerLost` in every waiter within a second, and in every verb from then on, until
  `shared.join()` makes a place anew.  A place never answers as if it were empty.
* **Greenlets, tasks and reactors** are no affair of a place: it either blocks the calling thread (`ask`) or calls back
  (`start`).  `waiting.py` makes parking and awaiting out of the latter.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ("FENCE_BITS", "KINDS", "MAX_ITEM", "MAX_NAME", "Place", "Reply", "Status", "Verb", "Wait")

#: The letter with which the keys of each type begin.
KINDS = {
    "Lock": b"L",
    "RLock": b"R",
    "Semaphore": b"S",
    "Event": b"E",
    "Condition": b"C",
    "Barrier": b"B",
    "Queue": b"Q",
    "Topic": b"T",
    "Pipe": b"P",
    "Dict": b"D",
    "Counter": b"N",
}
#: Bits of a fence below its epoch.
FENCE_BITS = 32
#: Bytes of one value, where a place is not told otherwise.
MAX_ITEM = 16 << 20
#: Bytes of a name in UTF-8.
MAX_NAME = 1024


class Verb(IntEnum):
    """What can be asked for.  `number` is an integer of 64 bits and `fields` are bytes, both ways.

    In the comments: the fields and the number that go in -> what comes back with `Status.OK`.  Those that say
    *waits* may wait; all others are answered at once, whatever their `timeout`.
    """

    # The parameters as text (`value=3`, `parties=2`, `maxsize=0`, else empty) -> nothing.
    # Makes the object if there is none.  Another object's parameters under this
    # key are `CONFLICT` with those in field 0.  It goes before every other verb on a key, once per process and epoch.
    DECLARE = 1

    # Locks (Lock, RLock, Condition) and Semaphore.  ACQUIRE waits -> number: the fence (0 for a semaphore); field 0 is
    # b"1" if the holder before has ended without releasing, else absent.  A nested acquire of an RLock never comes
    # here: it is counted in the handle.  undo: RELEASE.  (Between the local place and its broker: number 1 if the lock
    # may be lent, see `ledger.py` -> field 1: its word, in decimal, if it is.)
    # RELEASE is told, not asked: the handle has checked that the holder has it; from anybody else it does nothing.
    # A semaphore of no slots is a signal: anybody's RELEASE adds one, and ACQUIRE takes one, which is no holding.
    # LOCKED -> number 1 if somebody holds it; for a semaphore the free slots.
    ACQUIRE = 10
    RELEASE = 11
    LOCKED = 12

    # Condition.  WAIT, by the holder of its lock, lets go of the lock and waits for a notification, and then, also
    # when its time is over or it is cancelled, for the lock: its reply comes with the lock held.  -> number: the new
    # fence; field 0 as with ACQUIRE, b"" if absent; field 1: b"1" notified, b"0" late, b"c" cancelled.  The status is
    # OK in all three cases.  A notification of a waiter that is cancelled, or dies, goes to the next one.
    # NOTIFY, number n (-1: all) -> number: how many.
    # NOT_HELD for both if the holder has not the lock.
    WAIT = 20
    NOTIFY = 21

    # Event.  AWAIT_SET waits -> nothing.  IS_SET -> number 1 or 0.
    SET = 30
    CLEAR = 31
    IS_SET = 32
    AWAIT_SET = 33

    # Barrier, whose parameters are its parties.  ARRIVE waits until all have -> number: the place, 0 to parties-1, in
    # order of arrival.  A wait that is late, whose holder ends, or ABORT, breaks it: `BROKEN` for all who wait and
    # come, until RESET (which is `BROKEN` for those who wait).  One that is cancelled only leaves.
    # BARRIER_STATE -> number: how many wait; field 0: b"1" if it is broken, else b"0".
    ARRIVE = 40
    ABORT = 41
    RESET = 42
    BARRIER_STATE = 43

    # Queue, whose parameters are its maxsize (0: unbounded).  PUT, field 0: the item; waits while full -> nothing.
    # It cannot be undone: one that was done in spite of a cancellation is done.
    # GET, number 1 to acknowledge, 0 not; waits while empty -> field 0: the item; number: the delivery (0 without
    # acknowledging); field 1: how often it was delivered before, in decimal.  undo: UNGET with the item, or REQUEUE.
    # UNGET, field 0: puts an item back to the front, even if full, not counted as unfinished again.
    # ACK, number: the delivery -> nothing; counts as TASK_DONE.  REQUEUE, number -> nothing: back to the front.
    # Both: NOT_HELD if there is no such delivery of this process.  Deliveries of a holder that ends go back likewise.
    # TASK_DONE -> nothing, NOT_HELD if all were done.  JOIN waits until all are done -> nothing.
    # SIZE -> number: the items that can be got; field 0: the unfinished ones, in decimal.
    PUT = 50
    GET = 51
    UNGET = 52
    ACK = 53
    REQUEUE = 54
    TASK_DONE = 55
    JOIN = 56
    SIZE = 57

    # Topic.  PUBLISH, field 0: the value -> number: the subscribers that took it.
    # SUBSCRIBE, number: the most values that may wait for it, field 0: b"drop" (misses what comes then) or b"close" (is
    # ended) -> number: the subscription.  It is no holding of the holder; it ends with UNSUBSCRIBE (told), its process,
    # or the thread that used it last.
    # RECEIVE, number: the subscription; waits -> number: how many it has missed so far; fields: all values that wait
    # for it, or as many as fit into the size limit, at least one.  CLOSED if it was ended.  It cannot be undone: the
    # primitive keeps what it got for the next call.
    PUBLISH = 60
    SUBSCRIBE = 61
    UNSUBSCRIBE = 62
    RECEIVE = 63

    # Dict.  Field 0 is a key.  READ -> field 0: the value, number: its version, which rises with each change anywhere
    # in the dict and is never 0; `ABSENT` if there is none.
    # WRITE, fields: key, value, key, value, …: all of them at once -> nothing.
    # WRITE_IF, fields: key, value; number: the version that it must have, 0: it must be absent -> number 1, or 0:
    # nothing was done.
    # TAKE -> field 0: the value, which is removed; `ABSENT`.  WIPE removes all.
    # COUNT -> number.  LIST -> fields: key, value, key, value, … in order of insertion, a snapshot.
    # KEYS -> fields: keys.
    READ = 70
    WRITE = 71
    WRITE_IF = 72
    TAKE = 73
    WIPE = 74
    COUNT = 75
    LIST = 76
    KEYS = 77

    # Counter.  ADD, number -> number: the new value (of 64 bits; `TOO_LARGE` beyond).  ASSIGN, number -> nothing.
    # VALUE -> number.
    ADD = 80
    ASSIGN = 81
    VALUE = 82

    # Pipe.  `number` is the end, 0 or 1.  OPEN -> nothing: this process has a handle of that end; a place counts them,
    # and HANG_UP (told), or the end of the process, takes one off.
    # SEND, field 0: the message; waits while the other end has too much to take -> nothing; `CLOSED` if the other end
    # was open and is no more.  Like PUT it cannot be undone.
    # TAKE_MESSAGE waits -> field 0: the message; `CLOSED` if there is none and the other end was open and is no more.
    # undo: UNSEND with the message, which puts it back to the front.
    # POLL waits until TAKE_MESSAGE would not -> nothing.
    OPEN = 90
    HANG_UP = 91
    SEND = 92
    TAKE_MESSAGE = 93
    UNSEND = 94
    POLL = 95


class Status(IntEnum):
    """How a verb ended."""

    #: It has not, but it may be done now: ask again.  Only `Place.start` says so, and only of a pipe.
    AGAIN = -1
    OK = 0
    #: Its time was over before it could be done; it was not done.
    LATE = 1
    #: It was cancelled before it could be done; it was not done.
    CANCELLED = 2
    #: There is an object of this name with other parameters: field 0.
    CONFLICT = 3
    #: The holder has not what the verb needs.
    NOT_HELD = 4
    #: The dict has no such key.
    ABSENT = 5
    #: The barrier is broken.
    BROKEN = 6
    #: The subscription was ended, or the other end of the pipe is gone.
    CLOSED = 7
    #: A limit of the place is reached; field 0 says which, as text.
    TOO_LARGE = 8
    #: There is no object of this key: it was not declared.
    UNKNOWN = 9


class Reply(NamedTuple):
    """What came of a verb."""

    status: int
    number: int
    fields: Sequence[bytes]


class Wait(Protocol):
    """A verb on its way, as `Place.start` returns it."""

    def cancel(self) -> None:
        """Ask for its end: `done` is still called, once, soon.  After that it does nothing."""


class Place(Protocol):
    """Where named objects are kept.  All methods may be called from any thread, unless they say otherwise.

    Raises:
        BrokerLost: in every verb, once the place is lost.
    """

    #: The URL by which others join, without any secret.
    url: str
    #: Rises whenever the place has lost its objects.
    epoch: int
    #: Bytes that one value may have; the primitives check it before they ask.
    max_item: int

    @property
    def is_prompt(self) -> bool:
        """Whether the caller may block for a verb that does not wait, as it is answered soon.

        Where this is False a greenlet parks, and such verbs raise `WouldBlock` on a reactor's thread, too.
        """

    @property
    def is_lost(self) -> bool:
        """Whether it is lost: every verb raises `BrokerLost`, and `shared.join()` makes another place."""

    def ask(
        self,
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: tuple[bytes, ...] = (),
    ) -> Reply:
        """Have a verb done, and block this thread until its reply.

        An exception that interrupts the wait (KeyboardInterrupt) cancels the verb, undoes what it did nevertheless (by
        `undo` of `shared.undoing`), and goes on.
        """

    def start(
        self,
        done: Callable[[Reply | BaseException], object],
        verb: int,
        key: bytes,
        holder: int = 0,
        number: int = 0,
        timeout: float | None = 0,
        fields: tuple[bytes, ...] = (),
    ) -> Wait:
        """Have a verb done, and call `done` with its reply or with `BrokerLost`, exactly once, without blocking.

        `done` may be called on any thread, also before this returns, and must not block.
        """

    def tell(self, verb: int, key: bytes, holder: int = 0, number: int = 0, fields: tuple[bytes, ...] = ()) -> None:
        """Have a verb done that has no reply; verbs of one thread are done in the order in which it called."""

    def end(self, holder: int) -> None:
        """Release what `holder` holds, and end what it waits for; does nothing for one that was never heard of.

        Also called on a thread that is about to end.  It never blocks for long and never raises.
        """

    def close(self) -> None:
        """Leave the place: what this process holds is released, and its waits raise `ClosedError`."""
