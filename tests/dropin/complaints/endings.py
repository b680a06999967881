"""How requests end: clients that vanish, handlers that fail, children that have finished, datagrams that are cut."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from stage import ANYWHERE, PATIENCE, ask, connect, eventually, serving


@contextlib.contextmanager
def recorded_stderr() -> Iterator[io.StringIO]:
    """What is printed and logged while the block runs."""
    record = io.StringIO()
    before, sys.stderr = sys.stderr, record
    try:
        yield record
    finally:
        sys.stderr = before


def reset(client: socket.socket) -> None:
    """Vanish: the other side gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def a_client_that_vanishes_from_a_reading_handler_is_no_failure(module: Any) -> None:
    """davep/blogmore#29: a traceback for everybody who closes a window."""
    begun = threading.Event()

    class Reader(module.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            begun.set()
            self.rfile.readline()

    _nothing_but_a_line_is_said(module.ThreadingTCPServer(ANYWHERE, Reader), begun)


def a_client_that_vanishes_from_a_writing_handler_is_no_failure(module: Any) -> None:
    """tomwilkie/kube-api-exporter#7: the same with a broken pipe, here on the serving thread."""
    begun = threading.Event()

    class Writer(module.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            begun.set()
            while True:
                self.wfile.write(bytes(65536))

    _nothing_but_a_line_is_said(module.TCPServer(ANYWHERE, Writer), begun)


def _nothing_but_a_line_is_said(server: Any, begun: threading.Event) -> None:
    with recorded_stderr() as said:
        with serving(server):
            client = connect(server)
            client.sendall(b"hello\n")
            begun.wait()
            reset(client)
    text = said.getvalue()
    assert "Traceback" not in text, f"a client that vanishes leaves a traceback:\n{text}"
    assert text.count("\n") <= 1, f"a client that vanishes leaves more than a line:\n{text}"


def a_handler_that_fails_leaves_its_traceback(module: Any) -> None:
    """Silence would be worse: a failure of the handler's own is told, also one that is about another connection."""

    class Failing(module.StreamRequestHandler):
        def handle(self) -> None:
            if self.rfile.readline() == b"divide\n":
                1 / 0  # noqa: B018
            raise ConnectionRefusedError("the database is away")

    server = module.ThreadingTCPServer(ANYWHERE, Failing)
    with recorded_stderr() as said:
        with serving(server):
            with connect(server) as client:
                assert ask(client, b"divide") == b""
            with connect(server) as client:
                # That it says nothing more is no sign that it has gone: it waits for its answer.
                client.sendall(b"connect\n")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
    text = said.getvalue()
    assert text.count("Traceback") == 2, f"the failures are not told:\n{text}"
    assert "ZeroDivisionError" in text
    assert "the database is away" in text


def a_finished_child_is_no_zombie(module: Any) -> None:
    """python/cpython#90093: children are waited for between two requests only, or after `poll_interval`."""

    class Child(module.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"%d\n" % os.getpid())

    server = module.ForkingTCPServer(ANYWHERE, Child)
    with serving(server, poll_interval=3600):
        with connect(server) as client:
            pid = int(ask(client))
            assert client.recv(1) == b""
        eventually(lambda: not os.path.exists(f"/proc/{pid}"), lambda: "a finished child is not waited for")


def a_long_datagram_arrives_whole(module: Any) -> None:
    """sdr-enthusiasts/acars_router#28: what is longer than 8192 bytes is cut, and nobody is told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(ANYWHERE)
        _arrives_whole(module.UDPServer, ANYWHERE, client)


def a_long_datagram_arrives_whole_on_a_unix_socket(module: Any) -> None:
    """The same beside the network."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind(f"{folder}/client")
        _arrives_whole(module.UnixDatagramServer, f"{folder}/server", client)


def _arrives_whole(server_class: Any, address: Any, client: socket.socket) -> None:
    sent = bytes(range(250)) * 240
    came = []

    class Handler:
        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            data, sock = request
            came.append(data)
            sock.sendto(b"thanks", client_address)

    server = server_class(address, Handler)
    with serving(server):
        client.settimeout(PATIENCE)
        client.sendto(sent, server.server_address)
        assert client.recv(100) == b"thanks"
    assert came == [sent], f"{len(came[0])} of {len(sent)} bytes arrive"
