"""What a server answers from outside, under every strategy, over a real socket pair."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from longshore import Lines, Server, connect
from longshore.config import Limits, Timeouts
from longshore.control.agent import Agent
from longshore.events import ConnectionRejected
from longshore.supervisor.meter import COUNTERS, GAUGES, HISTOGRAMS, Meter
from longshore.supervisor.region import Region, SharedCounters


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


async def echo_async(connection):
    while data := await connection.recv(65536):
        await connection.sendall(data)


def shout(message, connection):
    return message.upper()


SERVERS = [
    ("reactor", shout, Lines()),
    ("threads", echo, None),
    ("threads", shout, Lines()),
    ("green", echo, None),
    ("async", echo_async, None),
    ("inline", echo, None),
    ("processes", echo, None),
]
each_strategy = pytest.mark.parametrize(
    ("strategy", "handler", "framing"), SERVERS, ids=[f"{name}-{handler.__name__}" for name, handler, _ in SERVERS]
)


def call(client, data=b"hello\n"):
    client.sendall(data)
    assert client.read_exactly(len(data)).lower() == data.lower()


def until(look, wanted):
    """Look again until it is so: a client has its answer before the handler waits for the next one."""
    while not wanted(found := look()):
        pass
    return found


def one(ask, **arguments):
    (row,) = ask("connections", **arguments)["connections"]
    return row


@each_strategy
def test_a_connection_is_shown_with_its_peer_age_bytes_and_state(agent_of, strategy, handler, framing):
    server = Server(handler, "tcp://127.0.0.1:0", strategy=strategy, framing=framing)
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as client:
        call(client)
        row = until(lambda: one(ask), lambda row: row["state"] == "waiting")
        assert row["peer"] == client.local
        assert (row["received"], row["sent"], row["pending"]) == (6, 6, 0)
        assert row["handler"] == server.handler.name
        assert 0 <= row["idle"] <= row["age"] < 10


@each_strategy
def test_the_status_counts_what_is_going_on_and_what_is_over(agent_of, strategy, handler, framing):
    server = Server(handler, "tcp://127.0.0.1:0", strategy=strategy, framing=framing)
    ask = agent_of(server)
    with server:
        with connect(server.addresses[0]) as client:
            call(client)
            status = until(lambda: ask("status"), lambda status: status["sent"] == 6)
            assert status["state"] == "serving"
            assert status["strategy"] == strategy
            assert status["addresses"] == list(server.addresses)
            assert status["connections"] == 1
            assert status["accepted"] == 1
            assert status["received"] == 6


@each_strategy
def test_a_connection_can_be_killed_and_only_that_one(agent_of, strategy, handler, framing):
    server = Server(handler, "tcp://127.0.0.1:0", strategy=strategy, framing=framing)
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as victim:
        call(victim)
        number = one(ask, peer=victim.local)["id"]
        assert ask("kill", number=number) == {"peer": victim.local}
        assert victim.recv(1) == b""
        with connect(server.addresses[0]) as other:
            call(other)
        victim.close()
        until(lambda: ask("connections")["total"], lambda total: total == 0)
        again = ask.answer("kill", number=number)
        assert not again["ok"]
        assert "no connection" in again["error"]
        assert "ctl connections" in again["hint"]


def test_connections_are_sorted_by_what_is_asked_and_cut_to_the_limit(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        clients = [connect(server.addresses[0]) for _ in range(4)]
        for size, client in enumerate(clients, start=1):
            call(client, b"x" * size)
        answer = ask("connections", sort="received", limit=2)
        assert answer["total"] == 4
        assert [row["received"] for row in answer["connections"]] == [4, 3]
        oldest = ask("connections", sort="age")["connections"]
        assert [row["peer"] for row in oldest] == [client.local for client in clients]
        wrong = ask.answer("connections", sort="recieved")
        assert not wrong["ok"]
        assert wrong["hint"] == "Did you mean received?"
        for client in clients:
            client.close()


def test_a_connection_whose_handler_works_is_active(agent_of):
    entered, go_on = threading.Event(), threading.Event()

    def work(connection):
        connection.recv(1)
        entered.set()
        go_on.wait(10)

    server = Server(work, "tcp://127.0.0.1:0", strategy="threads")
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as client:
        client.sendall(b"x")
        assert entered.wait(10)
        row = one(ask)
        assert (row["state"], row["idle"]) == ("active", None)
        go_on.set()


def test_limits_and_timeouts_are_read_by_the_names_of_their_flags(agent_of):
    limits = Limits(max_connections=7, farewell=b"full\n")
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green", limits=limits, timeouts=Timeouts(idle=3))
    ask = agent_of(server)
    with server:
        values = ask("limits")
        assert values["max_connections"] == 7
        assert values["farewell"] == "full\n"
        assert values["idle_timeout"] == 3
        assert values["lifetime_timeout"] is None


def test_a_limit_that_is_turned_holds_for_the_next_connection(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green", limits=Limits(overflow="reject"))
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as client:
        call(client)
        assert ask("turn", values={"max_connections": "1", "farewell": r"full\n"})["max_connections"] == 1
        with connect(server.addresses[0]) as other:
            assert other.recv(10) == b"full\n"
        call(client)


def test_of_limits_that_cannot_be_used_none_is_turned(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green", limits=Limits(max_connections=7))
    ask = agent_of(server)
    with server:
        answer = ask.answer("turn", values={"max_connections": "9", "idle_timeout": "soon"})
        assert not answer["ok"]
        assert "'soon' is not a number" in answer["error"]
        assert ask.answer("turn", values={"max_conections": "9"})["hint"] == "Did you mean max_connections?"
        assert ask("limits")["max_connections"] == 7


def test_a_paused_server_says_so_and_accepts_again_when_it_is_resumed(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        assert ask.told_next("state")["state"] == "serving"
        ask("pause")
        assert ask.told_next("state")["state"] == "paused"
        assert ask("status")["state"] == "paused"
        ask("resume")
        assert ask.told_next("state")["state"] == "serving"
        with connect(server.addresses[0]) as client:
            call(client)


def test_a_drain_is_told_and_ends_the_server_and_its_socket(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as client:
        call(client)
        ask("drain", timeout=5)
        assert ask.told_next("state")["state"] == "serving"
        assert ask.told_next("state")["state"] == "draining"
        server.wait_stopped()
        assert server.report.finished == 1
        assert ask.socket.recv(1 << 16) == b""


def test_a_trace_tells_the_events_of_one_peer_only(agent_of):
    def stumble(connection):
        if connection.recv(10) == b"bad":
            raise ValueError("no such thing")

    server = Server(stumble, "tcp://127.0.0.1:0", "tcp://[::1]:0", strategy="green")
    ask = agent_of(server)
    with server:
        assert ask("trace", peer="127.0.0.1", trace=5) == {"open": []}
        with connect(server.addresses[1]) as stranger:
            stranger.sendall(b"bad")
            stranger.recv(1)
        with connect(server.addresses[0]) as client:
            client.sendall(b"bad")
            client.recv(1)
            seen = [ask.told_next("trace") for _ in range(3)]
        assert [each["event"]["event"] for each in seen] == ["ConnectionOpened", "HandlerFailed", "ConnectionClosed"]
        assert {each["event"]["peer"] for each in seen} == {client.local}
        assert {each["trace"] for each in seen} == {5}
        assert seen[1]["event"]["error"] == "ValueError: no such thing"
        assert "test_agent.py" in seen[1]["event"]["at"]
        assert seen[2]["event"]["cause"] == "handler failed"
        assert ask("untrace", trace=5) == {"dropped": 0}


def test_a_trace_of_a_peer_that_is_connected_names_its_connections(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server, connect(server.addresses[0]) as client:
        call(client)
        number = one(ask)["id"]
        assert ask("trace", peer=client.local, trace=1) == {"open": [number]}


def test_traces_have_an_end_to_their_number_and_each_control_process_has_its_own(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        for number in range(16):
            ask("trace", peer="127.0.0.1", trace=number)
        refused = ask.answer("trace", peer="127.0.0.1", trace=99)
        assert not refused["ok"]
        assert "16 traces" in refused["error"]
        other, theirs = socket.socketpair()
        server.reactor.post(Agent, server, theirs)
        other.sendall(b'{"id": 1, "verb": "trace", "trace": 99, "peer": "127.0.0.1"}\n')
        with other.makefile("rb") as lines:
            told = [json.loads(lines.readline()) for _ in range(2)]
        assert told == [{"event": "state", "state": "serving"}, {"id": 1, "ok": True, "result": {"open": []}}]
        other.close()


def test_a_listener_that_does_not_keep_up_misses_events_and_is_told_how_many(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        ask("trace", peer="127.0.0.1", trace=1)
        # Nobody reads the socket meanwhile; it is told of more than fits into it.
        flooded = threading.Event()
        event = ConnectionRejected(peer="127.0.0.1:1", local="x" * 100, limit="max_connections")
        server.reactor.post(lambda: [ask.agent._traces.saw(event) for _ in range(20_000)])
        server.reactor.post(flooded.set)
        assert flooded.wait(15)
        status = ask("status")
        assert status["state"] == "serving"
        seen = sum("trace" in each for each in ask.told)
        assert 0 < seen < 20_000
        # Now there is room again.
        server.reactor.post(ask.agent._traces.saw, event)
        assert until(ask.line, lambda message: "trace" in message)["dropped"] == 20_000 - seen


def test_garbage_on_the_socket_is_passed_over(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        ask.socket.sendall(b'{"id": 1, "verb": "sta\n[1]\n\xff\n"text"\n{}\n')
        assert ask.line() == {"event": "state", "state": "serving"}
        assert ask.line() == {"id": None, "ok": False, "error": "an agent has no verb ''", "hint": ""}
        wrong = ask.answer("status", unknown=1)
        assert not wrong["ok"]
        assert "cannot be understood" in wrong["error"]
        assert ask("status")["state"] == "serving"


def test_a_control_process_that_dies_leaves_the_server_as_it_was(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        ask("status")
        ask.socket.shutdown(socket.SHUT_RDWR)
        with connect(server.addresses[0]) as client:
            call(client)


def test_an_agent_is_no_connection_of_its_server(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        assert ask("status")["connections"] == 0
        assert server.statistics().accepted == 0
        assert ask("connections") == {"total": 0, "connections": []}


def test_figures_are_read_without_asking_and_tell_how_connections_ended(agent_of):
    def stumble(connection):
        if connection.recv(10) == b"bad":
            raise ValueError("no such thing")

    region = Region(COUNTERS, GAUGES, HISTOGRAMS)
    meter = Meter(region.column(region.take_slot(1)))
    server = Server(stumble, "tcp://127.0.0.1:0", strategy="green")
    server.subscribe(meter)
    ask = agent_of(server, meter)
    with server:
        for data in (b"bad", b"good", b"good"):
            with connect(server.addresses[0]) as client:
                client.sendall(data)
                client.recv(1)
        ask("status")
    total = SharedCounters(region).total()
    assert (total["closed:handler failed"], total["closed:finished"], total["failures"]) == (1, 2, 1)
    assert (total["accepted"], total["bytes_received"]) == (3, 11)
    assert total["connection_seconds"].count == 3


def test_a_native_reactor_tells_how_long_messages_took_and_of_the_servers_only(agent_of):
    region = Region(COUNTERS, GAUGES, HISTOGRAMS)
    meter = Meter(region.column(region.take_slot(1)))
    server = Server(shout, "tcp://127.0.0.1:0", framing=Lines())
    ask = agent_of(server, meter)
    with server:
        native = server.reactor.name == "native"
        with connect(server.addresses[0], framing=Lines()) as client:
            for _ in range(3):
                assert client.request(b"hello") == b"HELLO"
        for _ in range(5):
            ask("status")
    found = SharedCounters(region).total()["message_seconds"]
    assert found.count == (3 if native else 0)
    assert 0 < found.sum < 10 or not native


def test_json_lines_are_all_that_is_said(agent_of):
    server = Server(echo, "tcp://127.0.0.1:0", strategy="green")
    ask = agent_of(server)
    with server:
        ask.socket.sendall(b'{"id": 7, "verb": "limits"}\n')
        messages = [ask.line(), ask.line()]
        assert messages[0] == {"event": "state", "state": "serving"}
        assert messages[1]["id"] == 7
        assert json.dumps(messages[1])
