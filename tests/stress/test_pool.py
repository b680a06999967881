"""A pool's processes, killed from inside and outside at random points, round after round, in one pool each.

`make stress` runs it; a tenth of `LONGSHORE_ROUNDS` says how many rounds of a thousand tasks.
"""

from __future__ import annotations

import os

import pytest

from longshore.shared import Pool
from longshore.testing import no_leaks
from pool.killing import kill_inside, kill_outside

ROUNDS = max(1, int(os.environ.get("LONGSHORE_ROUNDS", "1000")) // 10)


@pytest.mark.parametrize("kill", [kill_inside, kill_outside])
def test_tasks_whose_processes_are_killed_are_the_only_ones_lost(kill):
    with no_leaks(), Pool(2) as pool:
        killed = sum(kill(pool, seed) for seed in range(ROUNDS))
        print(f"\n{kill.__name__}: {1000 * ROUNDS:,} tasks, {killed:,} kills, {pool.statistics()}")
