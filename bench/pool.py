"""What a task costs in a pool, beside `ProcessPoolExecutor`, and what a pool call adds to a green handler.

`python -m bench.pool [--quick]`; `make bench` runs it too.  Both pools have two processes.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench.sheets import Sheet

__all__ = ("measure",)

#: Nanoseconds that a pool call may add to a green handler.
ALLOWED = 200_000
NAMES = ("longshore Pool", "ProcessPoolExecutor")


def nothing(number: int) -> int:
    """The trivial task."""
    return number


def _all_at_once(pool: Executor, count: int) -> float:
    """Tasks a second, submitted as fast as one can."""
    began = time.perf_counter()
    futures = [pool.submit(nothing, number) for number in range(count)]
    for future in futures:
        future.result()
    return count / (time.perf_counter() - began)


def _one_by_one(pool: Executor, count: int) -> float:
    """Tasks a second, each awaited before the next."""
    began = time.perf_counter()
    for number in range(count):
        pool.submit(nothing, number).result()
    return count / (time.perf_counter() - began)


WAYS: dict[str, Callable[[Executor, int], float]] = {
    "submitted at once": _all_at_once,
    "one after the other": _one_by_one,
}


@contextlib.contextmanager
def _pools() -> Iterator[dict[str, Executor]]:
    from longshore.shared import Pool

    with Pool(2) as ours, ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as theirs:
        pools: dict[str, Executor] = dict(zip(NAMES, (ours, theirs), strict=True))
        for pool in pools.values():
            _all_at_once(pool, 200)
        yield pools


def _direct(connection: Any) -> None:
    for message in connection:
        connection.send(message)


def _pooled(connection: Any) -> None:
    pool = connection.server.pool
    for message in connection:
        connection.send(pool.submit(bytes, message).result())


def _green(rounds: int, count: int) -> list[float]:
    """Nanoseconds that the pool call adds to an answer, for each round: medians of both handlers' answers."""
    from longshore import Lines, Server
    from longshore.shared import Pool

    added = []
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(1))
        clients = []
        for handler in (_direct, _pooled):
            server = stack.enter_context(
                Server(handler, "tcp://127.0.0.1:0", framing=Lines(), strategy="green", pool=pool)
            )
            host, port = server.addresses[0].removeprefix("tcp://").rsplit(":", 1)
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
        for number in range(rounds + 1):
            direct, pooled = (statistics.median(_answers(client, count)) for client in clients)
            if number:  # the first one warms up
                added.append(pooled - direct)
    return added


def _answers(client: socket.socket, count: int) -> Iterator[float]:
    for _ in range(count):
        began = time.perf_counter_ns()
        client.sendall(b"hello\n")
        client.recv(100)
        yield time.perf_counter_ns() - began


def measure(rounds: int, count: int) -> dict[str, Any]:
    """All figures: tasks a second by way and pool, and nanoseconds added, each for every round."""
    rates: dict[str, dict[str, list[float]]] = {way: {name: [] for name in NAMES} for way in WAYS}
    with _pools() as pools:
        for _ in range(rounds):
            for way, run in WAYS.items():
                for name, pool in pools.items():
                    rates[way][name].append(run(pool, count))
    return {"rates": rates, "green": _green(rounds, min(count, 500))}


def _added(found: dict[str, Any]) -> bool:
    added = statistics.median(found["green"])
    verdict = "holds" if added < ALLOWED else "does not hold"
    print(f"A pool call adds {added / 1e3:.0f} µs to a green handler; less than 200 are asked: {verdict}")
    return added < ALLOWED


SHEET = Sheet(
    name="pool",
    names=NAMES,
    unit="trivial tasks",
    asked=dict.fromkeys(WAYS, 1.0),
    quick=(3, 500),
    whole=(11, 3000),
)

if __name__ == "__main__":
    SHEET.main(measure, _added)
