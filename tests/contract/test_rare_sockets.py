"""Raw sockets, vsock and TIPC: what works where kernel and rights allow it, and what is said elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import subprocess
import sys
from pathlib import Path

import pytest

from longshore import AddressUnavailable, Lines, PermissionNeeded, connect, open_connection
from longshore.client import Refused
from longshore.listeners import bind

SOURCE = Path(__file__).resolve().parents[2] / "src"
LONGSHORE = (sys.executable, "-m", "longshore")
#: Gives up CAP_NET_RAW (13) for good (PR_CAPBSET_DROP, 24), and becomes the program that follows.
WITHOUT_RAW = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 13, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
#: For experiments (RFC 3692), so that nothing on this machine answers to it.
PROTOCOL = 253
URLS = [f"raw://127.0.0.1?protocol={PROTOCOL}", f"raw://[::1]?protocol={PROTOCOL}"]


def run(*command, stdin=b""):
    """Run a program to its end; its exit status and the lines of its standard error."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=15,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "dumb"},
    )
    return done.returncode, done.stdout, done.stderr.decode().splitlines()


@pytest.fixture
def target(tmp_path):
    """What `longshore serve` is given."""
    path = tmp_path / "shout.py"
    path.write_text("def shout(message, connection):\n    return message.upper()\n")
    return f"{path}:shout"


def shout_once(message, connection):
    """Answers in capitals, and not to answers, which a raw socket on the same address hears as well."""
    return message.upper() if message.islower() else None


async def shout_once_async(message, connection):
    return shout_once(message, connection)


class ShoutOnce(socketserver.BaseRequestHandler):
    def handle(self):
        data, reply = self.request
        if data.islower():
            reply.sendto(data.upper(), self.client_address)


# -- raw -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=URLS, ids=["IPv4", "IPv6"])
def raw(request):
    """A raw address, where this user may open it."""
    try:
        for listener in bind(request.param):
            listener.close()
    except PermissionNeeded:
        pytest.skip("raw sockets need the capability CAP_NET_RAW")
    except AddressUnavailable as error:
        pytest.skip(str(error))
    return request.param


def answer_in_capitals(connection):
    """The first packet that is not our own."""
    return next(packet for packet in connection if packet.isupper())


@pytest.mark.parametrize(
    ("handler", "strategy"),
    [
        (shout_once, "reactor"),
        (shout_once, "threads"),
        (shout_once, "green"),
        (shout_once_async, "async"),
        (ShoutOnce, "threads"),
        (ShoutOnce, "inline"),
    ],
    ids=["reactor", "threads", "green", "async", "threads-class", "inline-class"],
)
def test_a_raw_packet_is_a_message_without_its_ip_header_on_both_sides(longshore_server, raw, handler, strategy):
    server = longshore_server(handler, raw, strategy=strategy)
    assert server.url == raw
    with connect(server.url, timeout=5) as connection:
        assert connection.peer == raw[6:].partition("?")[0].strip("[]")
        connection.send(b"hello")
        assert answer_in_capitals(connection) == b"HELLO"
        connection.send(b"again")
        assert answer_in_capitals(connection) == b"AGAIN"


def test_an_async_client_and_one_in_a_green_handler_see_raw_packets_the_same(longshore_server, raw):
    server = longshore_server(shout_once, raw)

    async def converse():
        async with await open_connection(server.url, timeout=5) as connection:
            await connection.send(b"hello")
            while not (packet := await connection.receive()).isupper():
                pass
            return packet

    def ask(connection):
        with connect(server.url, timeout=5) as other:
            other.send(b"hello")
            connection.sendall(answer_in_capitals(other))

    assert asyncio.run(converse()) == b"HELLO"
    green = longshore_server(ask, strategy="green")
    with connect(green.url, timeout=5) as connection:
        assert connection.read_exactly(5) == b"HELLO"


def test_a_framing_cuts_each_raw_packet(longshore_server, raw):
    server = longshore_server(shout_once, raw, framing=Lines())
    with connect(server.url, framing=Lines(), timeout=5) as connection:
        connection.sendall(b"one\ntwo\n")
        assert [answer_in_capitals(connection), answer_in_capitals(connection)] == [b"ONE", b"TWO"]


def test_a_reply_leaves_from_the_address_that_the_packet_was_sent_to(longshore_server, raw):
    if "[" in raw:
        pytest.skip("there is one IPv6 address for this machine itself")
    longshore_server(shout_once, f"raw://0.0.0.0?protocol={PROTOCOL}")
    with connect(f"raw://127.0.0.2?protocol={PROTOCOL}", timeout=5) as connection:
        connection.send(b"hello")
        # A connected raw socket hears that one address only.
        assert answer_in_capitals(connection) == b"HELLO"


def test_a_socket_that_writes_headers_itself_sees_them_too(longshore_server, raw):
    if "[" in raw:
        pytest.skip("a raw IPv6 socket knows no headers")
    seen = []

    def keep(message, connection):
        seen.append(message)

    own = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
    own.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    own.bind(("127.0.0.1", 0))
    server = longshore_server(keep, own)
    with connect(raw, timeout=5) as connection:
        connection.send(b"hello")
        assert connection.receive() == b"hello"
    server.drain()
    (packet,) = seen
    assert (packet[0], packet[9], packet[20:]) == (0x45, PROTOCOL, b"hello")


REFUSED = """
import asyncio, sys
from longshore import PermissionNeeded, Server, connect, open_connection

def serve(url):
    Server(lambda message, connection: None, url).start()

for attempt in (serve, connect, lambda url: asyncio.run(open_connection(url))):
    try:
        attempt(sys.argv[1])
    except PermissionNeeded as error:
        print(error, "|", error.hint)
"""


@pytest.mark.slow
@pytest.mark.parametrize("url", URLS, ids=["IPv4", "IPv6"])
def test_without_the_capability_a_raw_address_needs_a_permission(url):
    status, output, errors = run(*WITHOUT_RAW, sys.executable, "-c", REFUSED, url)
    assert (status, errors) == (0, [])
    assert output.decode().splitlines() == [f"{url}: permission denied (Operation not permitted) | {RAW_HINT}"] * 3


RAW_HINT = "Raw sockets need CAP_NET_RAW: run as root, or grant it (AmbientCapabilities= in a systemd unit)."


@pytest.mark.slow
def test_without_the_capability_the_command_line_says_so_in_one_line_and_a_hint(target):
    for words in (("serve", target, "--bind", URLS[0]), ("connect", URLS[0])):
        status, output, errors = run(*WITHOUT_RAW, *LONGSHORE, *words)
        assert (status, output) == (1, b"")
        assert errors == [
            f"longshore: {URLS[0]}: permission denied (Operation not permitted)",
            f"hint: {RAW_HINT}",
        ]


# -- families that the kernel may lack ---------------------------------------------------------------------------


def has_tipc():
    try:
        socket.socket(socket.AF_TIPC, socket.SOCK_RDM).close()
    except (AttributeError, OSError):
        return False
    return True


def has_vsock_loopback():
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.bind((1, socket.VMADDR_PORT_ANY))
    except (AttributeError, OSError):
        return False
    return True


needs_tipc = pytest.mark.skipif(not has_tipc(), reason="this kernel has no TIPC (modprobe tipc)")
needs_vsock = pytest.mark.skipif(not has_vsock_loopback(), reason="this kernel has no vsock_loopback")
RDM = "rdm://18888:17"
VSOCK = "vsock://local:50123"


@pytest.mark.skipif(has_tipc(), reason="this kernel has TIPC")
def test_without_tipc_every_way_to_use_it_says_what_is_missing(longshore_server):
    async def open_it():
        await open_connection(RDM)

    for attempt in (
        lambda: longshore_server(shout_once, RDM),
        lambda: connect(RDM),
        lambda: asyncio.run(open_it()),
    ):
        with pytest.raises(AddressUnavailable, match=f"^{RDM}: this system.*AF_TIPC sockets") as caught:
            attempt()
        assert not caught.value.hint or "modprobe tipc" in caught.value.hint


@pytest.mark.skipif(has_vsock_loopback(), reason="this kernel has vsock_loopback")
def test_without_a_vsock_loopback_every_way_to_use_it_says_what_is_missing(longshore_server):
    async def open_it():
        await open_connection(VSOCK)

    for attempt in (
        lambda: longshore_server(shout_once, VSOCK, framing=Lines()),
        lambda: connect(VSOCK),
        lambda: asyncio.run(open_it()),
    ):
        with pytest.raises(AddressUnavailable, match=f"^{VSOCK}: ") as caught:
            attempt()
        assert "AF_VSOCK" in str(caught.value) or "modprobe vsock_loopback" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("url", [RDM, VSOCK])
def test_at_the_command_line_a_family_that_is_missing_is_one_line_and_a_hint(target, url):
    if has_tipc() if url == RDM else has_vsock_loopback():
        pytest.skip("this kernel has it")
    for words in (("serve", target, "--framing", "lines", "--bind", url), ("connect", url)):
        status, output, errors = run(*LONGSHORE, *words)
        assert (status, output, len(errors)) == (1, b"", 2), errors
        assert errors[0].startswith(f"longshore: {url}: ")
        assert errors[1].startswith("hint: ")


@needs_tipc
@pytest.mark.parametrize("strategy", ["reactor", "threads", "green"])
def test_over_tipc_each_datagram_is_answered(longshore_server, strategy):
    server = longshore_server(shout_once, RDM, strategy=strategy)
    assert server.url == RDM
    with connect(server.url, timeout=5) as connection:
        assert connection.peer == "18888:17"
        assert connection.request(b"hello") == b"HELLO"


@needs_tipc
def test_over_tipc_an_async_client_is_answered(longshore_server):
    server = longshore_server(shout_once, RDM)

    async def converse():
        async with await open_connection(server.url, timeout=5) as connection:
            return await connection.request(b"hello")

    assert asyncio.run(converse()) == b"HELLO"


@needs_vsock
def test_over_vsock_lines_are_answered(shape, serve):
    server = serve(shape, lambda message, connection: message.upper(), "vsock://local:0")
    with connect(server.url, framing=Lines(), timeout=5) as connection:
        assert connection.request(b"hello") == b"HELLO"


@needs_vsock
def test_over_vsock_tls_is_spoken_as_over_tcp(longshore_server, certificates):
    from longshore import TLS

    def shout(message, connection):
        return message.upper()

    server = longshore_server(shout, "vsock://local:0?tls=1", framing=Lines(), tls=certificates.server_tls())
    tls = TLS(client_ca=certificates.authority)
    with connect(server.url, framing=Lines(), tls=tls, timeout=5) as connection:
        assert connection.request(b"hello") == b"HELLO"


@needs_vsock
def test_a_vsock_port_on_which_nobody_listens_refuses():
    with pytest.raises(Refused, match=r"vsock://local:50124: "):
        connect("vsock://local:50124", timeout=5)


@pytest.mark.slow
@pytest.mark.parametrize("url", [pytest.param(RDM, marks=needs_tipc), pytest.param(VSOCK, marks=needs_vsock)])
def test_the_command_line_serves_and_connects_over_them(target, url):
    command = (*LONGSHORE, "serve", target, "--framing", "lines", "--bind", url)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)}) as server:
        try:
            assert b"serving" in server.stderr.readline()
            assert run(*LONGSHORE, "connect", url, "--framing", "lines", stdin=b"hello\n")[:2] == (0, b"HELLO\n")
        finally:
            server.terminate()
