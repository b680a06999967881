"""What the shared primitives cost, beside `multiprocessing.Manager` and `multiprocessing.Pipe`.

`python -m bench.shared [--quick]`; `make bench` runs it too.  One client process does the same with both, in turns in
one run, so that a slow moment of the machine meets both; then fifty processes contend for one lock.

A lock that nobody else wants is lent to its client, which then asks nobody; one that is contended passes from process
to process, through the broker.  So the fifty are compared with one client of a lock that is lent, and with one of the
lock of a `Condition`, which never is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench import results
from bench.figures import ratios

__all__ = ("measure",)

#: How many times the rate of the other one is asked.
ASKED = {"Lock acquire+release": 10.0, "Dict set": 10.0, "Queue put+get": 10.0, "Pipe send+recv": 0.5}
#: The part of one client's rate that fifty contending ones must have together.
CONTENDED = 2 / 3
CLIENTS = 50
#: One client that asks the broker each time.
ASKING = "1 that asks"
NAMES = ("longshore", "multiprocessing")

Work = Callable[[int], None]


def _lock(lock: Any) -> Work:
    def work(count: int) -> None:
        for _ in range(count):
            lock.acquire()
            lock.release()

    return work


def _dict(data: Any) -> Work:
    def work(count: int) -> None:
        for number in range(count):
            data["key"] = number

    return work


def _queue(queue: Any) -> Work:
    def work(count: int) -> None:
        for number in range(count):
            queue.put(number)
            queue.get()

    return work


def _pipe(left: Any, right: Any) -> Work:
    def work(count: int) -> None:
        for number in range(count):
            left.send(number)
            right.recv()

    return work


@contextlib.contextmanager
def _works() -> Iterator[dict[str, dict[str, Work]]]:
    from longshore import shared

    with multiprocessing.Manager() as manager:
        left, right = multiprocessing.Pipe()
        yield {
            "Lock acquire+release": {"longshore": _lock(shared.Lock("b")), "multiprocessing": _lock(manager.Lock())},
            "Dict set": {"longshore": _dict(shared.Dict("b")), "multiprocessing": _dict(manager.dict())},
            "Queue put+get": {"longshore": _queue(shared.Queue("b")), "multiprocessing": _queue(manager.Queue())},
            "Pipe send+recv": {
                "longshore": _pipe(shared.Pipe("b", 0).open(), shared.Pipe("b", 1).open()),
                "multiprocessing": _pipe(left, right),
            },
        }


def _contender(kind: str, count: int) -> None:
    from longshore import shared

    lock, ready, go = getattr(shared, kind)("contended"), shared.Counter("ready"), shared.Event("go")
    _lock(lock)(3)
    ready.add()
    go.wait()
    _lock(lock)(count)


def _contended(clients: int, count: int, kind: str = "Lock") -> float:
    """Turns a second of all clients together."""
    from longshore import shared

    shared.address()
    ready, go = shared.Counter("ready"), shared.Event("go")
    ready.value = 0
    go.clear()
    processes = [multiprocessing.Process(target=_contender, args=(kind, count // clients)) for _ in range(clients)]
    for process in processes:
        process.start()
    while ready.value < clients:
        time.sleep(0.01)
    began = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return count // clients * clients / (time.perf_counter() - began)


def measure(rounds: int, count: int) -> dict[str, Any]:
    """Turns a second by primitive and library, and by number of contending clients, each for every round."""
    found: dict[str, dict[str, list[float]]] = {}
    with _works() as works:
        for name, pair in works.items():
            rates = found[name] = {library: [] for library in NAMES}
            for work in pair.values():
                work(100)
            for _ in range(rounds):
                for library, work in pair.items():
                    turns = count if library == "longshore" or name.startswith("Pipe") else count // 5
                    began = time.perf_counter()
                    work(turns)
                    rates[library].append(turns / (time.perf_counter() - began))
    contended: dict[str, list[float]] = {"1": [], ASKING: [], str(CLIENTS): []}
    for _ in range(max(3, rounds // 2)):
        for clients in (1, CLIENTS):
            contended[str(clients)].append(_contended(clients, count * 2))
        contended[ASKING].append(_contended(1, count * 2, "Condition"))
    return {"rates": found, "contended": contended}


def _print(found: dict[str, Any]) -> bool:
    holds = True
    for name, rates in found["rates"].items():
        ratio = statistics.median(ratios(*(dict(enumerate(rates[library])) for library in NAMES)))
        ours, theirs = (statistics.median(rates[library]) for library in NAMES)
        verdict = "holds" if ratio >= ASKED[name] else "does not hold"
        print(f"{name}: {ours:,.0f} a second, multiprocessing {theirs:,.0f}")
        print(f"  ratio {ratio:.2f}, at least {ASKED[name]:g} is asked: {verdict}")
        holds = holds and ratio >= ASKED[name]
    many = statistics.median(found["contended"][str(CLIENTS)])
    print(f"{CLIENTS} processes contending for one lock: {many:,.0f} a second together")
    for name, what in (("1", "one alone, to which it is lent"), (ASKING, "one alone that asks each time")):
        one = statistics.median(found["contended"][name])
        verdict = "holds" if many >= CONTENDED * one else "does not hold"
        print(f"  {what}: {one:,.0f}, ratio {many / one:.2f}, at least {CONTENDED:.2f} is asked: {verdict}")
        holds = holds and many >= CONTENDED * one
    return holds


def _draw(found: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "shared", "svg.fonttype": "path"}):
        figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
        for row, (name, rates) in enumerate(found["rates"].items()):
            for offset, (library, colour) in enumerate(zip(NAMES, ("#0b6e8a", "#d9a441"), strict=True)):
                value = statistics.median(rates[library])
                axes.barh(row * 3 + offset, value, color=colour)
                axes.annotate(f" {library}, {name}: {value:,.0f}", (value, row * 3 + offset), va="center", fontsize=8)
        axes.set_yticks([])
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 30)
        axes.invert_yaxis()
        axes.set_xlabel("turns a second of one client process")
        results.FOLDER.mkdir(parents=True, exist_ok=True)
        figure.savefig(results.FOLDER / "shared.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Measure, print, write and draw; the exit status is 1 if a bound does not hold and `--check` is given."""
    parser = argparse.ArgumentParser(prog="python -m bench.shared")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    found = measure(*((3, 2000) if arguments.quick else (11, 10_000)))
    holds = _print(found)
    if not arguments.quick:
        results.FOLDER.mkdir(parents=True, exist_ok=True)
        (results.FOLDER / "shared.json").write_text(json.dumps(found, indent=1) + "\n")
        with contextlib.suppress(ImportError):
            _draw(found)
    sys.exit(arguments.check and not holds)


if __name__ == "__main__":
    main()
