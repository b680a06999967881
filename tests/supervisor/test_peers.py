"""What all workers together count of each peer."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections import Counter

import pytest

from longshore.networks import key_of, packed
from longshore.supervisor.places import Places
from longshore.supervisor.region import Region
from longshore.supervisor.tally import SharedPeerGate, Tally
from tests.supervisor.conftest import wait_for

FIRST, SECOND = packed("192.0.2.1"), key_of(packed("2001:db8::1"))


@pytest.fixture
def places():
    made = Places(Region(), 2)
    yield made
    made.close()


def gate(places, slot, maximum, present=tuple):
    made = SharedPeerGate(places, slot, "max_connections_per_peer", None, present)
    made.maximum = maximum
    return made


def test_a_peer_has_its_places_at_all_workers_together(places):
    one, other = gate(places, 0, 3), gate(places, 1, 3)
    assert [one.enter(FIRST), other.enter(FIRST), one.enter(FIRST)] == [True, True, True]
    assert not one.enter(FIRST)
    assert not other.enter(FIRST)
    assert other.enter(SECOND)
    one.leave(FIRST)
    assert other.enter(FIRST)
    assert not one.enter(FIRST)
    assert (len(one), len(other)) == (1, 2)


def test_the_places_of_a_dead_worker_are_its_peers_again(places):
    one, other = gate(places, 0, 1), gate(places, 1, 1)
    pid = os.fork()
    if pid == 0:
        one.enter(FIRST)
        os._exit(0)
    os.waitpid(pid, 0)
    assert not other.enter(FIRST)
    places.bury(0)
    assert other.enter(FIRST)
    assert not gate(places, 0, 1).enter(FIRST)


def test_who_was_in_before_there_was_a_limit_is_counted_from_then_on_and_forgotten_without_one(places):
    one, other = gate(places, 0, None, lambda: [FIRST, None]), gate(places, 1, 2)
    assert one.enter(FIRST)
    assert len(one) == 0
    one.maximum = 2
    assert one.enter(FIRST)
    assert not other.enter(FIRST)
    one.maximum = None
    one.leave(FIRST)
    assert [other.enter(FIRST) for _ in range(3)] == [True, True, False]


def test_a_table_that_is_nearly_full_counts_as_a_dictionary_does():
    numbers = random.Random(3)
    tally = Tally(entries=16)
    entries, counts = {}, Counter()
    for _ in range(5_000):
        slot, key = numbers.randrange(3), numbers.randrange(5)
        if numbers.random() < 0.5:
            added = tally.add(slot, key, 4)
            total = sum(counts[other, key] for other in range(3))
            assert (added is None) == (total >= 4)
            if added is not None:
                entries[slot, key] = added[0]
                counts[slot, key] += 1
                assert added[1] == total + 1
        elif counts[slot, key]:
            counts[slot, key] -= 1
            assert tally.subtract(entries[slot, key]) == counts[slot, key]
        elif numbers.random() < 0.1:
            tally.bury(slot)
            counts = Counter({(other, key): count for (other, key), count in counts.items() if other != slot})


def test_who_finds_the_table_full_is_refused_until_somebody_has_gone():
    tally = Tally(entries=4)
    taken = [tally.add(0, key, None)[0] for key in range(4)]
    assert tally.add(0, 4, None) is None
    tally.subtract(taken[2])
    assert tally.add(0, 4, None) is not None


@pytest.mark.slow
def test_a_peer_has_no_more_connections_than_its_limit_over_all_workers(service):
    server = service("--workers", "2", "--max-connections-per-peer", "12")
    peers, turned_away = [], 0
    for _ in range(20):
        peer = server.connect()
        peers.append(peer)
        try:
            peer.owner = peer.ask()
        except (AssertionError, ConnectionError):
            turned_away += 1
            peers.remove(peer)
            peer.close()
    by = Counter(peer.owner for peer in peers)
    assert (len(peers), turned_away, len(by)) == (12, 8, 2)
    victim = min(by)
    os.kill(victim, signal.SIGKILL)
    server.line(r"ended.*killed by SIGKILL")

    def let_in():
        peer = server.connect()
        try:
            peer.ask()
        except (AssertionError, ConnectionError):
            peer.close()
            return False
        peers.append(peer)
        return True

    for _ in range(by[victim]):
        wait_for(let_in)
    assert not let_in()
    for peer in peers:
        peer.close()


SESSIONS = """
import contextlib
import os
from longshore import MessageHandler
class Counts(MessageHandler):
    def connected(self): self.count = 0
    def message(self, message):
        self.count += 1
        return b"%d %d" % (self.count, os.getpid())
"""


@pytest.mark.slow
def test_a_datagram_peer_has_one_session_whatever_the_number_of_workers(service, app):
    (app / "app.py").write_text(SESSIONS)
    server = service("--workers", "2", target="app.py:Counts", bind="udp://127.0.0.1:0")

    def ask(peer):
        peer.sendto(b"again", ("127.0.0.1", server.port))
        return tuple(map(int, peer.recv(100).split()))

    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(4)]
        for peer in peers:
            peer.settimeout(10)
        answers = [[ask(peer) for peer in peers] for _ in range(25)]
        assert [count for counts in answers for count, _ in counts] == [turn for turn in range(1, 26) for _ in peers]
        (owner,) = {pid for counts in answers for _, pid in counts}
        os.kill(owner, signal.SIGKILL)
        server.line(r"ended.*killed by SIGKILL")
        server.line(r"process \d+\) accepts", count=3)
        assert ask(peers[0])[0] == 1
        server.send(signal.SIGTTOU)
        server.line(r"worker 2 .* stopped")
        assert ask(peers[0])[0] == 2
