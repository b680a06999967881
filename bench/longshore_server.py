"""Longshore's servers in the benchmark: an echo in each handler shape, on any strategy.

The same command line as the peers, and `--shape` and `--strategy` besides.  The first line also names the
reactor that serves.  Everything else is left at its default: all limits, timeouts, counters and events are on.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import time
from typing import TYPE_CHECKING, Any

from longshore import TLS, Lines, MessageHandler, Raw, Server
from longshore.events import ServerStarted
from longshore.serving import serve_until_signalled

if TYPE_CHECKING:
    from longshore import AsyncConnection, Connection
    from longshore.events import Event

CHUNK = 65536


def message(message: bytes, _connection: Connection) -> bytes:
    """One call per message; what it returns is the answer."""
    return message


class Batches(MessageHandler):
    """Takes the messages that have arrived at once, and answers none."""

    def messages(self, batch: list[Any]) -> None:
        """All that have arrived."""


class LineClass(socketserver.StreamRequestHandler):
    """The class of the standard library, unchanged."""

    def handle(self) -> None:
        """Answer each line with itself."""
        for line in self.rfile:
            self.wfile.write(line)


class RawClass(socketserver.BaseRequestHandler):
    """The class of the standard library, unchanged."""

    def handle(self) -> None:
        """Answer what comes with itself."""
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


def line_stream(connection: Connection) -> None:
    """Answer each line with itself."""
    while line := connection.readline():
        connection.sendall(line)


def raw_stream(connection: Connection) -> None:
    """Answer what comes with itself."""
    while data := connection.recv(CHUNK):
        connection.sendall(data)


async def line_async(connection: AsyncConnection) -> None:
    """Answer each line with itself."""
    while line := await connection.readline():
        await connection.sendall(line)


async def raw_async(connection: AsyncConnection) -> None:
    """Answer what comes with itself."""
    while data := await connection.recv(CHUNK):
        await connection.sendall(data)


HANDLERS: dict[tuple[str, str], Any] = {
    ("message", "lines"): message,
    ("message", "raw"): message,
    ("message", "ingest"): Batches,
    ("class", "lines"): LineClass,
    ("class", "raw"): RawClass,
    ("stream", "lines"): line_stream,
    ("stream", "raw"): raw_stream,
    ("async", "lines"): line_async,
    ("async", "raw"): raw_async,
}


class Timer:
    """Measures how late the server's timer calls it."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.last: float | None = None
        self.delays: list[float] = []

    def tick(self) -> None:
        """Called by the server once in a period."""
        now = time.monotonic()
        if self.last is not None:
            self.delays.append(now - self.last - self.period)
        self.last = now


def announce(event: Event) -> None:
    """Say where the server listens, and on which reactor."""
    if isinstance(event, ServerStarted):
        print(event.addresses[0], event.reactor, flush=True)


def main() -> None:
    """Serve until a signal ends it; with a timer, print its delays in seconds then."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", choices=("lines", "raw", "ingest"), default="lines")
    parser.add_argument("--shape", choices=("message", "class", "stream", "async"), default="message")
    parser.add_argument("--strategy")
    parser.add_argument("--certificate", help="a PEM file with key and certificate, for tls://")
    parser.add_argument("--timer", type=float, help="seconds between two calls whose delays are measured")
    parser.add_argument("url")
    arguments = parser.parse_args()
    framings = {"lines": Lines(), "raw": Raw()}
    is_framed = arguments.shape == "message" and not arguments.url.startswith("udp:")
    server = Server(
        HANDLERS[arguments.shape, arguments.behaviour],
        arguments.url,
        framing=framings[arguments.behaviour] if is_framed else None,
        strategy=arguments.strategy,
        tls=TLS(arguments.certificate, arguments.certificate) if arguments.certificate else None,
    )
    server.subscribe(announce, ServerStarted)
    timer = Timer(arguments.timer) if arguments.timer else None
    if timer:
        server.every(timer.period, timer.tick)
    serve_until_signalled(server)
    if timer:
        print(json.dumps({"delays": timer.delays}), flush=True)


if __name__ == "__main__":
    main()
