"""What a task can be, return and raise, and when it ends."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from longshore import ConfigError, LimitExceeded, Timeout, WorkerDied
from longshore.shared import Pool
from longshore.shared.pool import PoolClosed, Unpicklable, local
from longshore.testing import no_leaks
from pool import tasks
from pool.places import PATIENCE, gone, local_only, text_of


def test_a_task_runs_in_another_process_and_returns_its_value(make_pool):
    pool = make_pool()
    assert pool.submit(tasks.square, 7).result(PATIENCE) == 49
    assert pool.submit(tasks.add, 1, second=2).result(PATIENCE) == 3
    assert pool.submit(tasks.pid).result(PATIENCE) != os.getpid()
    assert pool.submit(functools.partial(tasks.add, 1), 5).result(PATIENCE) == 6


def test_it_is_an_executor_and_with_waits_for_its_tasks(make_pool):
    pool = make_pool(1)
    assert isinstance(pool, concurrent.futures.Executor)
    with pool:
        futures = [pool.submit(tasks.square, number) for number in range(50)]
    assert [future.result(0) for future in futures] == [number * number for number in range(50)]
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(tasks.square, 1)
    with pytest.raises(PoolClosed):
        pool.submit(tasks.square, 1)


def test_what_a_task_raises_comes_back_with_its_traceback(make_pool):
    with pytest.raises(LookupError, match="not in the book") as caught:
        make_pool().submit(tasks.fail, "not in the book").result(PATIENCE)
    assert "tasks.py" in str(caught.value.__cause__)


def test_an_error_that_cannot_be_made_again_keeps_its_name_and_message(make_pool):
    with pytest.raises(Exception, match="one and two") as caught:
        make_pool().submit(tasks.fail_stubbornly).result(PATIENCE)
    assert type(caught.value).__name__ == "Stubborn"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((tasks.square, threading.Lock()), "argument 1 of pool.tasks.square, <unlocked _thread.lock"),
        ((tasks.a_lock,), "pool.tasks.a_lock returned <unlocked _thread.lock"),
        ((tasks.unloadable,), "the result of pool.tasks.unloadable"),
    ],
    ids=["argument", "result", "result that cannot be loaded"],
)
def test_what_cannot_be_pickled_is_named(make_pool, call, named):
    pool = make_pool(1)
    with pytest.raises(Unpicklable) as caught:
        pool.submit(*call).result(PATIENCE)
    assert named in str(caught.value)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


@local_only
def test_a_function_that_has_no_name_cannot_be_sent(make_pool):
    with pytest.raises(Unpicklable, match=r"the function <function .*<lambda>.* cannot be pickled"):
        make_pool(1).submit(lambda: 1).result(PATIENCE)


# -- time ------------------------------------------------------------------------------------------------


def test_a_task_past_its_time_is_killed_and_its_future_says_so(make_pool, tmp_path):
    pool = make_pool(1)
    # The process that it starts in has imported its module, so that all of its time is its own.
    assert pool.submit(tasks.square, 2).result(PATIENCE) == 4
    began = time.monotonic()
    future = pool.submit(tasks.ignore_signals_and_sleep, str(tmp_path / "pid"), timeout=0.5)
    with pytest.raises(TimeoutError, match=r"0\.5 s after its start") as caught:
        future.result(PATIENCE)
    assert isinstance(caught.value, Timeout)
    assert 0.5 <= time.monotonic() - began < 5
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    gone(int((tmp_path / "pid").read_text()))


def test_a_tasks_time_is_counted_from_its_start(make_pool, tmp_path):
    pool = make_pool(1)
    first = pool.submit(tasks.wait_for, str(tmp_path / "go"))
    # It waits for its turn longer than it may take.
    second = pool.submit(tasks.square, 2, timeout=0.2)
    with pytest.raises(TimeoutError):
        second.result(0.4)
    (tmp_path / "go").touch()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 4


def test_a_pool_has_a_time_for_all_its_tasks(make_pool):
    pool = make_pool(2, timeout=0.2)
    with pytest.raises(Timeout):
        pool.submit(tasks.forever).result(PATIENCE)


@local_only
def test_a_result_in_time_is_never_late(make_pool):
    pool = make_pool(1)
    assert [pool.submit(tasks.square, number, timeout=30).result(PATIENCE) for number in range(20)][-1] == 361
    assert pool.statistics().died == 0


# -- cancelling ------------------------------------------------------------------------------------------


def test_cancel_ends_a_task_that_runs(make_pool, tmp_path):
    pool = make_pool(1)
    future = pool.submit(tasks.touch_and_sleep, str(tmp_path / "pid"))
    pid = int(text_of(tmp_path / "pid"))
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    gone(pid)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_cancel_keeps_a_task_from_running(make_pool, tmp_path):
    pool = make_pool(1)
    first = pool.submit(tasks.wait_for, str(tmp_path / "go"))
    second = pool.submit(tasks.touch_and_sleep, str(tmp_path / "ran"))
    assert second.cancel()
    assert second.cancel()
    (tmp_path / "go").touch()
    first.result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert not (tmp_path / "ran").exists()
    assert not first.cancel()


@local_only
def test_shutdown_can_cancel_what_has_not_started(make_pool, tmp_path):
    pool = make_pool(1)
    first = pool.submit(tasks.say_and_wait, str(tmp_path / "began"), str(tmp_path / "go"))
    text_of(tmp_path / "began")
    others = [pool.submit(tasks.touch_and_sleep, str(tmp_path / "ran")) for _ in range(5)]
    pool.shutdown(wait=False, cancel_futures=True)
    (tmp_path / "go").touch()
    pool.shutdown()
    assert first.result(0)
    assert all(future.cancelled() for future in others)


@local_only
def test_a_task_that_runs_when_its_pool_is_shut_down_has_all_its_time(make_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.01)
    pool = make_pool(1)
    future = pool.submit(tasks.say_and_wait, str(tmp_path / "began"), str(tmp_path / "go"))
    text_of(tmp_path / "began")
    pool.shutdown(wait=False)
    # Longer than a process without a task is given.
    passed = threading.Event()
    pool._backend._reactor.post(pool._backend._reactor.call_later, 0.05, passed.set)
    assert passed.wait(PATIENCE)
    (tmp_path / "go").touch()
    assert future.result(PATIENCE)


@local_only
def test_a_process_that_does_not_end_by_itself_is_killed_when_its_pool_is_shut_down(make_pool, monkeypatch):
    monkeypatch.setattr(local, "PATIENCE", 0.01)
    pool = make_pool(1)
    pid = pool.submit(tasks.pid).result(PATIENCE)
    os.kill(pid, signal.SIGSTOP)
    pool.shutdown()
    gone(pid)


@local_only
def test_terminate_ends_what_runs(make_pool, tmp_path):
    pool = make_pool(1)
    future = pool.submit(tasks.touch_and_sleep, str(tmp_path / "pid"))
    pid = int(text_of(tmp_path / "pid"))
    pool.terminate()
    pool.join()
    gone(pid)
    assert future.cancelled()


# -- many ------------------------------------------------------------------------------------------------


def test_map_keeps_the_order_and_takes_several_iterables(make_pool):
    pool = make_pool()
    assert list(pool.map(tasks.square, range(20))) == [number * number for number in range(20)]
    assert list(pool.map(tasks.add, [1, 2, 3], [10, 20, 30], chunksize=2)) == [11, 22, 33]
    assert pool.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
    assert repr(pool.map(tasks.square, [1, 2])) == "[1, 4]"
    results = pool.map(tasks.square, [5, 6])
    assert next(results) == 25
    assert results[1] == 36


def test_imap_unordered_gives_what_is_ready_first(make_pool, tmp_path):
    pool = make_pool(2)
    (tmp_path / "b").touch()
    results = pool.imap_unordered(tasks.add_file, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert next(results) == str(tmp_path / "b")
    (tmp_path / "a").touch()
    assert next(results) == str(tmp_path / "a")
    with pytest.raises(StopIteration):
        next(results)


def test_imap_unordered_takes_an_endless_input_no_faster_than_results_are_taken(make_pool):
    pool = make_pool(2)
    taken = []

    def numbers():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = pool.imap_unordered(tasks.square, numbers())
    first = [next(results) for _ in range(20)]
    assert len(set(first)) == 20
    assert len(taken) <= 20 + 8 + 1
    results.close()


def test_progress_is_counted(make_pool):
    pool = make_pool()
    told = []
    list(pool.map(tasks.square, range(6), chunksize=2, progress=lambda *counts: told.append(counts)))
    assert told == [(2, 6), (4, 6), (6, 6)]
    told.clear()
    list(pool.imap_unordered(tasks.square, iter(range(3)), progress=lambda *counts: told.append(counts)))
    assert told == [(1, None), (2, None), (3, None)]


def test_a_map_that_fails_or_is_not_read_to_its_end_ends_its_tasks(make_pool, tmp_path):
    pool = make_pool(1)
    results = pool.map(tasks.add_file, [str(tmp_path / name) for name in "ab"], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_wait_and_as_completed_of_the_standard_library_work(make_pool):
    pool = make_pool()
    futures = [pool.submit(tasks.square, number) for number in range(10)]
    assert sorted(future.result() for future in concurrent.futures.as_completed(futures, PATIENCE)) == [
        number * number for number in range(10)
    ]
    done, rest = concurrent.futures.wait([pool.submit(tasks.fail), pool.submit(tasks.square, 2)], PATIENCE)
    assert (len(done), len(rest)) == (2, 0)


def test_what_fails_in_a_map_is_named_by_the_users_function(make_pool):
    pool = make_pool(1)
    with pytest.raises(WorkerDied, match=r"while it ran pool\.tasks\.exit_hard"):
        list(pool.map(tasks.exit_hard, [3]))
    with pytest.raises(Unpicklable, match=r"argument 1 of pool\.tasks\.square, <unlocked"):
        list(pool.map(tasks.square, [threading.Lock()]))
    with pytest.raises(Unpicklable, match=r"pool\.tasks\.a_lock returned <unlocked"):
        list(pool.starmap(tasks.a_lock, [(), ()], chunksize=2))


# -- limits ----------------------------------------------------------------------------------------------


def test_submit_waits_for_room(make_pool, tmp_path):
    pool = make_pool(1, max_pending=2)
    first = pool.submit(tasks.wait_for, str(tmp_path / "go"))
    pool.submit(tasks.square, 2)
    thirds = []
    thread = threading.Thread(target=lambda: thirds.append(pool.submit(tasks.square, 3).result(PATIENCE)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert pool.statistics().pending == 2
    (tmp_path / "go").touch()
    thread.join(PATIENCE)
    assert thirds == [9]
    assert first.done()


@local_only
def test_who_waits_for_room_is_told_of_the_end(make_pool, tmp_path):
    pool = make_pool(1, max_pending=1)
    pool.submit(tasks.wait_for, str(tmp_path / "go"))
    failures = []

    def submit():
        try:
            pool.submit(tasks.square, 3)
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    while not pool._room._waiting:
        thread.join(0.001)
    pool.shutdown(wait=False)
    thread.join(PATIENCE)
    assert len(failures) == 1
    (tmp_path / "go").touch()


@local_only
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's RLIMIT_DATA")
def test_a_task_that_outgrows_its_memory_is_the_only_one_lost(make_pool):
    pool = make_pool(1, max_task_memory=64 << 20)
    assert pool.submit(tasks.grow, 16 << 20).result(PATIENCE) == 16 << 20
    with pytest.raises(LimitExceeded, match=rf"pool\.tasks\.grow .*max_task_memory={64 << 20}"):
        pool.submit(tasks.grow, 200 << 20).result(PATIENCE)
    with pytest.raises(LimitExceeded):
        pool.submit(tasks.result_of, 60 << 20).result(PATIENCE)
    assert pool.submit(tasks.grow, 16 << 20).result(PATIENCE) == 16 << 20
    assert pool.statistics().died == 0


@local_only
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's RLIMIT_DATA")
def test_a_tasks_limit_of_memory_ends_with_it(make_pool):
    pool = make_pool(1, max_task_memory=16 << 20)
    pid = pool.submit(tasks.pid).result(PATIENCE)
    # It is received under nobody's limit, or its process would die of it; it is too much for its own.
    with pytest.raises(LimitExceeded, match="its arguments"):
        pool.submit(len, b"x" * (20 << 20)).result(PATIENCE)
    gone(pid)
    assert pool.statistics().died == 0


# -- recycling -------------------------------------------------------------------------------------------


def test_a_process_is_replaced_after_so_many_tasks(make_pool):
    pool = make_pool(1, max_tasks=2)
    assert [len(set(pids)) for pids in [[pool.submit(tasks.pid).result(PATIENCE) for _ in range(6)]]] == [3]
    many = make_pool(2, max_tasks=1)
    assert len(set(many.map(tasks.pid, range(20)))) == 20


def test_a_process_is_replaced_when_it_is_old(make_pool):
    pool = make_pool(1, max_age=0.05)
    first = pool.submit(tasks.sleep_and_tell, 0.1).result(PATIENCE)
    assert pool.submit(tasks.pid).result(PATIENCE) != first


@local_only
def test_a_process_is_replaced_when_it_has_grown(make_pool):
    pool = make_pool(1, max_memory=200 << 20)
    first = pool.submit(tasks.pid).result(PATIENCE)
    assert pool.submit(tasks.keep, 1 << 20).result(PATIENCE) == first
    assert pool.submit(tasks.keep, 250 << 20).result(PATIENCE) == first
    assert pool.submit(tasks.pid).result(PATIENCE) != first
    assert pool.statistics().recycled == 1


# -- beginnings ------------------------------------------------------------------------------------------


def test_an_initializer_runs_in_each_process(make_pool):
    pool = make_pool(2, tasks.remember, ("the milk",), max_tasks=1)
    assert [pool.submit(tasks.what_is_remembered).result(PATIENCE) for _ in range(4)] == ["the milk"] * 4


@local_only
@pytest.mark.parametrize(
    ("initializer", "arguments", "said"),
    [
        (tasks.fail, ("not set up",), r"initializer pool\.tasks\.fail has failed.*LookupError"),
        (tasks.exit_hard, (7,), "3 processes of the pool in a row died.*exited with status 7"),
        (tasks.die, (), "in a row died.*killed by SIGKILL"),
    ],
    ids=["raises", "exits", "is killed"],
)
def test_an_initializer_that_fails_is_one_error_and_no_storm(make_pool, initializer, arguments, said):
    pool = make_pool(2, initializer, arguments)
    futures = [pool.submit(tasks.square, number) for number in range(5)]
    for future in futures:
        with pytest.raises(WorkerDied, match=said):
            future.result(PATIENCE)
    with pytest.raises(WorkerDied, match=said):
        pool.submit(tasks.square, 1)
    assert pool._backend._number <= 6


def test_an_initializers_error_is_told(make_pool):
    with pytest.raises(WorkerDied, match=r"LookupError\('not set up'\)"):
        make_pool(1, tasks.fail, ("not set up",)).submit(tasks.square, 1).result(PATIENCE)


@local_only
def test_a_pool_that_is_not_used_starts_nothing(make_pool):
    pool = make_pool()
    assert pool.statistics().processes == 0
    pool.submit(tasks.square, 1).result(PATIENCE)
    assert pool.statistics().processes == 1


@local_only
def test_a_pool_that_nobody_holds_ends_its_processes(place):
    with no_leaks():
        pool = Pool(1)
        future = pool.submit(tasks.pid)
        pid = future.result(PATIENCE)
        del pool, future
        gc.collect()
        gone(pid)


@pytest.mark.parametrize(
    "arguments",
    [
        {"place": 0},
        {"place": True},
        {"place": "redis://here"},
        {"place": 2, "processes": 3},
        {"place": 1, "max_tasks": 0},
        {"place": 1, "max_age": -1},
        {"place": 1, "max_pending": 0},
        {"place": 1, "timeout": 0},
        {"place": 1, "initializer": 3},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_once(arguments):
    with pytest.raises(ConfigError):
        Pool(**arguments)


# -- programs --------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from longshore.shared import Pool

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    assert __name__ == "__mp_main__" and sys.argv[1:] == ["word"]
    return Point(point.x * 2)

if __name__ == "__main__":
    {begin}
    print(pool.submit(double, Point(21)).result().x)
    {end}
"""


@pytest.mark.parametrize(
    ("begin", "end"),
    [("pool = Pool(2)", "pool.shutdown()"), ("pool = Pool(2)", "pool.submit(double, Point(1))")],
    ids=["that shuts its pool down", "that forgets to"],
)
def test_functions_and_classes_of_a_program_work_as_with_multiprocessing(tmp_path, begin, end):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(begin=begin, end=end))
    done = subprocess.run([sys.executable, path, "word"], capture_output=True, text=True, timeout=15)
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)
