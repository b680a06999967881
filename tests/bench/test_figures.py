import pytest

from bench.figures import ratios, spread


def test_the_figure_of_several_rounds_is_their_median_with_quartiles():
    found = spread([5, 1, 4, 2, 3])
    assert (found.median, found.low, found.high, found.count) == (3, 2, 4, 5)
    assert found.noise == pytest.approx(1 / 3)


def test_one_wild_round_does_not_move_the_figure():
    assert spread([1.0, 1.1, 1.2, 1.1, 90.0]).median == pytest.approx(1.1)


def test_a_single_round_is_its_own_figure_and_none_is_none():
    assert spread([7]).median == 7
    assert spread([7]).noise == 0
    assert spread([]) is None


def test_a_ratio_compares_servers_of_the_same_round():
    # The machine was half as fast in the second round, for both.
    assert ratios({0: 20, 1: 40}, {0: 10, 1: 20}) == [2, 2]


def test_a_round_that_one_of_two_servers_lacks_has_no_ratio():
    assert ratios({0: 20, 1: 40, 2: 60}, {0: 10, 2: 30}) == [2, 2]
    assert ratios({0: 20}, {}) == []
