"""Clients who say nothing: one of them is enough to stop a server that waits for it."""

from __future__ import annotations

import http.server
import threading
from typing import Any

from stage import ANYWHERE, ask, connect, echo, serving, within_patience

from longshore import Timeouts


def a_silent_client_loses_its_connection(module: Any) -> None:
    """jordan-gibbs/hyperresearch#87: a browser that connects in advance, and nobody else is served."""

    class Server(module.TCPServer):
        timeouts = Timeouts(first_byte=1)

    server = Server(ANYWHERE, echo(module))
    with serving(server), connect(server) as silent:
        with connect(server) as client:
            assert ask(client) == b"hello", "a silent client is not cut, and another gets no answer"
        assert silent.recv(1) == b"", "a silent client is not cut"


def a_client_that_falls_silent_loses_its_connection(module: Any) -> None:
    """The same after a first line."""

    class Server(module.TCPServer):
        timeouts = Timeouts(idle=1)

    server = Server(ANYWHERE, echo(module))
    with serving(server), connect(server) as silent:
        assert ask(silent) == b"hello"
        with connect(server) as client:
            assert ask(client) == b"hello", "a silent client is not cut, and another gets no answer"
        assert silent.recv(1) == b"", "a silent client is not cut"


def handle_request_ends_in_time_without_a_client(module: Any) -> None:
    """What `timeout` has always been for."""
    timed_out = threading.Event()

    class Server(module.TCPServer):
        timeout = 0.2

        def handle_timeout(self) -> None:
            timed_out.set()

    with Server(ANYWHERE, echo(module)) as server:
        within_patience(server.handle_request, what="handle_request()")
    assert timed_out.is_set(), "handle_timeout() is not called"


def handle_request_ends_in_time_with_a_silent_client(module: Any) -> None:
    """python/cpython#102156: a client that only connects keeps `handle_request`, whatever `timeout` says."""

    class Server(module.TCPServer):
        timeout = 0.2
        timeouts = Timeouts(first_byte=1)

    with Server(ANYWHERE, echo(module)) as server, connect(server) as silent:
        within_patience(server.handle_request, what="handle_request()")
        assert silent.recv(1) == b"", "a silent client is not cut"


def handle_request_of_http_server_ends_in_time(module: Any) -> None:
    """The same where it was reported, with threads, so that `http.server` has them and the limit."""

    class Server(module.ThreadingMixIn, http.server.HTTPServer):
        timeouts = Timeouts(first_byte=1)

    server = Server(ANYWHERE, http.server.BaseHTTPRequestHandler)
    with connect(server) as silent:
        within_patience(server.handle_request, what="handle_request()")
        try:
            assert silent.recv(1) == b""
        except TimeoutError:
            raise AssertionError("a silent client is not cut") from None
    within_patience(server.server_close, what="server_close()")
