"""What holds for every framing, over inputs nobody chose."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.errors import FramingError, IncompleteMessage, MessageTooLarge
from longshore.framing import (
    NEED_MORE,
    Decoder,
    Delimited,
    FixedSize,
    Framing,
    Json,
    LengthPrefixed,
    Lines,
    MsgPack,
    Netstring,
    Raw,
)

CUTTING = (
    Lines(),
    Lines(max_size=5),
    Lines(max_size=5, on_oversize="skip"),
    Lines(max_size=5, keep_end=True),
    Lines(max_size=5, delimiter=b"--", on_oversize="skip"),
    Lines(delimiter=b"\r\n"),
    Delimited(b"ab", max_size=4),
    Delimited(b"aba", max_size=4, on_oversize="skip"),
    *(LengthPrefixed(size, max_size=300) for size in (1, 2, 3, 4, 8, "varint")),
    LengthPrefixed(2, "little"),
    LengthPrefixed(1, max_size=3, on_oversize="skip"),
    LengthPrefixed("varint", max_size=3, on_oversize="skip"),
    FixedSize(1),
    FixedSize(3),
    Netstring(),
    Netstring(max_size=3),
    Netstring(max_size=3, on_oversize="skip"),
    Json(),
    Json(Netstring()),
    MsgPack(),
    MsgPack(LengthPrefixed(1, max_size=8, on_oversize="skip")),
)
EVERY = (*CUTTING, Raw())
each_cutting = pytest.mark.parametrize("framing", CUTTING, ids=repr)
each = pytest.mark.parametrize("framing", EVERY, ids=repr)

#: Few different bytes, so that delimiters, digits and short lengths turn up all the time.
likely_bytes = st.lists(
    st.one_of(st.sampled_from(b'ab-\r\n0123:,\x00\x01\x02\x80[]{}"1'), st.integers(0, 255)), max_size=60
).map(bytes)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream, cut at these places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:stop] for start, stop in itertools.pairwise(places)]


def outcome(framing: Framing, chunks: list[bytes], *, eager: bool = True) -> list[object]:
    """All messages, then the type and text of the error that ended them, if any."""
    decoder = framing.decoder()
    seen: list[object] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while eager and (message := decoder.next_message()) is not NEED_MORE:
                seen.append(repr(message))
        while (message := decoder.next_message()) is not NEED_MORE:
            seen.append(repr(message))
        decoder.end()
    except IncompleteMessage as error:
        seen.append((type(error), str(error).partition("bytes")[2] if "skipped" in str(error) else str(error)))
    except FramingError as error:
        seen.append((type(error), str(error)))
    return seen


def drawn_message(data: st.DataObject, framing: Framing) -> object:
    return data.draw(values if isinstance(framing, (Json, MsgPack)) else likely_bytes)


@each_cutting
@given(stream=likely_bytes, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_any_cut_gives_the_same_messages_and_the_same_error(framing: Framing, stream: bytes, cuts: list[int]) -> None:
    whole = outcome(framing, [stream])
    assert outcome(framing, pieces(stream, cuts)) == whole
    assert outcome(framing, pieces(stream, cuts), eager=False) == whole
    assert outcome(framing, [bytes([byte]) for byte in stream]) == whole


@each
@given(stream=st.binary(max_size=200))
def test_garbage_gives_messages_or_a_framing_error_and_nothing_else(framing: Framing, stream: bytes) -> None:
    outcome(framing, [stream])


@each
@given(data=st.data())
def test_what_is_encoded_comes_back_as_this_one_message_or_is_refused(framing: Framing, data: st.DataObject) -> None:
    message = drawn_message(data, framing)
    try:
        wire = framing.encode(message)
    except ValueError:
        return
    decoder = framing.decoder()
    decoder.feed(wire)
    assert decoder.next_message() == message
    assert decoder.next_message() is NEED_MORE
    assert decoder.rest() == b""
    decoder.end()


@each_cutting
@given(data=st.data())
def test_whatever_message_a_decoder_returns_its_framing_can_send(framing: Framing, data: st.DataObject) -> None:
    # Values are left out: 1e999 is JSON, and infinity is not.
    if isinstance(framing, (Json, MsgPack)):
        return
    decoder = framing.decoder()
    decoder.feed(data.draw(likely_bytes))
    try:
        while (message := decoder.next_message()) is not NEED_MORE:
            if isinstance(framing, Lines) and message.endswith(b"\r") and not framing.keep_end:
                continue
            again = framing.decoder()
            again.feed(framing.encode(message))
            assert again.next_message() == message
    except FramingError:
        pass


@given(data=st.data(), cuts=st.lists(st.integers(0, 1000), max_size=5))
def test_switching_the_decoder_in_mid_stream_loses_nothing(data: st.DataObject, cuts: list[int]) -> None:
    sendable = st.binary(min_size=3, max_size=3).filter(lambda text: b"\n" not in text and not text.endswith(b"\r"))
    framings = st.sampled_from((Lines(), LengthPrefixed("varint"), LengthPrefixed(2), Netstring(), FixedSize(3)))
    sent = data.draw(st.lists(st.tuples(framings, sendable), min_size=1, max_size=8))
    chunks = pieces(b"".join(framing.encode(message) for framing, message in sent), cuts)

    received = []
    decoder = sent[0][0].decoder()
    for framing, _ in sent:
        switched = framing.decoder()
        switched.feed(decoder.rest())
        decoder = switched
        while (message := decoder.next_message()) is NEED_MORE:
            decoder.feed(chunks.pop(0))
        received.append(message)

    assert received == [message for _, message in sent]
    assert b"".join([decoder.rest(), *chunks]) == b""


@each_cutting
@given(stream=likely_bytes)
def test_messages_and_rest_together_are_the_stream(framing: Framing, stream: bytes) -> None:
    # Only where the wire form of a message follows from the message, and nothing was skipped.
    if isinstance(framing, (Json, MsgPack)) or getattr(framing, "on_oversize", "") == "skip":
        return
    if isinstance(framing, Lines) and framing.strips_return and not framing.keep_end:
        stream = stream.replace(b"\r", b"")
    if isinstance(framing, LengthPrefixed) and framing.size == "varint":
        stream = bytes(byte & 0x7F for byte in stream)
    decoder = framing.decoder()
    decoder.feed(stream)
    consumed = b""
    try:
        while (message := decoder.next_message()) is not NEED_MORE:
            consumed += framing.encode(message)
            assert consumed + decoder.rest() == stream
    except FramingError:
        assert consumed + decoder.rest() == stream


@each
def test_a_framing_and_its_decoder_fulfil_the_protocols(framing: Framing) -> None:
    assert isinstance(framing, Framing)
    assert isinstance(framing.decoder(), Decoder)


@each
def test_a_framing_is_an_immutable_value(framing: Framing) -> None:
    for item in dataclasses.fields(framing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(framing, item.name, 7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        framing.unheard_of = 7
    for twin in (copy.deepcopy(framing), pickle.loads(pickle.dumps(framing)), eval(repr(framing))):
        assert twin == framing
        assert hash(twin) == hash(framing)
    assert len({*EVERY}) == len(EVERY)


@each
@pytest.mark.parametrize("wrong", ["text", 7, object()], ids=["str", "int", "object"])
def test_a_message_of_the_wrong_type_is_a_type_error(framing: Framing, wrong: object) -> None:
    if isinstance(framing, (Json, MsgPack)):
        wrong = object()
    with pytest.raises(TypeError):
        framing.encode(wrong)


@pytest.mark.parametrize(
    ("framing", "wire"),
    [
        (LengthPrefixed(), b"\x80\x00\x00\x00"),
        (LengthPrefixed(8), b"\x00\x00\x00\x00\x80\x00\x00\x00"),
        (LengthPrefixed("varint"), b"\x80\x80\x80\x80\x08"),
        (LengthPrefixed(max_size=2**40), b"\x80\x00\x00\x00"),
        (LengthPrefixed(on_oversize="skip"), b"\x80\x00\x00\x00"),
        (Netstring(), b"2147483648:"),
        (Netstring(on_oversize="skip"), b"2147483648:"),
        (MsgPack(), b"\x80\x00\x00\x00"),
        (MsgPack(), b"\x00\x00\x00\x05\xdd\x80\x00\x00\x00"),
    ],
    ids=repr,
)
def test_a_header_of_two_gibibytes_takes_no_memory(framing: Framing, wire: bytes) -> None:
    decoder = framing.decoder()
    tracemalloc.start()
    try:
        decoder.feed(wire)
        try:
            assert decoder.next_message() is NEED_MORE
        except FramingError:
            pass
        for _ in range(100):
            decoder.feed(b"some bytes of the two gibibytes")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("framing", "opening"),
    [
        (Lines(max_size=10, on_oversize="skip"), b""),
        (Delimited(b"--", max_size=10, on_oversize="skip"), b""),
        (LengthPrefixed(max_size=10, on_oversize="skip"), (2**30).to_bytes(4, "big")),
        (Netstring(max_size=10, on_oversize="skip"), b"1073741824:"),
    ],
    ids=repr,
)
def test_what_is_skipped_is_not_buffered(framing: Framing, opening: bytes) -> None:
    decoder = framing.decoder()
    decoder.feed(opening + b"x" * 100)
    assert decoder.next_message() is NEED_MORE
    for _ in range(50):
        decoder.feed(b"x" * 100)
        assert len(decoder.rest()) < 2
    with pytest.raises(IncompleteMessage, match="skipped"):
        decoder.end()


@pytest.mark.parametrize(
    ("framing", "failing"),
    [
        (Lines(max_size=3), b"toolong\n"),
        (Delimited(b";", max_size=3), b"toolong;"),
        (LengthPrefixed(1, max_size=3), b"\x07toolong"),
        (Netstring(max_size=3), b"7:toolong,"),
        (Json(LengthPrefixed(1, max_size=3)), b"\x07toolong"),
    ],
    ids=repr,
)
def test_an_error_comes_after_every_earlier_message_and_stays(framing: Framing, failing: bytes) -> None:
    decoder = framing.decoder()
    first = [] if isinstance(framing, Json) else b"one"
    decoder.feed(framing.encode(first) + failing + framing.encode(first))
    decoder.end()
    assert decoder.next_message() == first
    for _ in range(3):
        with pytest.raises(MessageTooLarge, match=r"max_size=3") as caught:
            decoder.next_message()
        assert "max_size" in caught.value.hint
        decoder.feed(framing.encode(first))
    with pytest.raises(MessageTooLarge):
        decoder.end()


@pytest.mark.parametrize(
    "framing",
    [
        Lines(max_size=4, on_oversize="skip"),
        Delimited(b"--", max_size=4, on_oversize="skip"),
        LengthPrefixed(1, max_size=4, on_oversize="skip"),
        LengthPrefixed("varint", max_size=4, on_oversize="skip"),
        Netstring(max_size=4, on_oversize="skip"),
    ],
    ids=repr,
)
@given(
    messages=st.lists(st.sampled_from([b"", b"a", b"full", b"a bit over", b"x" * 90]), max_size=8),
    size=st.integers(1, 40),
)
def test_skipping_drops_the_oversized_messages_and_no_other(framing: Framing, messages: list[bytes], size: int) -> None:
    generous = dataclasses.replace(framing, max_size=100)
    stream = b"".join(map(generous.encode, messages))
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert outcome(framing, chunks) == [repr(message) for message in messages if len(message) <= 4]
