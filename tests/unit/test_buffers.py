"""Input cut in one way after another: what one search saw says nothing to the next, which seeks something else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longshore.buffers import InputBuffer
from longshore.errors import LongshoreError
from longshore.framing import NEED_MORE


def test_a_line_is_found_where_another_separator_was_sought_in_vain():
    buffer = InputBuffer("the peer")
    buffer.feed(b"line\nmore")
    assert buffer.take_until(b"\r\n", 100) is NEED_MORE
    assert buffer.take_line(100) == b"line\n"


def test_a_line_of_some_size_is_found_where_another_separator_was_sought_in_vain():
    buffer = InputBuffer("the peer")
    buffer.feed(b"line\nmore")
    assert buffer.take_until(b"\r\n", 100) is NEED_MORE
    assert buffer.take_line_up_to(100) == b"line\n"


def asked(buffer: InputBuffer, question: tuple[str, bytes]) -> object:
    kind, separator = question
    try:
        if kind == "line":
            return buffer.take_line(20)
        if kind == "line up to":
            return buffer.take_line_up_to(3)
        return buffer.take_until(separator, 20)
    except LongshoreError as error:
        return type(error), str(error)


QUESTIONS = st.tuples(
    st.sampled_from(["line", "line up to", "until"]), st.sampled_from([b"\r\n", b"a", b"\n\n", b"\r"])
)


@given(pieces=st.lists(st.tuples(st.text("ab\r\n", max_size=5), st.lists(QUESTIONS, max_size=4)), max_size=8))
def test_what_was_sought_before_changes_no_answer(pieces):
    buffer = InputBuffer("the peer")
    for piece, questions in pieces:
        buffer.feed(piece.encode())
        for question in questions:
            fresh = InputBuffer("the peer")
            fresh.feed(bytes(buffer._raw))
            expected = asked(fresh, question)
            assert asked(buffer, question) == expected
