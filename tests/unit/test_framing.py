"""Each framing by example: what it cuts, what it refuses, and in which words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from longshore.errors import ConfigError, FramingError, IncompleteMessage, MessageTooLarge
from longshore.framing import (
    NEED_MORE,
    Delimited,
    FixedSize,
    Framing,
    Json,
    LengthPrefixed,
    Lines,
    MsgPack,
    Netstring,
    Raw,
    parse_framing,
)


def messages(framing: Framing, *chunks: bytes) -> list[Any]:
    decoder = framing.decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    taken = []
    while (message := decoder.next_message()) is not NEED_MORE:
        taken.append(message)
    return taken


class CountingBytes(bytearray):
    """A buffer that counts the bytes it was asked to search, and those it had to move."""

    searched = 0
    moved = 0

    def find(self, wanted: Any, start: int = 0, stop: int = sys.maxsize) -> int:  # type: ignore[override]
        self.searched += max(0, min(stop, len(self)) - start)
        return super().find(wanted, start, stop)

    def __delitem__(self, where: Any) -> None:
        self.moved += len(self) - where.stop
        super().__delitem__(where)


def test_need_more_says_its_name() -> None:
    assert repr(NEED_MORE) == "NEED_MORE"


@pytest.mark.parametrize(
    ("framing", "stream", "expected"),
    [
        (Lines(), b"a\nb\r\n\n\r\nc\rd\n", [b"a", b"b", b"", b"", b"c\rd"]),
        (Lines(keep_end=True), b"a\nb\r\n\n", [b"a\n", b"b\r\n", b"\n"]),
        (Lines(max_size=2), b"ab\r\nab\n", [b"ab", b"ab"]),
        (Lines(delimiter=b"\0"), b"a\r\0b\0", [b"a\r", b"b"]),
        (Delimited(b"--"), b"a-b--\r--", [b"a-b", b"\r"]),
        (LengthPrefixed(1), b"\x01a\x00\x02bc", [b"a", b"", b"bc"]),
        (LengthPrefixed(2), b"\x00\x01a", [b"a"]),
        (LengthPrefixed(2, "little"), b"\x01\x00a", [b"a"]),
        (LengthPrefixed(3), b"\x00\x00\x01a", [b"a"]),
        (LengthPrefixed(), b"\x00\x00\x00\x01a", [b"a"]),
        (LengthPrefixed(8), b"\x00\x00\x00\x00\x00\x00\x00\x01a", [b"a"]),
        (LengthPrefixed("varint"), b"\x01a" + b"\xac\x02" + b"x" * 300, [b"a", b"x" * 300]),
        (FixedSize(2), b"abcd", [b"ab", b"cd"]),
        (Netstring(), b"3:abc,0:,1:,,", [b"abc", b"", b","]),
        (Json(), b'{"a": [1, null]}\r\n"x"\n', [{"a": [1, None]}, "x"]),
        (Json(LengthPrefixed(1)), b"\x04true", [True]),
        (MsgPack(LengthPrefixed(1)), b"\x02\x91\x07\x04\x81\xa1a\xc0", [[7], {"a": None}]),
        (Raw(), b"whatever\n", [b"whatever\n"]),
    ],
    ids=repr,
)
def test_a_framing_cuts_its_messages(framing: Framing, stream: bytes, expected: list[Any]) -> None:
    assert messages(framing, stream) == expected
    if not isinstance(framing, Raw):
        assert messages(framing, *(bytes([byte]) for byte in stream)) == expected


def test_raw_gives_every_chunk_as_it_came_and_is_never_incomplete() -> None:
    decoder = Raw().decoder()
    for chunk in (b"ab", b"", bytearray(b"c"), memoryview(b"de")):
        decoder.feed(chunk)
    decoder.end()
    assert decoder.next_message() == b"ab"
    assert decoder.rest() == b"cde"


@pytest.mark.parametrize("framing", [Raw(), Lines(), LengthPrefixed(), Json()], ids=repr)
@pytest.mark.parametrize("wrong", ["text", 7], ids=["str", "int"])
def test_only_bytes_can_be_fed(framing: Framing, wrong: Any) -> None:
    with pytest.raises(TypeError):
        framing.decoder().feed(wrong)


def test_bytes_like_messages_are_sent_like_bytes() -> None:
    for framing in (Raw(), Lines(), Delimited(b";"), LengthPrefixed(), FixedSize(2), Netstring()):
        assert framing.encode(bytearray(b"ab")) == framing.encode(memoryview(b"ab")) == framing.encode(b"ab")


@pytest.mark.parametrize(
    ("framing", "message", "words"),
    [
        (Raw(), b"", "empty"),
        (Lines(), b"a\nb", "at byte 1"),
        (Lines(), b"a\r", "strips"),
        (Lines(max_size=3), b"four", "4 bytes.*max_size=3"),
        (Lines(keep_end=True), b"a", "keep_end"),
        (Lines(keep_end=True), b"a\nb\n", "at byte 1"),
        (Lines(keep_end=True, max_size=3), b"four\r\n", "4 bytes.*max_size=3"),
        (Delimited(b"--"), b"a-", "at byte 1"),
        (Delimited(b"--", max_size=3), b"four", "4 bytes.*max_size=3"),
        (LengthPrefixed(1), b"x" * 256, "256 bytes.*255.*size=1"),
        (LengthPrefixed(max_size=3), b"four", "4 bytes.*max_size=3"),
        (FixedSize(3), b"four", "exactly 3 bytes, not 4"),
        (Netstring(max_size=3), b"four", "4 bytes.*max_size=3"),
        (Json(), float("nan"), "JSON"),
        (Json(), {"a": [float("inf")]}, "JSON"),
        (Json(), {1: "a number is no key"}, "come back"),
        (Json(), [(1, 2)], "lists for tuples"),
        (Json(Lines(max_size=3)), "four", "6 bytes.*max_size=3"),
        (MsgPack(), (1, 2), "lists for tuples"),
        (MsgPack(), {1: "a number is no key"}, "strict_map_key"),
        (MsgPack(), 2**64, "cannot send"),
        (MsgPack(Lines()), 10, "at byte 0"),
    ],
    ids=repr,
)
def test_what_would_not_come_back_is_not_sent(framing: Framing, message: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        framing.encode(message)


@pytest.mark.parametrize("framing", [Json(), MsgPack()], ids=repr)
def test_a_value_nested_too_deeply_is_not_sent(framing: Framing) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError):
        framing.encode(nested)


def test_json_sends_a_lone_surrogate_as_it_may_have_come() -> None:
    assert messages(Json(), b'"\\ud800"\n') == ["\ud800"]
    assert Json().encode("\ud800") == b'"\\ud800"\n'


def test_msgpack_carries_bytes_and_nan() -> None:
    (got,) = messages(MsgPack(), MsgPack().encode({"raw": b"\xff", "nan": [float("nan")]}))
    assert got["raw"] == b"\xff"
    assert got["nan"][0] != got["nan"][0]


@pytest.mark.parametrize(
    ("framing", "stream", "error", "words"),
    [
        (Lines(max_size=3), b"four\n", MessageTooLarge, "more than 3 bytes.*max_size=3 of Lines"),
        (Lines(max_size=3), b"four\r\n", MessageTooLarge, "more than 3 bytes"),
        (Lines(max_size=3, delimiter=b";"), b"four", MessageTooLarge, "more than 3 bytes"),
        (LengthPrefixed(1, max_size=3), b"\x04", MessageTooLarge, "4 bytes was announced.*max_size=3"),
        (LengthPrefixed("varint"), b"\xff" * 10, FramingError, "no end within 10 bytes"),
        (LengthPrefixed("varint"), b"\xff" * 9 + b"\x7f", FramingError, "over 64 bits"),
        (Netstring(max_size=3), b"4:", MessageTooLarge, "4 bytes was announced.*max_size=3"),
        (Netstring(), b"9" * 20, MessageTooLarge, "19 digits.*max_size=65536"),
        (Netstring(), b"x", FramingError, "b'x' at byte 0"),
        (Netstring(), b":", FramingError, "b':' at byte 0"),
        (Netstring(), b"01", FramingError, "begins with b'0'"),
        (Netstring(), b"1:ab", FramingError, "ends in b'b'"),
        (Netstring(max_size=3, on_oversize="skip"), b"4:abcdx", FramingError, "ends in b'x'"),
        (Json(), b"nope\n", FramingError, "4 bytes is no Json value"),
        (Json(), b"\n", FramingError, "0 bytes is no Json value"),
        (Json(), b"[NaN]\n", FramingError, "NaN is no JSON"),
        (Json(), b'"\xff"\n', FramingError, "no Json value"),
        (Json(Delimited(b"\0")), "{}".encode("utf-16") + b"\0", FramingError, "no Json value"),
        (Json(Lines(max_size=10**6)), b"[" * 200_000 + b"\n", FramingError, "no Json value"),
        (Json(), b"1" * 5000 + b"\n", FramingError, "no Json value"),
        (MsgPack(LengthPrefixed(1)), b"\x00", FramingError, "0 bytes is no MsgPack value"),
        (MsgPack(LengthPrefixed(1)), b"\x02\x01\x01", FramingError, "extra"),
        (MsgPack(LengthPrefixed(1)), b"\x03\x81\x01\x01", FramingError, "map key"),
        (MsgPack(LengthPrefixed(2)), b"\x27\x10" + b"\x91" * 10_000, FramingError, "no MsgPack value"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_message_is_an_error_that_names_why(
    framing: Framing, stream: bytes, error: type[FramingError], words: str
) -> None:
    decoder = framing.decoder()
    decoder.feed(stream)
    for _ in range(2):
        with pytest.raises(error, match=f"(?i){words}") as caught:
            decoder.next_message()
        assert type(caught.value) is error
        assert caught.value.hint
    with pytest.raises(error):
        decoder.end()


@pytest.mark.parametrize(
    ("framing", "rest"),
    [
        (Lines(), b"abc"),
        (Lines(), b"abc\r"),
        (Delimited(b"--"), b"abc-"),
        (LengthPrefixed(), b"\x00\x00"),
        (LengthPrefixed(1), b"\x05ab"),
        (LengthPrefixed("varint"), b"\x80"),
        (FixedSize(4), b"abc"),
        (Netstring(), b"3:abc"),
        (Json(), b'{"a":'),
        (MsgPack(), b"\x00\x00\x00\x02\x91"),
    ],
    ids=repr,
)
def test_a_stream_that_ends_in_the_middle_is_an_incomplete_message(framing: Framing, rest: bytes) -> None:
    decoder = framing.decoder()
    decoder.feed(rest)
    assert decoder.next_message() is NEED_MORE
    assert decoder.rest() == rest
    with pytest.raises(IncompleteMessage, match=rf"\b{len(rest)} bytes"):
        decoder.end()
    with pytest.raises(IncompleteMessage):
        decoder.next_message()
    assert decoder.rest() == rest


def test_whole_messages_are_still_given_after_the_end_and_the_rest_is_judged_behind_them() -> None:
    decoder = Lines().decoder()
    decoder.feed(b"one\ntwo\nthr")
    decoder.end()
    assert decoder.rest() == b"one\ntwo\nthr"
    assert (decoder.next_message(), decoder.next_message()) == (b"one", b"two")
    with pytest.raises(IncompleteMessage, match="3 bytes"):
        decoder.next_message()


def test_the_end_between_two_messages_is_no_error() -> None:
    for framing in (Lines(), Delimited(b";"), LengthPrefixed(), FixedSize(4), Netstring(), Json(), MsgPack(), Raw()):
        framing.decoder().end()


def test_messages_are_cut_one_at_a_time() -> None:
    decoder = Json().decoder()
    decoder.feed(b"1\nno json\n")
    assert decoder.next_message() == 1
    assert decoder.rest() == b"no json\n"


def test_buffered_counts_what_rest_would_give() -> None:
    for framing in (Raw(), Lines(), LengthPrefixed(), FixedSize(9), Netstring(), Json()):
        decoder: Any = framing.decoder()
        decoder.feed(b"1:1")
        assert decoder.buffered == len(decoder.rest()) == 3


def test_a_long_line_that_comes_byte_by_byte_is_searched_once() -> None:
    decoder: Any = Lines(delimiter=b"\r\n").decoder()
    counting = decoder._pending.data = CountingBytes()
    for _ in range(65536):
        decoder.feed(b"x")
        assert decoder.next_message() is NEED_MORE
    decoder.feed(b"\r\n")
    assert decoder.next_message() == b"x" * 65536
    assert counting.searched <= 3 * 65536


def test_many_small_messages_in_one_chunk_move_each_byte_at_most_once() -> None:
    decoder: Any = Lines().decoder()
    counting = decoder._pending.data = CountingBytes()
    stream = b"a line\n" * 100_000
    decoder.feed(stream)
    taken = 0
    while decoder.next_message() is not NEED_MORE:
        taken += 1
    assert taken == 100_000
    assert counting.moved <= len(stream)
    assert decoder._pending.data == b""


def test_the_search_for_one_message_does_not_read_the_ones_behind_it() -> None:
    decoder: Any = Lines(max_size=100).decoder()
    counting = decoder._pending.data = CountingBytes()
    decoder.feed(b"a line\n" * 10_000)
    decoder.next_message()
    assert counting.searched <= 102


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lines(max_size=0), "max_size=0.*at least 1"),
        (lambda: Lines(max_size=True), "max_size=True"),
        (lambda: Lines(max_size=1.5), "max_size=1.5"),
        (lambda: Lines(delimiter=b""), "delimiter=b''.*at least one"),
        (lambda: Lines(delimiter="\n"), "delimiter='.n'.*bytes"),
        (lambda: Lines(on_oversize="drop"), "on_oversize='drop'.*'close' or 'skip'"),
        (lambda: Delimited(b""), "delimiter=b''"),
        (lambda: Delimited(b";", max_size=-1), "max_size=-1"),
        (lambda: Delimited(b";", on_oversize=None), "on_oversize=None"),
        (lambda: LengthPrefixed(5), "size=5.*1, 2, 3, 4, 8 or 'varint'"),
        (lambda: LengthPrefixed(True), "size=True"),
        (lambda: LengthPrefixed([4]), r"size=\[4\]"),
        (lambda: LengthPrefixed(2, "middle"), "byteorder='middle'.*'big' or 'little'"),
        (lambda: LengthPrefixed(max_size=None), "max_size=None"),
        (lambda: LengthPrefixed(on_oversize=""), "on_oversize=''"),
        (lambda: FixedSize(0), "n=0"),
        (lambda: Netstring(max_size="1"), "max_size='1'"),
        (lambda: Netstring(on_oversize=["skip"]), "on_oversize="),
        (lambda: Json(Lines), "inner=Lines.*class"),
        (lambda: Json(None), "inner=None.*framing"),
        (lambda: Json(Json()), "framing of bytes"),
        (lambda: Json(Lines(keep_end=True)), "keep_end"),
        (lambda: MsgPack(Json()), "framing of bytes"),
    ],
)
def test_a_field_that_cannot_work_is_refused_with_what_it_may_be(make: Callable[[], Framing], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_without_msgpack_its_framing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        MsgPack()
    assert "pip install longshore[msgpack]" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        parse_framing("msgpack")
    assert "pip install longshore[msgpack]" in caught.value.hint


def test_a_repr_is_the_call_that_makes_the_framing() -> None:
    assert repr(Lines()) == "Lines()"
    assert repr(Lines(max_size=80, on_oversize="skip")) == "Lines(max_size=80, on_oversize='skip')"
    assert repr(Delimited(b";")) == "Delimited(delimiter=b';')"
    assert repr(Json(LengthPrefixed("varint"))) == "Json(inner=LengthPrefixed(size='varint'))"


@pytest.mark.parametrize(
    ("text", "framing"),
    [
        ("lines", Lines()),
        ("raw", Raw()),
        ("length-prefixed", LengthPrefixed()),
        *((f"length-prefixed:{size}", LengthPrefixed(size)) for size in (1, 2, 3, 4, 8, "varint")),
        ("fixed:16", FixedSize(16)),
        ("netstring", Netstring()),
        (r"delimited:\r\n", Delimited(b"\r\n")),
        (r"delimited:\x00\0\t\\:é", Delimited(b"\0\0\t\\:" + "é".encode())),
        ("delimited:\udcff", Delimited(b"\xff")),
        ("json", Json()),
        ("json:length-prefixed:4", Json(LengthPrefixed())),
        (r"json:delimited:\0", Json(Delimited(b"\0"))),
        ("msgpack", MsgPack()),
        ("msgpack:netstring", MsgPack(Netstring())),
    ],
)
def test_a_spelling_gives_its_framing(text: str, framing: Framing) -> None:
    assert parse_framing(text) == framing


@pytest.mark.parametrize(
    "text",
    [
        *("", "line", "Lines", "lines:", "lines:80", "raw:1", "netstring:1", "length-prefixed:", "length-prefixed:5"),
        *("length-prefixed:four", "length-prefixed:²", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:" + "9" * 5000),
        *("delimited", "delimited:", "delimited:\\q", "delimited:\\", "delimited:\\x0", "delimited:\ud800"),
        *("json:", "json:xml", "json:json", "msgpack:json", "module:NAME", 7, None),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_any_other_spelling_is_refused_with_a_list_of_those_that_are_known(text: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_framing(text)
    assert str(caught.value).count("known are lines, raw, length-prefixed,") == 1


def test_importing_the_framings_imports_no_json_and_no_msgpack() -> None:
    code = (
        "import sys, longshore.framing; print([name for name in ('json', 'msgpack', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
