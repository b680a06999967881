"""Limits for single peers, as plain values."""

import random

import pytest

from longshore.config import Limits
from longshore.networks import Networks, key_of, packed
from longshore.policy import PEERS, PeerGate, Policy, Rates, Sparing

FIRST, SECOND = packed("192.0.2.1"), packed("192.0.2.2")


def test_ipv4_in_ipv6_clothes_is_the_same_peer():
    assert packed("::ffff:192.0.2.1") == FIRST
    assert packed("fe80::1%eth0") == packed("fe80::1")
    assert packed("nobody") is None


def test_one_ipv6_network_of_a_customer_is_one_peer():
    assert key_of(packed("2001:db8:0:1::1")) == key_of(packed("2001:db8:0:1:ffff::2"))
    assert key_of(packed("2001:db8:0:1::1")) != key_of(packed("2001:db8:0:2::1"))
    assert key_of(FIRST) == FIRST


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.3"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("::ffff:10.0.0.0/104", "10.1.1.1", "::a01:101"),
        ("0.0.0.0/0", "8.8.8.8", "::1"),
    ],
)
def test_a_network_has_just_its_addresses(entry, inside, outside):
    networks = Networks((entry,), "allow")
    assert packed(inside) in networks
    assert packed(outside) not in networks
    assert None not in networks
    assert 1000 not in networks


def test_users_are_named_one_by_one_or_all():
    assert 1000 in Networks(("uid:1000",), "allow")
    assert 1001 not in Networks(("uid:1000",), "allow")
    assert 1001 in Networks(("unix",), "allow")
    assert FIRST not in Networks(("unix",), "allow")


def test_who_is_in_both_lists_stays_out():
    policy = Policy(Limits(allow=("192.0.2.0/24",), deny=("192.0.2.1",)), print)
    assert policy.forbids(FIRST) == "deny"
    assert policy.forbids(SECOND) is None
    assert policy.forbids(packed("192.0.3.1")) == "allow"
    assert policy.forbids(None) == "allow"


def test_a_peer_gate_counts_each_peer_and_forgets_who_is_gone():
    gate = PeerGate("places", 2)
    assert [gate.enter(FIRST) for _ in range(3)] == [True, True, False]
    assert gate.enter(SECOND)
    for key in (FIRST, FIRST, SECOND):
        gate.leave(key)
    assert len(gate) == 0
    assert gate.enter(FIRST)


def test_a_peer_gate_tells_of_the_first_that_is_near_and_again_once_none_was():
    told = []
    gate = PeerGate("places", 5, lambda *facts: told.append(facts))
    for key in (FIRST, SECOND):
        for _ in range(5):
            gate.enter(key)
    assert told == [("places", 4, 5)]
    for key in (FIRST, SECOND):
        for _ in range(2):
            gate.leave(key)
    for _ in range(20):
        gate.enter(SECOND)
        gate.leave(SECOND)
    assert len(told) == 1
    gate.leave(FIRST)
    gate.leave(SECOND)
    for _ in range(2):
        gate.enter(SECOND)
    assert len(told) == 2


def test_a_rate_gives_one_second_at_once_and_then_one_by_one():
    rates = Rates("rate", 10)
    assert [rates.take(FIRST, 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert rates.take(SECOND, 0.0)
    assert not rates.take(FIRST, 0.05)
    assert rates.take(FIRST, 0.11)
    assert not rates.take(FIRST, 0.12)
    assert [rates.take(FIRST, 100.0) for _ in range(11)] == [True] * 10 + [False]


def test_a_rate_below_one_lets_one_come_in_its_time():
    rates = Rates("rate", 0.5)
    assert [rates.take(FIRST, at) for at in (0.0, 1.0, 2.1, 3.0, 4.2)] == [True, False, True, False, True]


def test_who_is_refused_does_not_wait_longer_for_it():
    rates = Rates("rate", 1)
    rates.take(FIRST, 0.0)
    assert not any(rates.take(FIRST, at / 100) for at in range(1, 99))
    assert rates.take(FIRST, 1.01)


def test_a_million_addresses_take_no_more_than_the_table_has():
    rates = Rates("rate", 0.01)
    numbers = random.Random(5)
    for _ in range(300_000):
        rates.take(numbers.getrandbits(64).to_bytes(8, "big"), 0.0)
    assert len(rates) <= PEERS + 1


def test_peers_that_are_long_gone_are_forgotten_as_others_come():
    rates = Rates("rate", 10)
    for number in range(1000):
        rates.take(number, number / 10)
    assert len(rates) < 10


def test_a_policy_counts_again_what_it_has_let_in_when_its_limits_change():
    present = [None]
    policy = Policy(Limits(), print, lambda: present)
    assert policy.enter(FIRST, 0.0) is None
    present.append(FIRST)
    assert policy.known == 0
    policy.reconfigure(Limits(max_connections_per_peer=1))
    assert policy.enter(FIRST, 0.0) == "max_connections_per_peer"
    policy.leave(FIRST)
    assert policy.enter(FIRST, 0.0) is None
    policy.reconfigure(Limits())
    policy.leave(FIRST)
    assert policy.known == 0


def test_who_came_while_there_was_no_limit_is_counted_by_the_next_one():
    present = []
    policy = Policy(Limits(max_connections_per_peer=2), print, lambda: present)
    assert policy.enter(FIRST, 0.0) is None
    present.append(FIRST)
    policy.reconfigure(Limits())
    # While it does not matter who comes, nobody asks.
    present.append(SECOND)
    policy.reconfigure(Limits(max_connections_per_peer=1))
    assert policy.enter(SECOND, 0.0) == "max_connections_per_peer"
    for who in (FIRST, SECOND):
        present.remove(who)
        policy.leave(who)
    assert policy.known == 0


def test_a_flood_is_told_in_sums():
    sparing = Sparing(3)
    assert [sparing.count(0.0) for _ in range(10)] == [1, 1, 1] + [0] * 7
    assert sparing.count(1.5) == 8
    assert sparing.take() == 0
