import math

import pytest

from longshore.config import Limits, Timeouts
from longshore.errors import ConfigError, HandshakeTimeout, InternalError, ReadTimeout, WriteTimeout
from longshore.lifecycle import CONNECTION, SERVER, Machine
from longshore.limits import RATE_GRACE, Gate, Watch, overdue

NEVER = Timeouts(handshake=None, first_byte=None, idle=None, write=None, drain=None, linger=None, blocked=None)


def test_a_gate_lets_in_just_its_maximum():
    gate = Gate("places", 3)
    assert [gate.enter() for _ in range(5)] == [True, True, True, False, False]
    assert gate.full
    gate.leave()
    assert gate.enter()
    assert not gate.enter()


def test_a_gate_without_a_maximum_is_never_full():
    gate = Gate("places", None)
    assert all(gate.enter() for _ in range(10_000))
    assert not gate.full


def test_a_gate_tells_once_that_it_is_at_eighty_percent_and_again_after_it_was_far_below():
    told = []
    gate = Gate("places", 10, lambda *facts: told.append(facts))
    for _ in range(7):
        gate.enter()
    for _ in range(20):
        gate.enter()
        gate.leave()
    assert told == [("places", 8, 10)]
    for _ in range(2):
        gate.leave()
    for _ in range(3):
        gate.enter()
    assert told == [("places", 8, 10), ("places", 8, 10)]


def test_a_watch_without_timeouts_has_no_deadline():
    watch = Watch(NEVER, 0.0)
    watch.wait(0.0)
    assert watch.deadline() == (math.inf, "")


def test_the_first_byte_is_due_while_somebody_waits_and_idle_afterwards():
    watch = Watch(Timeouts(first_byte=60, idle=600), 100.0)
    assert watch.deadline() == (math.inf, "")
    watch.wait(100.0)
    assert watch.deadline() == (160.0, "first_byte")
    watch.received(1, 110.0)
    assert watch.deadline() == (710.0, "idle")
    watch.sent(120.0, left=False)
    assert watch.deadline() == (720.0, "idle")


def test_the_time_a_handler_works_is_not_the_peers_silence():
    watch = Watch(Timeouts(idle=10), 0.0)
    watch.received(5, 1.0)
    watch.wait(50.0)
    assert watch.deadline() == (60.0, "idle")
    watch.waiting = False
    watch.wait(55.0)
    assert watch.deadline() == (60.0, "idle")


def test_write_is_due_only_while_output_is_pending_and_progress_moves_it():
    watch = Watch(Timeouts(write=30, idle=None, first_byte=None), 0.0)
    watch.output(5.0)
    assert watch.deadline() == (35.0, "write")
    watch.sent(20.0, left=True)
    assert watch.deadline() == (50.0, "write")
    watch.sent(21.0, left=False)
    assert watch.deadline() == (math.inf, "")


def test_nobody_is_idle_while_output_is_pending():
    watch = Watch(Timeouts(write=900, idle=10, first_byte=None), 0.0)
    watch.wait(0.0)
    watch.output(5.0)
    assert watch.deadline() == (905.0, "write")
    watch.sent(20.0, left=False)
    assert watch.deadline() == (30.0, "idle")


def test_the_lifetime_ends_even_a_busy_connection():
    watch = Watch(Timeouts(lifetime=100), 0.0)
    watch.received(1, 99.0)
    assert watch.deadline() == (100.0, "lifetime")


def test_a_message_that_comes_slower_than_the_minimum_rate_is_due_after_a_grace():
    watch = Watch(Timeouts(min_rate=10, idle=None, first_byte=None), 0.0)
    watch.wait(0.0)
    watch.received(20, 1.0)
    assert watch.deadline() == (1.0 + RATE_GRACE + 2.0, "min_rate")
    watch.whole()
    assert watch.deadline() == (math.inf, "")


def test_a_handshake_and_a_linger_have_deadlines_of_their_own():
    watch = Watch(Timeouts(handshake=10, linger=2), 0.0)
    watch.handshaking = True
    assert watch.deadline() == (10.0, "handshake")
    watch.handshaking = False
    watch.closing_since = 20.0
    assert watch.deadline() == (22.0, "linger")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("handshake", HandshakeTimeout), ("write", WriteTimeout), ("idle", ReadTimeout), ("first_byte", ReadTimeout)],
)
def test_an_overdue_error_names_peer_setting_and_value(name, kind):
    error = overdue(name, Timeouts(), "127.0.0.1:7")
    assert type(error) is kind
    assert "127.0.0.1:7" in str(error)
    assert f"Timeouts.{name}={getattr(Timeouts(), name):g}" in str(error)


@pytest.mark.parametrize("table", [CONNECTION, SERVER])
def test_a_machine_takes_only_the_transitions_of_its_table(table):
    for state, ways in table.items():
        for target in table:
            machine = Machine(table)
            machine.state = state
            if target in ways:
                machine.to(target)
                assert machine.state == target
            else:
                with pytest.raises(InternalError, match="no way leads"):
                    machine.to(target)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Limits(max_connections=0), "max_connections=0"),
        (lambda: Limits(overflow="explode"), "'evict-idle'"),
        (lambda: Limits(farewell="bye"), "farewell='bye'"),
        (lambda: Limits(deny=("10.0.0.1/8",)), "is no network"),
        (lambda: Limits(max_connections_per_peer=0), "max_connections_per_peer=0"),
        (lambda: Timeouts(idle=0), "idle=0"),
        (lambda: Timeouts(write="soon"), "write='soon'"),
    ],
)
def test_an_option_that_cannot_work_is_refused_with_its_name_and_value(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
