from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from longshore import client, dialing
from longshore.addresses import Endpoint
from longshore.client import Refused, Retry, connect, open_connection
from longshore.config import TLS
from longshore.errors import (
    AddressUnavailable,
    ClosedError,
    ConfigError,
    ConnectTimeout,
    HandshakeTimeout,
    IncompleteMessage,
    PeerClosed,
    ReadTimeout,
    WriteTimeout,
)
from longshore.framing import Lines
from longshore.testing import RecordedServer
from longshore.tls import TLSError


@contextlib.contextmanager
def far_end(sock: socket.socket, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept one connection on `sock` in a thread, and serve it."""

    def run() -> None:
        with contextlib.suppress(OSError):
            accepted, _ = sock.accept()
            with accepted:
                serve(accepted)

    sock.settimeout(5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(6)
        sock.close()


def shout(sock: socket.socket) -> None:
    with sock.makefile("rwb", buffering=0) as file:
        for line in file:
            file.write(line.upper())


def tcp(host: str = "127.0.0.1") -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family)
    return sock, f"tcp://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def run(test: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), 10))


@pytest.fixture
def authority(tmp_path: Path) -> tuple[str, ssl.SSLContext]:
    made = trustme.CA()
    path = tmp_path / "authority.pem"
    made.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return str(path), context


def shout_in_tls(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as wrapped:
            shout(wrapped)

    return serve


# -- blocking ----------------------------------------------------------------------------------------------


def test_request_sends_a_message_and_returns_the_reply() -> None:
    sock, url = tcp()
    with far_end(sock, shout), connect(url, framing=Lines()) as connection:
        assert connection.request(b"hello") == b"HELLO"
        assert connection.peer == url.removeprefix("tcp://")
        assert connection.local == f"127.0.0.1:{connection.getsockname()[1]}"
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_unix_socket_is_reached_by_its_path(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    with far_end(sock, shout), connect(f"unix://{tmp_path}/s", framing=Lines()) as connection:
        assert connection.request(b"hello") == b"HELLO"


def test_the_end_of_the_peer_is_peer_closed() -> None:
    sock, url = tcp()
    with far_end(sock, lambda sock: None), connect(url, framing=Lines()) as connection, pytest.raises(PeerClosed):
        connection.receive()


def test_a_refusal_names_the_url_and_is_still_connection_refused() -> None:
    url = f"tcp://127.0.0.1:{unused_port()}"
    with pytest.raises(Refused, match=f"{url}: Connection refused") as caught:
        connect(url)
    assert isinstance(caught.value, (AddressUnavailable, ConnectionRefusedError))
    assert caught.value.errno == errno.ECONNREFUSED
    assert "running" in caught.value.hint


def test_a_missing_socket_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressUnavailable, match="No such file") as caught:
        connect(f"unix://{tmp_path}/none")
    assert "socket file" in caught.value.hint


def test_a_host_that_never_answers_ends_in_connect_timeout() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(0)
    # A full queue: the kernel drops further connection requests, as a firewall would.
    fillers = [socket.socket() for _ in range(3)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(ConnectTimeout, match=f"{url}: no connection within 0.05 s"):
            connect(url, timeout=0.05)

        async def test() -> None:
            with pytest.raises(ConnectTimeout, match=f"{url}: no connection within 0.05 s"):
                await open_connection(url, timeout=0.05)

        run(test)
    finally:
        for each in (*fillers, sock):
            each.close()


def test_a_unix_socket_with_a_full_queue_ends_in_connect_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.ExitStack() as stack:
        sock.bind(str(tmp_path / "s"))
        sock.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        with pytest.raises(ConnectTimeout):
            connect(f"unix://{tmp_path}/s", timeout=0.05)


def test_the_timeout_stays_with_the_connection() -> None:
    sock, url = tcp()
    with far_end(sock, shout), connect(url, timeout=0.05) as connection:
        assert connection.gettimeout() == 0.05
        with pytest.raises(ReadTimeout, match=r"sent nothing in 0\.05 s"):
            connection.recv(1)


def test_closing_wakes_a_thread_that_reads() -> None:
    sock, url = tcp()
    caught: list[BaseException] = []
    with far_end(sock, shout):
        connection = connect(url, timeout=5)
        link: Any = connection._link

        def read() -> None:
            try:
                connection.recv(1)
            except OSError as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        while not link._readers:
            os.sched_yield()
        connection.close()
        thread.join(5)
    assert isinstance(caught[0], ClosedError)


def addresses_of(monkeypatch: pytest.MonkeyPatch, *sockaddrs: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    endpoints = [
        Endpoint(socket.AF_INET6 if ":" in each[0] else socket.AF_INET, socket.SOCK_STREAM, 0, each)
        for each in sockaddrs
    ]
    monkeypatch.setattr(dialing, "resolve", lambda address, passive: endpoints)


def test_the_next_address_is_tried_when_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, _ = tcp()
    addresses_of(monkeypatch, ("127.0.0.1", unused_port()), sock.getsockname())
    with far_end(sock, shout), connect("tcp://some.name:1", framing=Lines()) as connection:
        assert connection.request(b"hello") == b"HELLO"


def test_an_address_that_hangs_delays_the_next_by_a_quarter_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "STAGGER", 0.01)
    hanging = socket.socket()
    hanging.bind(("127.0.0.1", 0))
    hanging.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hanging.getsockname())
        sock, url = tcp()
        addresses_of(monkeypatch, hanging.getsockname(), sock.getsockname())
        with far_end(sock, shout), connect("tcp://some.name:1", framing=Lines()) as connection:
            assert connection.peer == url.removeprefix("tcp://")

        sock, url = tcp()
        addresses_of(monkeypatch, hanging.getsockname(), sock.getsockname())

        async def test() -> None:
            async with await open_connection("tcp://some.name:1", framing=Lines()) as connection:
                assert connection.peer == url.removeprefix("tcp://")

        with far_end(sock, shout):
            run(test)
    finally:
        for each in (*fillers, hanging):
            each.close()


def test_when_all_addresses_fail_each_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    addresses_of(monkeypatch, ("127.0.0.1", port), ("255.255.255.255", port))
    with pytest.raises(AddressUnavailable) as caught:
        connect("tcp://some.name:1")
    assert f"127.0.0.1:{port}: Connection refused" in str(caught.value)
    assert f"255.255.255.255:{port}: " in str(caught.value)


def test_families_take_turns() -> None:
    four = [Endpoint(socket.AF_INET, 1, 0, (f"127.0.0.{number}", 1)) for number in range(3)]
    six = [Endpoint(socket.AF_INET6, 1, 0, (f"::{number}", 1)) for number in range(2)]
    assert dialing._interleaved(six + four) == deque([six[0], four[0], six[1], four[1], four[2]])


def test_an_unknown_host_is_address_unavailable() -> None:
    with pytest.raises(AddressUnavailable, match=r"no-such-host\.invalid"):
        connect("tcp://no-such-host.invalid:1", timeout=5)


# -- retry ---------------------------------------------------------------------------------------------------


def test_pauses_grow_up_to_the_maximum() -> None:
    assert list(Retry(attempts=5, initial=1, maximum=3, jitter=0).pauses()) == [1, 2, 3, 3]


def test_jitter_only_shortens_a_pause() -> None:
    assert all(0.5 <= pause <= 1 for pause in Retry(attempts=50, initial=1, maximum=1, jitter=0.5).pauses())


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"attempts": True}, {"jitter": 2}, {"multiplier": 0.5}])
def test_a_retry_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Retry"):
        Retry(**wrong)


def test_connecting_is_tried_again_until_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    slept: list[float] = []
    servers: list[Any] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            servers.append(socket.create_server(("127.0.0.1", port)))

    monkeypatch.setattr(client.time, "sleep", sleep)
    with connect(f"tcp://127.0.0.1:{port}", retry=Retry(attempts=3, initial=7, jitter=0, maximum=20)):
        servers[0].close()
    assert slept == [7, 14]


def test_after_the_last_attempt_its_error_is_raised() -> None:
    with pytest.raises(Refused):
        connect(f"tcp://127.0.0.1:{unused_port()}", retry=Retry(attempts=2, initial=0))

    async def test() -> None:
        with pytest.raises(Refused):
            await open_connection(f"tcp://127.0.0.1:{unused_port()}", retry=Retry(attempts=2, initial=0))

    run(test)


# -- TLS -----------------------------------------------------------------------------------------------------


def test_tls_verifies_with_the_given_authority(authority: tuple[str, ssl.SSLContext]) -> None:
    path, context = authority
    sock, url = tcp()
    url = url.replace("tcp", "tls")
    with far_end(sock, shout_in_tls(context)), connect(url, framing=Lines(), tls=TLS(client_ca=path)) as connection:
        assert connection.request(b"hello") == b"HELLO"
        assert connection.tls.version() in ("TLSv1.2", "TLSv1.3")


def connect_blocking(url: str, **options: Any) -> None:
    connect(url, **options).close()


def connect_async(url: str, **options: Any) -> None:
    async def test() -> None:
        (await open_connection(url, **options)).close()

    run(test)


both = pytest.mark.parametrize("dial", [connect_blocking, connect_async])


@both
def test_an_unknown_authority_is_a_tls_error_that_says_what_to_do(
    dial: Callable[..., None], authority: tuple[str, ssl.SSLContext]
) -> None:
    sock, url = tcp()
    url = url.replace("tcp", "tls")
    wanted = f"{url}: TLS handshake failed: .*certificate"
    with far_end(sock, shout_in_tls(authority[1])), pytest.raises(TLSError, match=wanted) as caught:
        dial(url)
    assert "TLS(client_ca=" in caught.value.hint


@both
def test_a_server_that_does_not_speak_tls_ends_in_handshake_timeout(dial: Callable[..., None]) -> None:
    sock, url = tcp()
    url = url.replace("tcp", "tls")

    def swallow(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    wanted = f"{url}: connected, but .* within 0.1 s"
    with far_end(sock, swallow), pytest.raises(HandshakeTimeout, match=wanted):
        dial(url, timeout=0.1)


@both
def test_a_server_that_closes_in_the_handshake_is_a_tls_error(dial: Callable[..., None]) -> None:
    sock, url = tcp()
    url = url.replace("tcp", "tls")
    with far_end(sock, lambda sock: None), pytest.raises(TLSError, match=url):
        dial(url)


def test_tls_on_a_plain_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="tls=") as caught:
        connect("tcp://127.0.0.1:1", tls=TLS())
    assert "tls://" in caught.value.hint


def test_a_timeout_that_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="timeout=0"):
        connect("tcp://127.0.0.1:1", timeout=0)


def tls_far_end(
    authority: tuple[str, ssl.SSLContext], serve: Callable[[ssl.SSLSocket], None]
) -> tuple[contextlib.AbstractContextManager[None], str, TLS]:
    """A server for one connection, where an end of the stream without close_notify is an error."""
    path, context = authority
    sock, url = tcp()

    def wrapped(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as each:
            serve(each)

    return far_end(sock, wrapped), url.replace("tcp", "tls"), TLS(client_ca=path)


def test_a_half_close_over_tls_loses_neither_what_has_come_nor_what_comes_later(
    authority: tuple[str, ssl.SSLContext],
) -> None:
    ends: list[bytes] = []
    sent = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        ends.append(sock.recv(100))
        sock.sendall(b"before, ")
        sent.set()
        ends.append(sock.recv(100))
        sock.sendall(b"after")

    end, url, tls = tls_far_end(authority, serve)
    with end, connect(url, tls=tls) as connection:
        connection.sendall(b"hello")
        # In our kernel now and read by nobody: close_notify must not run over it.
        assert sent.wait(5)
        connection.shutdown(socket.SHUT_WR)
        assert connection.read_exactly(13) == b"before, after"
        assert connection.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            connection.sendall(b"too late")
    assert ends == [b"hello", b""]


def test_closing_over_tls_says_goodbye(authority: tuple[str, ssl.SSLContext]) -> None:
    ends: list[bytes] = []

    def serve(sock: ssl.SSLSocket) -> None:
        ends.append(sock.recv(100))
        ends.append(sock.recv(100))

    end, url, tls = tls_far_end(authority, serve)
    with end:
        connection = connect(url, tls=tls)
        connection.sendall(b"all")
        connection.close()
    assert ends == [b"all", b""]


def test_two_threads_read_and_write_one_tls_connection(authority: tuple[str, ssl.SSLContext]) -> None:
    data = os.urandom(1 << 20) * 4

    def serve(sock: ssl.SSLSocket) -> None:
        while piece := sock.recv(65_536):
            sock.sendall(piece)

    end, url, tls = tls_far_end(authority, serve)
    with end, connect(url, tls=tls) as connection:

        def write() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        got = bytearray()
        while piece := connection.recv(65_536):
            got += piece
        writer.join(5)
    assert got == data


def test_over_tls_each_wait_has_the_timeout_and_the_connection_outlives_it(
    authority: tuple[str, ssl.SSLContext],
) -> None:
    asked = threading.Event()

    def serve(sock: ssl.SSLSocket) -> None:
        asked.wait(5)
        sock.sendall(b"late")
        sock.recv(1)

    end, url, tls = tls_far_end(authority, serve)
    with end, connect(url, tls=tls) as connection:
        connection.settimeout(0.02)
        with pytest.raises(ReadTimeout, match=r"sent nothing in 0\.02 s"):
            connection.recv(1)
        asked.set()
        connection.settimeout(5)
        assert connection.recv(100) == b"late"


def test_a_peer_that_takes_nothing_over_tls_ends_in_write_timeout(authority: tuple[str, ssl.SSLContext]) -> None:
    done = threading.Event()
    end, url, tls = tls_far_end(authority, lambda sock: done.wait(5) and None)
    with end, connect(url, tls=tls) as connection:
        connection.settimeout(0.05)
        with pytest.raises(WriteTimeout, match=r"took nothing in 0\.05 s"):
            connection.sendall(bytes(32 << 20))
        connection.abort()
        done.set()


def test_closing_wakes_a_thread_that_reads_tls(authority: tuple[str, ssl.SSLContext]) -> None:
    caught: list[BaseException] = []
    end, url, tls = tls_far_end(authority, lambda sock: sock.recv(1) and None)
    with end:
        connection = connect(url, tls=tls, timeout=5)
        link: Any = connection._link

        def read() -> None:
            try:
                connection.recv(1)
            except OSError as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        while not link._readers:
            os.sched_yield()
        connection.close()
        thread.join(5)
    assert isinstance(caught[0], ClosedError)


def test_a_connection_tells_what_tls_agreed_on(authority: tuple[str, ssl.SSLContext]) -> None:
    authority[1].set_alpn_protocols(["echo/1"])
    end, url, tls = tls_far_end(authority, lambda sock: sock.recv(1) and None)
    with end, connect(url, tls=TLS(client_ca=tls.client_ca, alpn=("echo/1",))) as connection:
        assert connection.tls.version() in ("TLSv1.2", "TLSv1.3")
        assert connection.tls.cipher()[0]
        assert ("DNS", "localhost") in connection.tls.getpeercert()["subjectAltName"]
        assert connection.tls.selected_alpn_protocol() == "echo/1"


def test_turning_to_tls_in_the_middle_verifies_too(authority: tuple[str, ssl.SSLContext]) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(9)
        shout_in_tls(authority[1])(sock)

    sock, url = tcp()
    with far_end(sock, serve), connect(url, framing=Lines()) as connection:
        connection.send(b"STARTTLS")
        connection.start_tls(TLS(client_ca=authority[0]), hostname="localhost")
        assert connection.request(b"hello") == b"HELLO"
    sock, url = tcp()
    wanted = "127.0.0.1:.*: TLS handshake failed: .*certificate"
    with far_end(sock, serve), connect(url, framing=Lines()) as connection:
        connection.send(b"STARTTLS")
        with pytest.raises(TLSError, match=wanted):
            connection.start_tls(hostname="localhost")


def test_turning_to_tls_with_a_peer_that_says_nothing_ends_in_handshake_timeout() -> None:
    sock, url = tcp()
    with far_end(sock, lambda sock: len(sock.recv(65_536)) and sock.recv(65_536) and None), connect(url) as connection:
        connection.settimeout(0.05)
        with pytest.raises(HandshakeTimeout, match=r"in 0\.05 s"):
            connection.start_tls(hostname="localhost")


def echo(connection: Any) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


def files_of(authority: trustme.CA, folder: Path) -> tuple[TLS, TLS]:
    """The options of a server and of its client."""
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return TLS(certfile=str(folder / "server.pem")), TLS(client_ca=str(folder / "authority.pem"))


@pytest.mark.parametrize("strategy", ["threads", "green"])
@pytest.mark.parametrize("address", ["unix://{0}/s?tls=1", "unix://@{0}?tls=1", "tcp://127.0.0.1:0?tls=1"])
def test_every_stream_address_speaks_tls_when_asked(
    longshore_server: Callable[..., RecordedServer], tmp_path: Path, address: str, strategy: str
) -> None:
    server_tls, client_tls = files_of(trustme.CA(), tmp_path)
    server = longshore_server(echo, address.format(tmp_path), tls=server_tls, strategy=strategy)
    assert server.url.endswith("?tls=1")
    with connect(server.url, tls=client_tls) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert connection.read_exactly(5) == b"hello"
        assert connection.tls.version()
        assert connection.recv(1) == b""

    async def test() -> None:
        async with await open_connection(server.url, framing=Lines(), tls=client_tls) as connection:
            assert await connection.request(b"hello") == b"hello"

    run(test)


# -- in green handlers -----------------------------------------------------------------------------------------


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


# -- datagrams -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def datagram_end(sock: socket.socket, count: int) -> Iterator[None]:
    """Reply to `count` datagrams, in capitals."""

    def run() -> None:
        for _ in range(count):
            data, peer = sock.recvfrom(65_536)
            sock.sendto(data.upper(), peer)

    sock.settimeout(5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(6)
        sock.close()


def udp() -> tuple[socket.socket, str]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock, f"udp://127.0.0.1:{sock.getsockname()[1]}"


def test_on_udp_each_receive_is_one_datagram() -> None:
    sock, url = udp()
    with datagram_end(sock, 3), connect(url) as connection:
        connection.send(b"one")
        connection.send(b"")
        connection.sendall(b"three")
        assert [connection.receive(), connection.receive(), connection.recv(100)] == [b"ONE", b"", b"THREE"]


def test_on_udp_a_framing_applies_within_each_datagram() -> None:
    sock, url = udp()
    with datagram_end(sock, 2), connect(url, framing=Lines()) as connection:
        connection.sendall(b"one\ntwo\n")
        assert [connection.receive(), connection.receive()] == [b"ONE", b"TWO"]
        connection.sendall(b"half")
        with pytest.raises(IncompleteMessage, match="4 bytes"):
            connection.receive()


def test_a_unix_datagram_client_can_be_replied_to(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "s"))
    with datagram_end(sock, 1), connect(f"unixgram://{tmp_path}/s") as connection:
        assert connection.request(b"hello") == b"HELLO"


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="the system has no SOCK_SEQPACKET")
def test_on_seqpacket_each_receive_is_one_packet_until_the_end(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(tmp_path / "s"))
    sock.listen()

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            sock.send(sock.recv(100).upper())

    with far_end(sock, serve), connect(f"seqpacket://{tmp_path}/s") as connection:
        connection.send(b"one")
        connection.send(b"two")
        assert list(connection) == [b"ONE", b"TWO"]


def test_async_datagrams_are_whole_too() -> None:
    sock, url = udp()

    async def test() -> None:
        async with await open_connection(url) as connection:
            await connection.send(b"one")
            await connection.send(b"two")
            assert [await connection.receive(), await connection.receive()] == [b"ONE", b"TWO"]

    with datagram_end(sock, 2):
        run(test)


# -- asyncio ---------------------------------------------------------------------------------------------------


def test_an_async_request_returns_the_reply() -> None:
    sock, url = tcp()

    async def test() -> None:
        async with await open_connection(url, framing=Lines()) as connection:
            assert await connection.request(b"hello") == b"HELLO"

    with far_end(sock, shout):
        run(test)


def test_async_tls_verifies_with_the_given_authority(authority: tuple[str, ssl.SSLContext]) -> None:
    path, context = authority
    sock, url = tcp()

    async def test() -> None:
        url_tls = url.replace("tcp", "tls")
        async with await open_connection(url_tls, framing=Lines(), tls=TLS(client_ca=path)) as connection:
            assert await connection.request(b"hello") == b"HELLO"
            assert connection.tls.version() in ("TLSv1.2", "TLSv1.3")

    with far_end(sock, shout_in_tls(context)):
        run(test)


def test_an_async_refusal_names_the_url() -> None:
    url = f"tcp://127.0.0.1:{unused_port()}"

    async def test() -> None:
        with pytest.raises(Refused, match=f"{url}: Connection refused"):
            await open_connection(url)

    run(test)


def test_connections_of_one_loop_share_a_reactor_that_ends_with_the_last() -> None:
    sock, url = tcp()
    sock.listen()

    async def test() -> None:
        first = await open_connection(url)
        second = await open_connection(url)
        assert len(client._Shared._by_loop) == 1
        first.close()
        await asyncio.sleep(0)
        assert len(client._Shared._by_loop) == 1
        second.close()

    before = set(os.listdir("/proc/self/fd"))
    with sock:
        run(test)
    gc.collect()
    assert client._Shared._by_loop == {}
    assert set(os.listdir("/proc/self/fd")) < before


def test_a_cancelled_connect_leaves_nothing_open() -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())

        async def test() -> None:
            task = asyncio.ensure_future(open_connection(f"tcp://127.0.0.1:{sock.getsockname()[1]}"))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(test)
        gc.collect()
    finally:
        for each in (*fillers, sock):
            each.close()
