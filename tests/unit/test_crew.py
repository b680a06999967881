"""Threads that take jobs."""

from __future__ import annotations

import threading

from longshore.strategies.crew import SHARE, Crew


def test_as_many_jobs_run_at_once_as_there_may_be_threads():
    crew = Crew(lambda: 32)
    together = threading.Barrier(33)
    for number in range(32):
        crew.submit(f"job {number}", together.wait)
    together.wait(20)
    assert crew.close() == ()


def test_a_crew_without_bound_has_a_thread_for_each_job():
    crew = Crew(lambda: None)
    together = threading.Barrier(101)
    for number in range(100):
        crew.submit(f"job {number}", together.wait)
    together.wait(20)
    assert crew.close() == ()


def test_a_thread_that_waits_for_a_job_is_not_counted_on_for_two():
    crew = Crew(lambda: None)
    crew.submit("first", str)
    while not crew._idle:
        pass
    together = threading.Barrier(3)
    with crew._ready:
        # Before it can wake, as its lock is held.
        crew.submit("second", together.wait)
        crew.submit("third", together.wait)
    together.wait(20)
    assert crew.close() == ()


def test_threads_come_one_after_the_other_so_that_jobs_without_waits_need_few_of_them():
    crew = Crew(lambda: None)
    together = threading.Barrier(33)
    with crew._ready:
        # Nobody can take one yet, as the lock is held.
        for number in range(32):
            crew.submit(f"job {number}", together.wait)
        assert len(crew._threads) == 1
    # Each that finds more to do has called another one.
    together.wait(20)
    assert crew.close() == ()


def test_where_the_system_has_no_thread_left_a_job_waits_for_those_that_there_are():
    crew = Crew(lambda: None)
    go, done = threading.Event(), threading.Event()
    crew.submit("first", lambda: (go.wait(20), crew.submit("third", done.set)))
    before = threading.stack_size(1 << 46)
    try:
        crew.submit("second", str)
        go.set()
        assert done.wait(20)
    finally:
        threading.stack_size(before)
    assert crew.close() == ()


def test_what_is_behind_waits_for_the_others_but_not_for_ever():
    crew = Crew(lambda: 1)
    go, done, order = threading.Event(), threading.Event(), []
    crew.submit("gate", go.wait)
    for number in range(3):
        crew.submit("behind", lambda number=number: order.append(f"behind {number}"), behind=True)
    for number in range(2 * SHARE):
        crew.submit("job", lambda number=number: order.append(number))
    crew.submit("last", done.set, behind=True)
    go.set()
    assert done.wait(20)
    assert crew.close() == ()
    jobs = [item for item in order if isinstance(item, int)]
    assert jobs == list(range(2 * SHARE))
    assert [item for item in order if item not in jobs] == ["behind 0", "behind 1", "behind 2"]
    assert 0 < order.index("behind 0") < SHARE
    assert order[-1] == "behind 2"
