"""What one channel has borrowed from the broker: copies of objects, and the journal of what it does with them.

The client's side of `journal.py`, and the only file that writes one.  A verb is done on the copy, by the machine that
the broker has for it, and counts once the journal ends behind it.  Whatever does not go that way (a verb that would
have to wait, an entry that is too large, a loan that was taken back, an exception that came between) is asked for, and
then all copies are thrown away, as the broker takes everything back.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.errors import BrokerLost
from longshore.shared.journal import CHUNK, ENTRY, MASK, SIZE, open_journal
from longshore.shared.places import Reply, Status
from longshore.shared.undoing import undo
from longshore.shared.wire import ABSORB, BORROW, encode_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from longshore.shared.copies import Copies
    from longshore.shared.journal import Journal
    from longshore.shared.ledger import Ledger
    from longshore.shared.wire import Request

__all__ = ("Borrower",)

#: How often a channel asks for an object before it wants to borrow it, and at most, if it is refused again and again.
_SOON, _SELDOM = 4, 4096
#: Verbs that a loan must have been good for, or the next one is not asked for so soon.
_WORTH = 64
_OK = int(Status.OK)


class Borrower:
    """The loans of one channel, which it does not keep alive; the channel is busy while one of its verbs is done."""

    def __init__(self, ledger: Ledger) -> None:
        self._step, self._state = ledger.step, ledger.state
        self._journal: Journal | None = None
        self._slot = 0
        #: Where the journal ends, and how much may be written before the broker is told, or waited for.
        self._end = self._left = 0
        self._copies: Copies | None = None
        #: By key: what does each verb, and whether that changes anything.
        self._loans: dict[bytes, dict[int, tuple[Callable[[Request], None], bool]]] = {}
        #: Verbs that the present loans were good for.
        self._done = 0
        #: By key: how often it was asked for, and how often it is before it is wanted.
        self._wishes: dict[bytes, list[int]] = {}

    def do(
        self, channel: Any, verb: int, key: bytes, holder: int, number: int, timeout: float | None, fields: Any
    ) -> Reply | None:
        """Do a verb on what is lent; None: ask for it.

        Raises:
            BrokerLost: the broker has died.
        """
        loans = self._loans
        if (key not in loans or self._left < 0 or channel.busy) and not self._prepared(channel, key):
            return None
        channel.busy = True
        end = after = self._end
        copies: Any = self._copies
        try:
            # Looked for again: until it was busy, a signal handler could use the channel, and give all back.
            if key not in loans:
                return None
            call, changes = loans[key][verb]
            request = copies.request
            request.holder = holder
            request.number = number
            request.fields = fields
            request.timeout = 0 if timeout == 0 else -1
            copies.answer = None
            call(request)
            reply: Reply | None = copies.answer
            if reply is None:
                # It would have to wait.
                step = 0
            elif changes and reply.status == _OK:
                frame = encode_request(verb, 0, key, holder, number, 0, fields)
                size = len(frame)
                if size > ENTRY:
                    step = 0
                else:
                    self._journal.write(end, frame)  # type: ignore[union-attr]
                    after = end + size & MASK
                    step = self._step(self._slot, channel.number, end, after, channel.socket.fileno())
                    self._left -= size
            else:
                step = self._step(self._slot, channel.number, end, end, channel.socket.fileno())
            if step > 0:
                self._end = after
                self._done += 1
                return reply
        except BaseException:
            channel.busy = False
            self._interrupted(channel, verb, key, holder, number, end, after)
            raise
        finally:
            channel.busy = False
        self.void()
        if step < 0:
            raise channel.lost(None)
        return None

    def ends(self, holder: int) -> None:
        """A holder of this channel ends: the copies do not know what its deliveries become."""
        if self._copies is not None and self._copies.holds(holder):
            self.void()

    def told(self, key: bytes) -> None:
        """The broker is told something of `key`."""
        if key in self._loans:
            self.void()

    def void(self) -> None:
        """Nothing is lent any more."""
        if not self._loans:
            return
        worth = self._done >= _WORTH
        for key in self._loans:
            wish = self._wishes[key]
            wish[1] = _SOON if worth else min(wish[1] * 2, _SELDOM)
        self._loans.clear()
        self._copies = None

    def _interrupted(self, channel: Any, verb: int, key: bytes, holder: int, number: int, end: int, after: int) -> None:
        """An exception came between; what was done in spite of it is undone."""
        copies: Any = self._copies
        reply = None if copies is None else copies.answer
        self.void()
        with contextlib.suppress(BrokerLost):
            if after != end and reply is not None and self._absorbed(channel) == after:
                undo(channel.place, verb, key, holder, number, reply)

    def _absorbed(self, channel: Any) -> int:
        """Have the broker absorb the journal; up to where it did."""
        absorbed: int = channel.ask(ABSORB, b"", 0, 0, 0, ()).number
        return absorbed

    def _make_room(self, channel: Any) -> None:
        """Tell the broker that there is something to absorb; wait for it only if there is no room for an entry."""
        room = SIZE - (self._end - self._state(self._slot + 1) & MASK)
        if room < ENTRY + CHUNK:
            room = SIZE - (self._end - self._absorbed(channel) & MASK)
        else:
            channel.send(encode_request(ABSORB, 0, b"", 0, 0, 0, ()))
        self._left = min(CHUNK, room - ENTRY)

    # -- what is lent ------------------------------------------------------------------------------------------

    def _prepared(self, channel: Any, key: bytes) -> bool:
        """Whether `key` is lent, or can be had, with room for what is done with it."""
        if channel.busy or (key not in self._loans and not self._want(channel, key)):
            return False
        if self._left < 0:
            self._make_room(channel)
        return True

    def _want(self, channel: Any, key: bytes) -> bool:
        """Note that `key` is asked for, and borrow it if it often is; whether it is lent."""
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = [0, _SOON]
        wish[0] += 1
        if wish[0] <= wish[1]:
            return False
        wish[0] = 0
        wish[1] = min(wish[1] * 2, _SELDOM)
        return self._borrow(channel, key)

    def _borrow(self, channel: Any, key: bytes) -> bool:
        sent = channel.sent + 1
        reply: Reply = channel.ask(BORROW, key, 0, 0, 0, ())
        # What was sent meanwhile, by a finaliser, comes after it; a copy would not know.
        if reply.status != Status.OK or channel.sent != sent:
            return False
        if self._journal is None:
            place = channel.place
            self._journal = open_journal(Path(place.path).parent, place.epoch, channel.number)
            if self._journal is None:
                return False
        if reply.number != self._end or self._copies is None:
            self.void()
            self._end, self._left, self._done = int(reply.number), CHUNK, 0
            # With all the machines: only for who borrows.
            from longshore.shared.copies import Copies

            self._copies = Copies()
        self._slot = int(reply.fields[0])
        self._loans[key] = self._copies.copied(key, reply.fields[1], reply.fields[2:])
        return True
