"""What happens to clients while workers come and go; `tests/stress` does the same for longer."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.supervisor.conftest import wait_for
from tests.supervisor.swarm import Swarm

pytestmark = pytest.mark.slow


def reload_under_load(server, swarm, times):
    """Reload, one after the other, with answers between; seconds of each."""
    seconds = []
    for generation in range(2, times + 2):
        began = time.monotonic()
        server.send(signal.SIGHUP)
        server.line(rf"reloaded in .* generation {generation} serves", timeout=60)
        seconds.append(time.monotonic() - began)
        swarm.wait_for(50)
    return seconds


def kill_under_load(server, swarm, times, seed=7):
    """SIGKILL a random worker, one after the other; seconds until there are as many as before, of each."""
    chosen = random.Random(seed)
    seconds = []
    count = len(server.workers())
    for number in range(1, times + 1):
        victim = chosen.choice(server.workers())
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        server.line(r"ended.*killed by SIGKILL", count=number, timeout=60)
        ready = count + number
        wait_for(lambda ready=ready: server.count(r"process \d+\) accepts") >= ready, timeout=60)
        seconds.append(time.monotonic() - began)
        swarm.wait_for(50)
    return seconds


def test_reloads_lose_no_request_and_refuse_no_connection(service):
    server = service("--workers", "2")
    with Swarm(server.port, 10) as swarm:
        seconds = reload_under_load(server, swarm, 4)
    print(f"{len(seconds)} reloads, {swarm.answers} answers, {max(seconds):.2f} s the longest, {dict(swarm.failures)}")
    assert swarm.failures == {}
    assert len(swarm.by) > 2


def test_a_killed_worker_costs_its_own_requests_only(service):
    server = service("--workers", "2")
    with Swarm(server.port, 10) as swarm:
        seconds = kill_under_load(server, swarm, 4)
    print(f"{len(seconds)} kills, {swarm.answers} answers, {max(seconds):.2f} s the longest, {dict(swarm.failures)}")
    assert set(swarm.failures) <= {"ConnectionResetError"}
    # What was in flight, at most one request of each client at each kill.
    assert swarm.failures.total() <= 10 * len(seconds)
