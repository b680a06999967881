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
from shared.redis_servers import PROGRAM, WHY_NOT, RedisProcess


@contextlib.contextmanager
def on_redis(request):
    """A database without any key; whoever dies has a short lease."""
    yield f"{request.getfixturevalue('redis_server').url}?lease=2"


#: Places, by name: a function that makes a context manager, which gives the URL.
PLACES = {"local": lambda _request: shared.start_broker(), "redis": on_redis}

BLOCKING = ["inline", "threads", "green", "processes"]


@pytest.fixture(params=list(PLACES))
def place(request):
    """The URL of a fresh place, which this process and those that it starts are joined to."""
    shared.leave()
    with PLACES[request.param](request) as made:
        url = made if isinstance(made, str) else made.url
        shared.join(url)
        try:
            yield url
        finally:
            shared.leave()


@contextlib.contextmanager
def joined(**options):
    """A broker that this process is joined to."""
    shared.leave()
    with shared.start_broker(**options) as made:
        shared.join(made.url)
        try:
            yield made
        finally:
            shared.leave()


@pytest.fixture
def broker():
    """A broker that this process is joined to."""
    with joined() as made:
        yield made


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


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory):
    """One server for all tests that do not end it; each finds it empty."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    process = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield process
    process.kill()


@pytest.fixture
def redis_server(redis_process):
    """The server, without any key."""
    redis_process.command("FLUSHALL")
    return redis_process


@pytest.fixture
def own_redis(tmp_path):
    """Start a server of this test's own, which it may end: `own_redis(*options)`."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)
    started = []

    def start(*options):
        started.append(RedisProcess(tmp_path, *options))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            process.kill()
