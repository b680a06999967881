"""Connections that have no socket object before somebody asks for one: each descriptor has one owner, who closes it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import Any

import pytest

from longshore import Lines, MessageHandler
from longshore.addresses import format_peer
from longshore.events import ConnectionClosed
from longshore.testing import Client, running_server
from tests.unit.listening import bound

native = pytest.importorskip("longshore._native", reason="the native reactor was not built", exc_type=ImportError)


@contextlib.contextmanager
def incoming(url: str = "tcp://127.0.0.1:0") -> Any:
    """A connection of this machine's own, and the client's end of it."""
    with bound(url) as [listener]:
        with socket.create_connection(listener.socket.getsockname()[:2]) as client:
            select.select([listener.socket], [], [], 5)
            yield native.Accepting(listener.socket, bare=True).accept()[0], client


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "tcp://[::1]:0"])
def test_it_knows_its_peer_as_the_socket_object_would(url):
    with incoming(url) as (connection, client):
        assert connection.address == client.getsockname()
        assert connection.peer == format_peer(client.family, client.getsockname())


def test_whoever_lets_go_of_it_closes_it_and_whoever_turns_it_away_does_so_at_once():
    with incoming() as (connection, client):
        descriptor = connection.fileno()
        assert connection.send(b"farewell") == 8
        connection.close()
        assert connection.fileno() == -1
        assert not is_open(descriptor)
        assert client.recv(100) == b"farewell"
        assert client.recv(100) == b""
        connection.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            connection.send(b"more")
    with incoming() as (connection, client):
        descriptor = connection.fileno()
        del connection
        assert not is_open(descriptor)


def test_its_object_owns_the_connection_from_then_on():
    with incoming() as (connection, client):
        descriptor = connection.fileno()
        with connection.detach() as sock:
            assert (sock.fileno(), sock.gettimeout()) == (descriptor, 0.0)
            assert (sock.family, sock.type, sock.getpeername()) == (
                socket.AF_INET,
                socket.SOCK_STREAM,
                client.getsockname(),
            )
            assert connection.fileno() == -1
            connection.close()
            del connection
            assert is_open(descriptor)
        assert not is_open(descriptor)


def test_a_connection_whose_socket_nobody_asked_for_is_closed_once_and_looks_closed():
    seen: list[Any] = []

    def handler(message: bytes, connection: Any) -> None:
        seen.append(connection)
        connection.close()

    with running_server(handler, framing=Lines()) as server:
        with Client(server.url) as client:
            client.send(b"one\n")
            assert client.recv_until_closed() == b""
        server.events.wait_for(ConnectionClosed)
        assert seen[0].fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            seen[0].getpeername()


def test_an_object_that_was_asked_for_is_the_same_each_time_and_ends_with_its_connection():
    seen: list[Any] = []

    def handler(message: bytes, connection: Any) -> bytes:
        seen.extend(connection._link.socket for _ in range(2))
        return b"%d" % seen[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    with running_server(handler, framing=Lines()) as server:
        with Client(server.url) as client:
            client.send(b"one\n")
            assert client.recv_line() != b"0\n"
            descriptor = seen[0].fileno()
            assert descriptor >= 0
            client.close()
            server.events.wait_for(ConnectionClosed)
        assert seen[0] is seen[1]
        assert seen[0].fileno() == -1


def test_threads_that_ask_for_the_object_at_once_get_the_same():
    connections: list[Any] = []
    together = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        together.wait(5)
        found.append(connections[0]._link.socket)

    came = threading.Event()

    def handler(message: bytes, connection: Any) -> None:
        connections.append(connection)
        came.set()

    with running_server(handler, framing=Lines()) as server:
        with Client(server.url) as client:
            client.send(b"one\n")
            assert came.wait(5)
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(5)
            assert {id(each) for each in found} == {id(found[0])}
            assert found[0].getpeername() == client.socket.getsockname()


def test_a_connection_that_is_detached_lives_on_without_its_server():
    taken: list[Any] = []

    def handler(message: bytes, connection: Any) -> None:
        taken.append(connection.detach())

    with running_server(handler, framing=Lines()) as server:
        client = Client(server.url)
        with client:
            client.send(b"one\nand a half")
            server.events.wait_for(ConnectionClosed)
            server.stop()
            sock, unread = taken[0]
            with sock:
                assert unread == b"and a half"
                sock.sendall(b"still here")
                assert client.recv(100) == b"still here"


def test_a_message_handler_has_the_address_that_its_client_has():
    class Telling(MessageHandler):
        framing = Lines()

        def message(self, message: bytes) -> bytes:
            return repr(self.client_address).encode()

    with running_server(Telling) as server, Client(server.url) as client:
        client.send(b"one\n")
        assert client.recv_line().strip() == repr(client.socket.getsockname()).encode()
