"""What a client meets at its other end, and a loop for it to run in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def far_end(sock: socket.socket, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept one connection on `sock` in a thread, and serve it."""

    def run() -> None:
        with contextlib.suppress(OSError):
            accepted, _ = sock.accept()
            with accepted:
                serve(accepted)

    sock.settimeout(5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(6)
        sock.close()


def shout(sock: socket.socket) -> None:
    with sock.makefile("rwb", buffering=0) as file:
        for line in file:
            file.write(line.upper())


def tcp(host: str = "127.0.0.1") -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family)
    return sock, f"tcp://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def run(test: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), 10))


def shout_in_tls(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as wrapped:
            shout(wrapped)

    return serve


@contextlib.contextmanager
def datagram_end(sock: socket.socket, count: int) -> Iterator[None]:
    """Reply to `count` datagrams, in capitals."""

    def run() -> None:
        for _ in range(count):
            data, peer = sock.recvfrom(65_536)
            sock.sendto(data.upper(), peer)

    sock.settimeout(5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(6)
        sock.close()


def udp() -> tuple[socket.socket, str]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock, f"udp://127.0.0.1:{sock.getsockname()[1]}"
