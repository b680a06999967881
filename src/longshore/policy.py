"""The policy of one server towards single peers: who may come at all, how many of them, and how fast.

Pure: who a peer is and "now" go in, the name of a limit or None comes out.  No socket, no thread, no clock.  What all
peers share is counted by `limits.Gate`; accepting and turning away is `admission.py`'s business.

Facts, and what follows from them:

* An attacker may have a million addresses.  So a table of peers forgets: a count ends with its last connection, and a
  rate is one number, which says nothing any more once it lies in the past.  What is left is bounded by `PEERS`.
* A refusal costs us an event, and events may be logged.  So a flood of them is told in sums (`Sparing`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from longshore.limits import CALM, NEAR, Quiet
from longshore.networks import Networks, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from longshore.config import Limits
    from longshore.networks import Who

__all__ = ("PeerGate", "Policy", "Rates", "Sparing")

#: Peers whose rate is known at once; beyond them the one that was seen longest ago is forgotten.
PEERS = 65_536
#: Entries that are looked at for being over, each time that a new peer comes: two, so that the table shrinks.
SWEEP = 2


class PeerGate:
    """At most `maximum` of each peer at once; as large as the number of peers that are in.

    Without a maximum (None) nobody is counted.  Once there is one, the count begins with those who are `present()`
    then, which is asked on the thread that lets peers in, so that `maximum` may be set on any.
    """

    __slots__ = ("_counts", "_maximum", "_missed", "_near", "_present", "_runs", "_warned", "name")

    def __init__(
        self,
        name: str,
        maximum: int | None,
        near: Callable[[str, int, int], None] | None = None,
        present: Callable[[], Iterable[Who]] = tuple,
    ) -> None:
        self.name = name
        self._maximum = maximum
        self._counts: dict[Who, int] = {}
        self._near = near
        self._present = present
        #: Whether anybody is counted.
        self._runs = False
        #: Whether there was no maximum since, so that who came is not counted: it is to begin again.
        self._missed = False
        #: Those that are near: the event is for the first of them.
        self._warned: set[Who] = set()

    @property
    def maximum(self) -> int | None:
        """How many of each peer; None: unbounded."""
        return self._maximum

    @maximum.setter
    def maximum(self, maximum: int | None) -> None:
        self._maximum = maximum
        if maximum is None:
            # Noted, as there may be another one before anybody comes or goes.
            self._missed = True

    def enter(self, key: Who) -> bool:
        """Take one place of this peer; False if it has none left."""
        if self._missed:
            self._stop()
        maximum = self._maximum
        if maximum is None:
            return True
        if not self._runs:
            self._runs = True
            for present in self._present():
                if present is not None:
                    self._add(key_of(present), None)
        count = self._add(key, maximum)
        if count is None:
            return False
        if count >= NEAR * maximum and key not in self._warned:
            first = not self._warned
            self._warned.add(key)
            if first and self._near is not None and maximum > 1:
                self._near(self.name, count, maximum)
        return True

    def leave(self, key: Who) -> None:
        """Give one place of this peer back."""
        if self._missed:
            self._stop()
        if not self._runs:
            return
        count, maximum = self._subtract(key), self._maximum
        if key in self._warned and (not count or maximum is None or count < CALM * maximum):
            self._warned.discard(key)

    def _stop(self) -> None:
        self._missed = False
        if self._runs:
            self._runs = False
            self._clear()
            self._warned.clear()

    # -- the counts, which may be kept elsewhere -----------------------------------------------------------

    def _add(self, key: Who, maximum: int | None) -> int | None:
        """One more, if there are fewer than `maximum`: how many now."""
        count = self._counts.get(key, 0)
        if maximum is not None and count >= maximum:
            return None
        self._counts[key] = count + 1
        return count + 1

    def _subtract(self, key: Who) -> int:
        """One less: how many are left."""
        count = self._counts.pop(key) - 1
        if count:
            self._counts[key] = count
        return count

    def _clear(self) -> None:
        """Forget all."""
        self._counts.clear()

    def __len__(self) -> int:
        return len(self._counts)


class Rates:
    """A token bucket for each peer: `rate` a second, and as many at once as one second gives, at least one.

    Each bucket is the time at which it will be full again, so one that is full is one that need not be kept.
    """

    __slots__ = ("_full_at", "_near", "_quiet", "name", "rate")

    def __init__(self, name: str, rate: float | None, near: Callable[[str, int, int], None] | None = None) -> None:
        self.name = name
        self.rate = rate
        #: In the order in which they were last seen.
        self._full_at: OrderedDict[Who, float] = OrderedDict()
        self._near = near
        self._quiet = Quiet()

    def take(self, key: Who, now: float) -> bool:
        """Take one token of this peer at `now` (seconds); False if its bucket is empty."""
        rate = self.rate
        if rate is None:
            return True
        table = self._full_at
        size = max(1.0, rate)
        full_at = max(table.pop(key, 0.0), now)
        used = (full_at - now) * rate + 1.0
        allowed = used <= size + 1e-9
        if allowed:
            full_at += 1.0 / rate
        if full_at > now:
            table[key] = full_at
        self._forget(now)
        if size > 1 and used >= NEAR * size and self._quiet.broken(now) and self._near is not None:
            self._near(self.name, int(min(used, size)), int(size))
        return allowed

    def _forget(self, now: float) -> None:
        table = self._full_at
        for _ in range(min(SWEEP, len(table))):
            # Not a plain dict, whose beginning is found by stepping over all that was taken from there.
            key = next(iter(table))
            if table[key] > now and len(table) <= PEERS:
                return
            del table[key]

    def __len__(self) -> int:
        return len(self._full_at)


class Policy:
    """What `Limits` say about single peers."""

    def __init__(
        self,
        limits: Limits,
        near: Callable[[str, int, int], None],
        present: Callable[[], Iterable[Who]] = tuple,
    ) -> None:
        self._near, self._present = near, present
        self._places = PeerGate("max_connections_per_peer", None, near, present)
        self._rates = Rates("connection_rate", None, near)
        self._allow = self._deny = Networks((), "")
        self.reconfigure(limits)

    def reconfigure(self, limits: Limits) -> None:
        """Judge by other limits; who is in stays in, and is counted on."""
        self._places.maximum = limits.max_connections_per_peer
        self._rates.rate = limits.connection_rate
        self._allow = Networks(limits.allow, "Limits.allow")
        self._deny = Networks(limits.deny, "Limits.deny")

    def share(self, make: Callable[..., PeerGate]) -> None:
        """Count by a gate of `make`'s, which other processes count by too; before anybody is in."""
        maximum = self._places.maximum
        self._places = make(self._places.name, self._near, self._present)
        self._places.maximum = maximum

    @property
    def judges_datagrams(self) -> bool:
        """Whether any of it is about single datagrams."""
        return not (self._allow.empty and self._deny.empty and self._rates.rate is None)

    @property
    def asks(self) -> bool:
        """Whether it matters at all who comes."""
        return self.judges_datagrams or self._places.maximum is not None

    def forbids(self, who: Who) -> str | None:
        """The list by which this peer may not come at all, by its name in `Limits`; None if it may."""
        if not self._deny.empty and who in self._deny:
            return "deny"
        return "allow" if not self._allow.empty and who not in self._allow else None

    def rushes(self, who: Who, now: float) -> str | None:
        """The name of the rate that this peer exceeds by coming at `now`; None, and a token taken, if it may come."""
        # Nobody can be told from another there, so nobody is kept out for what another one did.
        return None if who is None or self._rates.take(key_of(who), now) else self._rates.name

    def enter(self, who: Who, now: float) -> str | None:
        """Let a peer in; the name of the limit by which it must stay out, or None."""
        limit = self.forbids(who) or self.rushes(who, now)
        if limit is None and who is not None and not self._places.enter(key_of(who)):
            limit = self._places.name
        return limit

    def leave(self, who: Who) -> None:
        """A peer that `enter` has let in is gone."""
        if who is not None:
            self._places.leave(key_of(who))

    @property
    def known(self) -> int:
        """Entries in the tables of peers."""
        return len(self._places) + len(self._rates)


class Sparing:
    """Tells a flood in sums: `count` says for how many one event stands, 0 that it is kept for later."""

    __slots__ = ("_kept", "_left", "_second", "per_second")

    def __init__(self, per_second: int = 32) -> None:
        self.per_second = per_second
        self._second = -1.0
        self._left = per_second
        self._kept = 0

    def count(self, now: float) -> int:
        """One more happened at `now` (seconds): how many to tell of with it."""
        if now - self._second >= 1.0:
            self._second, self._left = now, self.per_second
        if not self._left:
            self._kept += 1
            return 0
        self._left -= 1
        return 1 + self.take()

    def take(self) -> int:
        """How many were kept; they are told now."""
        kept, self._kept = self._kept, 0
        return kept
