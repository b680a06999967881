"""Both halves of each built-in framing say the same of the same bytes; `make fuzz` asks them a million times."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from longshore.errors import FramingError
from longshore.framing import NEED_MORE, Delimited, FixedSize, LengthPrefixed, Lines, Netstring, Raw

native = pytest.importorskip(
    "longshore.reactor.native", reason="the native reactor was not built", exc_type=ImportError
)

COUNT = int(os.environ.get("LONGSHORE_FUZZ", "4000"))

FRAMINGS = [
    Lines(max_size=6),
    Lines(max_size=6, on_oversize="skip"),
    Lines(max_size=6, keep_end=True),
    Lines(max_size=6, delimiter=b"::", on_oversize="skip"),
    Delimited(b"aa", max_size=5),
    Delimited(b"\0", max_size=3, on_oversize="skip"),
    LengthPrefixed(1, max_size=9),
    LengthPrefixed(2, byteorder="little", max_size=9, on_oversize="skip"),
    LengthPrefixed(3, max_size=9),
    LengthPrefixed(4, max_size=1 << 70),
    LengthPrefixed(8, max_size=9, on_oversize="skip"),
    LengthPrefixed("varint", max_size=200),
    LengthPrefixed("varint", max_size=9, on_oversize="skip"),
    FixedSize(3),
    Netstring(max_size=12),
    Netstring(max_size=12, on_oversize="skip"),
    Raw(),
]
#: Bytes that mean something to one of them, so that random input gets somewhere.
ALPHABET = b"aaab:::,,0123 9\r\n\n\n\0\0\0\1\2\3\x05\x80\xff"


def portable(framing: Any, pieces: list[bytes], ends: bool) -> tuple[list[bytes], bool]:
    decoder = framing.decoder()
    found: list[bytes] = []
    for number, piece in enumerate(pieces):
        decoder.feed(piece)
        try:
            while (message := decoder.next_message()) is not NEED_MORE:
                found.append(message)
            if ends and number + 1 == len(pieces):
                decoder.end()
        except FramingError:
            return found, False
    return found, True


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    pieces = []
    while data:
        size = chance.randint(1, min(9, len(data)))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def disagreement(translated: Any, framing: Any, seed: int) -> str | None:
    chance = random.Random(seed)
    if chance.random() < 0.3:
        data = b"".join(framing.encode(b"x" * size) for size in (3, 3) if encodes(framing, b"x" * size))
    else:
        data = bytes(chance.choices(ALPHABET, k=chance.randint(0, 40)))
    pieces, ends = cut(data, chance), chance.random() < 0.5
    expected = portable(framing, pieces, ends)
    messages, fine, _left = translated.decode(pieces, ends)
    if (messages, fine) == expected:
        return None
    return f"{framing!r}, seed {seed}: {pieces!r}, ends={ends}: {expected} portable, {(messages, fine)} native"


def encodes(framing: Any, message: bytes) -> bool:
    try:
        framing.encode(message)
    except ValueError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_random_input_is_cut_the_same_by_both(framing):
    translated = native.translate(framing)
    for seed in range(max(1, COUNT // len(FRAMINGS))):
        found = disagreement(translated, framing, seed)
        assert found is None, found


@pytest.mark.parametrize("planted", [Lines(max_size=5), Lines(max_size=6, keep_end=True)], ids=repr)
def test_a_planted_fault_on_either_side_is_found(planted):
    right = Lines(max_size=6)
    assert any(disagreement(native.translate(planted), right, seed) for seed in range(2000))
    assert any(disagreement(native.translate(right), planted, seed) for seed in range(2000))


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_a_message_is_encoded_the_same_by_both_or_refused_by_both(framing):
    translated = native.translate(framing)
    chance = random.Random(1)
    for _ in range(500):
        message = bytes(chance.choices(ALPHABET, k=chance.randint(0, 14)))
        try:
            expected: bytes | None = framing.encode(message)
        except ValueError:
            expected = None
        assert translated.encode(message) == expected, message


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_what_is_wrong_is_said_in_the_words_of_the_portable_half(framing):
    translated = native.translate(framing)
    for seed in range(300):
        chance = random.Random(seed)
        pieces = [bytes(chance.choices(ALPHABET, k=chance.randint(1, 30)))]
        _messages, fine, left = translated.decode(pieces, True)
        if not fine and getattr(framing, "on_oversize", "close") == "close":
            error = native.malformed("peer", framing, pieces[0][len(pieces[0]) - left :], True, None)
            assert isinstance(error, FramingError)


def test_a_framing_of_ones_own_has_no_native_half():
    class Mine(Lines):
        pass

    assert native.translate(Mine()) is None
    assert not native.serves(Mine())


def test_a_framing_whose_messages_could_be_of_no_bytes_is_refused():
    """Cutting by it would never come to an end."""
    made = native._native.Framing
    with pytest.raises(ValueError, match="a message of fixed size has at least one byte"):
        made.fixed(0)
    with pytest.raises(ValueError, match="a delimiter has at least one byte"):
        made.delimited(b"", False, False, 10, False)
    assert made.fixed(1).decode([b"ab"], True) == ([b"a", b"b"], True, 0)
