"""The guard: limits for single peers and for all, allow and deny, under every strategy."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from contract.conftest import echoed, received, turned_away
from longshore import ClosedError, ConfigError, Limits, Lines, Timeouts
from longshore.config import Proxy
from longshore.events import ConnectionClosed, ConnectionRejected, LimitNear
from longshore.testing import Client

# -- single peers --------------------------------------------------------------------------------------------


def test_a_peer_has_no_more_connections_than_its_limit_and_others_have_theirs(together, serve):
    server = serve(together, limits=Limits(max_connections_per_peer=2, farewell=b"too many\n"))
    with Client(server.url) as first, Client(server.url) as second:
        assert first.request(b"1") == b"1"
        assert second.request(b"2") == b"2"
        assert turned_away(server.url, farewell=b"too many\n")
        rejected = server.events.wait_for(ConnectionRejected)
        assert rejected.limit == "max_connections_per_peer"
        with Client(server.url, source="127.0.0.7") as other:
            assert other.request(b"3") == b"3"
        first.close()
        server.events.wait_for_count(ConnectionClosed, 2)
        with Client(server.url) as third:
            assert third.request(b"4") == b"4"
    assert server.statistics().rejected == 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_who_came_before_there_was_a_limit_for_peers_is_counted_once_there_is_one(kind, longshore_server, tmp_path):
    server = longshore_server(
        echoed, "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{tmp_path}/early", framing=Lines()
    )
    with Client(server.url) as first, Client(server.url) as second:
        for client in (first, second):
            assert client.request(b"early") == b"early"
        server.reconfigure(limits=Limits(max_connections_per_peer=2))
        assert turned_away(server.url)
        assert server.events.wait_for(ConnectionRejected).limit == "max_connections_per_peer"
        first.close()
        server.events.wait_for_count(ConnectionClosed, 1)
        with Client(server.url) as third:
            assert third.request(b"late") == b"late"
            assert turned_away(server.url)
        server.reconfigure(limits=Limits())
        with Client(server.url) as fourth, Client(server.url) as fifth:
            assert fourth.request(b"4") + fifth.request(b"5") == b"45"


def test_whoever_comes_once_there_is_no_limit_for_peers_any_more_may_go_as_well(longshore_server, tmp_path):
    server = longshore_server(
        echoed, f"unix://{tmp_path}/loose", framing=Lines(), limits=Limits(max_connections_per_peer=1)
    )
    with Client(server.url) as first:
        assert first.request(b"1") == b"1"
    server.events.wait_for(ConnectionClosed)
    server.reconfigure(limits=Limits())
    with Client(server.url) as second:
        assert second.request(b"2") == b"2"
    server.events.wait_for_count(ConnectionClosed, 2)
    server.reconfigure(limits=Limits(max_connections_per_peer=1))
    with Client(server.url) as third:
        assert third.request(b"3") == b"3"
        assert turned_away(server.url)


def test_a_peer_comes_no_faster_than_its_rate(together, serve, longshore_clock):
    server = serve(together, limits=Limits(connection_rate=3))
    clients = [Client(server.url) for _ in range(3)]
    for client in clients:
        assert client.request(b"in") == b"in"
    assert turned_away(server.url)
    assert server.events.wait_for(ConnectionRejected).limit == "connection_rate"
    longshore_clock.advance(0.4)
    with Client(server.url) as late:
        assert late.request(b"in again") == b"in again"
    for client in clients:
        client.close()


def test_who_is_denied_or_not_allowed_stays_out_and_that_changes_at_run_time(together, serve):
    server = serve(together, limits=Limits(deny=("127.0.0.0/24",)))
    assert turned_away(server.url)
    assert server.events.wait_for(ConnectionRejected).limit == "deny"
    server.reconfigure(limits=Limits(allow=("127.0.0.0/8", "::1")))
    with Client(server.url) as good:
        assert good.request(b"hello") == b"hello"
    server.reconfigure(limits=Limits(allow=("10.0.0.0/8",)))
    assert turned_away(server.url)
    assert server.events.wait_for_count(ConnectionRejected, 2)[1].limit == "allow"


def test_peers_of_a_unix_socket_are_known_by_their_user(together, serve, tmp_path):
    path = f"unix://{tmp_path}/guard"
    server = serve(together, echoed, path, limits=Limits(allow=(f"uid:{os.getuid()}",), max_connections_per_peer=1))
    with Client(server.url) as good:
        assert good.request(b"hello") == b"hello"
        assert turned_away(server.url)
    assert server.events.wait_for(ConnectionRejected).limit == "max_connections_per_peer"
    server.reconfigure(limits=Limits(deny=("unix",)))
    assert turned_away(server.url)
    assert server.events.wait_for_count(ConnectionRejected, 2)[1].limit == "deny"


def test_a_limit_that_is_near_is_told_once(longshore_server):
    server = longshore_server(echoed, framing=Lines(), limits=Limits(max_connections_per_peer=5))
    clients = [Client(server.url) for _ in range(5)]
    for client in clients:
        assert client.request(b"in") == b"in"
    (near,) = server.events.of(LimitNear)
    assert (near.limit, near.value, near.maximum) == ("max_connections_per_peer", 4, 5)
    for client in clients:
        client.close()


def test_a_flood_of_refusals_is_told_in_sums(longshore_server, longshore_clock):
    server = longshore_server(echoed, framing=Lines(), limits=Limits(deny=("127.0.0.1",)))
    for _ in range(50):
        assert turned_away(server.url)
    server.events.wait_for_count(ConnectionRejected, 32)
    longshore_clock.advance(1.1)
    told = server.events.wait_for_count(ConnectionRejected, 33)
    assert sum(event.count for event in told) == 50 == server.statistics().rejected


def test_a_network_that_is_none_is_refused_with_its_place():
    for make in (lambda: Limits(allow=("10.0.0.1/8",)), lambda: Limits(deny=("here",)), lambda: Proxy(trusted=("*",))):
        with pytest.raises(ConfigError, match="is no network"):
            make()
    with pytest.raises(ConfigError, match="must be a tuple of networks"):
        Limits(allow="10.0.0.0/8")


# -- overflow ------------------------------------------------------------------------------------------------


def test_a_full_server_that_rejects_says_farewell(together, serve):
    server = serve(together, limits=Limits(max_connections=1, overflow="reject", farewell=b"full\n"))
    with Client(server.url) as good:
        assert good.request(b"hello") == b"hello"
        assert turned_away(server.url, farewell=b"full\n")
        assert good.request(b"still here") == b"still here"
    assert server.events.wait_for(ConnectionRejected).limit == "max_connections"


def test_a_full_server_that_evicts_makes_room_from_who_is_idle(together, serve):
    server = serve(together, limits=Limits(max_connections=1, overflow="evict-idle"))
    with Client(server.url) as idle:
        assert idle.request(b"hello") == b"hello"
        with Client(server.url) as fresh:
            assert fresh.request(b"mine now") == b"mine now"
        assert idle.recv_until_closed() == b""
    assert server.events.wait_for(ConnectionClosed, lambda event: event.cause == "evicted")


def test_nobody_is_evicted_for_who_may_not_come(together, serve):
    limits = Limits(max_connections=1, overflow="evict-idle", deny=("127.0.0.7",))
    server = serve(together, limits=limits)
    with Client(server.url) as idle:
        assert idle.request(b"hello") == b"hello"
        with Client(server.url, source="127.0.0.7") as denied:
            assert denied.recv_until_closed() == b""
        assert server.events.wait_for(ConnectionRejected).limit == "deny"
        assert idle.request(b"still here") == b"still here"
        server.reconfigure(limits=replace(limits, max_connections_per_peer=1))
        assert turned_away(server.url)
        assert server.events.wait_for_count(ConnectionRejected, 2)[1].limit == "max_connections_per_peer"
        assert idle.request(b"still here") == b"still here"


def test_who_came_for_the_place_of_one_that_does_not_go_is_turned_away_in_the_end(longshore_server):
    clung, may_go = threading.Event(), threading.Event()

    def clings(connection):
        try:
            connection.readline()
        except ClosedError:
            clung.set()
            may_go.wait()

    limits = Limits(max_connections=1, overflow="evict-idle", farewell=b"sorry\n")
    server = longshore_server(clings, strategy="threads", framing=Lines(), limits=limits)
    with Client(server.url), Client(server.url) as fresh:
        assert clung.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert fresh.recv_until_closed() == b"sorry\n"
        may_go.set()
        stopping.join()
    assert server.events.wait_for(ConnectionRejected).limit == "max_connections"


def test_a_full_server_that_pauses_serves_who_waits_once_there_is_room(together, serve):
    server = serve(together, limits=Limits(max_connections=1))
    with Client(server.url) as first, Client(server.url) as second:
        assert first.request(b"hello") == b"hello"
        second.send(b"patient\n")
        first.close()
        assert second.recv_line() == b"patient\n"


# -- timeouts ------------------------------------------------------------------------------------------------


def test_a_message_that_comes_too_slowly_is_a_timeout(framed, serve, longshore_clock):
    server = serve(framed, timeouts=Timeouts(min_rate=100, idle=None, first_byte=None))
    with Client(server.url) as slow:
        assert slow.request(b"hello") == b"hello"
        for count in range(7, 15):
            slow.send(b"x")
            received(server, count)
            longshore_clock.advance(0.6)
        longshore_clock.advance(1)
        assert slow.recv_until_closed() == b""
    closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "timeout"
    assert "min_rate=100" in str(closed.error)


# -- TLS handshakes --------------------------------------------------------------------------------------------


def test_handshakes_beyond_their_limit_are_turned_away(together, serve, certificates):
    server = serve(
        together, echoed, "tls://127.0.0.1:0", tls=certificates.server_tls(), limits=Limits(max_handshakes=1)
    )
    plain = server.url.replace("tls:", "tcp:")
    with Client(plain):
        pause = threading.Event()
        while server.statistics().connections < 1:
            pause.wait(0.001)
        assert turned_away(plain)
    assert server.events.wait_for(ConnectionRejected).limit == "max_handshakes"
    server.events.wait_for(ConnectionClosed)
    with Client(server.url) as good:
        assert good.request(b"hello") == b"hello"
