"""Behind a proxy: whom its PROXY header names is the peer, for handlers and for the guard, under every strategy."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from contract.conftest import echoed, received
from longshore import ClosedError, ConfigError, Limits, Lines, Timeouts
from longshore.config import Proxy
from longshore.events import ConnectionClosed, ConnectionOpened, ConnectionRejected, HandlerFailed, LimitNear
from longshore.proxy import ProxyError, header
from longshore.testing import Client

CLIENT, SERVICE = ("203.0.113.9", 4711), ("198.51.100.1", 443)


def named(message, connection):
    return f"{connection.peer} via {connection.via}".encode()


def who_asks(shape):
    """An answer that says who is known as the peer; class handlers see sockets and addresses instead."""
    return named if shape.kind != "class" else echoed


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
