"""Message handlers on threads that use their connection themselves: what happens between two looks is not missed."""

from __future__ import annotations

import pytest

from longshore import TLS, Limits, Lines
from longshore.events import ConnectionClosed, HandlerFailed
from longshore.links.streams import StreamLink
from longshore.testing import Client

pytestmark = pytest.mark.usefixtures("reactor")


def test_a_handler_that_reads_on_meets_input_however_it_comes(longshore_server):
    def handler(message, connection):
        return b"%d" % len(connection.read_exactly(int(message)))

    server = longshore_server(handler, strategy="threads", framing=Lines())
    with Client(server.url) as client:
        for size in range(1, 100):
            client.send(b"%d\n" % size)
            # In two pieces, so that one meets the handler on its way to sleep.
            client.send(b"x" * (size // 2))
            client.send(b"x" * (size - size // 2))
            assert client.recv_line() == b"%d\n" % size


def test_input_that_comes_between_a_look_and_the_sleep_after_it_ends_the_sleep(longshore_server, monkeypatch):
    looks = []
    pause = StreamLink._pause

    def late(link, *args):
        looks.append(link._calls)
        # The first wait is none: it has the sink tell, and looks again.
        if len(looks) == 2:
            client.send(b"x" * 10)
            while link._calls == looks[-1]:
                pass
        pause(link, *args)

    monkeypatch.setattr(StreamLink, "_pause", late)

    def handler(message, connection):
        return b"%d" % len(connection.read_exactly(10))

    server = longshore_server(handler, strategy="threads", framing=Lines())
    with Client(server.url) as client:
        client.send(b"read\n")
        assert client.recv_line() == b"10\n"


def test_a_handler_that_waits_for_room_meets_it_however_it_comes(longshore_server):
    def handler(message, connection):
        for _ in range(200):
            connection.sendall(b"x" * 50_000)
        return b""

    server = longshore_server(handler, strategy="threads", framing=Lines(), limits=Limits(max_pending_bytes=100_000))
    with Client(server.url) as client:
        for _ in range(3):
            client.send(b"pour\n")
            assert client.recv_exactly(200 * 50_000 + 1).endswith(b"x\n")


def test_a_handler_that_starts_tls_goes_on_once_it_speaks_it(longshore_server, certificates):
    def handler(message, connection):
        connection.send(b"go ahead")
        connection.start_tls(TLS(certfile=certificates.server))
        connection.send(connection.tls.version().encode())

    server = longshore_server(handler, strategy="threads", framing=Lines())
    with Client(server.url) as client:
        assert client.request(b"STARTTLS") == b"go ahead"
        client.start_tls(certificates.client_context())
        assert client.recv_line().startswith(b"TLSv1.")


def test_a_handler_takes_the_socket_out(longshore_server):
    def handler(message, connection):
        sock, unread = connection.detach()
        with sock:
            sock.sendall(b"from the socket: " + unread)

    server = longshore_server(handler, strategy="threads", framing=Lines())
    with Client(server.url) as client:
        client.send(b"first\nsecond")
        assert client.recv_until_closed() == b"from the socket: second"


def test_a_handler_that_exits_ends_its_connection_quietly(longshore_server):
    def handler(message, connection):
        raise SystemExit

    server = longshore_server(handler, strategy="threads", framing=Lines())
    with Client(server.url) as client:
        client.send(b"leave\n")
        assert client.recv_until_closed() == b""
    assert server.events.wait_for(ConnectionClosed).cause == "finished"
    assert server.events.of(HandlerFailed) == []
