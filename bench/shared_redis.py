"""What the shared primitives cost on Redis, beside what one would write by hand with redis-py.

`python -m bench.shared_redis [--quick]`; `make bench` runs it too.  One client process and one server.
By hand means: a `redis.lock.Lock`, a hash, and lists from which `BLPOP` takes.  That has no fence, no order of those
who wait, and nothing that comes back from who dies; what these cost is what the ratio shows.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.shared import Work, dict_turns, lock_turns, pipe_turns, queue_turns
from bench.sheets import Sheet

__all__ = ("measure",)

NAMES = ("longshore on Redis", "redis-py by hand")
PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class _Hash:
    """A dict by hand."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __setitem__(self, key: str, value: object) -> None:
        self._client.hset("hash", key, pickle.dumps(value))


class _List:
    """A queue, and an end of a pipe, by hand."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name

    def put(self, value: object) -> None:
        self._client.rpush(self._name, pickle.dumps(value))

    def get(self) -> Any:
        return pickle.loads(self._client.blpop(self._name)[1])

    send, recv = put, get


@contextlib.contextmanager
def _server() -> Iterator[int]:
    assert PROGRAM is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        with subprocess.Popen([PROGRAM, *where], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if "eady to accept connections" in line)
            try:
                yield port
            finally:
                process.kill()


@contextlib.contextmanager
def _works() -> Iterator[dict[str, dict[str, Work]]]:
    import redis

    from longshore import shared

    with _server() as port, redis.Redis(port=port) as client:
        shared.join(f"redis://127.0.0.1:{port}/0")
        pairs: dict[str, tuple[Callable[..., Work], Any, Any]] = {
            "Lock acquire+release": (lock_turns, (shared.Lock("b"),), (client.lock("lock"),)),
            "Dict set": (dict_turns, (shared.Dict("b"),), (_Hash(client),)),
            "Queue put+get": (queue_turns, (shared.Queue("b"),), (_List(client, "queue"),)),
            "Pipe send+recv": (
                pipe_turns,
                (shared.Pipe("b", 0).open(), shared.Pipe("b", 1).open()),
                (_List(client, "pipe"), _List(client, "pipe")),
            ),
        }
        try:
            yield {
                way: dict(zip(NAMES, (work(*ours), work(*theirs)), strict=True))
                for way, (work, ours, theirs) in pairs.items()
            }
        finally:
            shared.leave()


def measure(rounds: int, count: int) -> dict[str, Any]:
    """Turns a second by primitive and library, for every round."""
    rates: dict[str, dict[str, list[float]]] = {}
    with _works() as works:
        for way, pair in works.items():
            found = rates[way] = {name: [] for name in NAMES}
            for work in pair.values():
                work(100)
            for _ in range(rounds):
                for name, work in pair.items():
                    began = time.perf_counter()
                    work(count)
                    found[name].append(count / (time.perf_counter() - began))
    return {"rates": rates}


SHEET = Sheet(
    name="shared_redis",
    names=NAMES,
    unit="turns of one client",
    asked={},
    quick=(3, 500),
    whole=(11, 2000),
)

if __name__ == "__main__":
    if PROGRAM is None:
        print("There is no redis-server or valkey-server here, so the shared primitives on Redis are left out.")
    else:
        SHEET.main(measure)
