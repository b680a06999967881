"""Every strategy with every shape of handler that it runs, so that one test says the same of all."""

from __future__ import annotations

import ast
import shutil
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from longshore import TLS, Lines, MessageHandler
from longshore.events import ConnectionClosed
from longshore.testing import Client, RecordedServer

Answer = Callable[[bytes, Any], Any]


def echoed(message: bytes, connection: Any) -> bytes:
    """The simplest answer."""
    return message


@dataclass(frozen=True)
class Shape:
    """One way to write a handler, under one strategy; `handler(answer)` answers line by line."""

    strategy: str
    kind: str

    def __str__(self) -> str:
        return f"{self.strategy}-{self.kind}"

    @property
    def is_async(self) -> bool:
        return self.strategy == "async"

    @property
    def blocks(self) -> bool:
        """Whether a handler holds a thread of its own, so that it may wait for anything."""
        return self.strategy in ("threads", "inline", "processes")

    def handler(self, answer: Answer = echoed) -> Any:
        """A handler that sends what `answer(line, connection)` returns, unless that is None."""
        make: Callable[[Answer], Any] = globals()[f"_{self.kind}_handler"]
        return make(answer) if self.strategy != "async" else globals()[f"_async_{self.kind}_handler"](answer)

    def options(self, **options: Any) -> dict[str, Any]:
        """What a server of this shape needs besides its handler."""
        return {"strategy": self.strategy, "framing": Lines(max_size=65536)} | options


def _function_handler(answer: Answer) -> Any:
    def function(connection: Any) -> None:
        for message in connection:
            reply = answer(message, connection)
            if reply is not None:
                connection.send(reply)

    return function


def _class_handler(answer: Answer) -> Any:
    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                reply = answer(line.rstrip(b"\n"), self.request)
                if reply is not None:
                    self.wfile.write(reply + b"\n")

    return Echo


def _message_handler(answer: Answer) -> Any:
    def message_function(message: bytes, connection: Any) -> Any:
        return answer(message, connection)

    return message_function


def _session_handler(answer: Answer) -> Any:
    class Session(MessageHandler):
        def message(self, message: bytes) -> Any:
            return answer(message, self.connection)

    return Session


def _async_function_handler(answer: Answer) -> Any:
    async def async_function(connection: Any) -> None:
        async for message in connection:
            reply = answer(message, connection)
            if reply is not None:
                await connection.send(reply)

    return async_function


def _async_message_handler(answer: Answer) -> Any:
    async def async_message_function(message: bytes, connection: Any) -> Any:
        return answer(message, connection)

    return async_message_function


SHAPES = [
    Shape("reactor", "message"),
    Shape("reactor", "session"),
    Shape("threads", "function"),
    Shape("threads", "class"),
    Shape("threads", "message"),
    Shape("green", "function"),
    Shape("green", "class"),
    Shape("green", "message"),
    Shape("async", "function"),
    Shape("async", "message"),
    Shape("inline", "function"),
    Shape("inline", "class"),
    Shape("processes", "function"),
    Shape("processes", "class"),
]
#: Those that serve several connections at once, and know the framing.
FRAMED = [shape for shape in SHAPES if shape.kind != "class"]
TOGETHER = [shape for shape in FRAMED if shape.strategy != "inline"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, shapes in (("shape", SHAPES), ("framed", FRAMED), ("together", TOGETHER)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, shapes, ids=str)


Serve = Callable[..., RecordedServer]


@pytest.fixture
def serve(longshore_server: Serve) -> Serve:
    """Start a server: `serve(shape, answer, *addresses, **options)`."""

    def start(shape: Shape, answer: Answer = echoed, *addresses: Any, **options: Any) -> RecordedServer:
        return longshore_server(shape.handler(answer), *addresses, **shape.options(**options))

    return start


def turned_away(url: str, *, farewell: bytes = b"") -> bool:
    """Whether a server closes a connection at once, with just its farewell."""
    with Client(url) as client:
        try:
            return client.recv_until_closed() == farewell
        except ConnectionResetError:
            return True


def total_received(server: Any) -> int:
    """How many bytes the server has taken from the kernel, of the connections that it has."""
    return sum(session.traffic()[0] for session in tuple(server._admission.sessions))


def received(server: Any, count: int) -> None:
    """Return once the server has taken `count` bytes from the kernel, or has ended somebody."""
    pause = threading.Event()
    for _ in range(5000):
        if total_received(server) >= count or server.events.of(ConnectionClosed):
            return
        # A byte that comes makes no event, so this looks again, at most for five seconds.
        pause.wait(0.001)
    raise AssertionError(f"the server has not received {count} bytes")


@pytest.fixture(params=["native", "portable"])
def reactor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reactor that servers have, each in turn."""
    name: str = request.param
    if name == "native":
        pytest.importorskip("longshore._native", reason="the native reactor was not built", exc_type=ImportError)
    monkeypatch.setenv("LONGSHORE_REACTOR", name)
    return name


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate and a client's, as files."""

    authority: str
    server: str
    client: str

    def server_tls(self, **options: Any) -> TLS:
        return TLS(certfile=self.server, **options)

    def client_context(self, *, with_certificate: bool = False, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority)
        if with_certificate:
            context.load_cert_chain(self.client)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    return Certificates(*(str(folder / f"{name}.pem") for name in ("authority", "server", "client")))


class Notes:
    """What handlers want a test to know, also those that run in another process: plain values, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def append(self, value: object) -> None:
        # One write(2) to the end of a file is never mixed with another one.
        with self._path.open("ab", buffering=0) as file:
            file.write(repr(value).encode() + b"\n")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def clear(self) -> None:
        self._path.write_bytes(b"")

    @property
    def values(self) -> list[Any]:
        return [ast.literal_eval(line) for line in self._path.read_text().splitlines()]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def needs() -> Callable[[str], str]:
    """The path of a program, or a skip that says which one is missing."""

    def find(program: str) -> str:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is not installed here")
        return str(Path(found))

    return find
