"""Servers of `longshore.socketserver`, each served on a thread of its own and checked for what it leaves behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from longshore import socketserver
from longshore.testing import Client, Recorder

ADDRESS = ("127.0.0.1", 0)

MANNERS = {
    "inline": (),
    "threads": (socketserver.ThreadingMixIn,),
    "green": (socketserver.GreenMixIn,),
    "children": (socketserver.ForkingMixIn,),
}


class Upper(socketserver.StreamRequestHandler):
    """Answers each line in capitals; `die` raises."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"die\n":
                raise LookupError("told to")
            self.wfile.write(line.upper())


def make(
    manner: str, *over: type, base: type = socketserver.TCPServer, handler: type = Upper, **attributes: Any
) -> Any:
    """A server that treats its requests in this manner, not yet serving; `over` are the classes above its mixin."""
    server_class = type(f"{manner.title()}Server", (*over, *MANNERS[manner], base), attributes)
    return server_class(ADDRESS, handler)


@contextlib.contextmanager
def served(server: Any) -> Iterator[Any]:
    """Serve until the end of the block; `server.events` has what happened."""
    server.events = Recorder()
    server.subscribe(server.events)
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_forever()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    if failure:
        raise failure[0]


def client_of(server: Any) -> Client:
    """A client that is connected to the server."""
    host, port = server.server_address[:2]
    return Client(f"tcp://{host}:{port}")


def ask(server: Any, line: bytes) -> bytes:
    """The answer to one line.

    The client says that it sends no more: a child that was forked in this process has a copy of the client's socket,
    so closing it would tell nobody.
    """
    with client_of(server) as client:
        client.send(line + b"\n")
        client.half_close()
        return client.recv_until_closed().rstrip(b"\n")
