"""Objects that are lent with a journal: what a client does without asking, and what the broker makes of it."""

from __future__ import annotations

import itertools
import random

import pytest

from longshore.errors import FramingError
from longshore.shared import borrowing, journal, lending
from longshore.shared.borrowing import Borrower
from longshore.shared.core import Core
from longshore.shared.journal import PlainJournal
from longshore.shared.ledger import PlainLedger
from longshore.shared.local import _Channel
from longshore.shared.places import Status, Verb
from longshore.shared.wire import ABSORB, BORROW, END, encode_request, read_reply

pytestmark = pytest.mark.slow

D, Q = b"Dd", b"Qq"
PARAMETERS = {D: b"", Q: b"maxsize=4"}
#: The holder that acknowledges; the others do not.
ACKNOWLEDGES = 1


class Model:
    """A dict and a bounded queue, as plain as can be; `do` gives the status, number and fields, None for a wait."""

    def __init__(self):
        self.values, self.version = {}, 0
        self.items, self.unfinished = [], 0
        #: By client, by number: the item and how often it was delivered before.
        self.deliveries, self.last = {}, 0

    def do(self, client, verb, key, holder, number, timeout, fields):
        reply = getattr(self, verb.name.lower())(client, holder, number, *fields)
        return (Status.LATE, 0, ()) if reply is None and timeout == 0 else reply

    def write(self, client, holder, number, *pairs):
        self.version += 1
        self.values.update({pairs[at]: (pairs[at + 1], self.version) for at in range(0, len(pairs), 2)})
        return Status.OK, 0, ()

    def read(self, client, holder, number, name):
        value, version = self.values.get(name, (None, 0))
        return (Status.OK, version, (value,)) if version else (Status.ABSENT, 0, ())

    def write_if(self, client, holder, number, name, value):
        fits = self.values.get(name, (None, 0))[1] == number
        if fits:
            self.write(client, holder, 0, name, value)
        return Status.OK, int(fits), ()

    def take(self, client, holder, number, name):
        value, version = self.values.pop(name, (None, 0))
        self.version += version > 0
        return (Status.OK, 0, (value,)) if version else (Status.ABSENT, 0, ())

    def list(self, client, holder, number):
        return Status.OK, 0, tuple(part for name, (value, _) in self.values.items() for part in (name, value))

    def put(self, client, holder, number, item):
        if len(self.items) >= 4:
            return None
        self.items.append((item, 0))
        self.unfinished += 1
        return Status.OK, 0, ()

    def get(self, client, holder, number):
        if not self.items:
            return None
        item, count = self.items.pop(0)
        if number:
            self.last += 1
            self.deliveries.setdefault(client, {})[self.last] = item, count
        return Status.OK, self.last if number else 0, (item, b"%d" % count)

    def settled(self, client, number):
        return self.deliveries.get(client, {}).pop(number, None)

    def ack(self, client, holder, number):
        found = self.settled(client, number)
        self.unfinished -= found is not None
        return (Status.OK if found else Status.NOT_HELD), 0, ()

    def requeue(self, client, holder, number):
        found = self.settled(client, number)
        if found:
            self.items.insert(0, (found[0], found[1] + 1))
        return (Status.OK if found else Status.NOT_HELD), 0, ()

    def task_done(self, client, holder, number):
        if not self.unfinished:
            return Status.NOT_HELD, 0, ()
        self.unfinished -= 1
        return Status.OK, 0, ()

    def size(self, client, holder, number):
        return Status.OK, len(self.items), (b"%d" % self.unfinished,)

    def end(self, client):
        for number in sorted(self.deliveries.get(client, ()), reverse=True):
            self.requeue(client, ACKNOWLEDGES, number)

    def undo(self, client, reply):
        if reply[1]:
            self.requeue(client, ACKNOWLEDGES, reply[1])
        else:
            self.items.insert(0, (reply[2][0], 0))


class Killed(BaseException):
    """The client is no more."""


class Socket:
    def fileno(self):
        return 0

    def close(self):
        pass


class Client(_Channel):
    """A channel whose messages the world delivers; the rest of it, and its borrower, are the real ones."""

    def __init__(self, world):
        self.world, self.place, self.ledger = world, self, world
        self.path, self.epoch = "/nowhere/socket", 0
        self.socket, self.busy, self.sent, self._lent = Socket(), False, 0, {}
        self.borrower = Borrower(world.ledger)
        self.number = world.core.client_came(self)
        self.ids, self.replies = itertools.count(1), {}
        #: What it waits for: the id and the operation; and what it was told late.
        self.blocked, self.late = None, []
        self.dead = False

    def send(self, frame):
        self.sent += 1
        if self.dead:
            raise Killed
        if frame[4] == ABSORB:
            self.late.append(frame)
        else:
            self.world.deliver(self, frame)

    def _asked(self, verb, key, holder, number, timeout, fields):
        self.sent += 1
        if self.dead:
            raise Killed
        name = next(self.ids)
        self.catch_up()
        self.world.deliver(self, encode_request(verb, name, key, holder, number, timeout, fields))
        if name not in self.replies:
            self.blocked = name, None
        return self.replies.pop(name, None)

    def tell(self, verb, key, holder=0, number=0, fields=()):
        self.borrower.told(key)
        self.send(encode_request(verb, 0, key, holder, number, 0, fields))

    def catch_up(self):
        late, self.late = self.late, []
        for frame in late:
            self.world.deliver(self, frame)


class World(PlainLedger):
    """A broker's core, some clients and the model; between any two steps of one client the others may do something."""

    def __init__(self, seed):
        super().__init__()
        self.rng = random.Random(seed)
        self.journals = {}
        self.ledger = self
        self.core = Core(0, ledger=self, journals=self.make_journal)
        self.model = Model()
        self.woken, self.frames = [], []
        self.done = self.failed = self.interrupted = self.killed = 0
        self.values = map(b"%d".__mod__, itertools.count())
        self.clients = [Client(self) for _ in range(3)]
        self.versions = [0]
        for key, parameters in PARAMETERS.items():
            self.clients[0].ask(Verb.DECLARE, key, 0, 0, 0, (parameters,))

    def make_journal(self, number):
        return self.journals.setdefault(number, PlainJournal())

    # -- between the steps -----------------------------------------------------------------------------------

    def step(self, slot, client, before, after, socket):
        """What could come between a client's writing, its committing, and its returning."""
        frame = self.frames[-1]
        self.meanwhile()
        done = super().step(slot, client, before, after, socket)
        if done:
            self.done += 1
            frame["expected"] = self.model.do(*frame["operation"])
            self.meanwhile()
        else:
            self.failed += 1
        return done

    def meanwhile(self):
        chance = self.rng.random()
        if chance < 0.02:
            self.interrupted += 1
            raise KeyboardInterrupt
        if chance < 0.04:
            self.killed += 1
            self.frames[-1]["operation"][0].dead = True
            raise Killed
        if chance < 0.12 and len(self.frames) < 3:
            busy = [frame["operation"][0] for frame in self.frames]
            free = [client for client in self.clients if client not in busy and not client.blocked]
            if free:
                self.operate(self.rng.choice(free))

    def deliver(self, client, frame):
        self.core.receive(client, frame[4:], 0.0)
        self.take()

    def take(self):
        effects, self.core.effects = self.core.effects, []
        for receiver, message in effects:
            assert isinstance(message, bytes), f"a client of ours was refused: {message}"
            name, reply = read_reply(message)
            if receiver.blocked and receiver.blocked[0] == name:
                self.woken.append((receiver, reply))
            else:
                receiver.replies[name] = reply

    # -- what clients do ---------------------------------------------------------------------------------------

    def operation(self, client):
        rng = self.rng
        value = next(self.values) * rng.choice((1, 1, 1, 1, 20, 200))
        if rng.random() < 0.5:
            name = rng.choice((b"a", b"b", b"c"))
            verb, number, fields = rng.choice(
                [
                    (Verb.WRITE, 0, (name, value)),
                    (Verb.WRITE, 0, (name, value, b"d", value)),
                    (Verb.READ, 0, (name,)),
                    (Verb.WRITE_IF, rng.choice(self.versions[-3:]), (name, value)),
                    (Verb.TAKE, 0, (name,)),
                    (Verb.LIST, 0, ()),
                ]
            )
            return client, verb, D, 0, number, 0, fields
        known = [*self.model.deliveries.get(client, ()), 0]
        verb, holder, number, fields = rng.choice(
            [
                (Verb.PUT, 2, 0, (value,)),
                (Verb.PUT, 2, 0, (value,)),
                (Verb.GET, 2, 0, ()),
                (Verb.GET, ACKNOWLEDGES, 1, ()),
                (Verb.ACK, ACKNOWLEDGES, rng.choice(known), ()),
                (Verb.REQUEUE, ACKNOWLEDGES, rng.choice(known), ()),
                (Verb.TASK_DONE, 2, 0, ()),
                (Verb.SIZE, 2, 0, ()),
            ]
        )
        return client, verb, Q, holder, number, rng.choice((0, 0, 0, None)), fields

    def operate(self, client):
        """Have a client do something, and compare what comes of it with the model."""
        if self.rng.random() < 0.3:
            client.catch_up()
        if self.rng.random() < 0.02:
            client.borrower.ends(ACKNOWLEDGES)
            client.send(encode_request(END, 0, b"", ACKNOWLEDGES, 0, 0, ()))
            self.model.end(client)
            self.wake()
            return
        operation = self.operation(client)
        frame = {"operation": operation}
        self.frames.append(frame)
        try:
            reply = client.ask(*operation[1:])
        except Killed:
            self.gone(client)
        except KeyboardInterrupt:
            expected = frame.get("expected")
            if expected and operation[1] == Verb.GET and expected[0] == Status.OK:
                self.model.undo(client, expected)
        else:
            expected = frame["expected"] if "expected" in frame else self.model.do(*operation)
            if expected is None:
                assert reply is None, f"{operation[1].name} did not wait"
                client.blocked = client.blocked[0], operation
            else:
                self.same(operation, reply, expected)
        finally:
            self.frames.pop()
        self.wake()

    def same(self, operation, reply, expected):
        found = None if reply is None else (reply.status, int(reply.number), tuple(reply.fields))
        if operation[1] == Verb.GET and expected[0] != Status.OK:
            expected = (expected[0], 0, ())
        assert found == expected, f"{operation[1].name}{operation[4:]}"
        if operation[1] == Verb.READ:
            self.versions.append(expected[1])

    def wake(self):
        """Those who waited have what they waited for, in this order."""
        while self.woken:
            client, reply = self.woken.pop(0)
            operation, client.blocked = client.blocked[1], None
            self.same(operation, reply, self.model.do(*operation))

    def gone(self, client):
        self.clients.remove(client)
        self.core.client_gone(client)
        self.model.end(client)
        self.take()
        self.wake()
        self.clients.append(Client(self))

    def run(self, length):
        favourite = 0
        for _ in range(length):
            if self.rng.random() < 0.03:
                favourite = self.rng.randrange(3)
            client = self.clients[favourite if self.rng.random() < 0.9 else self.rng.randrange(3)]
            if client.blocked:
                favourite = self.rng.randrange(3)
                if self.rng.random() < 0.1:
                    self.gone(client)
            else:
                self.operate(client)
            waiting = [other.blocked[1][1] for other in self.clients if other.blocked]
            assert Verb.GET not in waiting or not self.model.items, "somebody waits for what is there"
            assert Verb.PUT not in waiting or len(self.model.items) >= 4, "somebody waits where there is room"


@pytest.fixture
def small(monkeypatch):
    """Journals that fill soon, and clients that borrow soon."""
    for module in (journal, borrowing, lending):
        for name, value in {"SIZE": 2048, "ENTRY": 300, "CHUNK": 500, "_SOON": 1, "_WORTH": 1}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def run(monkeypatch, seeds, length):
    done = failed = interrupted = killed = 0
    for seed in seeds:
        world = World(seed)
        monkeypatch.setattr(borrowing, "open_journal", lambda _d, _e, n, world=world: world.journals[n])
        try:
            world.run(length)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        done, failed = done + world.done, failed + world.failed
        interrupted, killed = interrupted + world.interrupted, killed + world.killed
    return done, failed, interrupted, killed


def test_whoever_does_what_and_whatever_comes_between_all_is_as_if_one_had_asked_after_the_other(small, monkeypatch):
    done, failed, interrupted, killed = run(monkeypatch, range(60), 200)
    assert done > 1000
    assert min(failed, interrupted, killed) > 10


@pytest.mark.parametrize("what", ["end", "undo"])
def test_what_a_borrower_tells_the_broker_comes_before_what_it_does_afterwards(monkeypatch, what):
    monkeypatch.setattr(World, "step", PlainLedger.step)
    world = World(1)
    monkeypatch.setattr(borrowing, "open_journal", lambda _d, _e, n: world.journals[n])
    client = world.clients[0]
    for _ in range(20):
        client.ask(Verb.PUT, Q, 2, 0, 0, (b"item",))
        got = client.ask(Verb.GET, Q, ACKNOWLEDGES, what == "end", 0, ())
        client.ask(Verb.ACK, Q, ACKNOWLEDGES, got.number, 0, ())
    client.ask(Verb.PUT, Q, 2, 0, 0, (b"item",))
    client.ask(Verb.GET, Q, ACKNOWLEDGES, what == "end", 0, ())
    assert client.borrower._loans
    # It is on its way, and the broker is slow.
    if what == "end":
        client.borrower.ends(ACKNOWLEDGES)
        client.late.append(encode_request(END, 0, b"", ACKNOWLEDGES, 0, 0, ()))
    else:
        client.borrower.told(Q)
        client.late.append(encode_request(Verb.UNGET, 0, Q, 2, 0, 0, (b"item",)))
    assert client.ask(Verb.GET, Q, 2, 0, 0, ()).fields == (b"item", b"1" if what == "end" else b"0")


def test_an_entry_that_would_wait_or_have_an_answer_does_neither():
    ledger, written = PlainLedger(), PlainJournal()
    core = Core(0, ledger=ledger, journals=lambda _number: written)
    core.client_came("hostile")
    at = lent(core, "hostile", Q)
    entry = encode_request(Verb.GET, 9, Q, 1, 0, None, ()) + encode_request(Verb.PUT, 8, Q, 1, 0, 0, (b"item",))
    written.write(at, entry)
    ledger.step(core.lending._borrowers["hostile"].slot, core.number_of("hostile"), at, at + len(entry), 0)
    core.receive("hostile", encode_request(Verb.SIZE, 7, Q, 1, 0, 0, ())[4:], 0.0)
    assert [read_reply(answer) for _, answer in core.effects] == [(7, (Status.OK, 1, (b"1",)))]


def lent(core, client, key=D):
    """Have one client borrow; where its journal begins."""
    for verb in (Verb.DECLARE, BORROW, BORROW):
        fields = (PARAMETERS[key],) if verb == Verb.DECLARE else ()
        core.receive(client, encode_request(verb, 1, key, 0, 0, 0, fields)[4:], 0.0)
    position = read_reply(core.effects[-1][1])[1].number
    core.effects.clear()
    return position


GOOD = encode_request(Verb.WRITE, 0, D, 0, 0, 0, (b"k", b"v"))
BAD = {
    "garbage": b"garbage, not a frame",
    "an empty frame": bytes(4),
    "a frame that is cut short": GOOD[:-1],
    "a verb of the connection": encode_request(END, 0, D, 0, 0, 0, ()),
    "a verb that changes nothing": encode_request(Verb.READ, 0, D, 0, 0, 0, (b"k",)),
    "a verb of another type": encode_request(Verb.PUT, 0, D, 0, 0, 0, (b"k",)),
    "an object that is not lent": encode_request(Verb.WRITE, 0, b"Dother", 0, 0, 0, (b"k", b"v")),
    "fields that are missing": encode_request(Verb.WRITE_IF, 0, D, 0, 0, 0, (b"k",)),
}


@pytest.mark.parametrize("kind", [*BAD, "an end beyond all room", "a file that is cut short"])
def test_a_journal_that_says_nonsense_ends_its_client_and_nobody_else(kind):
    ledger, written = PlainLedger(), PlainJournal()
    core = Core(0, ledger=ledger, journals=lambda _number: written)
    for client in ("honest", "hostile"):
        core.client_came(client)
    at = lent(core, "hostile")
    entry = GOOD + BAD.get(kind, b"")
    written.write(at, entry)
    size = 1 << 20 if kind == "an end beyond all room" else len(entry)
    if kind == "a file that is cut short":
        written.read = lambda _position, size: GOOD[: size - 1]
    slot = core.lending._borrowers["hostile"].slot
    assert ledger.step(slot, core.number_of("hostile"), at, at + size, 0)
    core.receive("honest", encode_request(Verb.COUNT, 7, D, 0, 0, 0, ())[4:], 0.0)
    (refused, why), (client, answer) = core.effects
    assert refused == "hostile"
    assert isinstance(why, FramingError)
    # What was said before still holds, and nothing after it.
    counted = kind in BAD
    assert (client, *read_reply(answer)) == ("honest", 7, (Status.OK, counted, ()))
    core.client_gone("hostile")
    core.client_gone("honest")
