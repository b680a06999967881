"""Clients in green handlers."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest

from longshore import client
from longshore.client import Refused, Retry, connect
from longshore.config import TLS
from longshore.errors import HandshakeTimeout
from longshore.framing import Lines
from longshore.testing import RecordedServer
from longshore.tls import TLSError
from tests.unit.far_ends import datagram_end, far_end, shout_in_tls, tcp, udp, unused_port


def test_a_green_handler_that_waits_for_another_server_lets_the_others_run(
    longshore_server: Callable[..., RecordedServer],
) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def late(sock: socket.socket) -> None:
        sock.recv(100)
        asked.set()
        may_answer.wait(5)
        sock.sendall(b"at last\n")

    sock, other = tcp()

    def handler(connection: Any) -> None:
        for message in connection:
            if message == b"ask":
                with connect(other, framing=Lines()) as upstream:
                    connection.send(upstream.request(b"question"))
            else:
                connection.send(message)

    server = longshore_server(handler, strategy="green", framing=Lines())
    with far_end(sock, late), connect(server.url, framing=Lines()) as first:
        first.send(b"ask")
        assert asked.wait(5)
        with connect(server.url, framing=Lines()) as second:
            assert second.request(b"meanwhile") == b"meanwhile"
        may_answer.set()
        assert first.receive() == b"at last"


def test_a_green_handler_that_waits_for_a_handshake_lets_the_others_run(
    longshore_server: Callable[..., RecordedServer], authority: tuple[str, ssl.SSLContext]
) -> None:
    connected, may_answer = threading.Event(), threading.Event()

    def late(sock: socket.socket) -> None:
        connected.set()
        may_answer.wait(5)
        shout_in_tls(authority[1])(sock)

    sock, other = tcp()

    def handler(connection: Any) -> None:
        for message in connection:
            if message == b"ask":
                with connect(other.replace("tcp", "tls"), framing=Lines(), tls=TLS(client_ca=authority[0])) as upstream:
                    connection.send(upstream.request(b"question"))
            else:
                connection.send(message)

    server = longshore_server(handler, strategy="green", framing=Lines())
    with far_end(sock, late), connect(server.url, framing=Lines()) as first:
        first.send(b"ask")
        assert connected.wait(5)
        with connect(server.url, framing=Lines()) as second:
            assert second.request(b"meanwhile") == b"meanwhile"
        may_answer.set()
        assert first.receive() == b"QUESTION"


def errors_in_a_green_handler(longshore_server: Callable[..., RecordedServer], url: str, **options: Any) -> Exception:
    """What `connect(url)` raises in a green handler."""
    caught: list[Exception] = []

    def handler(connection: Any) -> None:
        try:
            connect(url, **options).close()
        except Exception as error:
            caught.append(error)

    server = longshore_server(handler, strategy="green")
    with connect(server.url) as connection:
        assert connection.recv(1) == b""
    return caught[0]


def test_a_green_handler_gets_the_same_errors(
    longshore_server: Callable[..., RecordedServer], authority: tuple[str, ssl.SSLContext]
) -> None:
    url = f"tcp://127.0.0.1:{unused_port()}"
    refused = errors_in_a_green_handler(longshore_server, url, retry=Retry(attempts=2, initial=0))
    assert isinstance(refused, Refused)
    assert url in str(refused)

    sock, url = tcp()
    url = url.replace("tcp", "tls")
    with far_end(sock, shout_in_tls(authority[1])):
        unknown = errors_in_a_green_handler(longshore_server, url)
    assert isinstance(unknown, TLSError)
    assert str(unknown).startswith(f"{url}: TLS handshake failed: ")
    assert "TLS(client_ca=" in unknown.hint

    sock, url = tcp()
    url = url.replace("tcp", "tls")
    with far_end(sock, lambda sock: len(sock.recv(65_536)) and sock.recv(65_536) and None):
        late = errors_in_a_green_handler(longshore_server, url, timeout=0.1)
    assert isinstance(late, HandshakeTimeout)
    assert str(late).startswith(f"{url}: connected, but ")


def test_a_green_handler_talks_in_datagrams(longshore_server: Callable[..., RecordedServer]) -> None:
    sock, url = udp()

    def handler(connection: Any) -> None:
        with connect(url) as upstream:
            upstream.send(b"one")
            upstream.send(b"two")
            connection.sendall(upstream.receive() + upstream.receive())

    server = longshore_server(handler, strategy="green")
    with datagram_end(sock, 2), connect(server.url) as connection:
        assert connection.read_exactly(6) == b"ONETWO"


class EndedEarly:
    """A parking whose greenlet is ended while the thread dials, or just after."""

    def __init__(self) -> None:
        self.work: Callable[[], socket.socket] | None = None

    def wait_for_thread(self, work: Callable[[], socket.socket], args: Any, kwargs: Any) -> Any:
        self.work = work
        raise KeyboardInterrupt


class EndedLate(EndedEarly):
    def wait_for_thread(self, work: Callable[[], socket.socket], args: Any, kwargs: Any) -> Any:
        work()
        raise KeyboardInterrupt


def test_a_green_handler_that_is_ended_while_it_dials_leaves_no_socket_behind() -> None:
    sock, url = tcp()
    before = set(os.listdir("/proc/self/fd"))
    for parking in (EndedEarly(), EndedLate()):
        address: Any = client.parse(url)
        with pytest.raises(KeyboardInterrupt):
            client._dial_parked(parking, address, None, None)  # type: ignore[arg-type]
        if parking.work is not None:
            assert parking.work()[0].fileno() == -1
    assert set(os.listdir("/proc/self/fd")) <= before
    sock.close()
