"""The broker's core: verbs in, replies out, no socket and no clock; and against plain models of what it keeps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longshore.errors import FramingError
from longshore.shared.core import Core
from longshore.shared.places import Status, Verb
from longshore.shared.wire import CANCEL, END, encode_request, read_reply


class Desk:
    """A core with clients that are numbers; replies by (client, id)."""

    def __init__(self) -> None:
        self.core = Core(epoch=7)
        self.now = 0.0
        self.ids = 0
        self.replies: dict[tuple[int, int], object] = {}

    def client(self, number: int) -> int:
        self.core.client_came(number)
        return number

    def ask(self, client, verb, key, *fields, holder=1, number=0, timeout=None):
        self.ids += 1
        self._send(client, verb, self.ids, key, fields, holder, number, timeout)
        return self.ids

    def tell(self, client, verb, key=b"", *fields, holder=1, number=0):
        self._send(client, verb, 0, key, fields, holder, number, 0)

    def _send(self, client, verb, name, key, fields, holder, number, timeout):
        frame = encode_request(verb, name, key, holder, number, timeout, fields)
        self.core.receive(client, frame[4:], self.now)
        self.take()

    def cancel(self, client, name):
        self.tell(client, CANCEL, number=name)

    def gone(self, client):
        self.core.client_gone(client)
        self.take()

    def pass_time(self, seconds):
        self.now += seconds
        self.core.expire(self.now)
        self.take()

    def take(self):
        effects, self.core.effects = self.core.effects, []
        for client, message in effects:
            name, reply = read_reply(message)
            assert (client, name) not in self.replies, "a request was answered twice"
            self.replies[(client, name)] = reply

    def reply(self, client, name):
        return self.replies.get((client, name))

    def status(self, client, name):
        reply = self.reply(client, name)
        return None if reply is None else reply.status

    def declare(self, client, key, parameters=b""):
        name = self.ask(client, Verb.DECLARE, key, parameters)
        return self.reply(client, name)


@pytest.fixture
def desk():
    desk = Desk()
    for number in range(1, 5):
        desk.client(number)
    return desk


def test_a_lock_goes_to_those_who_wait_in_order_and_each_fence_is_higher(desk):
    desk.declare(1, b"Lx")
    first, second, third = (desk.ask(client, Verb.ACQUIRE, b"Lx") for client in (1, 2, 3))
    assert desk.status(1, first) == Status.OK
    assert desk.status(2, second) is desk.status(3, third) is None
    desk.tell(1, Verb.RELEASE, b"Lx")
    assert desk.status(2, second) == Status.OK
    assert desk.status(3, third) is None
    desk.tell(2, Verb.RELEASE, b"Lx")
    fences = [desk.reply(client, name).number for client, name in ((1, first), (2, second), (3, third))]
    assert fences == sorted(set(fences))
    assert fences[0] >> 32 == 7


def test_a_lock_whose_holder_is_gone_is_recovered_by_the_next_owner_only(desk):
    desk.declare(1, b"Lx")
    desk.ask(1, Verb.ACQUIRE, b"Lx")
    second = desk.ask(2, Verb.ACQUIRE, b"Lx")
    desk.gone(1)
    assert desk.reply(2, second).fields == (b"1",)
    desk.tell(2, Verb.RELEASE, b"Lx")
    assert desk.reply(3, desk.ask(3, Verb.ACQUIRE, b"Lx")).fields == ()


def test_only_the_holder_releases(desk):
    desk.declare(1, b"Lx")
    desk.ask(1, Verb.ACQUIRE, b"Lx", holder=5)
    desk.tell(1, Verb.RELEASE, b"Lx", holder=6)
    desk.tell(2, Verb.RELEASE, b"Lx", holder=5)
    assert desk.status(3, desk.ask(3, Verb.ACQUIRE, b"Lx", timeout=0)) == Status.LATE


def test_a_waiter_that_is_dead_late_or_cancelled_does_not_swallow_the_lock(desk):
    desk.declare(1, b"Lx")
    desk.ask(1, Verb.ACQUIRE, b"Lx")
    desk.ask(2, Verb.ACQUIRE, b"Lx")
    late = desk.ask(3, Verb.ACQUIRE, b"Lx", timeout=1.0)
    cancelled = desk.ask(3, Verb.ACQUIRE, b"Lx", holder=2)
    last = desk.ask(4, Verb.ACQUIRE, b"Lx")
    desk.gone(2)
    desk.pass_time(1.5)
    desk.cancel(3, cancelled)
    assert (desk.status(3, late), desk.status(3, cancelled)) == (Status.LATE, Status.CANCELLED)
    desk.tell(1, Verb.RELEASE, b"Lx")
    assert desk.status(4, last) == Status.OK


def test_what_a_holder_held_is_released_when_it_ends_while_its_client_lives(desk):
    desk.declare(1, b"Sx", b"value=2")
    for _ in range(2):
        desk.ask(1, Verb.ACQUIRE, b"Sx", holder=9)
    waiting = [desk.ask(2, Verb.ACQUIRE, b"Sx") for _ in range(2)]
    desk.tell(1, END, holder=9)
    assert [desk.status(2, name) for name in waiting] == [Status.OK, Status.OK]


def test_a_notification_of_a_cancelled_waiter_goes_to_the_next(desk):
    desk.declare(1, b"Cx")
    sleepers = []
    for client in (1, 2):
        desk.ask(client, Verb.ACQUIRE, b"Cx")
        sleepers.append(desk.ask(client, Verb.WAIT, b"Cx"))
    desk.ask(3, Verb.ACQUIRE, b"Cx")
    assert desk.reply(3, desk.ask(3, Verb.NOTIFY, b"Cx", number=1)).number == 1
    desk.cancel(1, sleepers[0])
    desk.tell(3, Verb.RELEASE, b"Cx")
    outcomes = {}
    for _ in range(2):
        for client, name in zip((1, 2), sleepers, strict=True):
            if client not in outcomes and desk.reply(client, name) is not None:
                outcomes[client] = desk.reply(client, name).fields[1]
                desk.tell(client, Verb.RELEASE, b"Cx")
    assert outcomes == {1: b"c", 2: b"1"}


def test_a_notification_of_a_dead_waiter_goes_to_the_next(desk):
    desk.declare(1, b"Cx")
    for client in (1, 2):
        desk.ask(client, Verb.ACQUIRE, b"Cx")
        name = desk.ask(client, Verb.WAIT, b"Cx")
    desk.ask(3, Verb.ACQUIRE, b"Cx")
    desk.ask(3, Verb.NOTIFY, b"Cx", number=1)
    desk.gone(1)
    desk.tell(3, Verb.RELEASE, b"Cx")
    assert desk.reply(2, name).fields[1] == b"1"


def test_a_condition_that_is_waited_for_too_long_comes_back_with_its_lock(desk):
    desk.declare(1, b"Cx")
    desk.ask(1, Verb.ACQUIRE, b"Cx")
    name = desk.ask(1, Verb.WAIT, b"Cx", timeout=1.0)
    desk.ask(2, Verb.ACQUIRE, b"Cx")
    desk.pass_time(2)
    assert desk.reply(1, name) is None
    desk.tell(2, Verb.RELEASE, b"Cx")
    assert desk.reply(1, name).fields[1] == b"0"
    assert desk.status(3, desk.ask(3, Verb.ACQUIRE, b"Cx", timeout=0)) == Status.LATE


def test_a_dead_party_breaks_the_barrier_and_a_cancelled_one_leaves_it(desk):
    desk.declare(1, b"Bx", b"parties=3")
    first, second = desk.ask(1, Verb.ARRIVE, b"Bx"), desk.ask(2, Verb.ARRIVE, b"Bx")
    desk.cancel(1, first)
    assert desk.status(2, second) is None
    desk.ask(3, Verb.ARRIVE, b"Bx")
    desk.gone(3)
    assert desk.status(2, second) == Status.BROKEN


def test_what_is_delivered_and_not_acknowledged_comes_again_in_its_old_order(desk):
    desk.declare(1, b"Qx", b"maxsize=0")
    for item in (b"a", b"b", b"c"):
        desk.ask(1, Verb.PUT, b"Qx", item)
    for _ in range(2):
        desk.ask(2, Verb.GET, b"Qx", number=1)
    desk.gone(2)
    got = [desk.reply(3, desk.ask(3, Verb.GET, b"Qx", number=1)).fields for _ in range(3)]
    assert got == [(b"a", b"1"), (b"b", b"1"), (b"c", b"0")]


def test_a_slow_subscriber_misses_or_is_ended(desk):
    desk.declare(1, b"Tx")
    drops = desk.reply(1, desk.ask(1, Verb.SUBSCRIBE, b"Tx", b"drop", number=1)).number
    closes = desk.reply(1, desk.ask(1, Verb.SUBSCRIBE, b"Tx", b"close", number=1)).number
    for value in (b"1", b"2"):
        desk.ask(2, Verb.PUBLISH, b"Tx", value)
    reply = desk.reply(1, desk.ask(1, Verb.RECEIVE, b"Tx", number=drops))
    assert (reply.number, reply.fields) == (1, (b"1",))
    assert desk.status(1, desk.ask(1, Verb.RECEIVE, b"Tx", number=closes)) == Status.CLOSED


def test_other_parameters_for_a_known_name_are_shown(desk):
    assert desk.declare(1, b"Sx", b"value=2").status == Status.OK
    reply = desk.declare(2, b"Sx", b"value=3")
    assert (reply.status, reply.fields) == (Status.CONFLICT, (b"value=2",))
    assert desk.declare(2, b"Lx").status == Status.OK


def test_ten_thousand_names_are_kept_and_one_over_the_limit_is_refused():
    desk = Desk()
    desk.core.max_names = 10_000
    desk.client(1)
    assert all(desk.declare(1, b"N%d" % number).status == Status.OK for number in range(10_000))
    assert desk.declare(1, b"Nover").status == Status.TOO_LARGE
    assert desk.reply(1, desk.ask(1, Verb.ADD, b"N9999", number=3)).number == 3


def test_holders_and_deadlines_that_are_over_are_forgotten(desk):
    desk.declare(1, b"Lx")
    desk.ask(2, Verb.ACQUIRE, b"Lx")
    for holder in range(2, 2000):
        name = desk.ask(1, Verb.ACQUIRE, b"Lx", holder=holder, timeout=1000.0)
        desk.cancel(1, name)
    assert len(desk.core._clients[1].owners) == 0
    assert len(desk.core._late) < 200


@given(st.binary(max_size=200))
def test_garbage_is_a_framing_error_or_an_answer_and_nothing_else(data):
    desk = Desk()
    desk.client(1)
    for kind in b"LRSECBQTPDN":
        desk.declare(
            1,
            bytes([kind]) + b"x",
            {ord("S"): b"value=1", ord("B"): b"parties=2", ord("Q"): b"maxsize=1"}.get(kind, b""),
        )
    try:
        desk.core.receive(1, data, 0.0)
    except FramingError:
        pass


@given(
    st.sampled_from([*map(int, Verb), CANCEL, END, 250]),
    st.sampled_from(
        [b"", b"Lx", b"Rx", b"Sx", b"Ex", b"Cx", b"Bx", b"Qx", b"Tx", b"Px", b"Dx", b"Nx", b"?x", b"Lnone"]
    ),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.binary(max_size=5), max_size=5),
)
def test_any_verb_on_any_object_is_answered_or_waits(verb, key, number, fields):
    desk = Desk()
    desk.client(1)
    for kind in b"LRSECBQTPDN":
        parameters = {ord("S"): b"value=1", ord("B"): b"parties=2", ord("Q"): b"maxsize=1"}.get(kind, b"")
        desk.declare(1, bytes([kind]) + b"x", parameters)
    desk.ask(1, verb, key, *fields, number=number)
    desk.gone(1)


class LockModel(RuleBasedStateMachine):
    """One lock: a holder, and a list of those who wait."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.clients: list[int] = []
        self.next_client = 0
        self.holder: tuple[int, int] | None = None
        self.waiting: list[tuple[int, int, int, float | None]] = []
        self.fence = 0
        for _ in range(3):
            self.come()

    @rule()
    def come(self) -> None:
        self.next_client += 1
        self.clients.append(self.desk.client(self.next_client))
        self.desk.declare(self.next_client, b"Lx")

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), holder=st.integers(1, 3), timeout=st.sampled_from([None, 0, 1.0, 5.0]))
    def acquire(self, data, holder, timeout) -> None:
        client = data.draw(st.sampled_from(self.clients))
        name = self.desk.ask(client, Verb.ACQUIRE, b"Lx", holder=holder, timeout=timeout)
        if self.holder is None:
            self.grant(client, holder, name)
        elif timeout == 0:
            assert self.desk.status(client, name) == Status.LATE
        else:
            self.waiting.append((client, holder, name, None if timeout is None else self.desk.now + timeout))

    def grant(self, client, holder, name) -> None:
        reply = self.desk.reply(client, name)
        assert reply is not None
        assert reply.status == Status.OK
        assert reply.number > self.fence
        self.fence = reply.number
        self.holder = (client, holder)

    def next_one(self) -> None:
        self.holder = None
        if self.waiting:
            client, holder, name, _ = self.waiting.pop(0)
            self.grant(client, holder, name)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), holder=st.integers(1, 3))
    def release(self, data, holder) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.desk.tell(client, Verb.RELEASE, b"Lx", holder=holder)
        if self.holder == (client, holder):
            self.next_one()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.desk.cancel(entry[0], entry[2])
        self.waiting.remove(entry)
        assert self.desk.status(entry[0], entry[2]) == Status.CANCELLED

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def pass_time(self, seconds) -> None:
        self.desk.pass_time(seconds)
        for entry in [entry for entry in self.waiting if entry[3] is not None and entry[3] <= self.desk.now]:
            self.waiting.remove(entry)
            assert self.desk.status(entry[0], entry[2]) == Status.LATE

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), holder=st.integers(1, 3))
    def end(self, data, holder) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.waiting = [entry for entry in self.waiting if entry[:2] != (client, holder)]
        self.desk.tell(client, END, holder=holder)
        if self.holder == (client, holder):
            self.next_one()

    @precondition(lambda self: len(self.clients) > 1)
    @rule(data=st.data())
    def die(self, data) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        self.waiting = [entry for entry in self.waiting if entry[0] != client]
        self.desk.gone(client)
        if self.holder is not None and self.holder[0] == client:
            self.next_one()

    @invariant()
    def nobody_else_was_answered(self) -> None:
        for client, _, name, _ in self.waiting:
            assert self.desk.reply(client, name) is None


class QueueModel(RuleBasedStateMachine):
    """One queue of at most two items: lists of items, of who gets, of who puts, and of what is delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.clients = [self.desk.client(number) for number in range(1, 4)]
        self.items: list[bytes] = []
        self.getters: list[tuple[int, int, int]] = []
        self.putters: list[tuple[int, int, bytes]] = []
        self.delivered: list[tuple[int, int, bytes]] = []
        self.count = 0
        self.desk.declare(1, b"Qx", b"maxsize=2")

    def pump(self) -> None:
        moved = True
        while moved:
            moved = False
            if self.items and self.getters:
                self.hand(*self.getters.pop(0))
                moved = True
            if self.putters and len(self.items) < 2:
                client, name, item = self.putters.pop(0)
                assert self.desk.status(client, name) == Status.OK
                self.items.append(item)
                moved = True

    def hand(self, client, name, ack) -> None:
        item = self.items.pop(0)
        reply = self.desk.reply(client, name)
        assert reply is not None
        assert reply.fields[0] == item
        if ack:
            self.delivered.append((client, reply.number, item))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def put(self, data) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.count += 1
        item = b"%d" % self.count
        self.putters.append((client, self.desk.ask(client, Verb.PUT, b"Qx", item), item))
        self.pump()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), ack=st.integers(0, 1))
    def get(self, data, ack) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.getters.append((client, self.desk.ask(client, Verb.GET, b"Qx", number=ack), ack))
        self.pump()

    @precondition(lambda self: self.getters)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        entry = data.draw(st.sampled_from(self.getters))
        self.desk.cancel(entry[0], entry[1])
        self.getters.remove(entry)

    @precondition(lambda self: self.delivered)
    @rule(data=st.data(), back=st.booleans())
    def settle(self, data, back) -> None:
        entry = data.draw(st.sampled_from(self.delivered))
        self.desk.ask(entry[0], Verb.REQUEUE if back else Verb.ACK, b"Qx", number=entry[1])
        self.delivered.remove(entry)
        if back:
            self.items.insert(0, entry[2])
        self.pump()

    @precondition(lambda self: len(self.clients) > 1)
    @rule(data=st.data())
    def die(self, data) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        self.getters = [entry for entry in self.getters if entry[0] != client]
        self.putters = [entry for entry in self.putters if entry[0] != client]
        back = [entry[2] for entry in sorted(self.delivered, key=lambda entry: entry[1]) if entry[0] == client]
        self.delivered = [entry for entry in self.delivered if entry[0] != client]
        self.items[:0] = back
        self.desk.gone(client)
        self.pump()

    @invariant()
    def who_waits_has_no_answer(self) -> None:
        for client, name, _ in [*self.getters, *self.putters]:
            assert self.desk.reply(client, name) is None


TestLockModel = LockModel.TestCase
TestLockModel.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


class Conduit:
    """What a conduit was asked to do; it holds messages if it is said to."""

    def __init__(self):
        self.handed, self.gone = [], [False, False]
        self.is_empty, self.is_closed = True, False

    def hand_over(self, end, taker):
        self.handed.append((end, taker))

    def show(self, end, gone):
        self.gone[end] = gone

    def close(self):
        self.is_closed = True


def test_a_pipe_has_one_conduit_while_anybody_is_there_or_anything_is_in_it_and_shows_who_is_gone(desk):
    made = []
    desk.core.conduits = lambda: made.append(Conduit()) or made[-1]
    quay, deck = desk.client(1), desk.client(2)
    desk.declare(quay, b"Pp")
    desk.ask(quay, Verb.OPEN, b"Pp", number=0)
    desk.ask(deck, Verb.OPEN, b"Pp", number=1)
    (conduit,) = made
    assert (conduit.handed, conduit.gone) == ([(0, quay), (1, deck)], [False, False])
    desk.tell(quay, Verb.HANG_UP, b"Pp", number=0)
    assert conduit.gone == [False, True]
    desk.ask(quay, Verb.OPEN, b"Pp", number=0)
    assert conduit.gone == [False, False]
    conduit.is_empty = False
    desk.gone(quay)
    desk.gone(deck)
    assert (conduit.gone, conduit.is_closed) == ([True, True], False)
    late = desk.client(3)
    desk.ask(late, Verb.OPEN, b"Pp", number=1)
    assert (conduit.handed[-1], conduit.gone) == ((1, late), [False, True])
    conduit.is_empty = True
    desk.gone(late)
    assert conduit.is_closed
    desk.ask(desk.client(4), Verb.OPEN, b"Pp", number=0)
    assert (len(made), made[1].gone) == (2, [True, False])


def test_a_broker_that_has_no_descriptors_left_says_so_to_who_opens_a_pipe(desk):
    def refuse():
        raise OSError(24, "Too many open files")

    desk.core.conduits = refuse
    client = desk.client(1)
    desk.declare(client, b"Pp")
    name = desk.ask(client, Verb.OPEN, b"Pp", number=0)
    assert desk.reply(client, name).status == Status.TOO_LARGE
    assert b"Too many open files" in desk.reply(client, name).fields[0]
    desk.gone(client)
