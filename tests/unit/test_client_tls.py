"""Clients that speak TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from longshore.client import connect, open_connection
from longshore.config import TLS
from longshore.errors import ClosedError, ConfigError, HandshakeTimeout, ReadTimeout, WriteTimeout
from longshore.framing import Lines
from longshore.testing import RecordedServer
from longshore.tls import TLSError
from tests.unit.far_ends import far_end, run, shout_in_tls, tcp


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
