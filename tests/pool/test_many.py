"""Many calls at once, by the names that multiprocessing has for them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest

from pool import tasks
from pool.places import PATIENCE


def test_imap_goes_on_after_a_call_that_fails(make_pool):
    results = make_pool().imap(tasks.divide, [(1, 1), (1, 0), (4, 2)])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == [2]


def test_imap_gives_what_is_there_while_the_next_one_is_not(make_pool, tmp_path):
    (tmp_path / "a").touch()
    results = make_pool(2).imap(tasks.add_file, [str(tmp_path / name) for name in "ab"])
    assert results.next(PATIENCE) == str(tmp_path / "a")
    with pytest.raises(TimeoutError):
        results.next(timeout=0.01)
    (tmp_path / "b").touch()
    assert results.next(PATIENCE) == str(tmp_path / "b")
    with pytest.raises(StopIteration):
        results.next()


def test_imap_keeps_the_order_and_takes_an_endless_input_no_faster_than_results_are_taken(make_pool):
    taken = []
    results = make_pool(2).imap(tasks.square, (taken.append(number) or number for number in itertools.count()))
    assert [next(results) for _ in range(20)] == [number * number for number in range(20)]
    assert len(taken) <= 20 + 8
    results.close()


def test_the_results_of_a_map_that_runs_on_answer_to_the_names_of_an_asynchronous_result(make_pool, tmp_path):
    pool = make_pool(1)
    told = threading.Event()
    heard = []

    def hear(what):
        heard.append(what)
        told.set()

    results = pool.map_async(tasks.add_file, [str(tmp_path / "a")], callback=hear)
    results.wait(0.01)
    assert not results.ready()
    with pytest.raises(ValueError, match="not ready"):
        results.successful()
    with pytest.raises(TimeoutError):
        results.get(0.01)
    (tmp_path / "a").touch()
    results.wait(PATIENCE)
    assert results.ready()
    assert results.successful()
    assert told.wait(PATIENCE)
    assert heard == [[str(tmp_path / "a")]]
    told.clear()
    failed = pool.starmap_async(tasks.add, [(1, 2), (1, None)], error_callback=hear)
    assert told.wait(PATIENCE)
    assert isinstance(heard[1], TypeError)
    assert not failed.successful()


UNGUARDED = """
from longshore.shared import Pool

def square(number):
    return number * number

print("begin")
print(Pool(1).submit(square, 3).result())
"""


def test_a_program_that_starts_its_pool_when_it_is_imported_is_told_the_idiom(tmp_path):
    (tmp_path / "program.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "begin\nbegin\n"
    assert "if __name__ == '__main__':" in done.stderr
    assert done.returncode == 1
