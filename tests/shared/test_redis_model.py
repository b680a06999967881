"""The scripts of the Redis place beside the core of the local broker: to the same verbs, the same answers."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshore.shared.core import Core
from longshore.shared.places import Status, Verb
from longshore.shared.redis import RedisPlace
from longshore.shared.wire import CANCEL, END, encode_request, read_reply

EXAMPLES = int(os.environ.get("LONGSHORE_ROUNDS", "25"))
PARAMETERS = {
    "L": b"",
    "S": b"value=2",
    "S0": b"value=0",
    "E": b"",
    "C": b"",
    "B": b"parties=3",
    "Q": b"maxsize=2",
    "P": b"",
    "D": b"",
}
#: Verbs that nobody waits for the reply of.
TOLD = {Verb.RELEASE}
#: Verbs, with the type, a number and fields; a number of None is that of a delivery that was got before.
VERBS = [
    *[
        (kind, verb, 0, ())
        for kind in ("L", "S", "S0", "C")
        for verb in (Verb.ACQUIRE, Verb.ACQUIRE, Verb.RELEASE, Verb.LOCKED)
    ],
    *[("C", verb, number, ()) for verb, number in ((Verb.WAIT, 0), (Verb.NOTIFY, 1), (Verb.NOTIFY, -1))],
    *[("E", verb, 0, ()) for verb in (Verb.SET, Verb.CLEAR, Verb.IS_SET, Verb.AWAIT_SET)],
    *[("B", verb, 0, ()) for verb in (Verb.ARRIVE, Verb.ARRIVE, Verb.ABORT, Verb.RESET, Verb.BARRIER_STATE)],
    *[("Q", Verb.PUT, 0, (item,)) for item in (b"a", b"", b"c\n\x00 d")],
    *[("Q", Verb.GET, ack, ()) for ack in (0, 1, 1)],
    *[("Q", verb, None, ()) for verb in (Verb.ACK, Verb.REQUEUE)],
    *[("Q", verb, 0, ()) for verb in (Verb.TASK_DONE, Verb.JOIN, Verb.SIZE)],
    ("Q", Verb.UNGET, 0, (b"back",)),
    *[("P", verb, end, ()) for verb in (Verb.TAKE_MESSAGE, Verb.POLL, Verb.OPEN) for end in (0, 1)],
    *[("P", Verb.SEND, end, (b"message %d" % end,)) for end in (0, 1)],
    ("D", Verb.WRITE, 0, (b"k", b"v", b"", b"w")),
    ("D", Verb.WRITE_IF, 0, (b"k", b"first")),
    ("D", Verb.TAKE, 0, (b"k",)),
    *[("D", verb, 0, ()) for verb in (Verb.LIST, Verb.KEYS, Verb.COUNT, Verb.WIPE)],
]


def steps(kind):
    """Verbs on one object, that meet as often as they can: two clients of two holders each."""
    verbs = st.sampled_from([verb for verb in VERBS if verb[0] == kind])
    patient = st.sampled_from([True, True, True, False])
    return st.lists(
        st.one_of(
            *[st.tuples(st.just("verb"), st.integers(0, 1), st.integers(1, 2), verbs, patient)] * 5,
            st.tuples(st.just("cancel"), st.integers(0, 5)),
            st.tuples(st.just("end"), st.integers(0, 1), st.integers(1, 2)),
        ),
        min_size=15,
        max_size=40,
    )


_rounds = itertools.count(1)


class Arrived:
    """A reply of the Redis place, when it comes."""

    def __init__(self):
        self.there = threading.Event()

    def __call__(self, reply):
        self.reply = reply
        self.there.set()


class Model:
    """The core, with two clients."""

    def __init__(self):
        self.core = Core(1)
        self.replies = {}
        for client in (0, 1):
            self.core.client_came(client)

    def do(self, client, verb, id, key, holder, number, patient, fields):
        frame = encode_request(verb, id, key, holder, number, None if patient else 0, fields)
        self.core.receive(client, frame[4:], 0)
        for _, message in self.core.effects:
            name, reply = read_reply(message)
            self.replies[name] = reply
        self.core.effects.clear()


class Both:
    """The same steps on both, and their answers side by side."""

    def __init__(self, places):
        self.places = places
        self.round = next(_rounds)
        self.model = Model()
        self.arrived = {}
        self.waits = {}
        self.verbs = {}
        self.deliveries = []
        self.ids = itertools.count(1)
        for kind, parameters in PARAMETERS.items():
            for client in (0, 1):
                self.verb(client, 1, (kind, Verb.DECLARE, 0, (parameters,)), False)

    def verb(self, client, holder, verb, patient):
        kind, code, number, fields = verb
        key = f"{kind}{self.round}".encode()
        holder += self.round * 10
        theirs = ours = number
        if number is None:
            if not self.deliveries:
                return
            theirs, ours = self.deliveries[-1]
        if code in TOLD:
            self.model.do(client, code, 0, key, holder, theirs, False, fields)
            self.places[client].tell(code, key, holder, ours, fields)
        else:
            id = next(self.ids)
            self.verbs[id] = client, code
            self.model.do(client, code, id, key, holder, theirs, patient, fields)
            self.arrived[id] = Arrived()
            timeout = None if patient else 0
            self.waits[id] = self.places[client].start(self.arrived[id], code, key, holder, ours, timeout, fields)

    def cancel(self, index):
        waiting = [id for id in self.verbs if id not in self.model.replies]
        if waiting:
            id = waiting[index % len(waiting)]
            self.model.do(self.verbs[id][0], CANCEL, 0, b"", 0, id, False, ())
            self.waits[id].cancel()

    def end(self, client, holder):
        holder += self.round * 10
        self.model.do(client, END, 0, b"", holder, 0, False, ())
        self.places[client].end(holder)

    def compare(self):
        """Once each place has dealt with all that it was told, the same verbs have the same answers."""
        for place in self.places:
            place.ask(Verb.DECLARE, b"Lsync", fields=(b"",))
        for id, expected in self.model.replies.items():
            if id in self.verbs:
                _, code = self.verbs.pop(id)
                arrived = self.arrived.pop(id)
                assert arrived.there.wait(10), f"{Verb(code).name} is not answered: {expected}"
                got = arrived.reply
                assert (got.status, [bytes(field) for field in got.fields]) == (
                    expected.status,
                    [bytes(field) for field in expected.fields],
                ), Verb(code).name
                if code == Verb.GET and expected.number:
                    self.deliveries.append((expected.number, got.number))
                elif code not in (Verb.ACQUIRE, Verb.WAIT, Verb.GET):
                    assert got.number == expected.number, Verb(code).name
        early = {
            Verb(self.verbs[id][1]).name: arrived.reply
            for id, arrived in self.arrived.items()
            if arrived.there.is_set()
        }
        assert early == {}

    def finish(self):
        for client in (0, 1):
            for holder in (1, 2):
                self.end(client, holder)
                self.compare()
        # What is left, and in which order.
        for _ in range(4):
            self.verb(0, 1, ("Q", Verb.GET, 0, ()), False)
            self.compare()
        assert all(reply.status in set(Status) for reply in self.model.replies.values())


@pytest.fixture(scope="module")
def places(redis_process):
    redis_process.command("FLUSHALL")
    made = [RedisPlace(redis_process.url) for _ in range(2)]
    yield made
    for place in made:
        place.close()


@pytest.mark.slow
@pytest.mark.timeout(20 + EXAMPLES)
@pytest.mark.parametrize("kind", list(PARAMETERS))
def test_redis_answers_as_the_local_core_does(places, kind):
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(steps=steps(kind))
    def compare(steps):
        both = Both(places)
        for what, *arguments in steps:
            getattr(both, what)(*arguments)
            both.compare()
        both.finish()

    compare()
