"""`GreenMixIn` on servers that others wrote, over the standard module: many clients, large answers, a quick end."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import threading
import time
import wsgiref.simple_server
import wsgiref.util
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import werkzeug.serving

from longshore import socketserver

CLIENTS = 50
#: Seconds that a client waits for an answer.
PATIENCE = 10
ANYWHERE = ("127.0.0.1", 0)

pytestmark = pytest.mark.slow


class Quiet:
    """A request handler that writes no access log."""

    def log_request(self, *arguments: object) -> None:
        pass


class GreenHTTPServer(socketserver.GreenMixIn, http.server.HTTPServer):
    pass


class GreenXMLRPCServer(socketserver.GreenMixIn, xmlrpc.server.SimpleXMLRPCServer):
    pass


class GreenWSGIServer(socketserver.GreenMixIn, wsgiref.simple_server.WSGIServer):
    pass


class GreenWerkzeug(socketserver.GreenMixIn, werkzeug.serving.BaseWSGIServer):
    pass


class Files:
    """Serves the files of a folder, keeps connections, and stops when asked for `/stop`: `http.server`."""

    keeps_connections = True

    def server(self, folder: Path) -> Any:
        class Handler(Quiet, http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/stop":
                    self.server.shutdown()
                super().do_GET()

        return GreenHTTPServer(ANYWHERE, partial(Handler, directory=folder))

    def ask(self, client: http.client.HTTPConnection, name: str) -> None:
        client.request("GET", f"/{name}", headers={"Connection": "keep-alive"})

    def answer(self, client: http.client.HTTPConnection) -> bytes:
        with client.getresponse() as response:
            body = response.read()
        assert response.status == 200
        return body


class Calls(Files):
    """The same by calls: `xmlrpc.server`."""

    def server(self, folder: Path) -> Any:
        class Handler(Quiet, xmlrpc.server.SimpleXMLRPCRequestHandler):
            protocol_version = "HTTP/1.1"

        server = GreenXMLRPCServer(ANYWHERE, Handler)

        def read(name: str) -> bytes:
            if name == "stop":
                server.shutdown()
            return (folder / name).read_bytes()

        server.register_function(read)
        return server

    def ask(self, client: http.client.HTTPConnection, name: str) -> None:
        body = xmlrpc.client.dumps((name,), "read").encode()
        client.request("POST", "/RPC2", body, {"Content-Type": "text/xml", "Connection": "keep-alive"})

    def answer(self, client: http.client.HTTPConnection) -> bytes:
        ((value,), _) = xmlrpc.client.loads(super().answer(client))
        return value.data


class Application(Files):
    """The same by a WSGI application: `wsgiref`, which ends every connection after its answer."""

    keeps_connections = False

    def server(self, folder: Path) -> Any:
        class Handler(Quiet, wsgiref.simple_server.WSGIRequestHandler):
            pass

        server = GreenWSGIServer(ANYWHERE, Handler)
        server.set_app(self.application(folder, lambda: server.shutdown()))
        return server

    def application(self, folder: Path, stop: Callable[[], None]) -> Callable[..., Any]:
        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            path = folder / environ["PATH_INFO"][1:]
            if path.name == "stop":
                stop()
            start_response("200 OK", [("Content-Length", str(path.stat().st_size))])
            return wsgiref.util.FileWrapper(path.open("rb"), 65536)

        return application


class Werkzeug(Application):
    """The same on Werkzeug's server, which ends every connection after its answer, too."""

    def server(self, folder: Path) -> Any:
        class Handler(Quiet, werkzeug.serving.WSGIRequestHandler):
            pass

        server = GreenWerkzeug(*ANYWHERE, self.application(folder, lambda: server.shutdown()), Handler)
        return server


@pytest.fixture(params=[Files, Calls, Application, Werkzeug], ids=["http", "xmlrpc", "wsgiref", "werkzeug"])
def kind(request: pytest.FixtureRequest) -> Files:
    return request.param()


def content(number: int) -> bytes:
    return b"the file of client %d\n" % number * (number + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number in range(CLIENTS):
        (folder / str(number)).write_bytes(content(number))
    (folder / "stop").write_bytes(b"as you wish")
    (folder / "large").write_bytes(random.Random(20).randbytes(20_000_000))
    return folder


class Served:
    """A server that runs, and its clients."""

    def __init__(self, kind: Files, server: Any) -> None:
        self.kind = kind
        self.server = server
        self.thread = threading.Thread(target=server.serve_forever)
        host, port = server.server_address
        self.clients = [http.client.HTTPConnection(host, port, timeout=PATIENCE) for _ in range(CLIENTS)]

    def connect_all(self) -> None:
        """Every client is connected now."""
        for client in self.clients:
            if client.sock is None:
                client.connect()

    def ask_all(self) -> None:
        """Every client asks before any reads its answer, and gets its own."""
        self.connect_all()
        for number, client in enumerate(self.clients):
            self.kind.ask(client, str(number))
        assert threading.active_count() < CLIENTS / 2, "the clients have threads"
        assert [self.kind.answer(client) for client in self.clients] == [content(n) for n in range(CLIENTS)]
        assert all((client.sock is not None) == self.kind.keeps_connections for client in self.clients)

    def check_that_all_have_gone(self) -> None:
        """Nobody is left waiting for a server that has stopped."""
        for client in self.clients:
            with contextlib.suppress(ConnectionResetError):
                assert client.sock is None or client.sock.recv(1) == b""


@pytest.fixture
def served(kind: Files, folder: Path) -> Iterator[Served]:
    served = Served(kind, kind.server(folder))
    served.thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    served.thread.join(PATIENCE)
    for client in served.clients:
        client.close()
    assert not served.thread.is_alive()


def test_fifty_clients_at_once_get_their_own_answers_again_and_again(served):
    for _ in range(4):
        served.ask_all()


def test_a_large_answer_is_whole_and_others_are_answered_meanwhile(served, folder):
    first, second = served.clients[:2]
    served.kind.ask(first, "large")
    served.kind.ask(second, "1")
    assert served.kind.answer(second) == content(1)
    sent = (folder / "large").read_bytes()
    came = served.kind.answer(first)
    assert (len(came), came == sent) == (len(sent), True)


def test_it_stops_within_a_second_from_outside_with_all_clients_connected(served):
    served.ask_all()
    served.connect_all()
    begun = time.monotonic()
    served.server.shutdown()
    served.server.server_close()
    served.thread.join(PATIENCE)
    took = time.monotonic() - begun
    assert took < 1
    served.check_that_all_have_gone()


def test_it_stops_within_a_second_from_inside_a_handler_with_all_clients_connected(served):
    served.ask_all()
    served.connect_all()
    begun = time.monotonic()
    served.kind.ask(served.clients[0], "stop")
    served.thread.join(PATIENCE)
    served.server.server_close()
    took = time.monotonic() - begun
    assert served.kind.answer(served.clients[0]) == b"as you wish"
    assert took < 1
    served.check_that_all_have_gone()
