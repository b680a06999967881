import pytest

from bench.claims import CLAIMS, judge
from bench.contenders import CONTENDERS, contenders_of
from bench.scenarios import SCENARIOS, find

NAMES = {contender.name for contender in CONTENDERS}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.subject} in {claim.scenario}")
def test_a_claim_is_about_servers_that_its_scenario_asks(claim):
    asked = {contender.name for contender in contenders_of(*find((claim.scenario,)))}
    assert {claim.subject, *(peer for peer, _ in claim.better)} <= asked


def test_every_claim_can_be_judged_in_the_short_run():
    assert {claim.scenario for claim in CLAIMS} <= {scenario.key for scenario in SCENARIOS if scenario.quick}


def test_scenarios_have_keys_of_their_own_and_name_servers_that_exist():
    keys = [scenario.key for scenario in SCENARIOS]
    assert len(keys) == len(set(keys))
    assert {name for scenario in SCENARIOS for name in scenario.only} <= NAMES


def test_every_scenario_of_streams_in_the_clear_and_of_datagrams_asks_the_limit_first():
    for scenario in SCENARIOS:
        if scenario.metric == "ratio":
            assert contenders_of(scenario)[0].name == "limit", scenario.key


def test_a_bound_that_is_kept_holds_and_one_that_is_not_does_not(entry):
    entry["families"]["uvloop streams"] = "peer"
    entry["samples"]["uvloop streams"] = entry["samples"].pop("slow")
    verdicts = judge({"scenarios": {"line-echo-50-1": entry, "line-echo-50-32": entry}})
    first, streams, protocol = verdicts[:3]
    assert (first.measured, first.holds, first.reaches_aim) == (pytest.approx(1.1), True, False)
    assert (streams.measured, streams.holds) == (pytest.approx(4000 / 1100), True)
    assert (protocol.measured, protocol.holds) == (None, None)
    assert verdicts[4].holds is False


def test_what_was_not_measured_is_neither_kept_nor_broken():
    assert {verdict.holds for verdict in judge({"scenarios": {}})} == {None}
