"""The governor: a budget that gives way to load, on a clock of the test's."""

import pytest

from drnet_jax.serve.governor import FEWEST, PERIOD, Governor


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def governor(clock, target=0.1):
    return Governor(lambda budget: -budget, 100.0, 20.0, target, clock)


def see(governor, clock, seconds, times=1):
    """So many times as many answers as it takes to be looked at."""
    for _ in range(times * FEWEST):
        clock.now += PERIOD / FEWEST
        governor.saw(seconds)


def test_the_budget_falls_while_answers_are_slow_and_rises_again(clock):
    found = governor(clock)
    assert (found.policy, found.present, found.level) == (-100, 100, 0)
    see(found, clock, 0.2)
    assert found.level == pytest.approx(0.2)
    assert found.present == pytest.approx(84) and found.policy == pytest.approx(-84)
    see(found, clock, 0.2, 9)
    assert (found.level, found.present) == (1, 20)  # the cheapest: no further
    see(found, clock, 0.08, 5)  # neither slow nor fast: it stays
    assert found.level == 1
    for _ in range(40):
        see(found, clock, 0.01)
    assert found.level == 0 and found.policy == -100


def test_one_slow_answer_in_forty_is_no_load(clock):
    found = governor(clock)
    for number in range(200):
        clock.now += PERIOD / 40
        found.saw(1.0 if number % 40 == 39 else 0.08)
    assert found.level == 0


def test_it_moves_once_a_period(clock):
    found = governor(clock)
    for _ in range(50):
        clock.now += PERIOD / 25
        found.saw(0.2)
    assert found.level == pytest.approx(0.4)


def test_without_a_target_the_budget_stays(clock):
    found = governor(clock, None)
    see(found, clock, 9.0, 20)
    assert found.policy == -100


def test_another_budget_begins_anew(clock):
    found = governor(clock)
    see(found, clock, 0.2, 3)
    found.set(60.0)
    assert (found.level, found.present, found.policy) == (0, 60, -60)
    found.set(10.0)  # below the cheapest there is of the other
    see(found, clock, 0.2, 9)
    assert found.present == 10
