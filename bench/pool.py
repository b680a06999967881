"""What a task costs in a pool, beside `ProcessPoolExecutor`, and what a pool call adds to a green handler.

`python -m bench.pool [--quick]`; `make bench` runs it too.  Both pools have two processes and do the same in the same
round, one after the other, so that a slow moment of the machine meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench import results
from bench.figures import ratios, spread

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


def _print(found: dict[str, Any]) -> bool:
    holds = True
    for way, rates in found["rates"].items():
        ours, theirs = (dict(enumerate(rates[name])) for name in NAMES)
        ratio = statistics.median(ratios(ours, theirs))
        for name in NAMES:
            print(f"{name}, {way}: {statistics.median(rates[name]):,.0f} tasks a second")
        print(f"  ratio {ratio:.2f}, at least 1 is asked: {'holds' if ratio >= 1 else 'does not hold'}")
        holds = holds and ratio >= 1
    added = statistics.median(found["green"])
    verdict = "holds" if added < ALLOWED else "does not hold"
    print(f"A pool call adds {added / 1e3:.0f} µs to a green handler; less than 200 are asked: {verdict}")
    return holds and added < ALLOWED


def _draw(found: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "pool", "svg.fonttype": "path"}):
        figure, axes = pyplot.subplots(figsize=(8, 2.4), layout="constrained")
        for row, (way, rates) in enumerate(found["rates"].items()):
            for offset, (name, colour) in enumerate(zip(NAMES, ("#0b6e8a", "#d9a441"), strict=True)):
                known = spread(rates[name])
                if known is None:
                    continue
                place = row * 3 + offset
                error = [[known.median - known.low], [known.high - known.median]]
                axes.barh(place, known.median, color=colour, xerr=error, ecolor="#444444")
                axes.text(0, place, f" {name}, {way}", va="center", color="white", fontsize=8)
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.set_xlabel("trivial tasks a second, two processes; line = quartiles")
        results.FOLDER.mkdir(parents=True, exist_ok=True)
        figure.savefig(results.FOLDER / "pool.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Measure, print, write and draw; the exit status is 1 if a bound does not hold and `--check` is given."""
    parser = argparse.ArgumentParser(prog="python -m bench.pool")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found = measure(*((3, 500) if arguments.quick else (11, 3000)))
    holds = _print(found)
    if not arguments.quick:
        results.FOLDER.mkdir(parents=True, exist_ok=True)
        (results.FOLDER / "pool.json").write_text(json.dumps(found, indent=1) + "\n")
        with contextlib.suppress(ImportError):
            _draw(found)
    sys.exit(arguments.check and not holds)


if __name__ == "__main__":
    main()
