"""What a connection offers beside sending and receiving, under every strategy that gives handlers one."""

import asyncio
import multiprocessing
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import textwrap
import threading

import pytest

import longshore
from longshore import Limits, Lines, MessageHandler, Timeouts
from longshore.errors import ClosedError
from longshore.events import ConnectionClosed, ConnectionOpened, DatagramDropped
from longshore.testing import Client

BLOCKING = ("threads", "green", "inline", "processes")


@pytest.mark.parametrize("strategy", BLOCKING)
def test_a_file_is_sent_from_an_offset_for_a_count(longshore_server, tmp_path, notes, strategy):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)

    def handler(connection):
        with path.open("rb") as file:
            notes.append(connection.sendfile(file, offset=10, count=200_000))

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        data = client.recv_until_closed()
    assert data == path.read_bytes()[10:200_010]
    server.events.wait_for(ConnectionClosed)
    assert notes.values == [200_000]


def test_an_async_handler_sends_a_file_whole(longshore_server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 50_000)

    async def handler(connection):
        with path.open("rb") as file:
            assert await connection.sendfile(file) == 500_000

    server = longshore_server(handler)
    with Client(server.url) as client:
        assert client.recv_until_closed() == path.read_bytes()


@pytest.mark.parametrize("strategy", BLOCKING)
def test_what_is_written_corked_leaves_as_one_piece_at_the_end(longshore_server, notes, strategy):
    def handler(connection):
        with connection.corked():
            connection.sendall(b"one ")
            connection.sendall(b"two ")
            notes.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            connection.sendall(b"three")

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv() == b"one two three"
    assert notes.values == [0]


def test_an_async_handler_corks_too(longshore_server):
    async def handler(connection):
        with connection.corked():
            await connection.sendall(b"one ")
            await asyncio.sleep(0)
            await connection.sendall(b"two")

    with Client(longshore_server(handler).url) as client:
        assert client.recv() == b"one two"


@pytest.mark.parametrize("strategy", [*BLOCKING, "async"])
@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_what_was_written_corked_is_sent_before_the_end_of_our_side(longshore_server, strategy, end):
    def finish(connection):
        with connection.corked():
            connection.sendall(b"last words")
            connection.close() if end == "close" else connection.shutdown(socket.SHUT_WR)

    async def async_handler(connection):
        finish(connection)

    server = longshore_server(async_handler if strategy == "async" else finish, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_until_closed() == b"last words"
    assert server.events.wait_for(ConnectionClosed).cause == "finished"


def test_a_connection_is_closed_although_what_was_written_corked_cannot_be_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = longshore.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout=5)
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
    with pytest.raises(ConnectionError):
        connection.recv(1)
    with pytest.raises(ConnectionError), connection.corked():
        connection.sendall(b"last words")
        connection.close()
    assert connection.fileno() == -1


@pytest.mark.parametrize("strategy", BLOCKING)
def test_a_detached_socket_goes_on_with_what_was_unread(longshore_server, notes, strategy):
    def handler(connection):
        line = connection.readline()
        sock, unread = connection.detach()
        notes.append((line, unread))
        with sock:
            sock.sendall(b"from the socket: " + unread)

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"first\nsecond")
        assert client.recv_until_closed() == b"from the socket: second"
        assert server.events.wait_for(ConnectionClosed).cause == "finished"
    assert notes.values == [(b"first\n", b"second")]


def test_a_socket_cannot_be_taken_out_once_the_server_has_ended(longshore_server):
    connections = []

    def handler(message, connection):
        connections.append(connection)
        return message

    server = longshore_server(handler, strategy="reactor", framing=Lines())
    with Client(server.url) as client:
        client.request(b"hello")
        server.stop()
    refused = []

    def take_out():
        with pytest.raises(ClosedError) as caught:
            connections[0].detach()
        refused.append(caught)

    thread = threading.Thread(target=take_out, daemon=True)
    thread.start()
    thread.join(5)
    assert len(refused) == 1


@pytest.mark.parametrize("strategy", BLOCKING)
def test_every_way_to_read_cuts_the_same_stream(longshore_server, strategy):
    def handler(connection):
        buffer = bytearray(3)
        parts = [
            connection.readline(),
            connection.read_exactly(4),
            connection.read_until(b"--"),
            buffer[: connection.recv_into(buffer)],
        ]
        connection.framing = Lines()
        parts.append(connection.receive())
        parts.append(connection.recv(100))
        connection.sendall(b"|".join(bytes(part) for part in parts))

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"line\nfouruntil--abcmessage\nrest")
        client.half_close()
        assert client.recv_until_closed() == b"line\n|four|until--|abc|message|rest"


@pytest.mark.parametrize("strategy", BLOCKING)
def test_names_and_files_of_a_connection_are_those_of_its_socket(longshore_server, strategy):
    def handler(connection):
        with connection.makefile("r", encoding="utf-8") as lines:
            line = lines.readline()
        with connection.makefile("wb") as file:
            file.write(line.encode())
            file.write(repr((connection.getpeername(), connection.getsockname())).encode())

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        mine, theirs = client.socket.getsockname(), client.socket.getpeername()
        client.send("grüß\n".encode())
        assert client.recv_until_closed().decode() == f"grüß\n{(mine, theirs)!r}"


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_a_message_that_comes_too_slowly_ends_at_the_minimum_rate(longshore_server, longshore_clock, strategy):
    server = longshore_server(
        lambda message, connection: message,
        strategy=strategy,
        framing=Lines(),
        timeouts=Timeouts(min_rate=100, idle=None, first_byte=None),
    )
    with Client(server.url) as slow:
        assert slow.request(b"whole") == b"whole"
        slow.send(b"begun")
        server.events.wait_for(ConnectionOpened)
        # The bytes make no event of their own, so time goes on until they have been judged.
        closed = None
        while closed is None:
            longshore_clock.advance(1)
            closed = next(iter(server.events.of(ConnectionClosed)), None)
    assert closed.cause == "timeout"
    assert "min_rate=100" in str(closed.error)


def test_the_oldest_idle_datagram_session_makes_room_for_a_new_peer(longshore_server):
    ended = []

    class Counter(MessageHandler):
        def connected(self):
            self.count = 0

        def message(self, message):
            self.count += 1
            return b"%d" % self.count

        def disconnected(self, error):
            ended.append(self.client_address)

    server = longshore_server(Counter, "udp://127.0.0.1:0", limits=Limits(max_connections=2))
    target = ("127.0.0.1", int(server.url.rpartition(":")[2]))

    def ask(sock):
        sock.sendto(b"?", target)
        return sock.recv(100)

    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    try:
        for sock in sockets:
            sock.settimeout(5)
        one, two, three = sockets
        assert [ask(one), ask(two), ask(one)] == [b"1", b"1", b"2"]
        assert ask(three) == b"1"
        assert [port for _, port in ended] == [two.getsockname()[1]]
        assert [ask(one), ask(two)] == [b"3", b"1"]
    finally:
        for sock in sockets:
            sock.close()


def test_a_truncated_datagram_is_an_event_and_reaches_no_handler(longshore_server, tmp_path):
    seen = []
    server = longshore_server(lambda message, peer: seen.append(message), f"unixgram://{tmp_path}/socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sender.sendto(b"x" * 70_000, f"{tmp_path}/socket")
        dropped = server.events.wait_for(DatagramDropped)
        assert (dropped.reason, dropped.size) == ("truncated", 65_535)
    assert seen == []


def reading_on(seen):
    """A handler and its async twin: they speak, end their side, and keep in `seen` what comes after that."""

    def handler(connection):
        connection.sendall(b"speak\n")
        connection.shutdown(socket.SHUT_WR)
        while line := connection.readline():
            seen.append(line)

    async def async_handler(connection):
        await connection.sendall(b"speak\n")
        connection.shutdown(socket.SHUT_WR)
        while line := await connection.readline():
            seen.append(line)

    return {"async": async_handler}, handler


@pytest.mark.parametrize("strategy", [*BLOCKING, "async"])
def test_a_handler_that_has_ended_its_side_of_tls_still_reads_the_peers(
    longshore_server, certificates, notes, strategy
):
    own, usual = reading_on(notes)
    tls = certificates.server_tls()
    server = longshore_server(own.get(strategy, usual), "tls://127.0.0.1:0", strategy=strategy, tls=tls)
    with Client(server.url) as client:
        assert client.recv_until_closed() == b"speak\n"
        client.send(b"one\n")
        client.send(b"two\n")
    assert server.events.wait_for(ConnectionClosed).cause == "finished"
    assert notes.values == [b"one\n", b"two\n"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*BLOCKING, "async"])
def test_input_that_comes_while_a_handler_ends_its_side_of_tls_is_never_lost(
    longshore_server, certificates, notes, strategy
):
    # A list where it will do: it keeps the handler from the race for a shorter time.
    seen = notes if strategy == "processes" else []
    own, usual = reading_on(seen)
    tls = certificates.server_tls()
    server = longshore_server(own.get(strategy, usual), "tls://127.0.0.1:0", strategy=strategy, tls=tls)
    lines = [b"%d\n" % number for number in range(60)]
    for number in range(1, 61 if strategy == "processes" else 301):
        with Client(server.url) as client:
            # One record each, some of which meet the handler in the middle of its shutdown.
            for line in lines:
                client.send(line)
            client.half_close()
            assert client.recv_until_closed() == b"speak\n"
        server.events.wait_for_count(ConnectionClosed, number)
        assert list(seen) == lines, f"connection {number} lost input"
        seen.clear()


@pytest.mark.parametrize("strategy", BLOCKING)
def test_input_that_has_come_before_a_handler_ends_its_side_of_tls_is_not_lost(
    longshore_server, certificates, notes, strategy
):
    sent = multiprocessing.get_context("fork").Event()

    def handler(connection):
        connection.sendall(connection.readline())
        sent.wait(5)
        connection.shutdown(socket.SHUT_WR)
        notes.append(connection.readline())

    server = longshore_server(handler, "tls://127.0.0.1:0", strategy=strategy, tls=certificates.server_tls())
    with Client(server.url) as client:
        assert client.request(b"first") == b"first"
        client.send(b"second\n")
        sent.set()
        assert client.recv_until_closed() == b""
    server.events.wait_for(ConnectionClosed)
    assert notes.values == [b"second\n"]


@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_a_handler_of_batches_gets_at_once_what_has_arrived_and_its_end_afterwards(longshore_server, strategy):
    batches = []

    class Batches(MessageHandler):
        framing = Lines(max_size=10)

        def messages(self, batch):
            batches.append(batch)
            return [message.upper() for message in batch]

    server = longshore_server(Batches, strategy=strategy)
    with Client(server.url) as client:
        client.send(b"one\ntwo\nthree\n" + b"x" * 20)
        assert client.recv_until_closed() == b"ONE\nTWO\nTHREE\n"
    closed = server.events.wait_for(ConnectionClosed)
    assert (closed.cause, closed.messages) == ("framing", 3)
    assert batches == [[b"one", b"two", b"three"]]


PROGRAM = """
    import longshore

    def echo(connection):
        while data := connection.recv(65536):
            connection.sendall(data)

    report = longshore.serve(echo, "tcp://127.0.0.1:0", strategy={strategy!r})
    print(report.finished, report.cut, report.abandoned)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", BLOCKING)
def test_a_program_that_serves_drains_at_sigterm_and_exits_with_zero(strategy):
    program = textwrap.dedent(PROGRAM.format(strategy=strategy))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        first = process.stderr.readline()
        port = int(re.search(r"tcp://127\.0\.0\.1:(\d+)", first).group(1))
        with socket.create_connection(("127.0.0.1", port), 5) as idle:
            idle.sendall(b"hello")
            assert idle.recv(100) == b"hello"
            process.send_signal(signal.SIGTERM)
            assert idle.recv(100) == b""
            out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert out == "1 0 ()\n"
    assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "class"])
def test_a_broadcast_waits_behind_what_a_handler_is_writing_and_is_refused_above_the_limit(longshore_server, kind):
    big = b"x" * (1 << 23)
    entered = threading.Event()

    def function(connection):
        entered.set()
        connection.sendall(big)
        connection.recv(1)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            function(self.request)

    limits = Limits(max_pending_bytes=1000)
    server = longshore_server(function if kind == "function" else Handler, strategy="threads", limits=limits)
    with Client(server.url, receive_buffer=65_536) as client:
        assert entered.wait(5)
        # The first byte of it is here, and the rest cannot be with the kernel: the handler is in the middle.
        assert client.recv(1) == b"x"
        assert server.broadcast(b"news") == 1
        assert server.broadcast(b"n" * 1000) == 1
        assert server.broadcast(b"one too many") == 0
        news = b"news" + b"n" * 1000
        got = bytearray(b"x")
        while len(got) < len(big) + len(news):
            got += client.recv()
    assert got == big + news


@pytest.mark.parametrize("strategy", BLOCKING)
@pytest.mark.parametrize("mode", ["rwb", "rw"])
def test_a_file_for_both_ways_answers_line_by_line(longshore_server, strategy, mode):
    def handler(connection):
        with connection.makefile(mode) as file:
            while line := file.readline():
                file.write(line.upper())
                file.flush()

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert [client.request(b"one"), client.request(b"two")] == [b"ONE", b"TWO"]
        client.half_close()
        assert client.recv_until_closed() == b""


@pytest.mark.parametrize("strategy", BLOCKING)
def test_a_file_has_no_mode_that_files_of_sockets_do_not_have(longshore_server, strategy):
    def handler(connection):
        with pytest.raises(ValueError, match="invalid mode 'a'"):
            connection.makefile("a")
        connection.sendall(b"refused")

    with Client(longshore_server(handler, strategy=strategy).url) as client:
        assert client.recv_until_closed() == b"refused"


@pytest.mark.parametrize("strategy", ["threads", "green"])
def test_a_new_local_has_nothing_of_one_that_was_at_its_place_in_memory(longshore_server, strategy):
    def handler(connection):
        for _ in range(100):
            fresh = longshore.local()
            assert not hasattr(fresh, "name")
            fresh.name = "taken"
        connection.sendall(b"clean")

    with Client(longshore_server(handler, strategy=strategy).url) as client:
        assert client.recv_until_closed() == b"clean"


@pytest.mark.parametrize("strategy", BLOCKING)
def test_without_any_time_to_wait_a_connection_has_what_is_there_or_says_so(longshore_server, notes, strategy):
    def handler(connection):
        connection.settimeout(0)
        for read in connection.readline, connection.makefile("rb").readline:
            try:
                read()
            except BlockingIOError:
                notes.append("nothing")
        connection.settimeout(10)
        connection.sendall(b"ready\n")
        notes.append(connection.readline())
        connection.settimeout(0)
        notes.append(connection.readline())
        connection.sendall(b"through\n")

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_line() == b"ready\n"
        client.send(b"one\ntwo\n")
        assert client.recv_line() == b"through\n"
    server.events.wait_for(ConnectionClosed)
    assert notes.values == ["nothing", "nothing", b"one\n", b"two\n"]


def test_an_async_connection_has_no_file_and_says_what_to_do(longshore_server):
    async def handler(connection):
        with pytest.raises(longshore.WouldBlock, match=r"makefile\(\) .* would block the loop") as raised:
            connection.makefile("rb")
        await connection.sendall(raised.value.hint.encode())

    server = longshore_server(handler)
    with Client(server.url) as client:
        assert b"readline()" in client.recv_until_closed()


@pytest.mark.parametrize("strategy", ["threads", "green"])
def test_a_side_that_is_none_cannot_be_ended(longshore_server, strategy):
    def handler(connection):
        with pytest.raises(ValueError, match="SHUT_WR"):
            connection.shutdown(7)
        connection.sendall(b"still here\n")

    server = longshore_server(handler, strategy=strategy)
    with Client(server.url) as client:
        assert client.recv_line() == b"still here\n"
