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
from pathlib import Path
from typing import Any

import pytest

from longshore import client, dialing
from longshore.addresses import Endpoint
from longshore.client import Refused, Retry, connect, open_connection
from longshore.config import TLS
from longshore.errors import (
    AddressUnavailable,
    ClosedError,
    ConfigError,
    ConnectTimeout,
    IncompleteMessage,
    PeerClosed,
    ReadTimeout,
)
from longshore.framing import Lines
from tests.unit.far_ends import datagram_end, far_end, run, shout, shout_in_tls, tcp, udp, unused_port

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


def test_a_timeout_that_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="timeout=0"):
        connect("tcp://127.0.0.1:1", timeout=0)


# -- datagrams -------------------------------------------------------------------------------------------------


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
