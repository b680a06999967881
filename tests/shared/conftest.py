"""Places and strategies for the contract of the shared primitives.

Each test that takes `place` runs on every place of `PLACES`; each that takes `strategy`, under every strategy that has
blocking handlers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from longshore import Server, connect, shared
from longshore.framing import Lines

#: Places, by name: a function that makes a context manager, which gives the URL.
PLACES = {"local": shared.start_broker}

BLOCKING = ["inline", "threads", "green", "processes"]


@pytest.fixture(params=list(PLACES))
def place(request):
    """The URL of a fresh place, which this process and those that it starts are joined to."""
    shared.leave()
    with PLACES[request.param]() as made:
        url = made if isinstance(made, str) else made.url
        shared.join(url)
        try:
            yield url
        finally:
            shared.leave()


@pytest.fixture(params=BLOCKING)
def strategy(request):
    return request.param


@pytest.fixture
def serving():
    """Serve a handler, and return a connection to it (lines of JSON)."""
    with contextlib.ExitStack() as stack:

        def serve(handler, strategy=None, framing=None, connections=1):
            server = stack.enter_context(Server(handler, "tcp://127.0.0.1:0", strategy=strategy, framing=framing))
            made = [
                stack.enter_context(connect(server.addresses[0], framing=Lines(), timeout=10))
                for _ in range(connections)
            ]
            for connection in made:
                connection.settimeout(10)
            return made[0] if connections == 1 else made

        yield serve


@pytest.fixture
def program():
    """Start a Python program that is joined to the place; its lines are read with `readline`, its end is ours."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os, sys, time\nfrom longshore import shared\n{code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ.copy(),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
