"""Clients that nobody here wrote, and thousands of connections in a row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}


def run(command: list[str], text: bytes = b"") -> bytes:
    return subprocess.run(command, input=text, capture_output=True, timeout=10, check=False).stdout


@pytest.mark.slow
def test_nc_talks_to_every_handler(shape, serve, needs):
    nc = needs("nc")
    server = serve(shape, lambda message, _: message.upper())
    host, port = server.url.removeprefix("tcp://").split(":")
    assert run([nc, "-N", host, port], b"hello\nworld\n") == b"HELLO\nWORLD\n"


@pytest.mark.slow
def test_openssl_talks_to_every_handler(shape, serve, needs, certificates):
    openssl = needs("openssl")
    server = serve(shape, lambda message, _: message.upper(), "tls://127.0.0.1:0", tls=certificates.server_tls())
    host = server.url.removeprefix("tls://")
    command = [openssl, "s_client", "-quiet", "-verify_return_error", "-CAfile", certificates.authority]
    process = subprocess.Popen(
        [*command, "-connect", host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"HELLO\n"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_curl_talks_to_a_handler_that_speaks_a_little_http(longshore_server, needs):
    curl = needs("curl")

    def hello(connection):
        while connection.readline() not in (b"\r\n", b""):
            pass
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    for strategy in ("threads", "green", "inline", "processes"):
        server = longshore_server(hello, strategy=strategy)
        assert run([curl, "-s", server.url.replace("tcp:", "http:")]) == b"hello"


MANY = """
import gc, os, socket, sys
from longshore import Lines, Server

strategy = sys.argv[1]
if strategy == "async":
    async def handler(connection):
        while data := await connection.recv(65536):
            await connection.sendall(data)
elif strategy == "reactor":
    def handler(message, connection):
        return message
else:
    def handler(connection):
        while data := connection.recv(65536):
            connection.sendall(data)

def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def connect(count):
    for _ in range(count):
        with socket.create_connection(address) as client:
            client.sendall(b"hello\\n")
            assert client.recv(100) == b"hello\\n"

with Server(handler, "tcp://127.0.0.1:0", strategy=strategy, framing=Lines()) as server:
    host, port = server.addresses[0].removeprefix("tcp://").split(":")
    address = host, int(port)
    connect(500)
    before = resident()
    connect(3000)
    print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("strategy", ["reactor", "threads", "green", "async", "inline"])
def test_three_thousand_connections_take_less_than_three_megabytes(strategy):
    command = [sys.executable, "-c", MANY, strategy]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) < 3_000_000


EXHAUSTED = """
import resource, socket, threading
from longshore import Limits, Lines
from longshore.events import AcceptFailed, ConnectionClosed
from longshore.testing import Client, running_server

def handler(message, connection):
    return message

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with running_server(handler, framing=Lines(), limits=Limits(max_connections=50)) as server, Client(server.url) as first:
    assert first.request(b"first") == b"first"
    with Client(server.url) as probe:
        assert probe.request(b"probe") == b"probe"
        lowest = probe.socket.fileno() + 2
    server.events.wait_for(ConnectionClosed)
    last = socket.socket()
    # Every descriptor is taken but that of the client below.
    resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, hard))
    host, port = server.url.removeprefix("tcp://").split(":")
    taken = []
    try:
        while True:
            taken.append(socket.socket())
    except OSError:
        pass
    last.connect((host, int(port)))
    failed = server.events.wait_for(AcceptFailed)
    assert failed.retry_in > 0, failed
    assert first.request(b"still served") == b"still served"
    last.close()
    for item in taken:
        item.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with Client(server.url) as after:
        assert after.request(b"after") == b"after"
    assert len(server.events.of(AcceptFailed)) < 20, "it spins"
print("recovered")
"""


@pytest.mark.slow
def test_a_server_without_descriptors_waits_and_recovers():
    command = [sys.executable, "-c", EXHAUSTED]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=ENVIRONMENT)
    assert (outcome.stdout, outcome.stderr) == ("recovered\n", "")
