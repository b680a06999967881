"""What each primitive promises to a plain script, on every place."""

from __future__ import annotations

import pickle
import queue
import threading

import pytest

from longshore import shared
from longshore.errors import ClosedError, ConfigError, LimitExceeded, NotHeld, NotSerialisable

pytestmark = pytest.mark.slow


def in_thread(function, *args):
    """Call it on a thread; returns how to get what it returned."""
    outcome: queue.Queue = queue.Queue()
    threading.Thread(target=lambda: outcome.put(function(*args)), daemon=True).start()
    return lambda: outcome.get(timeout=10)


def test_a_lock_is_held_by_one_and_its_fence_rises(place):
    lock, other = shared.Lock("x"), shared.Lock("x")
    with lock:
        first = lock.fence
        assert first > 0
        assert lock.locked()
        assert in_thread(other.acquire, 0)() is False
        assert other.acquire(timeout=0.01) is False
    assert in_thread(lambda: (other.acquire(), other.fence, other.release()))()[1] > first
    assert not lock.recovered


def test_releasing_what_one_does_not_hold_is_an_error_that_says_so(place):
    lock = shared.Lock("x")
    with pytest.raises(NotHeld, match="Lock\\('x'\\)"):
        lock.release()

    def release():
        with pytest.raises(NotHeld):
            lock.release()
        return "refused"

    with lock:
        assert in_thread(release)() == "refused"
    with pytest.raises(NotHeld):
        shared.Semaphore("s", 2).release()


def test_an_rlock_is_free_once_it_was_released_as_often_as_acquired(place):
    lock, same = shared.RLock("x"), shared.RLock("x")
    with lock, same:
        assert lock.acquire(timeout=0)
        lock.release()
        assert in_thread(lock.acquire, 0)() is False
    assert in_thread(lambda: lock.acquire(0) and (lock.release() or True))()


def test_a_semaphore_of_no_slots_is_a_signal_that_anybody_sends_and_one_takes_for_good(place):
    signal = shared.Semaphore("x", 0)
    waiter = in_thread(signal.acquire, 10)
    in_thread(signal.release)()
    assert waiter()
    assert not signal.acquire(timeout=0)
    signal.release()
    assert signal.free == 1
    # The thread that takes it ends, and it does not come back.
    assert in_thread(signal.acquire, 10)()
    assert signal.free == 0
    assert not pickle.loads(pickle.dumps(signal)).acquire(timeout=0)
    with pytest.raises(NotHeld) as caught:
        shared.Semaphore("y", 1).release()
    assert "Semaphore(name, 0)" in caught.value.hint


def test_a_semaphore_has_its_slots(place):
    semaphore = shared.Semaphore("x", 2)
    assert semaphore.acquire()
    assert semaphore.acquire(timeout=0)
    assert not semaphore.acquire(timeout=0)
    assert semaphore.free == 0
    semaphore.release()
    assert semaphore.free == 1


def test_a_thread_that_ends_lets_go_of_what_it_held(place):
    lock = shared.Lock("x")
    in_thread(lock.acquire)()
    assert lock.acquire(timeout=5)
    assert lock.recovered


def test_an_event_wakes_all_who_wait(place):
    event = shared.Event("x")
    waiting = [in_thread(event.wait, 10) for _ in range(3)]
    assert event.wait(timeout=0.01) is False
    event.set()
    assert [wait() for wait in waiting] == [True] * 3
    event.clear()
    assert not event.is_set()


def test_a_condition_wakes_as_many_as_it_is_told(place):
    condition, ready = shared.Condition("x"), shared.Queue("ready")

    def sleeper():
        with condition:
            ready.put(1)
            return condition.wait(10)

    waiting = [in_thread(sleeper) for _ in range(2)]
    for _ in waiting:
        ready.get(timeout=10)
    with condition:
        condition.notify_all()
    assert [wait() for wait in waiting] == [True, True]
    with condition:
        assert condition.wait(timeout=0.01) is False
        assert condition.locked()
    with pytest.raises(NotHeld):
        condition.notify()


def test_a_barrier_gives_each_its_place(place):
    barrier = shared.Barrier("x", 3)
    waiting = [in_thread(barrier.wait, 10) for _ in range(2)]
    places = [barrier.wait(timeout=10), *(wait() for wait in waiting)]
    assert sorted(places) == [0, 1, 2]
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(timeout=0.01)
    assert barrier.broken
    barrier.reset()
    assert (barrier.n_waiting, barrier.broken) == (0, False)


def test_a_queue_is_bounded_and_joined(place):
    work = shared.Queue("x", maxsize=2)
    work.put("a")
    work.put("b")
    with pytest.raises(queue.Full):
        work.put("c", timeout=0.01)
    assert work.full()
    third = in_thread(work.put, "c", 10)
    assert work.get() == "a"
    assert third() is None
    assert [work.get(), work.get(timeout=5)] == ["b", "c"]
    with pytest.raises(queue.Empty):
        work.get(timeout=0.01)
    assert work.join(timeout=0.01) is False
    for _ in range(3):
        work.task_done()
    assert work.join(timeout=5) is True
    with pytest.raises(ValueError, match="task_done"):
        work.task_done()


def test_what_is_acknowledged_is_done_and_what_is_requeued_comes_again(place):
    work = shared.Queue("x")
    work.put({"job": 1})
    delivery = work.get(ack=True)
    assert delivery.value == {"job": 1}
    delivery.requeue()
    again = work.get(ack=True, timeout=5)
    assert again.redelivered == 1
    again.ack()
    assert work.join(timeout=5)
    with pytest.raises(NotHeld):
        again.ack()


def test_what_a_thread_did_not_acknowledge_is_delivered_again_and_collecting_it_is_nothing(place):
    work = shared.Queue("x")
    work.put("job")
    work.get(ack=True)
    with pytest.raises(queue.Empty):
        work.get(timeout=0.05)
    work.put("other")
    in_thread(lambda: work.get(ack=True) and None)()
    assert work.get(timeout=5) == "other"


def test_a_topic_reaches_all_subscribers_and_drops_or_ends_slow_ones(place):
    topic = shared.Topic("x")
    one, slow, closing = topic.subscribe(), topic.subscribe(max_pending=1), topic.subscribe(max_pending=1, slow="close")
    assert topic.publish("a") == 3
    assert topic.publish("b") == 1
    assert [one.get(timeout=5), one.get(timeout=5)] == ["a", "b"]
    assert slow.get(timeout=5) == "a"
    assert slow.missed == 1
    with pytest.raises(ClosedError):
        closing.get(timeout=5)
    one.close()
    slow.close()
    assert topic.publish("c") == 0


def test_a_pipe_carries_whole_messages_both_ways_and_ends(place):
    left, right = shared.Pipe("x", 0).open(), shared.Pipe("x", 1).open()
    left.send([1, None, "hello"])
    right.send(b"x" * 100_000)
    assert right.recv(timeout=5) == [1, None, "hello"]
    assert left.poll(5)
    assert len(left.recv()) == 100_000
    assert not left.poll()
    left.send("last")
    left.close()
    assert right.recv(timeout=5) == "last"
    with pytest.raises(EOFError):
        right.recv(timeout=5)
    with pytest.raises(BrokenPipeError):
        right.send("nobody reads this")


def test_a_dict_is_a_mapping(place):
    data = shared.Dict("x")
    data["a"] = 1
    data.update({2: "two", (1, "x"): None}, b=[1, 2])
    assert dict(data) == data.copy() == {"a": 1, 2: "two", (1, "x"): None, "b": [1, 2]}
    assert data[2.0] == "two"
    assert len(data) == 4
    assert list(data) == ["a", 2, (1, "x"), "b"]
    assert "a" in data
    assert None not in data
    assert data.get("none", 5) == 5
    assert data.setdefault("a", 9) == 1
    assert data.setdefault("new", 9) == 9
    assert data.pop("new") == 9
    assert data.delete("b")
    assert not data.delete("b")
    with pytest.raises(KeyError):
        del data["b"]
    with pytest.raises(KeyError):
        data["b"]
    assert data == {"a": 1, 2: "two", (1, "x"): None}
    data |= {"a": 2}
    assert data["a"] == 2
    data.clear()
    assert not data


def test_compare_and_set_lets_one_of_many_win(place):
    data = shared.Dict("x")
    assert data.compare_and_set("k", None, 0)
    assert not data.compare_and_set("k", 5, 6)

    def count(times):
        for _ in range(times):
            while not data.compare_and_set("k", value := data["k"], value + 1):
                pass

    for wait in [in_thread(count, 50) for _ in range(4)]:
        wait()
    assert data["k"] == 200


def test_a_counter_counts_for_all(place):
    counter = shared.Counter("x")
    for wait in [in_thread(lambda: [counter.add() for _ in range(100)]) for _ in range(4)]:
        wait()
    assert counter.value == 400
    assert counter.add(-1) == 399
    counter.value = 5
    assert counter.add(0) == 5
    with pytest.raises(LimitExceeded):
        counter.add(2**63 - 1)
    with pytest.raises(TypeError):
        counter.add(1.5)
    assert counter.value == 5


def test_other_parameters_for_a_known_name_show_both(place, program):
    other = program("shared.Semaphore('y', 2).acquire(); print('ready', flush=True)")
    other.stdout.readline()
    with pytest.raises(ConfigError, match=r"value=2.*value=3"):
        shared.Semaphore("y", 3).acquire()
    shared.Semaphore("x", 2).acquire()
    with pytest.raises(ConfigError, match=r"value=2.*value=3"):
        shared.Semaphore("x", 3)
    shared.Queue("x").put(1)


def test_a_queue_of_any_size_up_to_0_has_no_bound_as_in_the_standard_library(place):
    queues = [shared.Queue("n", size) for size in (0, -1, -2)]
    for number, unbounded in enumerate(queues):
        unbounded.put(number, timeout=0)
    assert [unbounded.maxsize for unbounded in queues] == [0, 0, 0]
    assert queues[0].qsize() == 3


@pytest.mark.parametrize(
    "made",
    [
        lambda: shared.Semaphore("n", 1.5),
        lambda: shared.Semaphore("n", -1),
        lambda: shared.Barrier("n", "2"),
        lambda: shared.Barrier("n", 0),
        lambda: shared.Queue("n", None),
        lambda: shared.Queue("n", 1 << 60),
        lambda: shared.Topic("n").subscribe("all"),
        lambda: shared.Topic("n").subscribe(0),
        lambda: shared.Condition("n").notify("x"),
    ],
)
def test_what_is_no_count_or_no_name_is_refused_by_its_name(place, made):
    with pytest.raises(ConfigError, match="'n'"):
        made()


def test_a_lock_has_a_name_and_no_parameters():
    for kind in (shared.Lock, shared.RLock, shared.Event, shared.Condition, shared.Counter, shared.Topic, shared.Dict):
        with pytest.raises(TypeError):
            kind("n", "more")


def test_what_cannot_be_serialised_is_named(place):
    with pytest.raises(NotSerialisable, match="lambda"):
        shared.Queue("x").put(lambda: None)
    with pytest.raises(NotSerialisable, match="object object"):
        shared.Dict("x", serializer="json")["k"] = object()
    with pytest.raises(NotSerialisable, match="keys are"):
        shared.Dict("x")[object()] = 1


@pytest.mark.parametrize("serializer", ["pickle", "json", "msgpack"])
def test_values_come_back_through_each_serialiser(place, serializer):
    work = shared.Queue(f"x-{serializer}", serializer=serializer)
    work.put({"a": [1, 2.5, None, "ö"]})
    assert pickle.loads(pickle.dumps(work)).get(timeout=5) == {"a": [1, 2.5, None, "ö"]}


def test_a_handle_pickles_to_its_name(place):
    for handle in (
        shared.Lock("x"),
        shared.RLock("x"),
        shared.Semaphore("x", 2),
        shared.Event("x"),
        shared.Condition("x"),
        shared.Barrier("x", 2),
        shared.Queue("x", 3),
        shared.Topic("x"),
        shared.Pipe("x", 1),
        shared.Dict("x"),
        shared.Counter("x"),
    ):
        assert repr(pickle.loads(pickle.dumps(handle))) == repr(handle)


def test_joining_twice_the_same_place_is_fine_and_another_is_refused(place):
    assert shared.join(place) is shared.join()
    assert shared.address() == place
    with pytest.raises(ConfigError, match="joined to"):
        shared.join("local:///elsewhere/socket")
