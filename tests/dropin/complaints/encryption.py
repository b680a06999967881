"""The recipe for TLS that everybody knows, `server.socket = context.wrap_socket(server.socket, server_side=True)`.

With the standard module, accepting a connection then waits for its handshake, and everybody else with it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import ssl
import tempfile
from collections.abc import Iterator
from typing import Any

import trustme
from stage import ANYWHERE, PATIENCE, ask, connect, echo, serving

from longshore import TLS


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def wrapped(server: Any) -> Any:
    """The recipe itself."""
    server.socket = server_context().wrap_socket(server.socket, server_side=True)
    return server


@contextlib.contextmanager
def connect_tls(server: Any) -> Iterator[ssl.SSLSocket]:
    """A client, after its handshake."""
    with connect(server) as plain:
        try:
            client = client_context().wrap_socket(plain, server_hostname="127.0.0.1")
        except TimeoutError:
            raise AssertionError("a client's handshake does not begin") from None
        with client:
            yield client


def _lines(server: Any) -> None:
    with connect_tls(server) as client:
        assert ask(client, b"one") == b"one"
        assert ask(client, b"two") == b"two"


class Hello(http.server.BaseHTTPRequestHandler):
    """As others write them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *arguments: object) -> None:
        pass


def _pages(server: Any) -> None:
    client = http.client.HTTPSConnection(*server.server_address, timeout=PATIENCE, context=client_context())
    try:
        for _ in range(2):
            client.request("GET", "/")
            assert client.getresponse().read() == b"hello"
    except TimeoutError:
        raise AssertionError("a client's handshake does not begin") from None
    finally:
        client.close()


def recipe_for_one_after_the_other(module: Any) -> None:
    """On `TCPServer`, where it always worked."""
    server = wrapped(module.TCPServer(ANYWHERE, echo(module)))
    with serving(server):
        _lines(server)
        _lines(server)


def recipe_for_threads(module: Any) -> None:
    """hashview/hashview#528: one client that connects and says nothing stops all others."""
    server = wrapped(module.ThreadingTCPServer(ANYWHERE, echo(module)))
    with serving(server), connect(server):
        _lines(server)
        _lines(server)


def recipe_for_threads_under_http_server(module: Any) -> None:
    """The same on somebody else's server."""

    class Server(module.ThreadingMixIn, http.server.HTTPServer):
        pass

    server = wrapped(Server(ANYWHERE, Hello))
    with serving(server), connect(server):
        _pages(server)
        _pages(server)


def recipe_for_green(module: Any) -> None:
    """The same with `GreenMixIn`."""
    server = wrapped(module.GreenTCPServer(ANYWHERE, echo(module)))
    with serving(server), connect(server):
        _lines(server)
        _lines(server)


def recipe_for_green_under_http_server(module: Any) -> None:
    """The same with `GreenMixIn` on somebody else's server."""

    class Server(module.GreenMixIn, http.server.HTTPServer):
        pass

    server = wrapped(Server(ANYWHERE, Hello))
    with serving(server), connect(server):
        _pages(server)
        _pages(server)


def who_speaks_no_tls_is_turned_away(module: Any) -> None:
    """What is no handshake costs its own connection only."""
    server = wrapped(module.ThreadingTCPServer(ANYWHERE, echo(module)))
    with serving(server):
        with connect(server) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while client.recv(65536):
                    pass
        _lines(server)


@contextlib.contextmanager
def _certificate() -> Iterator[TLS]:
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
        file.flush()
        yield TLS(certfile=file.name)


def tls_as_an_attribute(module: Any) -> None:
    """No recipe at all: a certificate in the class."""
    with _certificate() as certificate:
        for base in (module.ThreadingTCPServer, module.GreenTCPServer):
            server = type("Server", (base,), {"tls": certificate})(ANYWHERE, echo(module))
            with serving(server), connect(server):
                _lines(server)
                _lines(server)


def tls_as_an_attribute_for_one_after_the_other(module: Any) -> None:
    """The same on `TCPServer`."""
    with _certificate() as certificate:
        server = type("Server", (module.TCPServer,), {"tls": certificate})(ANYWHERE, echo(module))
        with serving(server):
            _lines(server)
            _lines(server)
