"""The journal of a client: what it does, without asking, with the objects that are lent to it.

The only file that knows how it lies in memory.  A `Dict`, `Queue` or `Counter` that one client alone uses is *lent* to
it (`lending.py` says when): the client gets a copy, and does each verb on that with the machine that the broker would
have done it with (`borrowing.py`).  A verb that changes something is written to the journal first, as the very frame
that it would have sent, and then counts: it has happened once the journal ends behind it.  The broker does the same
verbs, in the same order, when it absorbs the journal, which it does before it looks at anything that is lent.

The rules:

* **Where the journal ends** is the state of the client's word in the ledger (`ledger.py`), a position, of which a
  journal keeps the low 32 bits.  The client moves it, from the end that it knows to the next one; that fails once the
  broker has taken the word back, and then the verb did not happen, and the client asks for it.
* **A verb that changes nothing** is such a step, too, from the end to the same: so it has seen all that happened.
* **The next word** is the broker's: up to where it has absorbed the journal.  From there on there is room for `SIZE`
  bytes.  The client says so when it has written `CHUNK` of them, and waits for the broker when there is no room.
* **Taking back** one object takes back all that the client has, as it has one word.  Whatever is lent to it afterwards
  begins at another position, so a step of before fails.
* **A client that dies** has done what its journal says; what it wrote behind the end never happened.  Its deliveries,
  and the turns of others, are as if it had asked.
* **The broker trusts it as it trusts the socket.**  It reads frames with the same decoder, of objects that are lent to
  this client alone; anything else ends the client.  It reads the file, and does not map it: one that was cut short is
  read short, and touches nobody.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Protocol

from longshore.shared.places import Verb

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("CHUNK", "ENTRY", "LENDABLE", "MASK", "SIZE", "Journal", "PlainJournal", "make_journal", "open_journal")

#: The verbs of objects that can be lent: whether they may change something, and so stand in a journal.
LENDABLE = {
    int(verb): verb not in (Verb.SIZE, Verb.READ, Verb.COUNT, Verb.LIST, Verb.KEYS, Verb.VALUE)
    for verb in Verb
    if Verb.PUT <= verb <= Verb.SIZE or Verb.READ <= verb <= Verb.VALUE
}
#: Bytes of a journal, a power of two.
SIZE = 1 << 17
#: Bytes that one entry may have: what is larger is asked for.
ENTRY = SIZE // 4
#: Bytes after which the broker is told that there is something to absorb: what it has to do at once, at most, when
#: somebody else asks, is not much more.
CHUNK = 1 << 14
#: The bits of a position.
MASK = (1 << 32) - 1


class Journal(Protocol):
    """Bytes by position, of which there are `SIZE`, and then the first again."""

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes from `position`, or less if the file is cut short."""

    def write(self, position: int, data: bytes) -> None:
        """Put `data` at `position`."""

    def close(self) -> None:
        """Nobody needs it any more."""


class PlainJournal:
    """A journal in any memory."""

    def __init__(self, memory: bytearray | mmap.mmap | None = None) -> None:
        self._memory = bytearray(SIZE) if memory is None else memory

    def read(self, position: int, size: int) -> bytes:
        """See `Journal`."""
        at = position % SIZE
        return bytes(self._memory[at : at + size]) + bytes(self._memory[: max(0, at + size - SIZE)])

    def write(self, position: int, data: bytes) -> None:
        """See `Journal`."""
        at = position % SIZE
        end = at + len(data)
        if end <= SIZE:
            self._memory[at:end] = data
        else:
            self._memory[at:] = data[: SIZE - at]
            self._memory[: end - SIZE] = data[SIZE - at :]

    def close(self) -> None:
        """See `Journal`."""


class _File:
    """The broker's side of one: a file that the client maps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # All of it now: a page that the disk has no room for would end whoever touches it.
            os.posix_fallocate(self._descriptor, 0, SIZE)
        except OSError:
            self.close()
            raise

    def read(self, position: int, size: int) -> bytes:
        at = position % SIZE
        data = os.pread(self._descriptor, min(size, SIZE - at), at)
        return data if at + size <= SIZE else data + os.pread(self._descriptor, at + size - SIZE, 0)

    def write(self, position: int, data: bytes) -> None:
        raise NotImplementedError("only the client writes its journal")

    def close(self) -> None:
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self._path.unlink()


def _named(directory: Path, epoch: int, client: int) -> Path:
    # Forgotten with the ledger of its epoch, whose name is its beginning.
    return directory / f"ledger-{epoch}-{client}"


def make_journal(directory: Path, epoch: int, client: int) -> Journal | None:
    """The broker's: a fresh journal for the client of this number; None where there is no room for one."""
    try:
        return _File(_named(directory, epoch, client))
    except OSError:
        return None


def open_journal(directory: Path, epoch: int, client: int) -> Journal | None:
    """The client's: the one that the broker has made for it; None where that cannot be shared."""
    try:
        descriptor = os.open(_named(directory, epoch, client), os.O_RDWR)
        try:
            return PlainJournal(mmap.mmap(descriptor, SIZE))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
