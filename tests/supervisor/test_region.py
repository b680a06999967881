"""What workers count in memory that they share."""

from __future__ import annotations

import os
import threading

import pytest

from longshore.errors import ConfigError
from longshore.supervisor.region import SLOTS, Region, SharedCounters

BOUNDS = (0.1, 1.0)


@pytest.fixture
def region():
    return Region(["accepted"], ["connections"], {"duration": BOUNDS})


def in_a_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_what_a_child_counts_is_seen_by_its_parent(region):
    slot = region.take_slot(1)
    column = region.column(slot)
    region.row("pid")[slot] = 4711

    def count():
        column.set("accepted", 3)
        column.set("connections", 2)
        column.observe("duration", 0.05)
        column.observe("duration", 0.5)
        column.observe("duration", 5)

    in_a_child(count)
    total = SharedCounters(region).total()
    assert (total["accepted"], total["connections"]) == (3, 2)
    assert (total["duration"].counts, total["duration"].sum, total["duration"].count) == ((1, 1, 1), 5.55, 3)
    mine = SharedCounters(region).per_worker()[slot + 1]
    assert (mine["accepted"], mine["pid"], mine["generation"]) == (3, 4711, 1)


def test_a_dead_workers_counters_stay_in_the_total_and_its_gauges_do_not(region):
    slot = region.take_slot(1)
    column = region.column(slot)
    column.set("accepted", 3)
    column.set("connections", 2)
    column.observe("duration", 0.05)
    region.free_slot(slot)
    again = region.take_slot(2)
    assert again == slot
    region.column(again).set("accepted", 4)
    total = SharedCounters(region).total()
    assert (total["accepted"], total["connections"], total["duration"].counts) == (7, 0, (1, 0, 0))
    assert SharedCounters(region).per_worker() == {}


def test_a_total_never_goes_back_while_workers_end(region):
    counters = SharedCounters(region)
    ended = threading.Event()

    def churn():
        for _ in range(2000):
            slot = region.take_slot(1)
            region.column(slot).set("accepted", 5)
            region.free_slot(slot)
        ended.set()

    thread = threading.Thread(target=churn)
    thread.start()
    seen = [counters.total()["accepted"]]
    while not ended.is_set():
        seen.append(counters.total()["accepted"])
    thread.join()
    assert seen == sorted(seen)
    assert counters.total()["accepted"] == 10_000


def test_slots_are_given_once_and_end(region):
    taken = [region.take_slot(1) for _ in range(SLOTS)]
    assert taken == list(range(SLOTS))
    with pytest.raises(ConfigError, match="256 workers"):
        region.take_slot(1)
    region.free_slot(7)
    assert region.take_slot(2) == 7
