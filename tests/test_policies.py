"""Policies by hand: six images at three resolutions, of cost 100, 60 and 20, and a predictor of 5.

The larger the confidence of an image, the surer; the table's are small integers.
"""

import dataclasses

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.errors import UserError
from drnet_jax.evaluation import policies
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.routing import Cascade
from tests.test_table import table_of
from tests.tiny import COSTS, RIGHT

CLASSIFIER = np.array(COSTS.classifier, float)
CONFIDENCE = np.array([[0, 0, 5],
                       [0, 0, 1],
                       [0, 0, 6],
                       [0, 0, 2],
                       [0, 0, 3],
                       [0, 0, 4]], float)
SCORES = np.array([[0.9, 0.2, 0.1],  # moves from the first to the last at a price of 1
                   [0.5, 0.6, 0.1],  # from the second to the last at 1.25
                   [0.1, 0.2, 0.9],
                   [0.5, 0.7, 0.5],  # at 0.5
                   [0.8, 0.1, 0.2],  # at 0.75
                   [0.0, 0.0, 0.3]], np.float32)


FUSED_RANK = np.full((6, 3, 3), -1)
FUSED_RANK[:, 2, 0] = [0, 1, 0, 0, 0, 1]
TABLE = table_of(SCORES, np.where(RIGHT, 0, 1), CONFIDENCE, FUSED_RANK)


@pytest.mark.parametrize(("target", "price", "choice", "cost"), [
    (0.0, 0.0, [0, 1, 2, 1, 0, 2], 65),
    (59.0, 0.5, [0, 1, 2, 2, 0, 2], 320 / 6 + 5),
    (45.0, 0.75, [0, 1, 2, 2, 2, 2], 45),
    (25.0, 1.25, [2, 2, 2, 2, 2, 2], 25),
])
def test_routed_at_a_price_by_hand(target, price, choice, cost):
    found = policies.price_for(SCORES, COSTS, target)
    # A hair above, as the price leaves the last tie behind it.
    assert price <= found < price + 1e-4 if target else found == 0
    chosen = routing.choose_at(SCORES, COSTS.array, found)
    np.testing.assert_array_equal(chosen, choice)
    outcome = policies.routed(TABLE, COSTS, found)
    np.testing.assert_array_equal(outcome.choice, choice)
    assert outcome.mean_cost() == pytest.approx(cost)
    np.testing.assert_array_equal(outcome.right, RIGHT[range(6), choice])


def test_the_price_keeps_its_distance_from_the_last_image_that_moved():
    random = np.random.default_rng(0)
    for target in np.linspace(30, 100, 30):
        scores = random.random((15, 3)).astype(np.float32)
        price = policies.price_for(scores, COSTS, target)
        for noise in (0, *(1e-6 * random.standard_normal((3, 15, 3)))):  # as of another rounding
            choice = routing.choose_at((scores + noise).astype(np.float32), COSTS.array, price)
            assert CLASSIFIER[choice].mean() + COSTS.predictor <= target


def test_choices_are_those_that_routing_charges_for():
    scores = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    for price in (-0.7, 0.0, 0.7):
        charged = routing.charge(scores, CLASSIFIER.astype(np.float32), price)
        choice = routing.choose_at(scores, COSTS.array, price)
        np.testing.assert_array_equal(choice, routing.choose(charged))
        assert choice.dtype == np.int32


def test_tied_scores_move_together():
    scores = np.tile(np.array([[0.9, 0.5, 0.1]], np.float32), (8, 1))
    price = policies.price_for(scores, COSTS, 90.0)
    choice = routing.choose_at(scores, COSTS.array, price)
    assert (choice != 0).all()  # below the target, and far from it


@pytest.mark.parametrize(("target", "again", "threshold"), [
    (19.9, None, None),  # does not even pay for the first pass
    (20.0, 0, -np.inf),
    (36.0, 0, -np.inf),
    (20 + 100 / 6, 1, 1.5),
    (20 + 200 / 6, 2, 2.5),
    (119.9, 5, 5.5),
    (120.0, 6, np.inf),
    (500.0, 6, np.inf),
])
def test_threshold_by_hand(target, again, threshold):
    cascade = policies.with_threshold(Cascade(2, 0, False), TABLE, COSTS, target)
    if again is None:
        assert cascade is None
        return
    assert cascade.threshold == threshold
    result = policies.cascaded(TABLE, COSTS, cascade)
    assert result.mean_cost() == pytest.approx(20 + again * 100 / 6)
    assert result.mean_cost() <= target + 1e-6


def test_ties_of_confidence_stay_on_the_cheap_side():
    confidence = np.array([[0, 0, value] for value in (1, 2, 2, 2, 3, 4)], float)
    table = dataclasses.replace(TABLE, confidence=confidence)
    cascade = policies.with_threshold(Cascade(2, 0, False), table, COSTS, 20 + 300 / 6)
    assert policies.cascaded(table, COSTS, cascade).mean_cost() == pytest.approx(20 + 100 / 6)


@pytest.mark.parametrize(("fused", "right", "name"), [
    (False, [1, 1, 1, 1, 0, 0], "cascade 8>16"),
    (True, [1, 0, 1, 1, 1, 0], "cascade 8>16 fused"),
])
def test_cascade_by_hand(fused, right, name):
    # The second, fourth and fifth image go again.
    cascade = Cascade(2, 0, fused, threshold=3.5)
    result = policies.cascaded(TABLE, COSTS, cascade)
    assert result.name == name
    np.testing.assert_array_equal(result.right, np.array(right, bool))
    np.testing.assert_array_equal(result.cost, [20, 120, 20, 120, 120, 20])
    np.testing.assert_array_equal(result.choice, [2, 0, 2, 0, 0, 2])


def test_every_pair_is_a_cascade_from_small_to_large():
    names = [cascade.name(COSTS.resolutions) for cascade in policies.cascades(COSTS)]
    assert names == ["12>16", "12>16 fused", "8>16", "8>16 fused", "8>12", "8>12 fused"]


@pytest.mark.parametrize(
    ("costs", "choice"),
    [
        ([100, 60, 20], [2, 1, 2, 0, 2, 1]),
        ([20, 60, 100], [0, 0, 0, 0, 0, 1]),  # by cost, and not by position
        ([60, 20, 100], [1, 1, 0, 0, 1, 1]),
    ],
)
def test_oracle_by_hand(costs, choice):
    np.testing.assert_array_equal(policies.oracle_choice(RIGHT, np.array(costs, float)), choice)


@pytest.mark.parametrize(("accuracy", "by_budget"), [
    # A concave curve is its own envelope; beyond the ends it is level.
    ([0.9, 0.8, 0.4], {10: 0.4, 20: 0.4, 40: 0.6, 60: 0.8, 80: 0.85, 100: 0.9, 105: 0.9}),
    # The middle lies below the line between the ends, which is better than it.
    ([0.8, 0.5, 0.4], {20: 0.4, 40: 0.5, 60: 0.6, 100: 0.8}),
    # What costs more and answers worse is never bought.
    ([0.5, 0.8, 0.4], {40: 0.6, 60: 0.8, 80: 0.8, 100: 0.8}),
    ([0.5, 0.5, 0.5], {20: 0.5, 70: 0.5}),
])
def test_best_random_mix_by_hand(accuracy, by_budget):
    budgets = np.array(list(by_budget), float)
    accuracy = np.array(accuracy)
    found = policies.best_random_mix(CLASSIFIER, accuracy, budgets)
    np.testing.assert_allclose(found, list(by_budget.values()))
    # One by one, and with the resolutions in another order.
    np.testing.assert_allclose(
        [policies.best_random_mix(CLASSIFIER[::-1], accuracy[::-1], each) for each in budgets],
        found)


def test_best_random_mix_of_many_accuracies():
    accuracy = np.array([[0.9, 0.8, 0.4], [0.8, 0.5, 0.4]])
    found = policies.best_random_mix(CLASSIFIER, accuracy, np.array([40.0, 60.0]))
    np.testing.assert_allclose(found, [0.6, 0.6])


def test_cross_fit_by_hand():
    def result(name, right, cost):
        rank = 1 - np.array(right)
        return Outcome(name, np.full(6, cost // 10), rank, np.full(6, float(cost)))

    # The images of even index favour the first policy, those of odd index the second.
    results = [result("a", [1, 0, 1, 0, 1, 1], 10), result("b", [1, 1, 0, 1, 0, 1], 20)]
    picked, crossed = policies.cross_fit(results)
    assert picked == (1, 0) and crossed.name == "b / a"
    # So each half gets what was best for the other, and an honest accuracy.
    np.testing.assert_array_equal(crossed.right, [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(crossed.cost, [20, 10, 20, 10, 20, 10])
    np.testing.assert_array_equal(crossed.choice, [2, 1, 2, 1, 2, 1])
    # Where both halves agree, the policy is that one; of equals, the first.
    picked, crossed = policies.cross_fit([results[0], results[0], result("c", [0] * 6, 1)])
    assert picked == (0, 0) and crossed.name == "a" and crossed.top(1) == results[0].top(1)


@pytest.mark.parametrize(("budget", "cost", "told"), [
    (0, 65, ""), (65, 64, ""), (60, 58, "-3.3%"), (50, 52, "+4.0%"),
])
def test_a_budget_is_missed_by_more_than_two_percent(budget, cost, told):
    assert bool(policies.missed(budget, cost)) == bool(told)
    assert told in policies.missed(budget, cost)


def test_prices_rise_with_the_costs_that_they_lead_to():
    scores = np.random.default_rng(0).random((400, 3)).astype(np.float32)
    found = np.array(policies.prices(scores, COSTS))
    assert (np.diff(found[:, 0]) > 0).all() and (np.diff(found[:, 1]) < 0).all()
    assert found[0, 0] == 25 and found[-1, 0] == 105
    # Between two of them a price in between costs what was asked for, nearly.
    for budget in (31.0, 47.0, 62.0, 88.0):
        choice = routing.choose_at(scores, COSTS.array, float(np.interp(budget, *found.T)))
        assert CLASSIFIER[choice].mean() + 5 == pytest.approx(budget, rel=0.02)


def test_the_share_of_labels_among_the_best_by_hand():
    outcome = Outcome("", np.array([0, 1, 1]), np.array([0, 2, 5]), np.ones(3))
    assert [outcome.top(k) for k in (1, 2, 3, 5, 6)] == pytest.approx([1/3, 1/3, 2/3, 2/3, 1])
    np.testing.assert_allclose(outcome.mix(3), [1 / 3, 2 / 3, 0])


@pytest.mark.parametrize("target", [0, 25, 65, 105])
def test_targets_that_routing_can_meet(target):
    COSTS.check_budget(target)


@pytest.mark.parametrize("target", [20, 24.9, 105.2, 1e9])
def test_targets_that_it_cannot_meet_are_told_with_the_range(target):
    message = r"expected 2\.5e-08 \(.*8 px for all\) to 1\.05e-07 \(.*16 px for all\)"
    with pytest.raises(UserError, match=message):
        COSTS.check_budget(target)
