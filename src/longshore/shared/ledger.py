"""The ledger: words that a broker and its clients share, of what a client need not ask the broker for.

The only file that says what a word of it means.  What one client alone uses is *lent* to it: from then on the client
goes by the word, one atomic step each, and the broker knows nothing of it.  Once anybody else asks for it, the broker
takes it back, by one atomic step and without the client's help, and what it finds in the word says how things stand.

The rules, which make this as exact as asking:

* **A word** is 0: not lent; or (client, state): lent to that client.  Of a lock, which is lent once a client has
  acquired it twice in a row with nobody waiting, the state is the holder that has it, or 0.  Of a journal, in which a
  client does what is to be done with other objects (`journal.py`), it is where the journal ends.
* **Only the broker lends**, and takes back (sets 0).  Only that client changes (client, one state) to (client, another
  one), by comparing and swapping, which fails once it was taken back.  So at any moment the word and the broker's own
  state together say one thing, and both sides agree on it.
* **Asking is always right.**  A client that asks for, or releases, what was lent to it is answered as any other: the
  broker takes it back first.  Every rare case (a second holder of the same client, an interruption) does that.
* **A fence** is one more than the last one, which is the first word: all grants count there, lent or not.
* **The broker's death** is heard at each step, as by asking: after a step the client looks whether its connection still
  stands.  One that stands after the step stood when it was taken, so nothing of before is taken once a broker
  has been started again.
* **A client that dies**, or a holder that ends, is the broker's to see, and then it takes back what was lent.

The word of a lock is never another's, that of a journal never of two clients at once, so a client's step can meet
nothing but its own.  There is a file of them for each epoch, beside the socket.  Without the native module nothing is
lent.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("SLOTS", "Ledger", "PlainLedger", "forget_ledgers", "make_ledger", "open_ledger")

#: Words there are: locks that can ever be lent, two for each client that has a journal, and one.
SLOTS = 1 << 16
_SIZE = SLOTS * 8


class Ledger(Protocol):
    """The words.  Each method is one atomic step, but for the look at `socket`, the client's descriptor, after it."""

    def close(self) -> None:
        """The client: it is a forked child, to whom nothing is lent; a step that it is in the middle of fails."""

    def next_fence(self) -> int:
        """A fence above all before."""

    def lend(self, slot: int, client: int, state: int) -> None:
        """The broker: lend this word to `client`, in this state."""

    def take_back(self, slot: int) -> int:
        """The broker: lend it no more; the state that it was in, or 0."""

    def state(self, slot: int) -> int:
        """The state that it is in, or 0."""

    def take(self, slot: int, client: int, holder: int, socket: int) -> int:
        """The client: take the lock if it is lent and free; the fence, 0: ask the broker, -1: there is none."""

    def step(self, slot: int, client: int, before: int, after: int, socket: int) -> int:
        """The client: from one state to another; 1, 0: it is not lent, or in another state, -1: there is no broker."""


class PlainLedger:
    """A ledger of one process, which shows what the native one does, and serves a broker that lends nothing."""

    def __init__(self, fence: int = 0) -> None:
        self._fence = fence
        self._words: dict[int, tuple[int, int]] = {}

    def close(self) -> None:
        """See `Ledger`."""

    def next_fence(self) -> int:
        """See `Ledger`."""
        self._fence += 1
        return self._fence

    def lend(self, slot: int, client: int, state: int) -> None:
        """See `Ledger`."""
        self._words[slot] = client, state

    def take_back(self, slot: int) -> int:
        """See `Ledger`."""
        return self._words.pop(slot, (0, 0))[1]

    def state(self, slot: int) -> int:
        """See `Ledger`."""
        return self._words.get(slot, (0, 0))[1]

    def take(self, slot: int, client: int, holder: int, socket: int) -> int:
        """See `Ledger`."""
        return self.next_fence() if self.step(slot, client, 0, holder, socket) else 0

    def step(self, slot: int, client: int, before: int, after: int, socket: int) -> int:
        """See `Ledger`."""
        if self._words.get(slot) != (client, before):
            return 0
        self._words[slot] = client, after
        return 1


def _native() -> Callable[[mmap.mmap], Ledger]:
    made: Callable[[mmap.mmap], Ledger] = import_module("longshore._native").Ledger
    return made


def _named(directory: Path, epoch: int) -> Path:
    return directory / f"ledger-{epoch}"


def make_ledger(directory: Path, epoch: int, fence: int) -> Ledger | None:
    """The broker's: a fresh ledger, whose next fence is above `fence`; those of epochs before go, whoever has them.

    Returns:
        None where memory cannot be shared: without the native module, or on a full disk.
    """
    forget_ledgers(directory)
    try:
        native = _native()
        descriptor = os.open(_named(directory, epoch), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # All of it now: a page that the disk has no room for would end whoever touches it.
            os.posix_fallocate(descriptor, 0, _SIZE)
            memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
    except (ImportError, OSError):
        return None
    memory[:8] = fence.to_bytes(8, sys.byteorder)
    return native(memory)


def open_ledger(directory: Path, epoch: int) -> Ledger | None:
    """A client's: the ledger of the broker with this epoch; None where there is none to share."""
    try:
        native = _native()
        descriptor = os.open(_named(directory, epoch), os.O_RDWR)
        try:
            return native(mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)
    except (ImportError, OSError, ValueError):
        return None


def forget_ledgers(directory: Path) -> None:
    """Remove the files of all epochs, and of their journals; who has one open keeps it."""
    for file in directory.glob("ledger-*"):
        with contextlib.suppress(OSError):
            file.unlink()
