"""What the scenarios share: a server in the background, clients, and waits that end.

A scenario is a function of one argument, the module: `socketserver` or `longshore.socketserver`.  It uses what both
have, and raises `AssertionError` when it has to wait for longer than `PATIENCE`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

#: Seconds after which what has not happened is taken for hung.
PATIENCE = float(os.environ.get("PATIENCE", "10"))
ANYWHERE = ("127.0.0.1", 0)


def within_patience(function: Callable[..., Any], *arguments: Any, what: str) -> Any:
    """What `function` returns, or an `AssertionError` that says "{what} hangs"."""
    returned: list[Any] = []

    def call() -> None:
        returned.append(function(*arguments))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"{what} hangs"
    assert returned, f"{what} raises"
    return returned[0]


@contextlib.contextmanager
def no_longer_than_patience(what: str) -> Iterator[None]:
    """Say "{what} hangs" and end this process, if the block does not end: for what runs on the main thread."""

    def end() -> None:
        print(f"AssertionError: {what} hangs", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(PATIENCE, end)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def eventually(condition: Callable[[], object], otherwise: Callable[[], str]) -> None:
    """Wait for what tells nobody when it happens."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)


@contextlib.contextmanager
def serving(server: Any, **options: Any) -> Iterator[threading.Thread]:
    """`serve_forever` on a thread while the block runs; then all is stopped, unless the block has failed."""
    thread = threading.Thread(target=server.serve_forever, kwargs=options, daemon=True)
    thread.start()
    yield thread
    within_patience(server.shutdown, what="shutdown()")
    within_patience(server.server_close, what="server_close()")
    thread.join(PATIENCE)
    assert not thread.is_alive(), "serve_forever() hangs"


def connect(server: Any) -> socket.socket:
    """A client."""
    return socket.create_connection(server.server_address[:2], timeout=PATIENCE)


def ask(client: socket.socket, line: bytes = b"hello") -> bytes:
    """Send one line, and return the line that comes back, without its end; b"" if none comes."""
    try:
        client.sendall(line + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = client.recv(65536)
            if not data:
                return b""
            answer += data
    except TimeoutError:
        raise AssertionError("no answer comes") from None
    return answer[:-1]


def echo(module: Any) -> Any:
    """A handler that sends every line back, and keeps the connection until the client ends it."""

    class Echo(module.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    return Echo
