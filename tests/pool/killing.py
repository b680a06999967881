"""A thousand tasks whose processes are killed: once in `make test`, again and again in `make stress`."""

from __future__ import annotations

import os
import random
import signal
import time

from longshore import WorkerDied
from pool import tasks
from pool.places import PATIENCE

__all__ = ("kill_inside", "kill_outside")


def kill_inside(pool, seed):
    """Have some tasks kill their process: just those fail.  Returns how many."""
    numbers = range(1000 * seed, 1000 * (seed + 1))
    futures = {number: pool.submit(tasks.maybe_die, number, 0.05) for number in numbers}
    failed = {number for number, future in futures.items() if future.exception(PATIENCE) is not None}
    assert failed == tasks.deaths_among(numbers, 0.05)
    assert all(isinstance(futures[number].exception(), WorkerDied) for number in failed)
    assert all(futures[number].result() == number for number in set(numbers) - failed)
    return len(failed)


def kill_outside(pool, seed):
    """Kill processes at any moment: each costs at most one task.  Returns how many were killed."""
    chance = random.Random(seed)
    futures = [pool.submit(tasks.result_of, chance.choice((0, 1000, 300_000))) for _ in range(1000)]
    kills = 0
    while not all(future.done() for future in futures):
        pids = pool._backend.pids()
        if pids:
            try:
                os.kill(chance.choice(pids), signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                pass
        # Which moment it hits is left to chance on purpose.
        time.sleep(chance.random() * 0.02)
    failed = [future for future in futures if future.exception() is not None]
    assert all(isinstance(future.exception(), WorkerDied) for future in failed)
    assert len(failed) <= kills
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    return kills
