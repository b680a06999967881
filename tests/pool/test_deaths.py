"""What dies costs its own task, and nothing is left when the pool's own program dies."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import threading

import pytest

from longshore import WorkerDied
from pool import tasks
from pool.killing import kill_inside, kill_outside
from pool.places import PATIENCE, gone, local_only, text_of, wait_for

MIB = 1 << 20


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        (tasks.die, (), "was killed by SIGKILL while it ran pool.tasks.die"),
        (tasks.die, (signal.SIGSEGV,), "was killed by SIGSEGV"),
        (tasks.exit_hard, (3,), "exited with status 3 while it ran pool.tasks.exit_hard"),
        (tasks.exit_hard, (0,), "exited with status 0"),
        (tasks.exit_softly, (4,), "exited with status 4"),
        (tasks.interrupt, (), "exited with status 1"),
        (tasks.die_in_the_middle_of_a_result, (60 * MIB,), "was killed by SIGKILL"),
        (tasks.die_with_every_lock, (), "was killed by SIGKILL"),
        (tasks.close_everything, (), "while it ran pool.tasks.close_everything"),
        (tasks.take_every_descriptor, (), "while it ran pool.tasks.take_every_descriptor"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_process_that_dies_costs_its_own_task_only(make_pool, capfd, task, arguments, said):
    pool = make_pool(2)
    before = pool.submit(tasks.square, 2)
    future = pool.submit(task, *arguments)
    after = [pool.submit(tasks.square, number) for number in range(20)]
    with pytest.raises(WorkerDied) as caught:
        future.result(PATIENCE)
    assert re.search(said, str(caught.value))
    assert before.result(PATIENCE) == 4
    assert [each.result(PATIENCE) for each in after] == [number * number for number in range(20)]


@local_only
def test_whoever_comes_back_from_a_fork_answers_once(make_pool):
    pool = make_pool(1)
    for _ in range(5):
        process, child = pool.submit(tasks.fork_and_return).result(PATIENCE)
        assert child
        assert pool.submit(tasks.pid).result(PATIENCE) == process


def test_a_process_whose_child_lives_on_is_known_to_be_dead(make_pool, tmp_path):
    pool = make_pool(1)
    child = pool.submit(tasks.fork_and_stay, str(tmp_path / "go")).result(PATIENCE)
    with pytest.raises(WorkerDied):
        pool.submit(tasks.die).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    (tmp_path / "go").touch()
    gone(child)


def test_a_task_may_print_lots_and_return_lots(make_pool, place, capfd):
    pool = make_pool(2)
    size = (20 if place == "local" else 5) * MIB
    assert pool.submit(tasks.print_lots, 500).result(PATIENCE) == 500
    sizes = [len(result) for result in pool.map(tasks.result_of, [size, 0, MIB])]
    assert sizes == [size, 0, MIB]
    length = pool.submit(len, b"x" * size).result(PATIENCE)
    assert length == size


@local_only
def test_a_process_that_is_killed_while_it_is_idle_costs_nothing(make_pool):
    pool = make_pool(2)
    pids = {pool.submit(tasks.pid).result(PATIENCE) for _ in range(2)}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        gone(pid)
    lost = 0
    for number in range(20):
        try:
            assert pool.submit(tasks.square, number).result(PATIENCE) == number * number
        except WorkerDied:
            # It was given to a process that was dead already.
            lost += 1
    assert lost <= len(pids)


@pytest.mark.slow
@local_only
def test_of_a_thousand_tasks_just_those_fail_whose_process_was_killed(make_pool):
    kill_inside(make_pool(2), 0)


@pytest.mark.slow
@local_only
def test_kills_from_outside_at_any_moment_cost_at_most_one_task_each(make_pool):
    kill_outside(make_pool(2), 0)


@local_only
def test_an_answer_that_was_sent_before_its_process_died_counts_also_if_the_death_is_heard_of_first(
    make_pool, tmp_path
):
    def arrived(sock):
        return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)

    pool = make_pool(1)
    go = threading.Event()
    future = pool.submit(tasks.result_of_when, 100_000, str(tmp_path / "go"))
    (pid,) = wait_for(pool._backend.pids)
    nursery = wait_for(lambda: pool._backend._nursery.is_proven and pool._backend._nursery)
    (member,) = pool._backend._all.values()
    # While the pool's thread does not look the process answers, in more than is read at once, and dies.
    pool._backend._reactor.post(go.wait, PATIENCE)
    (tmp_path / "go").touch()
    wait_for(lambda: arrived(member.sock) > 100_000)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: arrived(nursery.control))
    go.set()
    assert future.result(PATIENCE) == b"x" * 100_000


@local_only
def test_the_death_of_the_nursery_costs_nothing(make_pool, tmp_path):
    pool = make_pool(2)
    running = pool.submit(tasks.say_and_wait, str(tmp_path / "began"), str(tmp_path / "go"))
    text_of(tmp_path / "began")
    for _ in range(3):
        nursery = pool._backend._nursery.pid
        os.kill(nursery, signal.SIGKILL)
        gone(nursery)
        # Only a new process takes it.
        with pytest.raises(WorkerDied):
            pool.submit(tasks.die).result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    (tmp_path / "go").touch()
    assert running.result(PATIENCE)
    # What nobody buries dies of a timeout as well.
    with pytest.raises(TimeoutError):
        pool.submit(tasks.forever, timeout=0.1).result(PATIENCE)


PROGRAM = """
import os, sys
sys.path[:0] = {path!r}
from longshore.shared import Pool
from pool import tasks
pool = Pool(2)
idle = pool.submit(tasks.pid).result()
busy = pool.submit(tasks.touch_and_sleep, {file!r})
while not os.path.exists({file!r}):
    pass
print(idle, pool._backend._nursery.pid, flush=True)
sys.stdin.read()
"""


def test_nothing_outlives_a_program_that_is_killed(tmp_path):
    file = tmp_path / "pid"
    program = PROGRAM.format(path=sys.path, file=str(file))
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    for pid in [*pids, int(file.read_text())]:
        gone(pid)


@local_only
def test_a_pool_does_not_work_in_a_child_that_was_forked_from_its_process(make_pool):
    pool = make_pool(1)
    pool.submit(tasks.square, 2).result(PATIENCE)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pool.submit(tasks.square, 2)
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as file:
        assert f"belongs to process {os.getpid()}" in file.read()
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
