from bench.fairness import Delay, is_fair, typical


def delay(answer, timer):
    return Delay(answer=answer, timer=timer, flood_rate=0.0)


def test_one_round_that_the_machine_disturbed_is_not_held_against_the_server():
    assert typical([delay(0.002, 0.001), delay(0.9, 0.9), delay(0.003, 0.002)]) == (0.003, 0.002)


def test_a_flood_answers_for_what_it_adds_and_not_for_what_is_late_without_it():
    assert is_fair((0.025, 0.012), (0.020, 0.010))
    assert not is_fair((0.031, 0.012), (0.020, 0.010))
    assert not is_fair((0.021, 0.025), (0.020, 0.010))
