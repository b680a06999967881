"""What a pipe promises when its ends come and go, are many, are slow, or are killed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import threading
import time

import pytest

from longshore import shared
from longshore.errors import BrokerLost, ClosedError
from longshore.framing import Lines
from longshore.shared import joining
from longshore.shared.ends import End


@contextlib.contextmanager
def broker():
    """This process joined to a broker of its own."""
    shared.leave()
    with shared.start_broker() as made:
        shared.join(made.url)
        try:
            yield made
        finally:
            shared.leave()


def descriptors(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_what_a_killed_receiver_has_not_taken_is_there_for_the_next_one_in_order(place, program):
    receiver = program("p = shared.Pipe('p', 1).open(); print(p.recv(), flush=True); time.sleep(60)")
    quay = shared.Pipe("p", 0)
    for message in ("first", "second", "x" * 1_000_000, "last"):
        quay.send(message)
    assert receiver.stdout.readline() == "first\n"
    receiver.kill()
    with pytest.raises(EOFError):
        quay.recv(timeout=10)
    with pytest.raises(BrokenPipeError):
        quay.send("nobody is there")
    with shared.Pipe("p", 1) as deck:
        assert [deck.recv(timeout=5) for _ in range(3)] == ["second", "x" * 1_000_000, "last"]
        deck.send("here again")
        assert quay.recv(timeout=5) == "here again"


def test_what_a_killed_sender_has_sent_is_read_before_its_end_is_told_until_it_is_there_again(place, program):
    sender = program(
        "p = shared.Pipe('p', 0).open(); p.send('first'); p.send(b'y' * 3_000_000); print(flush=True); time.sleep(60)"
    )
    deck = shared.Pipe("p", 1).open()
    assert deck.recv(timeout=10) == "first"
    sender.stdout.readline()
    sender.kill()
    assert deck.recv(timeout=5) == b"y" * 3_000_000
    for _ in range(2):
        with pytest.raises(EOFError):
            deck.recv(timeout=5)
    assert deck.poll()
    with shared.Pipe("p", 0) as quay:
        assert not deck.poll()
        with pytest.raises(TimeoutError):
            deck.recv(timeout=0)
        quay.send("again")
        assert deck.recv(timeout=5) == "again"


def test_a_message_may_have_as_many_bytes_as_an_item(place):
    largest = b"z" * ((16 << 20) - 100)
    with shared.Pipe("p", 0) as quay, shared.Pipe("p", 1) as deck:
        sender = threading.Thread(target=lambda: [quay.send(largest) for _ in range(3)])
        sender.start()
        assert [len(deck.recv(timeout=10)) for _ in range(3)] == [len(largest)] * 3
        sender.join()


@pytest.mark.parametrize("size", [1, 131_071, 131_072, 131_073, 400_000])
def test_messages_around_the_size_of_a_packet_come_whole(size):
    with broker(), shared.Pipe("p", 0, serializer="json") as quay, shared.Pipe("p", 1, serializer="json") as deck:
        quay.send("x" * (size - 2))
        assert deck.recv(timeout=5) == "x" * (size - 2)


def test_who_sends_more_than_is_read_waits_and_goes_on(place):
    with shared.Pipe("p", 0) as quay, shared.Pipe("p", 1) as deck:
        count = 0
        with pytest.raises(TimeoutError, match="too much to read"):
            while True:
                quay.send(b"x" * 20_000, timeout=0)
                count += 1
        assert count > 5
        sender = threading.Thread(target=quay.send, args=("through",))
        sender.start()
        assert {deck.recv(timeout=5) for _ in range(count)} == {b"x" * 20_000}
        assert deck.recv(timeout=5) == "through"
        sender.join(5)


def test_each_message_goes_to_one_of_those_who_share_an_end(place):
    got = []
    with shared.Pipe("p", 0) as quay:
        decks = [shared.Pipe("p", 1).open() for _ in range(3)]

        def take(deck):
            with contextlib.suppress(EOFError):
                while True:
                    got.append(deck.recv(timeout=10))

        threads = [threading.Thread(target=take, args=(deck,)) for deck in decks]
        for thread in threads:
            thread.start()
        for number in range(300):
            quay.send(number)
    for thread in threads:
        thread.join(10)
    assert sorted(got) == list(range(300))


def test_an_end_is_the_process_s_whatever_becomes_of_the_thread_that_took_it():
    with broker():
        quay, deck = shared.Pipe("p", 0), shared.Pipe("p", 1).open()
        thread = threading.Thread(target=quay.open)
        thread.start()
        thread.join()
        quay.send("still here")
        assert deck.recv(timeout=5) == "still here"
        with pytest.raises(TimeoutError):
            deck.recv(timeout=0)
        # And whoever closes it, closes it.
        thread = threading.Thread(target=quay.close)
        thread.start()
        thread.join()
        with pytest.raises(EOFError):
            deck.recv(timeout=5)


def test_a_child_that_was_forked_has_an_end_of_its_own():
    with broker():
        quay, deck = shared.Pipe("p", 0).open(), shared.Pipe("p", 1).open()
        go, said = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                quay.send("from the child")
                os.write(said[1], b"x")
                os.read(go[0], 1)
                quay.send("and again")
            finally:
                os._exit(0)
        os.read(said[0], 1)
        quay.close()
        assert deck.recv(timeout=5) == "from the child"
        with pytest.raises(TimeoutError):
            deck.recv(timeout=0)
        os.write(go[1], b"x")
        os.waitpid(pid, 0)
        assert deck.recv(timeout=5) == "and again"
        with pytest.raises(EOFError):
            deck.recv(timeout=5)
        for descriptor in (*go, *said):
            os.close(descriptor)


def test_the_ends_talk_without_the_broker():
    with broker() as made, shared.Pipe("p", 0) as quay, shared.Pipe("p", 1) as deck:
        os.kill(made.pid, signal.SIGSTOP)
        try:
            quay.send("hello")
            assert deck.recv(timeout=5) == "hello"
            deck.send("x" * 1_000_000)
            assert len(quay.recv(timeout=5)) == 1_000_000
        finally:
            os.kill(made.pid, signal.SIGCONT)


def test_who_waits_at_a_pipe_hears_of_the_broker_s_death_and_nothing_is_read_after_it():
    with broker() as made:
        quay, deck = shared.Pipe("p", 0).open(), shared.Pipe("p", 1).open()
        other = shared.Pipe("other", 0).open()
        heard = []

        def wait():
            try:
                other.recv()
            except BrokerLost as lost:
                heard.append(lost)

        thread = threading.Thread(target=wait)
        thread.start()
        quay.send("too late")
        os.kill(made.pid, signal.SIGKILL)
        thread.join(5)
        assert len(heard) == 1
        for verb in (deck.recv, deck.poll, lambda: quay.send("nowhere")):
            with pytest.raises(BrokerLost):
                verb()


def test_closing_both_ends_while_a_thread_waits_is_no_loss_of_the_broker():
    with broker():
        quay, deck = shared.Pipe("p", 0).open(), shared.Pipe("p", 1).open()
        outcome = []

        def wait():
            try:
                deck.recv(timeout=10)
            except (OSError, EOFError) as error:
                outcome.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        deck.close()
        quay.close()
        thread.join(5)
        assert outcome in ([ClosedError], [EOFError])
        assert shared.Counter("c").add() == 1


def test_an_end_that_is_opened_while_its_last_handle_is_being_closed_is_another_one_and_stays(monkeypatch):
    let_go, opened = End.let_go, []

    def let_go_while_another_opens(end):
        last = let_go(end)
        if not opened:
            opened.append(shared.Pipe("p", 0).open())
        return last

    with broker():
        quay, deck = shared.Pipe("p", 0).open(), shared.Pipe("p", 1).open()
        monkeypatch.setattr(End, "let_go", let_go_while_another_opens)
        quay.close()
        ends = joining.joined()._ends
        assert sorted(number for _, number in ends) == [0, 1]
        assert not any(end._closed for end in ends.values())
        opened[0].send("still there")
        assert deck.recv(timeout=5) == "still there"


def test_pipes_that_are_closed_leave_no_descriptor_here_or_at_the_broker():
    with broker() as made:
        with shared.Pipe("warm", 0), shared.Pipe("warm", 1):
            pass
        gc.collect()
        before = descriptors(), descriptors(made.pid)
        for number in range(20):
            with shared.Pipe(f"p{number}", 0) as quay, shared.Pipe(f"p{number}", 1) as deck:
                quay.send("x" * 200_000)
                deck.recv(timeout=5)
        gc.collect()
        shared.Counter("c").add()
        assert (descriptors(), descriptors(made.pid) <= before[1] + 2) == (before[0], True)


def test_a_task_that_is_cancelled_takes_no_message_along():
    async def main():
        with shared.Pipe("p", 0) as quay, shared.Pipe("p", 1) as deck:
            waiting = [asyncio.create_task(deck.arecv(timeout=10)) for _ in range(3)]
            await asyncio.sleep(0)
            await quay.asend("kept")
            for task in waiting[:2]:
                task.cancel()
            await asyncio.gather(*waiting[:2], return_exceptions=True)
            assert await waiting[2] == "kept"
            with pytest.raises(TimeoutError):
                await deck.arecv(timeout=0.001)
            assert not await deck.apoll(0)
            quay.close()
            assert await deck.apoll(5)
            with pytest.raises(EOFError):
                await deck.arecv()

    with broker():
        asyncio.run(main())


def test_a_task_that_waits_for_room_goes_on_and_one_whose_place_is_left_hears_it():
    async def main():
        quay, deck = shared.Pipe("p", 0).open(), shared.Pipe("p", 1).open()
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                await quay.asend(b"x" * 50_000, timeout=0)
                count += 1
        sending = asyncio.create_task(quay.asend("through"))
        await asyncio.sleep(0)
        for _ in range(count):
            await deck.arecv(timeout=5)
        await sending
        assert await deck.arecv(timeout=5) == "through"
        waiting = asyncio.create_task(deck.arecv())
        await asyncio.sleep(0)
        shared.leave()
        with pytest.raises(ClosedError):
            await waiting

    with broker():
        asyncio.run(main())


def test_green_handlers_wait_at_one_end_each_for_a_message(place, serving):
    def handler(message, connection):
        with shared.Pipe("p", 1) as deck:
            return json.dumps(deck.recv(timeout=10)).encode()

    with shared.Pipe("p", 0) as quay:
        clients = serving(handler, "green", framing=Lines(), connections=3)
        for client in clients:
            client.send(b"go")
        for number in range(3):
            quay.send(number)
        assert sorted(json.loads(client.receive()) for client in clients) == [0, 1, 2]


@pytest.mark.parametrize("strategy", ["green", "async"])
def test_a_handler_that_waits_at_a_pipe_hears_of_the_broker_s_death(serving, strategy):
    if strategy == "green":

        def handler(message, connection):
            with pytest.raises(BrokerLost):
                shared.Pipe("p", 1).recv()
            return b"1"
    else:

        async def handler(message, connection):
            with pytest.raises(BrokerLost):
                await shared.Pipe("p", 1).arecv()
            return b"1"

    with broker() as made, shared.Pipe("p", 0) as quay:
        quay.send("once")
        client = serving(handler, strategy, framing=Lines())
        with shared.Pipe("p", 1) as deck:
            deck.recv(timeout=5)
        client.send(b"go")
        # The other end is there again, and its handler waits.
        while quay.poll():
            time.sleep(0.001)
        os.kill(made.pid, signal.SIGKILL)
        assert client.receive() == b"1"


def test_a_process_without_descriptors_says_so_and_takes_the_end_later():
    with broker():
        shared.Counter("c").add()
        quay = shared.Pipe("p", 0)
        quay._at()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The connection of the end itself is the last that there is room for.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(soft)) - taken()) + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                quay.open()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with quay, shared.Pipe("p", 1) as deck:
            quay.send("now")
            assert deck.recv(timeout=5) == "now"


def taken():
    return {int(name) for name in os.listdir("/proc/self/fd")}
