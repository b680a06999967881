"""The memory budget: who holds the most ends, or nothing more is taken in; and what is told as a limit comes near."""

from __future__ import annotations

import threading

import pytest

from contract.conftest import received, total_received, turned_away
from longshore import Limits, Lines, Timeouts
from longshore.events import ConnectionClosed, ConnectionOpened, ConnectionRejected, HandlerFailed, LimitNear
from longshore.testing import Client


def end_after_looks(server, clock):
    """The end of a connection that holds too much, once the server has come to hold it, which may take a while."""
    for _ in range(100):
        clock.advance(0.3)
        try:
            return server.events.wait_for(ConnectionClosed, timeout=0.2)
        except AssertionError:
            continue
    return server.events.wait_for(ConnectionClosed)


def test_above_the_memory_budget_those_who_hold_the_most_are_ended(together, serve, longshore_clock):
    if together.blocks and together.kind == "function":
        pytest.skip("such a handler waits with its data itself; of ours nothing is pending")
    limits = Limits(max_pending_bytes=256 * 1024, memory_budget=100 * 1024)
    server = serve(together, limits=limits, timeouts=Timeouts(write=None))
    with Client(server.url) as good, Client(server.url, receive_buffer=4096) as deaf:
        assert good.request(b"hello") == b"hello"
        deaf.stall()
        deaf.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:
                deaf.socket.send(b"x" * 1023 + b"\n")
        closed = end_after_looks(server, longshore_clock)
        assert closed.cause == "limit"
        assert "Limits.memory_budget=102400" in str(closed.error)
        assert server.events.wait_for(LimitNear, lambda event: event.limit == "memory_budget").maximum == 102400
        assert good.request(b"still here") == b"still here"
    assert server.events.of(HandlerFailed) == []


def test_at_the_memory_budget_nothing_more_is_taken_in_and_nobody_ends_as_long_as_that_helps(
    longshore_server, longshore_clock
):
    began, may_go = threading.Semaphore(0), threading.Event()

    def waits(message, connection):
        if message == b"wait":
            began.release()
            may_go.wait()
        return message

    limits = Limits(memory_budget=100 * 1024, farewell=b"no memory\n")
    server = longshore_server(waits, strategy="threads", framing=Lines(), limits=limits)

    def in_turns():
        for _ in range(2):
            turned = threading.Event()
            server.reactor.post(turned.set)
            turned.wait()

    with Client(server.url) as full, Client(server.url) as other, Client(server.url) as good:
        for client, size in (full, 60), (other, 50):
            client.send(b"wait\n")
            assert began.acquire(timeout=10)
            client.send(b"x" * (size * 1024 - 1) + b"\n")
        assert good.request(b"hello") == b"hello"
        received(server, 2 * 5 + 110 * 1024 + 6)
        longshore_clock.advance(0.3)
        assert server.events.wait_for(LimitNear).limit == "memory_budget"
        assert turned_away(server.url, farewell=b"no memory\n")
        assert server.events.wait_for(ConnectionRejected).limit == "memory_budget"
        before = total_received(server)
        other.send(b"last\n")
        in_turns()
        assert total_received(server) == before
        assert good.request(b"still here") == b"still here"
        may_go.set()
        for client, size in (full, 60), (other, 50):
            assert client.recv_line() == b"wait\n"
            assert len(client.recv_line()) == size * 1024
        longshore_clock.advance(0.3)
        assert other.recv_line() == b"last\n"
        with Client(server.url) as late:
            assert late.request(b"me too") == b"me too"
    assert [event.cause for event in server.events.of(ConnectionClosed)].count("limit") == 0


def test_output_that_is_not_taken_is_told_of_once_it_comes_near_its_limit(together, serve):
    if together.blocks and together.kind == "function" and together.strategy != "processes":
        pytest.skip("what such a handler sends is the kernel's, or it waits")
    server = serve(together, limits=Limits(max_pending_bytes=256 * 1024), timeouts=Timeouts(write=None))
    with Client(server.url, receive_buffer=4096) as deaf:
        assert deaf.request(b"hello") == b"hello"
        deaf.stall()
        while not server.events.of(LimitNear):
            server.broadcast(b"x" * 60_000)
        assert server.events.of(LimitNear)[0].limit == "max_pending_bytes"
        for _ in range(50):
            server.broadcast(b"x" * 60_000)
        (near,) = server.events.of(LimitNear)
        assert near.value >= 0.8 * near.maximum == 0.8 * 256 * 1024
        deaf.reset()


@pytest.mark.parametrize("strategy", ["threads", "processes"])
def test_broadcasts_that_nobody_takes_count_for_the_budget(strategy, longshore_server, longshore_clock):
    def wait(connection):
        for _message in connection:
            pass

    limits = Limits(max_pending_bytes=1 << 22, memory_budget=1 << 20)
    server = longshore_server(wait, framing=Lines(), strategy=strategy, limits=limits, timeouts=Timeouts(write=None))
    with Client(server.url, receive_buffer=4096) as deaf:
        server.events.wait_for(ConnectionOpened)
        for _ in range(200):
            server.broadcast(b"x" * 60_000)
        closed = end_after_looks(server, longshore_clock)
        assert closed.cause == "limit"
        deaf.reset()
