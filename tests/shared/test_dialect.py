"""What Python's documentation teaches about multiprocessing, done with `shared` and `Manager`, on every place.

Sections of docs.python.org/3/library/multiprocessing.html are named where they are followed; pools are in
`tests/pool/test_programs.py`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import subprocess
import sys

import pytest

from longshore import shared
from longshore.errors import ConfigError, NotHeld

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["local", "redis"])
def place(request):
    """One of each for all tests, as a manager's objects have names that no others have."""
    shared.leave()
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            url = stack.enter_context(shared.start_broker()).url
        else:
            url = request.getfixturevalue("redis_process").url
        stack.callback(shared.leave)
        shared.join(url)
        yield url


@contextlib.contextmanager
def process(target, *args, start="fork"):
    """A process of the library's, which must end well."""
    child = multiprocessing.get_context(start).Process(target=target, args=args)
    child.start()
    try:
        yield child
        child.join(10)
        assert child.exitcode == 0
    finally:
        child.kill()


# -- exchanging objects between processes ----------------------------------------------------------------


def load(hold):
    hold.put(["crates", 42, None])


def test_a_queue_carries_an_object_from_a_child(place):
    hold = shared.Manager().Queue()
    with process(load, hold):
        assert hold.get(timeout=10) == ["crates", 42, None]
    assert hold.empty()
    with pytest.raises(queue.Empty):
        hold.get(block=False)
    with pytest.raises(queue.Empty):
        hold.get_nowait()


def hail(end):
    end.send({"ship": "ahoy"})
    end.send(end.recv() * 2)
    end.close()


def test_a_pipe_has_two_ends_that_talk(place):
    quay, deck = shared.Pipe("talk", 0), shared.Pipe("talk", 1)
    with quay, process(hail, deck):
        assert quay.recv(timeout=10) == {"ship": "ahoy"}
        quay.send([1, None])
        assert quay.recv(timeout=10) == [1, None, 1, None]
        with pytest.raises(EOFError):
            quay.recv(timeout=10)


# -- synchronisation between processes -------------------------------------------------------------------


def step_inside(lock, inside, number):
    lock.acquire()
    try:
        inside.append(number)
        assert len(inside) == 1
        inside.remove(number)
    finally:
        lock.release()


def test_a_lock_lets_one_process_in_at_a_time(place):
    manager = shared.Manager()
    lock, inside = manager.Lock(), manager.list()
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.enter_context(process(step_inside, lock, inside, number))
    assert inside == []


def wait_for_the_tide(tide, log):
    log.put(tide.wait(0.01))
    log.put(tide.wait(10))


def test_an_event_is_waited_for_with_and_without_success(place):
    manager = shared.Manager()
    tide, log = manager.Event(), manager.Queue()
    with process(wait_for_the_tide, tide, log):
        assert log.get(timeout=10) is False
        tide.set()
        assert log.get(timeout=10) is True
    tide.clear()
    assert not tide.is_set()


def second_watch(changed, log):
    with changed:
        log.append("asleep")
        changed.wait()
        log.append("awake")


def test_a_condition_wakes_all_who_sleep(place):
    manager = shared.Manager()
    changed, log = manager.Condition(), manager.list()
    with process(second_watch, changed, log), process(second_watch, changed, log):
        while log.count("asleep") < 2:
            pass
        with changed:
            changed.notify_all()
    assert log == ["asleep"] * 2 + ["awake"] * 2
    with pytest.raises(ConfigError, match="a lock of its own"):
        manager.Condition(manager.Lock())


def moor(berths, meeting, counts):
    with berths:
        counts.append(berths.free)
    meeting.wait(10)


def test_a_semaphore_bounds_them_and_a_barrier_gathers_them(place):
    manager = shared.Manager()
    berths, meeting, counts = manager.Semaphore(2), manager.Barrier(3), manager.list()
    with process(moor, berths, meeting, counts), process(moor, berths, meeting, counts):
        meeting.wait(10)
    assert len(counts) == 2
    assert set(counts) <= {0, 1}
    bounded = manager.BoundedSemaphore(1)
    with pytest.raises(ValueError, match="does not hold"):
        bounded.release()


def toll(bell):
    for _ in range(2):
        bell.release()


def test_a_semaphore_from_zero_is_released_by_another_process(place):
    bell = shared.Manager().Semaphore(0)
    with process(toll, bell):
        assert bell.acquire(timeout=10)
        assert bell.acquire(block=True, timeout=10)
    assert not bell.acquire(block=False)


# -- sharing state between processes; managers -----------------------------------------------------------


def change(cargo, crew, depth):
    cargo[1] = "1"
    cargo["2"] = 2
    cargo[0.25] = None
    crew.reverse()
    crew.append("cook")
    depth.value = 3.5


def test_a_child_changes_a_managers_dict_list_and_value(place):
    with shared.Manager() as manager:
        cargo, crew, depth = manager.dict(), manager.list(["mate", "master"]), manager.Value("d", 0.0)
        with process(change, cargo, crew, depth):
            pass
        assert str(cargo) == "{1: '1', '2': 2, 0.25: None}"
        assert str(crew) == "['master', 'mate', 'cook']"
        assert depth.value == 3.5
        with depth.get_lock():
            depth.value += 1
        assert depth.get() == 4.5


def test_a_managers_list_is_a_list(place):
    crew = shared.Manager().list(range(5))
    assert (crew[0], crew[-1], crew[1:3], len(crew), 3 in crew) == (0, 4, [1, 2], 5, True)
    crew[1:3] = "ab"
    del crew[0]
    crew.insert(0, "first")
    crew += ["last"]
    assert crew.pop() == "last"
    assert crew == ["first", "a", "b", 3, 4]
    assert list(reversed(crew))[:2] == [4, 3]
    assert crew + [1] == [*crew, 1]  # noqa: RUF005  # the operator is what is tested
    crew.clear()
    crew.extend([3, 1, 2])
    crew.sort(reverse=True)
    crew *= 2
    assert crew == [3, 2, 1, 3, 2, 1]
    assert (crew.index(1), crew.count(2)) == (2, 2)
    with pytest.raises(ValueError, match="not in list"):
        crew.remove(9)
    with pytest.raises(IndexError):
        crew[9]


class Barrel:
    """Equal to nothing but itself, as most objects are."""


def add_barrels(hold, times):
    for _ in range(times):
        hold.append(Barrel())


def test_no_change_of_a_list_is_lost_when_several_make_them(place):
    hold = shared.Manager().list()
    with process(add_barrels, hold, 20), process(add_barrels, hold, 20):
        add_barrels(hold, 20)
    assert len(hold) == 60


def test_managers_objects_may_lie_in_each_other_and_values_in_them_are_copies(place):
    manager = shared.Manager()
    outer, inner = manager.list(), manager.list()
    outer.append(inner)
    inner.append("hello")
    assert str(outer[0]) == "['hello']"
    ships = manager.dict({"plain": [], "shared": manager.dict()})
    ships["plain"].append("gone")
    ships["shared"]["here"] = 1
    assert ships["plain"] == []
    assert ships["shared"].copy() == {"here": 1}


def test_what_a_manager_has_not_is_named_with_what_does_it_here():
    manager = shared.Manager()
    for name, instead in [("Namespace", "dict"), ("Array", "list"), ("register", "a name"), ("connect", "join")]:
        with pytest.raises(AttributeError, match=f"no '{name}'; what does it here is .*{instead}"):
            getattr(manager, name)
    assert not hasattr(manager, "nothing")
    with pytest.raises(ConfigError) as caught:
        shared.Semaphore(3)
    assert "shared.Manager()" in caught.value.hint


def test_a_remote_program_reaches_a_queue_by_the_places_address(place):
    program = f"from longshore import shared\nshared.join({place!r})\nshared.Queue('orders').put('hello')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=15)
    assert shared.Queue("orders").get(timeout=10) == "hello"


# -- examples: a queue of tasks; start methods ------------------------------------------------------------


def plus(left, right):
    return left + right


def stevedore(tasks, done):
    for function, arguments in iter(tasks.get, "STOP"):
        done.put(function(*arguments))
        tasks.task_done()
    tasks.task_done()


def test_workers_take_tasks_from_a_queue_until_they_are_told_to_stop(place):
    manager = shared.Manager()
    tasks, done = manager.JoinableQueue(), manager.Queue()
    with process(stevedore, tasks, done), process(stevedore, tasks, done):
        for number in range(10):
            tasks.put((plus, (number, 1)))
        assert sorted(done.get(timeout=10) for _ in range(10)) == list(range(1, 11))
        for _ in range(2):
            tasks.put("STOP")
        assert tasks.join(timeout=10)
        with pytest.raises(ValueError, match="task_done"):
            tasks.task_done()


def sail(handles):
    handles["Queue"].put([handles["Counter"].add(), handles["list"].pop(), handles["Semaphore"].acquire(timeout=0)])
    with handles["Lock"], handles["RLock"], handles["Condition"]:
        handles["dict"]["done"] = True
    handles["Event"].set()
    handles["Pipe"].send("fare well")
    handles["Barrier"].wait(10)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_process_however_it_was_started_joins_and_has_the_objects_it_was_given(place, start):
    manager = shared.Manager()
    kinds = ("Lock", "RLock", "Event", "Condition", "Queue", "dict")
    handles = {kind: getattr(manager, kind)() for kind in kinds}
    handles["list"] = manager.list(["item"])
    handles["Semaphore"], handles["Barrier"] = manager.Semaphore(1), manager.Barrier(2)
    handles["Counter"] = shared.Counter(f"ships {start}")
    handles["Pipe"] = shared.Pipe(f"wake {start}", 1)
    quay = shared.Pipe(f"wake {start}", 0).open()
    with process(sail, handles, start=start):
        handles["Barrier"].wait(15)
        assert handles["Event"].is_set()
        assert handles["Queue"].get(timeout=0) == [1, "item", True]
        assert handles["dict"].copy() == {"done": True}
        assert quay.recv(timeout=10) == "fare well"
    quay.close()
    with pytest.raises(NotHeld):
        pickle.loads(pickle.dumps(handles["Lock"])).release()
