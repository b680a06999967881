"""`limits`, `timeouts` and `tls`: three class attributes that any server of this module understands, and its end."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
import trustme

from dropin.servers import Upper, ask, client_of, make, served
from longshore import TLS, ConfigError, Limits, Timeouts, socketserver
from longshore.events import ConnectionClosed, ConnectionOpened
from longshore.testing import Clock, no_leaks

# Servers serve on threads here, and ForkingMixIn forks all the same: since Python 3.12 that is worth a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


def test_no_timeout_is_set_unless_somebody_sets_it():
    assert socketserver.TCPServer.timeouts == socketserver.BaseServer.timeouts
    assert {getattr(socketserver.TCPServer.timeouts, name) for name in Timeouts.__dataclass_fields__} == {None}


def test_tls_is_one_attribute(serve, manner, server_context, client_context):
    server = serve(manner, tls=TLS(context=server_context))
    with client_of(server) as client:
        client.start_tls(client_context)
        assert client.request(b"hello") == b"HELLO"
        client.half_close()
    if manner != "children":
        assert server.events.wait_for(ConnectionOpened).tls in ("TLSv1.2", "TLSv1.3")


def test_a_client_that_speaks_no_tls_costs_its_own_connection(serve, manner, server_context, client_context, capfd):
    server = serve(manner, tls=TLS(context=server_context))
    with client_of(server) as bad:
        bad.send(b"GET / HTTP/1.1\r\n\r\n")
        bad.half_close()
        bad.recv_until_closed()
    with client_of(server) as good:
        good.start_tls(client_context)
        assert good.request(b"hello") == b"HELLO"
        good.half_close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [True, "cert.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)])
def test_a_server_whose_tls_means_something_else_does_not_serve_in_clear(wrong):
    with no_leaks(), make("inline", tls=wrong) as server, pytest.raises(ConfigError, match=r"InlineServer\.tls="):
        server.serve_forever()


def test_limits_and_timeouts_that_mean_something_else_are_left_alone(serve, manner):
    server = serve(manner, limits={"rows": 3}, timeouts=[1, 2, 3])
    assert ask(server, b"hello") == b"HELLO"


def test_a_silent_client_is_cut_when_its_time_is_over(serve, manner):
    if manner == "children":
        # Their clock is their own, and real.
        server = serve(manner, timeouts=Timeouts(first_byte=0.05))
        with client_of(server) as client:
            assert client.recv_until_closed() == b""
        return
    clock = Clock()
    with no_leaks():
        server = make(manner, timeouts=Timeouts(first_byte=60, linger=None))
        server._longshore.clock = clock
        with served(server), client_of(server) as client:
            server.events.wait_for(ConnectionOpened)
            clock.advance(61)
            assert client.recv_until_closed() == b""
            closed = server.events.wait_for(ConnectionClosed)
            assert closed.cause == "timeout"


def test_no_more_connections_than_the_limit_are_served_at_once(serve):
    server = serve("green", limits=Limits(max_connections=2))
    with client_of(server) as first, client_of(server) as second, client_of(server) as third:
        assert first.request(b"first") == b"FIRST"
        assert second.request(b"second") == b"SECOND"
        third.send(b"third\n")
        first.half_close()
        assert first.recv_until_closed() == b""
        first.close()
        assert third.recv_line() == b"THIRD\n"


def test_a_drain_reports_who_finished_and_who_was_cut():
    entered = threading.Event()

    class Slow(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if self.rfile.readline() == b"slow\n":
                entered.set()
                self.rfile.readline()

    with no_leaks():
        server = make("threads", handler=Slow)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with client_of(server) as idle, client_of(server) as busy:
            busy.send(b"slow\nhalf a")
            assert entered.wait(5)
            report = server.drain(0.05)
            assert idle.recv_until_closed() == b""
            assert busy.recv_until_closed() == b""
        thread.join()
    assert (report.finished, report.cut, report.abandoned) == (1, 1, ())


def test_server_close_in_a_handler_ends_the_server(manner):
    if manner == "children":
        pytest.skip("a child has a copy of the server, and closes that")

    class Closing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()
            self.server.server_close()

    with no_leaks():
        server = make(manner, handler=Closing)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with client_of(server) as client:
            assert client.recv_until_closed() == b""
        thread.join()
        server.server_close()


def test_a_server_can_serve_again_after_shutdown(manner):
    with no_leaks(), make(manner) as server:
        for number in range(3):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert ask(server, b"%d" % number) == b"%d" % number
            server.shutdown()
            thread.join()


def test_a_closed_server_says_so():
    server = make("inline")
    server.server_close()
    with pytest.raises(ValueError, match="closed"):
        server.serve_forever()


def test_a_detached_request_is_the_handlers_own_business(serve):
    taken: list[Any] = []
    told = threading.Event()

    class Taking(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            taken.append(self.request.detach())
            told.set()

    import socket

    server = serve("threads", handler=Taking, limits=Limits(max_connections=1))
    for _ in range(3):
        with client_of(server) as client:
            assert told.wait(5)
            told.clear()
            with socket.socket(fileno=taken.pop()) as detached:
                detached.sendall(b"mine\n")
            assert client.recv_until_closed() == b"mine\n"


def test_a_server_of_the_parent_serves_in_a_child_too():
    import os

    with make("threads") as server:
        assert_served_in_parent(server)
        child = os.fork()
        if not child:
            status = 1
            try:
                server.handle_request()
                server.server_close()
                status = 0
            finally:
                os._exit(status)
        assert ask(server, b"hello") == b"HELLO"
        assert os.waitpid(child, 0)[1] == 0


def assert_served_in_parent(server: Any) -> None:
    """Serve once here, so that there is something which a child must not use."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert ask(server, b"first") == b"FIRST"
    server.shutdown()
    thread.join()


def test_the_handler_classes_are_the_standard_ones():
    import socketserver as standard

    assert socketserver.StreamRequestHandler is standard.StreamRequestHandler
    assert issubclass(Upper, standard.BaseRequestHandler)
