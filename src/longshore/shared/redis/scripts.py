"""The scripts by which a Redis server does verbs, put together from the Lua files beside this one.

The only file that knows which script does which verb.  A script is `lines.lua`, a family of objects, and `verbs.lua`;
that of the clients has all families, as whoever goes lets go of anything.  The server keeps a script by its hash, so
that a verb sends the hash only.
"""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

from longshore.shared.places import Verb

__all__ = ("CLIENTS", "MAIL", "Script", "script_of")

_FAMILIES = {"locks": "LRSC", "signals": "EB", "queues": "Q", "pipes": "P", "topics": "T", "values": "DN"}
#: A server without memory refuses these as a whole, before anything is done; all others give back, or need little.
_GROWING = frozenset({Verb.DECLARE, Verb.PUT, Verb.PUBLISH, Verb.WRITE, Verb.WRITE_IF, Verb.SEND})


class Script:
    """One script: its text, and the hash by which the server knows it."""

    def __init__(self, head: str, *parts: str) -> None:
        texts = [Path(__file__).with_name(f"{part}.lua").read_text() for part in parts]
        self.text = "\n".join((head, *texts)).encode()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


def _both(family: str) -> tuple[Script, Script]:
    return Script("#!lua", "lines", family, "verbs"), Script("#!lua flags=allow-oom", "lines", family, "verbs")


_SCRIPTS = {
    ord(letter): both for family, letters in _FAMILIES.items() for both in [_both(family)] for letter in letters
}
#: Who joins, renews its lease, ends a holder, cancels, or leaves.
CLIENTS = Script("#!lua flags=allow-oom", "lines", *_FAMILIES, "clients")

#: Who has taken his mail.
MAIL = Script("#!lua flags=allow-oom", "lines", "mail")


def script_of(verb: int, key: bytes) -> Script:
    """The script that does `verb` on the object of this key."""
    strict, lenient = _SCRIPTS[key[0]]
    return strict if verb in _GROWING else lenient
