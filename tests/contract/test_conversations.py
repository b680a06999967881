"""Bytes go in, answers come out: the same under every strategy, with every shape of handler."""

from __future__ import annotations

import functools
import http.server
import socketserver
import threading
from typing import Any

import pytest

from longshore import BrokerLost, LengthPrefixed, Limits, Lines, MessageHandler, PeerClosed, ReadTimeout, connect
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.testing import Client, connected_pair
from longshore.tls import TLSError


def test_a_line_is_echoed(shape, serve):
    server = serve(shape)
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"


def test_a_line_is_echoed_over_a_unix_socket(shape, serve, tmp_path):
    server = serve(shape, lambda message, _: message.upper(), f"unix://{tmp_path}/echo")
    with Client(server.url) as client:
        assert client.request(b"hello") == b"HELLO"


def test_a_line_is_echoed_over_an_abstract_unix_socket(shape, serve):
    server = serve(shape, lambda message, _: message.upper(), "unix://@longshore-test-echo")
    with Client(server.url) as client:
        assert client.request(b"hello") == b"HELLO"


def test_a_line_is_echoed_over_tls(shape, serve, certificates):
    server = serve(shape, lambda message, _: message.upper(), "tls://127.0.0.1:0", tls=certificates.server_tls())
    with Client(server.url, tls=certificates.client_context()) as client:
        assert client.request(b"hello") == b"HELLO"
    assert server.events.wait_for(ConnectionOpened).tls == "TLSv1.3"


def test_one_server_serves_several_addresses(shape, serve, tmp_path, certificates):
    urls = ("tcp://127.0.0.1:0", f"unix://{tmp_path}/echo", "tls://127.0.0.1:0")
    server = serve(shape, lambda message, _: message.upper(), *urls, tls=certificates.server_tls())
    assert len(server.addresses) == 3
    for url in server.addresses:
        with Client(url) as client:
            assert client.request(b"hello") == b"HELLO"


def test_one_byte_at_a_time_is_the_same_as_all_at_once(shape, serve):
    server = serve(shape, lambda message, _: message.upper())
    with Client(server.url) as client:
        client.split(b"hello\nworld\n", (1,))
        assert client.recv_exactly(12) == b"HELLO\nWORLD\n"


def test_pipelined_messages_are_answered_in_order(shape, serve):
    server = serve(shape)
    lines = b"".join(b"%d\n" % number for number in range(5000))
    with Client(server.url) as client:
        sender = threading.Thread(target=client.send, args=(lines,))
        sender.start()
        assert client.recv_exactly(len(lines)) == lines
        sender.join()


def test_a_half_closed_client_gets_every_reply(shape, serve):
    server = serve(shape)
    lines = b"".join(b"%d\n" % number for number in range(2000))
    with Client(server.url) as client:
        client.send(lines)
        client.half_close()
        assert client.recv_until_closed() == lines
    closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause in ("peer closed", "finished")
    assert (closed.received, closed.sent, closed.unsent) == (len(lines), len(lines), 0)


def test_a_half_closed_tls_client_gets_every_reply(shape, serve, certificates):
    server = serve(shape, lambda message, _: message, "tls://127.0.0.1:0", tls=certificates.server_tls())
    with Client(server.url) as client:
        client.send(b"one\ntwo\n")
        # The end of the stream under TLS, without its close_notify: replies are still owed.
        client.half_close()
        assert client.recv_exactly(8) == b"one\ntwo\n"


def test_a_half_closed_client_gets_all_of_the_last_reply_before_the_connection_is_closed(framed, serve):
    size = 8 << 20

    def answer(message: bytes, connection: Any) -> bytes | None:
        connection.sendall(b"x" * size)
        connection.close()
        return None

    server = serve(framed, answer)
    with Client(server.url) as client:
        client.send(b"all of it\n")
        client.half_close()
        assert len(client.recv_until_closed()) == size


def test_a_reply_is_not_destroyed_by_input_that_nobody_reads(framed, serve):
    def answer(message: bytes, connection: Any) -> bytes | None:
        connection.send(b"too much")
        connection.close()
        return None

    server = serve(framed, answer)
    with Client(server.url) as client:
        client.send(b"first\n" + b"unread\n" * 50_000)
        assert client.recv_until_closed() == b"too much\n"
    server.events.wait_for(ConnectionClosed)
    assert len(server.events.of(HandlerFailed)) == 0


@pytest.mark.parametrize("strategy", ["threads", "green", "inline", "processes"])
def test_a_class_handler_may_return_without_reading_all(longshore_server, strategy):
    class Curt(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"got " + self.rfile.readline())

    server = longshore_server(Curt, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"first\n" + b"unread\n" * 50_000)
        assert client.recv_until_closed() == b"got first\n"
    assert server.events.wait_for(ConnectionClosed).cause == "finished"


@pytest.mark.parametrize("strategy", ["threads", "green", "inline", "processes"])
def test_a_class_may_come_with_some_of_its_arguments(longshore_server, tmp_path, strategy):
    (tmp_path / "greeting").write_bytes(b"hello")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with Client(longshore_server(handler, strategy=strategy).url) as client:
        client.send(b"GET /greeting HTTP/1.0\r\n\r\n")
        assert client.recv_until_closed().endswith(b"\r\n\r\nhello")


def test_many_clients_at_once_get_their_own_answers(together, serve):
    server = serve(together)
    clients = [Client(server.url) for _ in range(40)]
    try:
        for number, client in enumerate(clients):
            client.send(b"client %d\n" % number)
        for number, client in enumerate(clients):
            assert client.recv_line() == b"client %d\n" % number
        assert len(server.connections) == 40
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError, ReadTimeout, PeerClosed, BrokerLost], ids=lambda kind: kind.__name__
)
def test_trouble_with_somebody_else_is_the_handlers_failure_and_not_its_peers(shape, serve, error):
    def answer(message: bytes, connection: Any) -> bytes:
        raise error("the database has gone")

    server = serve(shape, answer)
    with Client(server.url) as client:
        client.send(b"first\n")
        assert client.recv_until_closed() == b""
    closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "handler failed"
    (failed,) = server.events.of(HandlerFailed)
    assert (str(failed.error), failed.peer) == ("the database has gone", closed.peer)


def test_an_exception_ends_its_own_connection_only(together, serve):
    def answer(message: bytes, connection: Any) -> bytes:
        if message == b"bad":
            raise RuntimeError("the handler's own fault")
        return message

    server = serve(together, answer)
    with Client(server.url) as good, Client(server.url) as bad:
        assert good.request(b"hello") == b"hello"
        bad.send(b"bad\n")
        assert bad.recv_until_closed() == b""
        bad.close()
        closed = server.events.wait_for(ConnectionClosed)
        assert closed.cause == "handler failed"
        assert isinstance(closed.error, RuntimeError)
        assert good.request(b"still here") == b"still here"
    server.events.wait_for_count(ConnectionClosed, 2)
    failures = server.events.of(HandlerFailed)
    assert [(failure.peer, str(failure.error)) for failure in failures] == [(closed.peer, "the handler's own fault")]


def test_an_exception_in_a_class_or_inline_handler_is_one_event_too(shape, serve):
    def answer(message: bytes, connection: Any) -> bytes:
        raise RuntimeError("the handler's own fault")

    server = serve(shape, answer)
    for _ in range(2):
        with Client(server.url) as client:
            client.send(b"bad\n")
            assert client.recv_until_closed() == b""
    closed = server.events.wait_for_count(ConnectionClosed, 2)
    assert [event.cause for event in closed] == ["handler failed"] * 2
    assert len(server.events.of(HandlerFailed)) == 2


def test_what_the_handler_was_sent_before_it_failed_is_answered(framed, serve):
    def answer(message: bytes, connection: Any) -> bytes:
        return b"%d" % (10 // int(message))

    server = serve(framed, answer)
    with Client(server.url) as client:
        client.send(b"5\n2\n0\n1\n")
        assert client.recv_until_closed() == b"2\n5\n"


def test_the_connection_tells_who_is_who(framed, serve, notes):
    servers = []

    def answer(message: bytes, connection: Any) -> bytes:
        notes.append((connection.peer, connection.server.addresses, connection.server.status))
        servers.append(connection.server)
        connection.state["count"] = connection.state.get("count", 0) + 1
        return b"%d" % connection.state["count"]

    server = serve(framed, answer)
    with Client(server.url) as client:
        host, port = client.socket.getsockname()
        assert [client.request(b"x") for _ in range(3)] == [b"1", b"2", b"3"]
    assert notes.values[0] == (f"{host}:{port}", server.addresses, "serving")
    # A child has a copy of its own, which forwards.
    assert framed.strategy == "processes" or servers[0] is server


def test_statistics_count_what_has_ended(shape, serve):
    server = serve(shape)
    for _ in range(3):
        with Client(server.url) as client:
            assert client.request(b"hello") == b"hello"
    server.events.wait_for_count(ConnectionClosed, 3)
    server.drain()
    figures = server.statistics()
    assert (figures.accepted, figures.connections, figures.received, figures.sent) == (3, 0, 18, 18)
    if shape.kind != "class":
        assert figures.messages == 3


def test_a_new_framing_applies_from_the_next_byte(framed, serve):
    def answer(message: bytes, connection: Any) -> bytes | None:
        if message == b"UPGRADE":
            connection.send(b"ready")
            connection.framing = LengthPrefixed(2)
            return None
        return message[::-1]

    server = serve(framed, answer)
    with Client(server.url) as client:
        client.send(b"abc\nUPGRADE\n\x00\x04a\nbc\x00\x01z")
        assert client.recv_exactly(4 + 6 + 6 + 3) == b"cba\nready\n\x00\x04cb\na\x00\x01z"


def test_a_message_handler_may_upgrade_to_tls(serve, longshore_server, certificates):
    tls = certificates.server_tls()

    class Session(MessageHandler):
        framing = Lines()

        def message(self, message):
            if message == b"STARTTLS":
                self.connection.send(b"go ahead")
                self.connection.start_tls(tls)
                return None
            return message + (b" over TLS" if self.connection.tls else b" in plain text")

    server = longshore_server(Session, strategy="reactor")
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello in plain text"
        assert client.request(b"STARTTLS") == b"go ahead"
        client.start_tls(certificates.client_context())
        assert client.request(b"hello") == b"hello over TLS"


@pytest.mark.parametrize("strategy", ["threads", "green", "inline", "processes"])
def test_a_blocking_handler_may_upgrade_to_tls(longshore_server, certificates, strategy):
    tls = certificates.server_tls()

    def handler(connection):
        assert connection.readline() == b"STARTTLS\n"
        connection.sendall(b"go ahead\n")
        connection.start_tls(tls)
        connection.sendall(connection.readline().upper())

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert client.request(b"STARTTLS") == b"go ahead"
        client.start_tls(certificates.client_context())
        assert client.request(b"hello") == b"HELLO"


@pytest.mark.parametrize("strategy", ["threads", "green", "inline"])
@pytest.mark.parametrize("at_once", [True, False], ids=["with the command", "after the answer"])
def test_plain_text_in_the_place_of_a_handshake_is_the_peers_fault(longshore_server, certificates, strategy, at_once):
    tls = certificates.server_tls()

    def handler(connection):
        assert connection.readline() == b"STARTTLS\n"
        connection.sendall(b"go ahead\n")
        connection.start_tls(tls)
        raise AssertionError("what was slipped in has been taken for TLS")

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"STARTTLS\n" + b"MAIL FROM:<forger>\n" * at_once)
        assert client.recv_line() == b"go ahead\n"
        if not at_once:
            client.send(b"MAIL FROM:<forger>\n")
        # Nobody lingers for a client that is gone.
        client.half_close()
        closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "handshake"
    assert isinstance(closed.error, TLSError)
    assert server.events.of(HandlerFailed) == []


def test_alpn_chooses_the_servers_favourite(shape, serve, certificates):
    tls = certificates.server_tls(alpn=("echo/2", "echo/1"))
    server = serve(shape, lambda message, _: message, "tls://127.0.0.1:0", tls=tls)
    context = certificates.client_context(alpn=("echo/1", "echo/2"))
    with Client(server.url, tls=context) as client:
        assert client.request(b"hello") == b"hello"
        assert client.socket.selected_alpn_protocol() == "echo/2"


def test_a_client_certificate_is_required_and_known_to_the_handler(framed, serve, certificates):
    def answer(message: bytes, connection: Any) -> bytes:
        names = connection.tls.getpeercert()["subjectAltName"]
        return names[0][1].encode()

    tls = certificates.server_tls(client_ca=certificates.authority)
    server = serve(framed, answer, "tls://127.0.0.1:0", tls=tls)
    with Client(server.url, tls=certificates.client_context(with_certificate=True)) as client:
        assert client.request(b"who am I?") == b"client@example.org"


def test_send_reaches_a_connection_from_another_thread(together, serve):
    server = serve(together)
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        (connection,) = server.connections
        connection.send(b"from outside")
        assert client.recv_line() == b"from outside\n"
        connection.close()
        assert client.recv_until_closed() == b""


def test_broadcast_reaches_every_connection(together, serve):
    server = serve(together)
    clients = [Client(server.url) for _ in range(5)]
    try:
        for client in clients:
            assert client.request(b"hello") == b"hello"
        assert server.broadcast(b"to all") == 5
        assert [client.recv_line() for client in clients] == [b"to all\n"] * 5
        assert server.broadcast(b"to one", to=server.connections[:1]) == 1
    finally:
        for client in clients:
            client.close()


def test_a_framing_of_ones_own_is_broadcast_even_if_it_is_not_hashable(longshore_server):
    class Own:
        __hash__ = None

        def encode(self, message):
            return Lines().encode(message)

        def decoder(self):
            return Lines().decoder()

    server = longshore_server(lambda message, connection: message, framing=Own())
    with Client(server.url) as client:
        assert client.request(b"hello") == b"hello"
        assert server.broadcast(b"news") == 1
        assert client.recv_line() == b"news\n"


@pytest.mark.parametrize("slow", ["drop", "close"])
def test_a_slow_receiver_is_dropped_or_closed_as_asked(together, serve, slow):
    from longshore.events import SlowReceiver

    server = serve(together, limits=Limits(max_pending_bytes=64 * 1024))
    message = b"x" * 60_000
    with Client(server.url, receive_buffer=4096) as sloth, Client(server.url) as good:
        for client in (sloth, good):
            assert client.request(b"hello") == b"hello"
        sloth.stall()
        for _ in range(500):
            taken = server.broadcast(message, slow=slow)
            assert good.recv_line() == message + b"\n"
            if taken == 1:
                break
        event = server.events.wait_for(SlowReceiver)
        assert event.action == slow
        assert event.pending >= 64 * 1024
        if slow == "close":
            closed = server.events.wait_for(ConnectionClosed)
            assert closed.cause == "slow receiver"
            assert closed.peer == event.peer
        assert good.request(b"still here") == b"still here"


def test_a_peer_that_never_reads_stops_the_handler_and_costs_bounded_memory(framed, serve):
    """Output backs up, then input: what the peer sends stays in its own kernel."""
    server = serve(framed, limits=Limits(max_pending_bytes=64 * 1024))
    with Client(server.url, receive_buffer=4096) as sloth:
        sloth.stall()
        sloth.socket.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 * 1024 * 1024:
                sent += sloth.socket.send(b"x" * 1023 + b"\n")
        (connection,) = server.connections
        assert connection._link.pending < 1024 * 1024
    server.events.wait_for(ConnectionClosed)


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_hooks_come_in_order_and_once(longshore_server, strategy):
    calls = []
    over = threading.Event()

    class Session(MessageHandler):
        framing = Lines()

        def connected(self):
            calls.append("connected")
            self.connection.send(b"welcome")

        def message(self, message):
            calls.append(message)
            return message

        def disconnected(self, error):
            calls.append(("disconnected", error))
            over.set()

    server = longshore_server(Session, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_line() == b"welcome\n"
        assert client.request(b"one") == b"one"
    assert over.wait(5)
    assert calls == ["connected", b"one", ("disconnected", None)]


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_a_handler_may_take_messages_in_batches(longshore_server, strategy):
    class Sum(MessageHandler):
        framing = Lines()

        def messages(self, batch):
            return [b"%d" % (int(message) * 2) for message in batch]

    server = longshore_server(Sum, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"1\n2\n3\n")
        assert client.recv_exactly(6) == b"2\n4\n6\n"


def test_nothing_is_delivered_after_close(framed, serve, notes):
    def once(message, connection):
        notes.append(message)
        connection.send(b"bye")
        connection.close()

    server = serve(framed, once)
    with Client(server.url) as client:
        client.send(b"one\ntwo\nthree\n")
        assert client.recv_until_closed() == b"bye\n"
    server.events.wait_for(ConnectionClosed)
    assert notes.values == [b"one"]


def test_the_client_of_a_pair_talks_to_a_real_handler(framed):
    with connected_pair(framed.handler(), **framed.options()) as connection:
        assert connection.request(b"hello") == b"hello"
        assert connection.server.strategy_name == framed.strategy


def test_our_client_meets_our_server(framed, serve):
    server = serve(framed)
    with connect(server.url, framing=Lines(), timeout=5) as connection:
        assert [connection.request(b"%d" % number) for number in range(10)] == [b"%d" % number for number in range(10)]
