"""Packets on a connection (SOCK_SEQPACKET) and from a client: their borders are kept, whatever the strategy."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading

import pytest

from longshore import FramingError, IncompleteMessage, Lines, MessageHandler, connect, open_connection
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.testing import Client

STREAMS = pytest.mark.parametrize("strategy", ["threads", "green", "inline", "async"])
MESSAGES = pytest.mark.parametrize("strategy", ["reactor", "threads", "green", "async"])


def as_async(strategy, handler, async_handler):
    return async_handler if strategy == "async" else handler


@STREAMS
def test_a_stream_handler_receives_packet_by_packet(longshore_server, strategy, tmp_path):
    sent = threading.Event()

    def handler(connection):
        sent.wait(5)
        while data := connection.recv(65_536):
            connection.sendall(data.upper())

    async def async_handler(connection):
        await asyncio.to_thread(sent.wait, 5)
        while data := await connection.recv(65_536):
            await connection.sendall(data.upper())

    server = longshore_server(
        as_async(strategy, handler, async_handler), f"seqpacket://{tmp_path}/echo", strategy=strategy
    )
    with Client(server.url) as client:
        for packet in (b"one", b"two\nlines", b"x" * 20_000):
            client.send(packet)
        sent.set()
        assert [client.recv() for _ in range(3)] == [b"ONE", b"TWO\nLINES", b"X" * 20_000]
    assert server.events.wait_for(ConnectionClosed).error is None


@STREAMS
def test_a_shorter_recv_cuts_its_packet_and_the_next_one_begins_anew(longshore_server, strategy, tmp_path):
    def handler(connection):
        connection.sendall(connection.recv(2) + connection.recv(2))

    async def async_handler(connection):
        await connection.sendall(await connection.recv(2) + await connection.recv(2))

    server = longshore_server(
        as_async(strategy, handler, async_handler), f"seqpacket://{tmp_path}/echo", strategy=strategy
    )
    with Client(server.url) as client:
        client.send(b"abc")
        client.send(b"def")
        assert client.recv() == b"abde"


@STREAMS
def test_lines_and_counts_are_read_across_packets(longshore_server, strategy, tmp_path):
    def handler(connection):
        connection.sendall(connection.readline() + connection.read_exactly(4) + connection.read_until(b";"))
        connection.sendall(connection.recv(100) + connection.receive())

    async def async_handler(connection):
        read = await connection.readline() + await connection.read_exactly(4) + await connection.read_until(b";")
        await connection.sendall(read)
        await connection.sendall(await connection.recv(100) + await connection.receive())

    server = longshore_server(
        as_async(strategy, handler, async_handler), f"seqpacket://{tmp_path}/echo", strategy=strategy
    )
    with Client(server.url) as client:
        for packet in (b"a li", b"ne\n12", b"34un", b"til;rest", b"whole"):
            client.send(packet)
        assert client.recv() == b"a line\n1234until;"
        assert client.recv() == b"restwhole"


@pytest.mark.parametrize("strategy", ["threads", "green", "inline"])
def test_a_class_handler_has_packets_in_request_and_lines_in_rfile(longshore_server, strategy, tmp_path):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.request.sendall(self.request.recv(100) + b"|" + self.request.recv(100))
            self.wfile.write(self.rfile.readline())
            self.wfile.write(self.rfile.readline())

    server = longshore_server(Handler, f"seqpacket://{tmp_path}/echo", strategy=strategy)
    with Client(server.url) as client:
        for packet in (b"one", b"two", b"a line\nanother, of ", b"x" * 30_000 + b"\n"):
            client.send(packet)
        assert [client.recv() for _ in range(3)] == [b"one|two", b"a line\n", b"another, of " + b"x" * 30_000 + b"\n"]


@STREAMS
def test_what_a_framing_leaves_over_in_a_packet_ends_a_stream_handlers_connection(longshore_server, strategy, tmp_path):
    def handler(connection):
        while True:
            connection.send(connection.receive().upper())

    async def async_handler(connection):
        while True:
            await connection.send((await connection.receive()).upper())

    answers_and_ends(longshore_server, as_async(strategy, handler, async_handler), strategy, tmp_path)


@MESSAGES
def test_what_a_framing_leaves_over_in_a_packet_ends_a_message_handlers_connection(
    longshore_server, strategy, tmp_path
):
    async def async_shout(message, connection):
        return message.upper()

    def shout(message, connection):
        return message.upper()

    answers_and_ends(longshore_server, as_async(strategy, shout, async_shout), strategy, tmp_path)


def answers_and_ends(longshore_server, handler, strategy, tmp_path):
    server = longshore_server(handler, f"seqpacket://{tmp_path}/shout", strategy=strategy, framing=Lines())
    with Client(server.url) as client:
        client.send(b"one\ntwo\n")
        assert {client.recv(), client.recv()} == {b"ONE\n", b"TWO\n"}
        client.send(b"three\nunfin")
        client.send(b"ished\n")
        assert client.recv_until_closed() == b"THREE\n"
    closed = server.events.wait_for(ConnectionClosed)
    assert closed.cause == "framing"
    assert isinstance(closed.error, IncompleteMessage)
    assert "last 5 bytes of a packet" in str(closed.error)
    assert server.events.of(HandlerFailed) == []


@MESSAGES
def test_an_empty_message_is_refused_where_it_would_read_as_the_end(longshore_server, strategy, tmp_path):
    async def async_empty(message, connection):
        return b""

    def empty(message, connection):
        return b""

    server = longshore_server(
        as_async(strategy, empty, async_empty), f"seqpacket://{tmp_path}/empty", strategy=strategy
    )
    with Client(server.url) as client:
        client.send(b"hello")
        assert client.recv_until_closed() == b""
    failed = server.events.wait_for(HandlerFailed)
    assert "it would read as the end of the connection" in str(failed.error)


@MESSAGES
def test_the_replies_of_a_batch_are_packets_of_their_own(longshore_server, strategy, tmp_path):
    class Batches(MessageHandler):
        def messages(self, batch):
            return [reply for message in batch for reply in (message, message.upper())]

    class AsyncBatches(Batches):
        async def message(self, message):
            raise NotImplementedError

        async def messages(self, batch):
            return super().messages(batch)

    handler = as_async(strategy, Batches, AsyncBatches)
    server = longshore_server(handler, f"seqpacket://{tmp_path}/twice", strategy=strategy)
    with Client(server.url) as client:
        client.send(b"one")
        client.send(b"two")
        assert [client.recv() for _ in range(4)] == [b"one", b"ONE", b"two", b"TWO"]


@pytest.mark.parametrize("strategy", ["threads", "green"])
def test_broadcasts_reach_stream_handlers_packet_by_packet(longshore_server, strategy, tmp_path):
    def handler(connection):
        while connection.recv(100):
            pass

    server = longshore_server(handler, f"seqpacket://{tmp_path}/news", strategy=strategy)
    with Client(server.url) as client:
        server.events.wait_for(ConnectionOpened)
        taken = 0
        # More than the kernel holds, so that some are queued, and then refused.
        while server.broadcast(b"%d" % taken + b"x" * 10_000):
            taken += 1
        numbers = [client.recv() for _ in range(taken)]
    assert taken > 20
    assert [packet.strip(b"x") for packet in numbers] == [b"%d" % number for number in range(taken)]


# -- clients ---------------------------------------------------------------------------------------------------


@pytest.fixture
def far_end():
    """A datagram socket of somebody else's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(("127.0.0.1", 0))
        yield sock, f"udp://127.0.0.1:{sock.getsockname()[1]}"


def test_an_empty_datagram_is_a_message_for_a_blocking_client(far_end):
    sock, url = far_end
    with connect(url, timeout=5) as connection:
        connection.send(b"")
        data, address = sock.recvfrom(100)
        for reply in (b"", b"", b"more"):
            sock.sendto(reply, address)
        assert (data, [connection.receive() for _ in range(3)]) == (b"", [b"", b"", b"more"])


def test_an_empty_datagram_is_a_message_for_an_async_client(far_end):
    sock, url = far_end

    async def converse():
        async with await open_connection(url, timeout=5) as connection:
            await connection.send(b"")
            data, address = await asyncio.to_thread(sock.recvfrom, 100)
            for reply in (b"", b"", b"more"):
                sock.sendto(reply, address)
            return data, [await connection.receive() for _ in range(3)]

    assert asyncio.run(converse()) == (b"", [b"", b"", b"more"])


def test_an_empty_datagram_is_a_message_for_a_client_in_a_green_handler(longshore_server, far_end):
    sock, url = far_end

    def handler(connection):
        with connect(url, timeout=5) as other:
            other.send(b"")
            for _ in range(3):
                connection.sendall(other.receive() + b"\n")

    server = longshore_server(handler, strategy="green")
    with Client(server.url) as client:
        _, address = sock.recvfrom(100)
        for reply in (b"", b"", b"more"):
            sock.sendto(reply, address)
        assert client.recv_until_closed() == b"\n\nmore\n"


def test_a_malformed_datagram_is_told_once_and_the_next_one_begins_anew(far_end):
    sock, url = far_end

    async def converse():
        async with await open_connection(url, framing=Lines(), timeout=5) as connection:
            await connection.send(b"hello")
            _, address = await asyncio.to_thread(sock.recvfrom, 100)
            sock.sendto(b"one\nunfin", address)
            sock.sendto(b"two\n", address)
            assert await connection.receive() == b"one"
            with pytest.raises(IncompleteMessage, match="the last 5 bytes of a packet"):
                await connection.receive()
            assert await connection.receive() == b"two"

    asyncio.run(converse())
    with connect(url, framing=Lines(), timeout=5) as connection:
        connection.send(b"hello")
        _, address = sock.recvfrom(100)
        sock.sendto(b"one\nunfin", address)
        sock.sendto(b"two\n", address)
        assert connection.receive() == b"one"
        with pytest.raises(FramingError):
            connection.receive()
        assert connection.receive() == b"two"


def test_a_client_cannot_send_an_empty_message_that_would_read_as_the_end(longshore_server, tmp_path):
    def shout(message, connection):
        return message.upper()

    server = longshore_server(shout, f"seqpacket://{tmp_path}/shout")

    async def converse():
        async with await open_connection(server.url, timeout=5) as connection:
            with pytest.raises(ValueError, match="end of the connection"):
                await connection.send(b"")
            return await connection.request(b"hello")

    with connect(server.url, timeout=5) as connection:
        with pytest.raises(ValueError, match="end of the connection"):
            connection.send(b"")
        assert connection.request(b"hello") == b"HELLO"
    assert asyncio.run(converse()) == b"HELLO"
