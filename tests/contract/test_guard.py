"""The guard: limits for single peers and for all, allow and deny, PROXY headers, under every strategy."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from longshore import ClosedError, ConfigError, Limits, Lines, Timeouts
from longshore.config import Proxy
from longshore.events import ConnectionClosed, ConnectionOpened, ConnectionRejected, HandlerFailed, LimitNear
from longshore.proxy import ProxyError, header
from longshore.testing import Client

CLIENT, SERVICE = ("203.0.113.9", 4711), ("198.51.100.1", 443)


def named(message, connection):
    return f"{connection.peer} via {connection.via}".encode()


def echoed(message, connection):
    return message


def who_asks(shape):
    """An answer that says who is known as the peer; class handlers see sockets and addresses instead."""
    return named if shape.kind != "class" else echoed


def turned_away(url, *, farewell=b""):
    """Whether a server closes a connection at once, with just its farewell."""
    with Client(url) as client:
        try:
            return client.recv_until_closed() == farewell
        except ConnectionResetError:
            return True


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


def test_who_waits_for_a_place_is_counted_by_a_limit_for_peers_that_comes_meanwhile(longshore_server):
    clung, may_go = threading.Event(), threading.Event()

    def clings(connection):
        try:
            connection.sendall(connection.readline())
        except ClosedError:
            clung.set()
            may_go.wait()

    limits = Limits(max_connections=2, overflow="evict-idle")
    server = longshore_server(
        clings, strategy="threads", framing=Lines(), limits=limits, proxy=Proxy(trusted=("127.0.0.1",))
    )
    with Client(server.url, source="127.0.0.7"), Client(server.url) as proxied:
        with Client(server.url, source="127.0.0.8") as fresh:
            assert clung.wait(10)
            server.reconfigure(limits=replace(limits, max_connections_per_peer=1))
            proxied.send(header(CLIENT, SERVICE))
            server.events.wait_for(ConnectionOpened, lambda event: event.peer == "203.0.113.9:4711")
            may_go.set()
            fresh.send(b"fresh\n")
            assert fresh.recv_until_closed() == b"fresh\n"
        server.events.wait_for(ConnectionClosed, lambda event: event.peer.startswith("127.0.0.8:"))
        with Client(server.url, source="127.0.0.8") as again:
            again.send(b"again\n")
            assert again.recv_until_closed() == b"again\n"


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


def total_received(server):
    return sum(session.traffic()[0] for session in tuple(server._admission.sessions))


def received(server, count):
    pause = threading.Event()
    for _ in range(5000):
        if total_received(server) >= count or server.events.of(ConnectionClosed):
            return
        pause.wait(0.001)
    raise AssertionError(f"the server has not received {count} bytes")


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


# -- PROXY ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_a_trusted_proxy_says_who_the_peer_is(shape, serve, version):
    server = serve(shape, who_asks(shape), proxy=Proxy(trusted=("127.0.0.1",)))
    with Client(server.url) as client:
        client.send(header(CLIENT, SERVICE, version) + b"hello\n")
        line = client.recv_line()
    if shape.kind != "class":
        assert line.startswith(b"203.0.113.9:4711 via 127.0.0.1:")
    opened = server.events.wait_for(ConnectionOpened)
    assert opened.peer == "203.0.113.9:4711"
    assert opened.via.startswith("127.0.0.1:")
    assert server.events.wait_for(ConnectionClosed).peer == "203.0.113.9:4711"
    assert server.events.of(HandlerFailed) == []


@pytest.mark.parametrize("strategy", ["threads", "inline", "green", "processes"])
def test_a_class_handler_gets_the_peers_address_behind_a_proxy(strategy, longshore_server):
    import socketserver

    class Tell(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(repr(self.client_address).encode())

    server = longshore_server(Tell, strategy=strategy, proxy=Proxy(trusted=("127.0.0.0/8",)))
    with Client(server.url) as client:
        client.send(header(("2001:db8::7", 99), ("2001:db8::1", 443)))
        assert client.recv_until_closed() == b"('2001:db8::7', 99)"


def test_a_header_in_single_bytes_and_tls_behind_it(shape, serve, certificates):
    server = serve(
        shape, echoed, "tls://127.0.0.1:0", tls=certificates.server_tls(), proxy=Proxy(trusted=("127.0.0.1",))
    )
    with Client(server.url.replace("tls:", "tcp:")) as client:
        for octet in header(CLIENT, SERVICE, fields={"authority": b"localhost"}, checksum=True):
            client.send(bytes([octet]))
        client.start_tls(certificates.client_context())
        assert client.request(b"hello") == b"hello"
    assert server.events.wait_for(ConnectionOpened).peer == "203.0.113.9:4711"


def test_a_proxys_own_connection_is_served_as_its_own(together, serve):
    server = serve(together, named, proxy=Proxy(trusted=("127.0.0.1",)))
    with Client(server.url) as client:
        client.send(header(None, None) + b"hello\n")
        assert client.recv_line().startswith(b"127.0.0.1:")


def test_the_place_of_a_proxied_connection_without_a_handshake_is_the_next_ones(longshore_server, certificates):
    server = longshore_server(
        echoed,
        "tls://127.0.0.1:0",
        framing=Lines(),
        tls=certificates.server_tls(),
        proxy=Proxy(trusted=("127.0.0.1",)),
        limits=Limits(max_connections=2, max_handshakes=1, overflow="pause"),
        timeouts=Timeouts(handshake=None),
    )
    url = server.url.replace("tls:", "tcp:")
    with Client(url) as slow:
        slow.send(header(None, None))
        server.events.wait_for(LimitNear, lambda event: event.limit == "max_handshakes")
        with Client(url) as second, Client(url) as third:
            third.send(header(CLIENT, SERVICE))
            second.send(header(None, None))
            for client in (second, third):
                assert client.recv_until_closed() == b""
    rejected = server.events.wait_for_count(ConnectionRejected, 2)
    assert [event.limit for event in rejected] == ["max_handshakes"] * 2


def test_limits_are_for_whoever_is_behind_the_proxy(together, serve):
    limits = Limits(max_connections_per_peer=1, deny=("203.0.113.66",))
    server = serve(together, limits=limits, proxy=Proxy(trusted=("127.0.0.1",)))
    with Client(server.url) as first, Client(server.url) as other, Client(server.url) as again:
        first.send(header(CLIENT, SERVICE) + b"1\n")
        assert first.recv_line() == b"1\n"
        other.send(header(("203.0.113.10", 1), SERVICE) + b"2\n")
        assert other.recv_line() == b"2\n"
        again.send(header(CLIENT, SERVICE))
        assert again.recv_until_closed() == b""
        rejected = server.events.wait_for(ConnectionRejected)
        assert (rejected.limit, rejected.peer) == ("max_connections_per_peer", "203.0.113.9:4711")
    with Client(server.url) as denied:
        denied.send(header(("203.0.113.66", 1), SERVICE))
        assert denied.recv_until_closed() == b""
    assert server.events.wait_for_count(ConnectionRejected, 2)[1].limit == "deny"


BAD = {
    "none at all": (b"hello\n", "no PROXY header"),
    "no end": (b"PROXY TCP4 " + b"1" * 200, "no end within 107"),
    "malformed": (b"PROXY TCP4 1.2.3.4 nobody 1 2\r\n", "malformed"),
    "oversized": (header(CLIENT, SERVICE, fields={"authority": b"x" * 5000}), "over Proxy.max_header=4096"),
    "wrong sum": (header(CLIENT, SERVICE, checksum=True)[:-1] + b"!", "checksum"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_header_costs_its_connection_only(together, serve, kind):
    server = serve(together, proxy=Proxy(trusted=("127.0.0.1",)))
    octets, words = BAD[kind]
    with Client(server.url) as good, Client(server.url) as bad:
        good.send(header(CLIENT, SERVICE) + b"1\n")
        assert good.recv_line() == b"1\n"
        bad.send(octets)
        closed = server.events.wait_for(ConnectionClosed)
        assert closed.cause == "proxy"
        assert isinstance(closed.error, ProxyError)
        assert words in str(closed.error)
        assert good.request(b"2") == b"2"
    assert server.events.of(HandlerFailed) == []


def test_a_header_that_is_cut_off_or_never_comes_costs_its_connection(together, serve, longshore_clock):
    server = serve(together, proxy=Proxy(trusted=("127.0.0.1",), timeout=5))
    with Client(server.url) as cut:
        cut.send(header(CLIENT, SERVICE)[:20])
        cut.half_close()
        closed = server.events.wait_for(ConnectionClosed)
        assert closed.cause == "proxy"
        assert "after 20 bytes" in str(closed.error)
    with Client(server.url) as silent:
        pause = threading.Event()
        while not server.statistics().connections:
            pause.wait(0.001)
        longshore_clock.advance(6)
        assert silent.recv_until_closed() == b""
    assert "Proxy.timeout=5" in str(server.events.wait_for_count(ConnectionClosed, 2)[1].error)


@pytest.mark.parametrize("cut", [0, 1, 9])
@pytest.mark.parametrize("version", [1, 2])
def test_a_forged_header_costs_its_connection(shape, serve, version, cut):
    server = serve(shape, proxy=Proxy(trusted=("10.9.8.7",)))
    octets = header(CLIENT, SERVICE, version) + b"hello\n"
    with Client(server.url) as forger:
        if cut:
            forger.send(octets[:cut])
            received(server, cut)
        forger.send(octets[cut:])
        closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "proxy"
    assert closed.peer.startswith("127.0.0.1:")
    assert closed.peer in str(closed.error)
    assert "Proxy.trusted" in str(closed.error)
    assert server.events.of(HandlerFailed) == []
    if shape.strategy != "inline":
        with Client(server.url) as direct:
            assert direct.request(b"PROXYHELLO") == b"PROXYHELLO"


def test_a_stop_ends_those_whose_header_is_not_there_yet(together, serve):
    server = serve(together, proxy=Proxy(trusted=("127.0.0.1",)))
    with Client(server.url) as waiting:
        pause = threading.Event()
        while not server.statistics().connections:
            pause.wait(0.001)
        report = server.drain()
        assert waiting.recv_until_closed() == b""
    assert (report.finished, report.cut) == (1, 0)


def test_a_unix_socket_may_be_a_proxys(together, serve, tmp_path):
    server = serve(together, named, f"unix://{tmp_path}/proxied", proxy=Proxy(trusted=("unix",)))
    with Client(server.url) as client:
        client.send(header(CLIENT, SERVICE) + b"hello\n")
        assert client.recv_line() == b"203.0.113.9:4711 via unix peer\n"


def test_a_proxy_must_be_named():
    with pytest.raises(ConfigError, match="there is no proxy to believe"):
        Proxy()
    with pytest.raises(ConfigError, match="must be at least 232"):
        Proxy(trusted=("10.0.0.1",), max_header=100)


# -- memory --------------------------------------------------------------------------------------------------


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


# -- evicting behind a proxy -----------------------------------------------------------------------------------


@pytest.fixture
def full_behind_a_proxy(longshore_server):
    """A server behind a proxy whose only place somebody has who is idle."""
    limits = Limits(max_connections=1, overflow="evict-idle", deny=("192.0.2.0/24",))
    server = longshore_server(named, framing=Lines(), limits=limits, proxy=Proxy(trusted=("127.0.0.1",)))
    with Client(server.url) as idle:
        idle.send(header(CLIENT, SERVICE))
        assert idle.request(b"?") == b"203.0.113.9:4711 via " + b"127.0.0.1:%d" % idle.socket.getsockname()[1]
        yield server, idle


def test_nobody_is_evicted_for_a_client_of_a_proxy_that_may_not_come(full_behind_a_proxy):
    server, idle = full_behind_a_proxy
    with Client(server.url) as denied:
        denied.send(header(("192.0.2.5", 80), SERVICE))
        assert denied.recv_until_closed() == b""
    assert server.events.wait_for(ConnectionRejected).limit == "deny"
    with Client(server.url) as gone:
        gone.send(b"PROXY ")
    assert server.events.wait_for(ConnectionClosed).cause == "proxy"
    assert idle.request(b"?").startswith(b"203.0.113.9:4711")
    assert len(server.events.of(ConnectionClosed)) == 1
    with Client(server.url) as other:
        other.send(header(("203.0.113.10", 81), SERVICE))
        assert other.request(b"?").startswith(b"203.0.113.10:81")
        assert idle.recv_until_closed() == b""
    evicted, left = server.events.wait_for_count(ConnectionClosed, 3)[1:]
    assert (evicted.cause, left.cause) == ("evicted", "peer closed")
    assert (server.statistics().accepted, server.statistics().rejected) == (2, 1)


def test_a_place_that_is_left_meanwhile_is_for_whom_the_proxy_brings(full_behind_a_proxy):
    server, idle = full_behind_a_proxy
    with Client(server.url) as other:
        told = header(("203.0.113.10", 81), SERVICE)
        other.send(told[:4])
        idle.close()
        assert server.events.wait_for(ConnectionClosed).cause == "peer closed"
        other.send(told[4:])
        assert other.request(b"?").startswith(b"203.0.113.10:81")


def test_a_server_that_stops_ends_whoever_waits_for_a_proxys_word(full_behind_a_proxy):
    server, idle = full_behind_a_proxy
    with Client(server.url) as other:
        other.send(header(CLIENT, SERVICE)[:4])
        assert idle.request(b"?")
        server.stop()
        assert other.recv_until_closed() == b""
