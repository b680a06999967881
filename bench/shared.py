"""What the shared primitives cost, beside `multiprocessing.Manager` and `multiprocessing.Pipe`.

`python -m bench.shared [--quick]`; `make bench` runs it too.  One client process does the same with both, in turns in
one run, so that a slow moment of the machine meets both; then fifty processes contend for one lock.

How fast two processes answer each other depends on where the system puts them, and it changes its mind: rates of long
turns have two levels, and their ratio has four.  So the client has one processor, and our broker and their server have
another, both the same one, where there are two; and turns are short and many.

A lock that nobody else wants is lent to its client, which then asks nobody, and so are a dict and a queue; a lock that
is contended passes from process to process, through the broker.  So the fifty are compared with one client of a lock
that is lent, and with one of the lock of a `Condition`, which never is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.sheets import Sheet

__all__ = ("Work", "dict_turns", "lock_turns", "measure", "pipe_turns", "queue_turns")

#: How many times the rate of the other one is asked.
ASKED = {"Lock acquire+release": 10.0, "Dict set": 10.0, "Queue put+get": 10.0, "Pipe send+recv": 0.5}
#: The part of one client's rate that fifty contending ones must have together.
CONTENDED = 2 / 3
CLIENTS = 50
#: Rounds of those, and turns of all of them in one.
CONTENTIONS, CONTENDED_TURNS = 5, 20_000
#: One client that asks the broker each time.
ASKING = "1 that asks"
NAMES = ("longshore", "multiprocessing")

Work = Callable[[int], None]


def lock_turns(lock: Any) -> Work:
    """Acquire and release."""

    def work(count: int) -> None:
        for _ in range(count):
            lock.acquire()
            lock.release()

    return work


def dict_turns(data: Any) -> Work:
    """Set one key."""

    def work(count: int) -> None:
        for number in range(count):
            data["key"] = number

    return work


def queue_turns(queue: Any) -> Work:
    """Put an item, and get it."""

    def work(count: int) -> None:
        for number in range(count):
            queue.put(number)
            queue.get()

    return work


def pipe_turns(left: Any, right: Any) -> Work:
    """Send at one end, receive at the other."""

    def work(count: int) -> None:
        for number in range(count):
            left.send(number)
            right.recv()

    return work


@contextlib.contextmanager
def _works() -> Iterator[dict[str, dict[str, Work]]]:
    from longshore import shared
    from longshore.shared.joining import own_broker

    with multiprocessing.Manager() as manager:
        shared.address()
        broker = own_broker()
        assert broker is not None, "this needs a broker of its own"
        left, right = multiprocessing.Pipe()
        works: dict[str, dict[str, Work]] = {
            "Lock acquire+release": {
                "longshore": lock_turns(shared.Lock("b")),
                "multiprocessing": lock_turns(manager.Lock()),
            },
            "Dict set": {"longshore": dict_turns(shared.Dict("b")), "multiprocessing": dict_turns(manager.dict())},
            "Queue put+get": {
                "longshore": queue_turns(shared.Queue("b")),
                "multiprocessing": queue_turns(manager.Queue()),
            },
            "Pipe send+recv": {
                "longshore": pipe_turns(shared.Pipe("b", 0).open(), shared.Pipe("b", 1).open()),
                "multiprocessing": pipe_turns(left, right),
            },
        }
        for pair in works.values():
            for work in pair.values():
                work(100)
        # With all their threads, which are there by now.
        with _placed(broker.pid, manager._process.pid):  # type: ignore[attr-defined]
            yield works


@contextlib.contextmanager
def _placed(*others: int) -> Iterator[None]:
    """Inside, this process has the first processor that it may have, and the `others` have the last one."""
    mine = os.sched_getaffinity(0)
    for pid, processor in ((os.getpid(), min(mine)), *((other, max(mine)) for other in others)):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _contender(kind: str, count: int) -> None:
    from longshore import shared

    lock, ready, go = getattr(shared, kind)("contended"), shared.Counter("ready"), shared.Event("go")
    lock_turns(lock)(3)
    ready.add()
    go.wait()
    lock_turns(lock)(count)


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
            for _ in range(rounds):
                for library, work in pair.items():
                    turns = count if library == "longshore" or name.startswith("Pipe") else count // 5
                    began = time.perf_counter()
                    work(turns)
                    rates[library].append(turns / (time.perf_counter() - began))
    contended: dict[str, list[float]] = {"1": [], ASKING: [], str(CLIENTS): []}
    for _ in range(CONTENTIONS):
        for clients in (1, CLIENTS):
            contended[str(clients)].append(_contended(clients, CONTENDED_TURNS))
        contended[ASKING].append(_contended(1, CONTENDED_TURNS, "Condition"))
    return {"rates": found, "contended": contended}


def _contention(found: dict[str, Any]) -> bool:
    many = statistics.median(found["contended"][str(CLIENTS)])
    print(f"{CLIENTS} processes contending for one lock: {many:,.0f} a second together")
    holds = True
    for name, what in (("1", "one alone, to which it is lent"), (ASKING, "one alone that asks each time")):
        one = statistics.median(found["contended"][name])
        verdict = "holds" if many >= CONTENDED * one else "does not hold"
        print(f"  {what}: {one:,.0f}, ratio {many / one:.2f}, at least {CONTENDED:.2f} is asked: {verdict}")
        holds = holds and many >= CONTENDED * one
    return holds


SHEET = Sheet(
    name="shared",
    names=NAMES,
    unit="turns of one client",
    asked=ASKED,
    quick=(15, 1000),
    whole=(101, 2000),
)

if __name__ == "__main__":
    SHEET.main(measure, _contention)
