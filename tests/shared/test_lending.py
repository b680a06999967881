"""Locks that are lent: who takes and gives them back without asking, and what the broker makes of that."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import select
import signal
import socket
import threading

import pytest

from longshore import shared
from longshore.errors import BrokerLost
from longshore.shared.core import Core
from longshore.shared.ledger import SLOTS, PlainLedger
from longshore.shared.places import Status, Verb
from longshore.shared.wire import CANCEL, END, encode_request, read_reply

pytestmark = pytest.mark.slow

KEY = b"Ll"


class Client:
    """A client as `local.py` is one, but that each of its steps is taken when the schedule says so."""

    def __init__(self, world):
        self.world = world
        self.number = world.core.client_came(self)
        self.sent, self.replies = [], []
        self.slot = None
        #: What each holder of it is about: None, "asking", or "holding".
        self.holders = {}
        self.ids = itertools.count(1)
        self.asked = {}
        self.interrupted = set()
        self.alive = True

    def send(self, verb, holder, number=0, timeout=None, id=0):
        self.sent.append(encode_request(verb, id, KEY, holder, number, timeout, ())[4:])

    def acquire(self, holder, timeout):
        if self.slot is not None:
            fence = self.world.ledger.take(self.slot, self.number, holder, 0)
            if fence:
                self.world.granted(self, holder, fence, recovered=False)
                return
            self.slot = None
        name = next(self.ids)
        self.asked[name] = holder
        self.holders[holder] = "asking"
        self.send(Verb.ACQUIRE, holder, 1, timeout, name)

    def read(self):
        name, reply = read_reply(self.replies.pop(0))
        holder = self.asked.pop(name)
        self.holders[holder] = None
        if name in self.interrupted:
            if reply.status == Status.OK:
                # It was a holder, if only to let go, and it knows what the one before has left behind.
                self.world.left_behind = False
                self.send(Verb.RELEASE, holder)
            return
        if len(reply.fields) == 2:
            self.slot = int(reply.fields[1])
        if reply.status == Status.OK:
            self.world.granted(self, holder, reply.number, recovered=reply.fields[:1] == (b"1",))

    def release(self, holder):
        self.holders[holder] = None
        self.world.holding.discard((self, holder))
        if self.slot is not None:
            if self.world.ledger.step(self.slot, self.number, holder, 0, 0):
                return
            self.slot = None
        self.send(Verb.RELEASE, holder)

    def end(self, holder):
        self.holders[holder] = None
        self.world.abandoned(self, holder)
        self.send(END, holder)

    def interrupt(self):
        name = self.world.rng.choice(list(self.asked))
        self.interrupted.add(name)
        self.send(CANCEL, self.asked[name], name)


class World:
    """A broker's core, its ledger and some clients; every step is one that nothing can come between."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.ledger = PlainLedger()
        self.core = Core(0, ledger=self.ledger)
        self.holding = set()
        self.highest = 0
        self.left_behind = False
        self.lent = 0
        self.clients = [Client(self) for _ in range(3)]
        self.clients[0].send(Verb.DECLARE, 0)
        self.deliver(self.clients[0])

    def granted(self, client, holder, fence, *, recovered):
        assert not self.holding, "two hold it"
        assert fence > self.highest, "a fence has not risen"
        assert recovered or not self.left_behind, "nobody was told that the holder before had ended"
        self.left_behind = False
        self.highest = fence
        self.holding.add((client, holder))
        client.holders[holder] = "holding"

    def abandoned(self, client, holder):
        if (client, holder) in self.holding:
            self.holding.discard((client, holder))
            self.left_behind = True

    def deliver(self, client):
        """The broker hears one message of this client, or its end behind the last."""
        if client.sent:
            self.core.receive(client, client.sent.pop(0), 0.0)
        else:
            self.clients.remove(client)
            self.core.client_gone(client)
        effects, self.core.effects = self.core.effects, []
        for receiver, message in effects:
            receiver.replies.append(message)

    def die(self, client):
        client.alive = False
        for holder in client.holders:
            self.abandoned(client, holder)

    def steps(self):
        """What could happen next."""
        for client in self.clients:
            if client.sent or not client.alive:
                yield self.deliver, client
            if not client.alive:
                continue
            if client.replies:
                yield (client.read,)
            for holder in (1, 2):
                state = client.holders.get(holder)
                if state is None:
                    yield client.acquire, holder, self.rng.choice((None, 0))
                elif state == "holding":
                    yield client.release, holder
                    yield client.release, holder

    def rare_steps(self):
        """What happens seldom."""
        for client in self.clients:
            for holder, state in client.holders.items():
                if client.alive and state == "holding":
                    yield client.end, holder
            if client.alive and client.asked:
                yield (client.interrupt,)
        alive = [client for client in self.clients if client.alive]
        if len(alive) > 1:
            yield self.die, self.rng.choice(alive)

    def run(self, length):
        favourite = self.rng.choice(self.clients)
        for _ in range(length):
            rare = self.rng.random() < 0.05
            steps = list(self.rare_steps() if rare else self.steps())
            # One client alone for a while, or nothing would ever be lent.
            if self.rng.random() < 0.7 and favourite in self.clients:
                steps = [step for step in steps if favourite in (step[0].__self__, *step[1:])] or steps
            elif self.rng.random() < 0.1:
                favourite = self.rng.choice(self.clients)
            if steps:
                function, *args = self.rng.choice(steps)
                function(*args)
            self.lent += any(client.slot is not None for client in self.clients)

    def settle(self):
        """Nobody begins anything; whoever holds it lets go."""
        while steps := [step for step in self.steps() if step[0].__name__ != "acquire"]:
            function, *args = self.rng.choice(steps)
            function(*args)


def test_however_the_steps_of_clients_and_broker_fall_one_holds_it_fences_rise_and_nobody_is_left_waiting():
    lent = 0
    for seed in range(100):
        world = World(seed)
        try:
            world.run(200)
            world.settle()
            assert not any(client.asked for client in world.clients), "somebody waits for a lock that is free"
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        lent += world.lent
    assert lent > 300


def test_the_native_ledger_does_what_the_plain_one_does():
    native = pytest.importorskip("longshore._native").Ledger(mmap.mmap(-1, SLOTS * 8))
    plain = PlainLedger()
    ours, theirs = socket.socketpair()
    rng = random.Random(1)
    with ours, theirs:
        for _ in range(2000):
            name = rng.choice(["next_fence", "lend", "take_back", "state", "take", "step"])
            slot, client, holder = rng.randrange(1, 3), rng.randrange(1, 3), rng.randrange(1, 3)
            args = {
                "next_fence": (),
                "take_back": (slot,),
                "state": (slot,),
                "lend": (slot, client, holder),
                "take": (slot, client, holder, ours.fileno()),
                "step": (slot, client, holder, rng.randrange(3), ours.fileno()),
            }[name]
            assert getattr(native, name)(*args) == getattr(plain, name)(*args)
        native.lend(1, 1, 1)
        theirs.close()
        assert native.step(1, 1, 1, 0, ours.fileno()) == -1
        assert native.take(1, 1, 1, ours.fileno()) == -1


#: Has lock `l` lent, and is holding it or not; says its fence.
BORROWER = """
lock = shared.Lock('l')
for _ in range(3):
    lock.acquire(); lock.release()
{then}
print(lock.fence, flush=True); time.sleep(60)
"""


def test_a_lock_that_is_lent_and_free_is_had_at_once_though_its_borrower_does_nothing(broker, program):
    borrower = program(BORROWER.format(then=""))
    fence = int(borrower.stdout.readline())
    os.kill(borrower.pid, signal.SIGSTOP)
    lock = shared.Lock("l")
    assert lock.acquire(timeout=0)
    assert lock.fence > fence
    assert not lock.recovered


def test_a_borrower_that_is_killed_while_it_holds_the_lock_lets_go_of_it(broker, program):
    borrower = program(BORROWER.format(then="lock.acquire()"))
    fence = int(borrower.stdout.readline())
    lock = shared.Lock("l")
    assert lock.locked()
    assert not lock.acquire(timeout=0)
    borrower.kill()
    assert lock.acquire(timeout=5)
    assert lock.recovered
    assert lock.fence > fence


def test_who_waits_for_a_lock_that_is_lent_gets_it_when_it_is_released(broker):
    lock, waiting, got = shared.Lock("l"), threading.Event(), threading.Event()
    for _ in range(3):
        lock.acquire()
        lock.release()
    lock.acquire()

    def want():
        assert not lock.acquire(timeout=0)
        waiting.set()
        with lock:
            got.set()

    thread = threading.Thread(target=want)
    thread.start()
    assert waiting.wait(5)
    lock.release()
    assert got.wait(5)
    thread.join()
    # What the thread has told the broker last may still be on its way.
    assert lock.acquire(timeout=5)
    lock.release()


@pytest.mark.parametrize("verb", ["acquire", "release"])
def test_the_death_of_the_broker_is_heard_though_nobody_is_asked(broker, verb):
    lock = shared.Lock("l")
    for _ in range(3):
        lock.acquire()
        lock.release()
    if verb == "release":
        lock.acquire()
    os.kill(broker.pid, signal.SIGKILL)
    assert select.select([broker], [], [], 5)[0]
    with pytest.raises(BrokerLost):
        getattr(lock, verb)()


def test_a_forked_child_borrows_nothing_of_its_parents(broker):
    lock = shared.Lock("l")
    for _ in range(3):
        lock.acquire()
        lock.release()
    lock.acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if not shared.Lock("l").acquire(timeout=0) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lock.release()
    assert lock.acquire(timeout=0)
