"""HAProxy in front: its PROXY headers, both versions, with TLS behind them, and its health checks."""

from __future__ import annotations

import socket
import subprocess

import pytest

from longshore import Lines, connect
from longshore.config import Proxy
from longshore.events import ConnectionClosed, ConnectionOpened, HandlerFailed
from longshore.testing import Client


def named(message, connection):
    return f"{connection.peer} via {connection.via} {connection.proxied.version}".encode()


@pytest.fixture
def haproxy(tmp_path, needs):
    """Start HAProxy in front of an address; the port where it listens."""
    program = needs("haproxy")
    started = []

    def start(server, options):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.set_inheritable(True)
        port = server.url.rsplit(":", 1)[1]
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n"
            f"listen front\n bind fd@{listener.fileno()}\n server back 127.0.0.1:{port} {options}\n"
        )
        process = subprocess.Popen(
            [program, "-db", "-f", str(config)],
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append((process, listener))
        return listener.getsockname()[1]

    yield start
    for process, listener in started:
        process.terminate()
        process.wait(10)
        listener.close()


@pytest.mark.parametrize(("option", "version"), [("send-proxy", b"1"), ("send-proxy-v2", b"2")])
def test_the_client_behind_haproxy_is_known(framed, serve, haproxy, option, version):
    server = serve(framed, named, proxy=Proxy(trusted=("127.0.0.1",)))
    port = haproxy(server, option)
    with Client(f"tcp://127.0.0.1:{port}", source="127.0.0.44") as client:
        line = client.request(b"hello")
    assert line.startswith(b"127.0.0.44:")
    assert line.endswith(b" " + version)
    assert b"via 127.0.0.1:" in line
    assert server.events.of(HandlerFailed) == []


def test_tls_goes_on_behind_haproxys_header(together, serve, haproxy, certificates):
    server = serve(
        together, named, "tls://127.0.0.1:0", tls=certificates.server_tls(), proxy=Proxy(trusted=("127.0.0.1",))
    )
    port = haproxy(server, "send-proxy-v2 proxy-v2-options crc32c,unique-id")
    with Client(f"tls://127.0.0.1:{port}", tls=certificates.client_context(), source="127.0.0.45") as client:
        assert client.request(b"hello").startswith(b"127.0.0.45:")


def test_what_haproxy_tells_of_tls_that_it_has_ended_is_there(longshore_server, haproxy, certificates, tmp_path):
    def told(message, connection):
        return f"{connection.proxied.fields.get('authority')} {sorted(connection.proxied.tls)}".encode()

    server = longshore_server(told, framing=Lines(), proxy=Proxy(trusted=("127.0.0.1",)))
    port = haproxy(server, "send-proxy-v2-ssl")
    with Client(f"tcp://127.0.0.1:{port}") as client:
        assert client.request(b"hello") == b"None []"


def test_haproxys_own_checks_are_its_own(longshore_server, haproxy):
    server = longshore_server(named, framing=Lines(), proxy=Proxy(trusted=("127.0.0.1",)))
    haproxy(server, "send-proxy-v2 check inter 50ms check-send-proxy")
    opened = server.events.wait_for(ConnectionOpened)
    assert opened.peer == opened.via
    assert server.events.wait_for(ConnectionClosed).cause != "proxy"


@pytest.mark.parametrize("version", [1, 2])
def test_our_own_clients_can_be_the_proxy(together, serve, version, certificates):
    server = serve(together, named, proxy=Proxy(trusted=("127.0.0.1",)))
    with connect(server.url, framing=Lines(), proxy=version) as connection:
        ours = ":".join(map(str, connection.getsockname()))
        assert connection.request(b"hello") == f"{ours} via {ours} {version}".encode()
