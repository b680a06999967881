"""Listeners that are bound for a while, processes beside them, and what proves that one accepts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import longshore
from longshore.errors import AddressInUse
from longshore.listeners import Listener, bind

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = str(Path(longshore.__file__).parents[1])

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the owner is found through /proc")


@contextlib.contextmanager
def bound(target: str | socket.socket) -> Iterator[list[Listener]]:
    listeners = bind(target)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@contextlib.contextmanager
def another_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`, has printed its first line when this is entered, and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nimport sys; sys.stdin.read()", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.first_line = process.stdout.readline().strip()  # type: ignore[attr-defined]
            yield process
        finally:
            if process.poll() is None:
                process.stdin.close()
                process.wait(10)


def first_line(process: subprocess.Popen[str]) -> str:
    return str(process.first_line)  # type: ignore[attr-defined]


def echo_once(listener: Listener) -> None:
    """Prove that the listener accepts: one connection, one message, back."""
    with socket.socket(listener.socket.family, socket.SOCK_SEQPACKET if listener.kind == "seqpacket" else 1) as client:
        client.settimeout(10)
        path = listener.address.path if listener.address else None
        client.connect(path if path and path.startswith("/") else listener.socket.getsockname())
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        with accepted:
            client.sendall(b"ping")
            accepted.sendall(accepted.recv(16))
            assert client.recv(16) == b"ping"


def refusal(url: str) -> str:
    with pytest.raises(AddressInUse) as caught:
        bind(url)
    return str(caught.value)
