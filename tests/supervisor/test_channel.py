"""What the processes of one program say to each other."""

from __future__ import annotations

import os

import pytest

from longshore.supervisor.channel import BACKLOG, Channel


@pytest.fixture
def ends():
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def test_a_message_arrives_whole_and_in_its_order(ends):
    one, other = ends
    one.send({"do": "drain", "timeout": 1.5})
    one.send({"do": "stop"})
    assert [message for message, _ in other.receive()] == [{"do": "drain", "timeout": 1.5}, {"do": "stop"}]


def test_a_descriptor_arrives_with_its_own_message(ends):
    one, other = ends
    reader, writer = os.pipe()
    one.send({"name": "first"})
    one.send({"name": "second"}, [writer])
    os.close(writer)
    (first, none), (second, [mine]) = other.receive()
    assert (first["name"], none, second["name"]) == ("first", [], "second")
    assert not os.get_inheritable(mine)
    os.write(mine, b"through")
    os.close(mine)
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_a_side_that_does_not_read_makes_nobody_wait_and_misses_nothing(ends):
    one, other = ends
    count = 0
    while not one.pending:
        one.send({"number": count, "padding": "x" * 1000})
        count += 1
    reader, writer = os.pipe()
    one.send({"number": count}, [writer])
    os.close(writer)
    found = []
    while len(found) <= count:
        found += [(message["number"], fds) for message, fds in other.receive()]
        one.flush()
    assert [number for number, _ in found] == list(range(count + 1))
    os.write(found[-1][1][0], b"!")
    assert os.read(reader, 1) == b"!"
    os.close(found[-1][1][0])
    os.close(reader)


def test_what_is_kept_for_a_side_that_never_reads_is_bounded(ends):
    one, other = ends
    while not one.pending:
        one.send({"padding": "x" * 1000})
    for number in range(BACKLOG + 10):
        one.send({"number": number})
    found = []
    while one.pending:
        found += [message.get("number") for message, _ in other.receive()]
        one.flush()
    found += [message.get("number") for message, _ in other.receive()]
    assert [number for number in found if number is not None] == list(range(10, BACKLOG + 10))


def test_the_end_of_one_side_is_seen_by_the_other_after_what_it_said(ends):
    one, other = ends
    one.send({"say": "last"})
    one.close()
    assert [message for message, _ in other.receive()] == [{"say": "last"}]
    assert other.ended
    other.send({"do": "nothing"})


def test_a_message_that_is_too_large_is_refused(ends):
    with pytest.raises(ValueError, match="too large"):
        ends[0].send({"padding": "x" * 200_000})


def test_the_last_words_of_a_side_that_ends_without_reading_are_heard():
    # Linux tells of what that side has not read (ECONNRESET) before it gives what it has said.
    ours, theirs = Channel.pair()
    ours.send({"do": "speak"})
    theirs.send({"say": "failed", "error": "no such module"})
    theirs.close()
    assert [message for message, _ in ours.receive()] == [{"say": "failed", "error": "no such module"}]
    assert ours.ended
    ours.close()
