"""Dicts and queues that a broker of its own has lent: who borrows, waits, dies or lies, in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import signal
import sys
import threading

import pytest

from longshore import shared
from longshore.errors import BrokerLost
from longshore.framing import Lines
from longshore.shared.borrowing import Borrower

pytest.importorskip("longshore._native", reason="the native module was not built", exc_type=ImportError)
pytestmark = pytest.mark.slow

#: Has a dict and a queue lent, or fails.
BORROW_THEM = """
from longshore.shared.joining import current
data, work = shared.Dict('d'), shared.Queue('q')
def borrow():
    for n in range(30):
        data['n'] = n
        work.put(n); work.get()
    borrower = current()._channel().borrower
    assert {b'Dd', b'Qq'} == set(borrower._loans), 'nothing is lent'
    return borrower
borrower = borrow()
"""


def borrow():
    """As the program; the borrower of this thread."""
    names = {"shared": shared}
    exec(BORROW_THEM, names)
    return names["borrower"]


def in_thread(function):
    """What `function` gives on a thread of its own: to the broker, another client."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(10)
    assert found, "it did not return"
    return found[0]


def test_a_borrower_that_is_killed_has_done_all_that_returned_and_its_deliveries_come_back(broker, program):
    borrower = program(
        BORROW_THEM + "for n in range(2000): data[n % 10] = n\n"
        "for n in range(3): work.put(n)\n"
        "delivery = work.get(ack=True); assert delivery.value == 0\n"
        "print('done', flush=True); time.sleep(60)"
    )
    assert borrower.stdout.readline() == "done\n"
    borrower.kill()
    borrower.wait()
    assert [shared.Dict("d")[n] for n in range(10)] == list(range(1990, 2000))
    deliveries = [shared.Queue("q").get(timeout=5, ack=True) for _ in range(3)]
    assert [(found.value, found.redelivered) for found in deliveries] == [(0, 1), (1, 0), (2, 0)]


def test_a_borrower_that_is_stopped_before_an_entry_counts_keeps_nobody_waiting_and_asks_when_it_goes_on(
    broker, program
):
    borrower = program(
        BORROW_THEM
        + "step, borrower._step = borrower._step, lambda *args: (os.kill(os.getpid(), 19), step(*args))[1]\n"
        "print(data.setdefault('n', 'never'), flush=True)\n"
        "data['n'] = 'late'\n"
        "print('done', flush=True); time.sleep(60)"
    )
    os.waitid(os.P_PID, borrower.pid, os.WSTOPPED)
    data = shared.Dict("d")
    assert data["n"] == 29
    data["n"] = "ours"
    borrower.send_signal(signal.SIGCONT)
    assert borrower.stdout.readline() == "ours\n"
    assert borrower.stdout.readline() == "done\n"
    assert data["n"] == "late"


def test_who_waits_for_an_item_of_a_queue_that_is_lent_gets_the_next_one(broker):
    borrow()
    work, asked, got = shared.Queue("q"), threading.Event(), []

    def want():
        assert work.empty()
        asked.set()
        got.append(work.get(timeout=10))

    thread = threading.Thread(target=want)
    thread.start()
    assert asked.wait(5)
    work.put("item")
    thread.join(10)
    assert got == ["item"]


def test_tasks_and_greenlets_borrow_and_wait_as_threads_do(broker, serving):
    async def use(data, work):
        for number in range(30):
            await data.aset("n", number)
            await work.aput(number)
            assert await work.aget() == number
        assert b"Dtasks" in shared.joining.current()._channel().borrower._loans
        waiter = asyncio.create_task(work.aget(timeout=10))
        await asyncio.sleep(0)
        await work.aput("item")
        assert await waiter == "item"
        return await data.aget("n")

    assert asyncio.run(use(shared.Dict("tasks"), shared.Queue("tasks"))) == 29

    def handle(connection):
        data, work = shared.Dict("green"), shared.Queue("green")
        for line in connection:
            for number in range(30 if line == b"borrow" else 0):
                data["n"] = number
                work.put(number)
                assert work.get() == number
            if line == b"borrow":
                connection.send(b"%d" % (b"Dgreen" in shared.joining.current()._channel().borrower._loans))
            elif line == b"put":
                work.put(data["n"])
            else:
                connection.send(b"%d" % work.get(timeout=10))

    one, other = serving(handle, "green", Lines(), connections=2)
    assert one.request(b"borrow") == b"1"
    other.send(b"get")
    one.send(b"put")
    assert other.receive() == b"29"


def test_wherever_a_signal_handler_that_uses_the_same_queue_comes_between_each_verb_is_done_once(broker):
    borrow()
    work = shared.Queue("q")
    do, handled = Borrower.do.__code__, []

    def handle():
        handled.append(at)
        with contextlib.suppress(queue.Empty):
            while True:
                # The last one gives everything back, as it has to wait.
                taken.append(work.get(0.001))

    def trace(frame, event, _argument):
        nonlocal left
        if frame.f_code is not do or handled:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                sys.settrace(None)
                handle()
        return trace

    for at in range(1, 1000):
        borrow()
        taken, left = [], at
        handled.clear()
        work.put("item")
        sys.settrace(trace)
        try:
            delivery = work.get(0, ack=True)
            taken.append(delivery.value)
        except queue.Empty:
            pass
        finally:
            sys.settrace(None)
        assert taken == ["item"], f"before instruction {at}"
        if not handled:
            break
    assert at > 50


def test_a_full_journal_is_absorbed_while_its_client_goes_on(broker):
    borrower = borrow()
    data = shared.Dict("d")
    for number in range(1000):
        data[number % 7] = bytes(1000)
    assert borrower._loans
    assert in_thread(lambda: len(shared.Dict("d"))) == 8


def test_what_is_too_large_for_a_journal_is_asked_for(broker):
    borrow()
    data = shared.Dict("d")
    data["large"] = bytes(1 << 20)
    data["small"] = 1
    assert len(data["large"]) == 1 << 20
    assert in_thread(lambda: shared.Dict("d")["small"]) == 1


@pytest.mark.parametrize("verb", ["read", "write"])
def test_the_death_of_the_broker_is_heard_by_a_borrower(broker, verb):
    borrow()
    data = shared.Dict("d")
    os.kill(broker.pid, signal.SIGKILL)
    assert select.select([broker], [], [], 5)[0]
    with pytest.raises(BrokerLost):
        data["n"] if verb == "read" else data.update(n=1)


def test_a_forked_child_uses_nothing_that_its_parent_has_borrowed(broker):
    borrower = borrow()
    data = shared.Dict("d")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            data["n"] = "child"
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert data["n"] == "child"
    # And in the middle of a step, from a signal handler: only one of the two takes it.
    borrower = borrow()
    step, pids = borrower._step, []

    def forking(*args):
        pids.append(os.fork())
        found = step(*args)
        if pids[-1] == 0:
            os._exit(found != -1)
        return found

    borrower._step = forking
    data["n"] = "parent"
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert in_thread(lambda: shared.Dict("d")["n"]) == "parent"


@pytest.mark.parametrize("how", ["nonsense", "truncated"])
def test_a_hostile_journal_ends_its_client_with_a_warning(capfd, request, how):
    # Started when its standard error is looked at.
    broker = request.getfixturevalue("broker")
    borrower = borrow()
    if how == "nonsense":
        borrower._journal.write(borrower._end, b"nonsense")
        number = shared.joining.current()._channel().number
        assert borrower._step(borrower._slot, number, borrower._end, borrower._end + 8, broker.fileno()) != 0
    else:
        shared.Dict("d")["n"] = "lost"
        (file,) = broker.directory.glob("ledger-*-*")
        os.truncate(file, 0)
    found = in_thread(lambda: shared.Dict("d").get("n"))
    # A file that is cut short has lost what was not absorbed.
    assert found == 29 if how == "nonsense" else found in range(29)
    with pytest.raises(BrokerLost):
        shared.Counter("c").add()
    assert "sent what is no request" in capfd.readouterr().err
    # The broker serves on, and lends.
    shared.join(broker.url)
    assert shared.Dict("d")["n"] == found
    assert borrow()
