import pytest

from bench.comparison import compare, row_of, times


def test_servers_are_compared_by_their_ratio_to_the_limit_of_the_same_round(entry):
    assert row_of(entry, "longshore reactor").figure.median == pytest.approx(1.1)
    assert row_of(entry, "slow").figure.median == pytest.approx(4)


def test_the_limit_comes_first_then_the_best_and_last_who_was_left_out(entry):
    assert [row.name for row in compare(entry)] == ["limit", "longshore reactor", "slow", "absent"]


def test_a_server_that_was_left_out_says_why_and_has_no_figure(entry):
    row = compare(entry)[-1]
    assert (row.figure, row.left_out) == (None, "not installed")
    assert row_of(entry, "absent") is None


def test_which_reactor_served_is_part_of_the_row(entry):
    assert row_of(entry, "longshore reactor").reactor == "native"


def test_a_load_generator_at_its_own_limit_is_told(entry):
    assert row_of(entry, "limit").is_load_saturated
    assert not row_of(entry, "slow").is_load_saturated


def test_lost_datagrams_are_added_over_all_rounds(entry):
    assert row_of(entry, "longshore reactor").lost == 3


def test_how_many_times_more_a_peer_takes_is_counted_within_rounds(entry):
    assert times(entry, "slow", "longshore reactor").median == pytest.approx(4000 / 1100)
    assert times(entry, "absent", "longshore reactor") is None


@pytest.mark.parametrize(
    ("metric", "key", "values", "median"),
    [("bytes", "bytes", (900, 1100), 1000), ("seconds", "seconds", (0.1, 0.3), 0.2)],
)
def test_memory_and_start_up_are_compared_as_they_are(entry, metric, key, values, median):
    entry["metric"] = metric
    entry["samples"] = {"slow": [{"round": number, key: value} for number, value in enumerate(values)]}
    assert row_of(entry, "slow").figure.median == pytest.approx(median)


def test_without_a_limit_servers_are_compared_by_processor_time(entry):
    entry["metric"] = "cpu"
    del entry["samples"]["limit"]
    assert row_of(entry, "slow").figure.median == 6000
