"""Policies by hand: six images at three resolutions, of cost 100, 60 and 20, and a predictor of 5.

The predictor answers in some; margins are small integers there, for all that they are below 1.
"""

import dataclasses
import itertools

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.errors import UserError
from drnet_jax.evaluation import policies
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.routing import Cascade
from tests.test_table import table_of
from tests.tiny import COSTS, RIGHT

CLASSIFIER = np.array(COSTS.classifier, float)
ANSWERING = dataclasses.replace(COSTS, classifies=True)
MARGIN = np.array([[0, 0, 5],
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


TABLE = table_of(SCORES, np.where(RIGHT, 0, 1), MARGIN)
# The same with a predictor that answers, most often wrong.
OWN = table_of(
    np.column_stack([SCORES, [0.0, 0.3, 0.8, 0.1, 0.0, 0.2]]).astype(np.float32),
    np.column_stack([TABLE.rank, [0, 1, 0, 1, 1, 1]]),
    np.column_stack([MARGIN, [9, 2, 3, 1, 5, 4]]),
)


def right_of(table, choice):
    return table.right[np.arange(6), choice]


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
    chosen = routing.choose_at(SCORES, COSTS.charged, found)
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
            choice = routing.choose_at((scores + noise).astype(np.float32), COSTS.charged, price)
            assert CLASSIFIER[choice].mean() + COSTS.predictor <= target


def test_choices_are_those_that_routing_charges_for():
    scores = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    for price in (-0.7, 0.0, 0.7):
        charged = routing.charge(scores, CLASSIFIER.astype(np.float32), price)
        choice = routing.choose_at(scores, COSTS.charged, price)
        np.testing.assert_array_equal(choice, routing.choose(charged))
        assert choice.dtype == np.int32


@pytest.mark.parametrize(("target", "price", "choice", "cost"), [
    (0.0, 0.0, [0, 1, 2, 1, 0, 2], 65),
    (45.0, 0.5, [0, 3, 3, 2, 0, 3], 220 / 6 + 5),
    (30.0, 0.75, [0, 3, 3, 2, 2, 3], 140 / 6 + 5),
    (12.0, 0.9, [3, 3, 3, 2, 2, 3], 40 / 6 + 5),
    (8.4, 1.0, [3, 3, 3, 2, 3, 3], 20 / 6 + 5),
    (5.0, 2.0, [3] * 6, 5),
    (105.0, None, [0] * 6, 105),
])
def test_routed_with_a_predictor_that_answers_by_hand(target, price, choice, cost):
    found = policies.price_for(OWN.scores, ANSWERING, target)
    if price is not None:
        assert price <= found < price + 1e-4 if target else found == 0
    outcome = policies.routed(OWN, ANSWERING, found)
    np.testing.assert_array_equal(outcome.choice, choice)
    assert outcome.mean_cost() == pytest.approx(cost)
    np.testing.assert_array_equal(outcome.right, right_of(OWN, choice))


def test_tied_scores_move_together():
    scores = np.tile(np.array([[0.9, 0.5, 0.1]], np.float32), (8, 1))
    price = policies.price_for(scores, COSTS, 90.0)
    choice = routing.choose_at(scores, COSTS.charged, price)
    assert (choice != 0).all()  # below the target, and far from it


@pytest.mark.parametrize(("target", "again", "threshold"), [
    (19.9, None, None),  # does not even pay for the first pass
    (20.0, 0, 0),
    (36.0, 0, 0),
    (20 + 100 / 6, 1, 1.5),
    (20 + 200 / 6, 2, 2.5),
    (119.9, 5, 5.5),
    (120.0, 6, np.inf),
    (500.0, 6, np.inf),
])
def test_threshold_by_hand(target, again, threshold):
    cascade = policies.with_threshold(Cascade((2, 0), "margin"), TABLE, COSTS, target)
    if again is None:
        assert cascade is None
        return
    assert cascade.threshold == threshold
    result = policies.cascaded(TABLE, COSTS, cascade)
    assert result.mean_cost() == pytest.approx(20 + again * 100 / 6)
    assert result.mean_cost() <= target + 1e-6


def test_ties_of_margins_stay_on_the_cheap_side():
    margin = np.array([[0, 0, value] for value in (1, 2, 2, 2, 3, 4)], float)
    table = dataclasses.replace(TABLE, margin=margin)
    cascade = policies.with_threshold(Cascade((2, 0), "margin"), table, COSTS, 20 + 300 / 6)
    assert policies.cascaded(table, COSTS, cascade).mean_cost() == pytest.approx(20 + 100 / 6)


@pytest.mark.parametrize(("target", "again"), [
    (20.0, None), (36.0, None),  # the image of which nothing is known goes on at any threshold
    (20 + 100 / 6, 1), (20 + 200 / 6, 2), (119.9, 5), (120.0, 6),
])
def test_what_is_no_number_is_in_doubt_and_paid_for(target, again):
    margin = MARGIN.copy()
    margin[2, 2] = np.nan  # the surest image
    table = dataclasses.replace(TABLE, margin=margin)
    cascade = policies.with_threshold(Cascade((2, 0), "margin"), table, COSTS, target)
    if again is None:
        assert cascade is None
        return
    result = policies.cascaded(table, COSTS, cascade)
    assert result.choice[2] == 0
    assert result.mean_cost() == pytest.approx(20 + again * 100 / 6)


def test_nothing_known_of_any_answer_sends_all_on():
    table = dataclasses.replace(TABLE, margin=np.full((6, 3), np.nan))
    chain = Cascade((2, 1, 0), "margin")
    assert policies.with_threshold(chain, table, COSTS, 179.0) is None
    found = policies.with_threshold(chain, table, COSTS, 180.0)
    assert policies.cascaded(table, COSTS, found).cost.tolist() == [180] * 6


def test_the_rule_says_how_sure_an_answer_is():
    table = dataclasses.replace(TABLE, probability=MARGIN[::-1])
    for rule, choice in (("margin", [2, 0, 2, 0, 0, 2]), ("probability", [2, 0, 0, 2, 0, 2])):
        result = policies.cascaded(table, COSTS, Cascade((2, 0), rule, threshold=3.5))
        assert result.name == f"cascade 8>16 by {rule}"
        np.testing.assert_array_equal(result.choice, choice)
        np.testing.assert_array_equal(result.right, right_of(TABLE, choice))
        np.testing.assert_array_equal(result.cost, np.where(np.equal(choice, 0), 120, 20))


THREE = Cascade((3, 2, 0), "margin")


def test_a_cascade_of_three_passes_by_hand():
    result = policies.cascaded(OWN, ANSWERING, dataclasses.replace(THREE, threshold=2.5))
    assert result.name == "cascade predictor>8>16 by margin"
    # The predictor doubts the second and fourth image, and of these 8 px both again.
    np.testing.assert_array_equal(result.choice, [3, 0, 3, 0, 3, 3])
    np.testing.assert_array_equal(result.cost, [5, 125, 5, 125, 5, 5])
    np.testing.assert_array_equal(result.right, [True, True, True, True, False, False])
    # At 4.5 it doubts the third, of which 8 px is sure, and the last, of which 8 px is not.
    result = policies.cascaded(OWN, ANSWERING, dataclasses.replace(THREE, threshold=4.5))
    np.testing.assert_array_equal(result.choice, [3, 0, 2, 0, 3, 0])
    np.testing.assert_array_equal(result.cost, [5, 125, 25, 125, 5, 125])
    np.testing.assert_array_equal(result.right, [True, True, True, True, False, False])


@pytest.mark.parametrize(("target", "spent", "threshold"), [
    (4.9, None, None),
    (5.0, 0, 0),
    (8.3, 0, 0),
    (8.4, 20, 1.5),  # the fourth image, of which 8 px is surer than the predictor
    (44.9, 20, 1.5),
    (45.0, 240, 2.5),  # that one goes on again, and the second image all the way
    (48.4, 260, 3.5),
    (70.0, 380, 4.5),
    (105.0, 600, 7.5),
    (124.9, 600, 7.5),
    (125.0, 720, np.inf),
])
def test_one_threshold_serves_the_whole_chain(target, spent, threshold):
    found = policies.with_threshold(THREE, OWN, ANSWERING, target)
    if spent is None:
        assert found is None
        return
    assert found.threshold == threshold
    cost = policies.cascaded(OWN, ANSWERING, found).mean_cost()
    assert cost == pytest.approx(5 + spent / 6)


def brute_force(cascade, table, costs, target):
    """The most that any threshold spends without spending more than the target; None if none."""
    values = np.unique(table.sureness(cascade.rule))
    spent = [
        policies.cascaded(table, costs, dataclasses.replace(cascade, threshold=each)).mean_cost()
        for each in (-np.inf, *values, np.inf)
    ]
    return max((each for each in spent if each <= target + 1e-9), default=None)


@pytest.mark.parametrize("rule", ["margin", "probability"])
@pytest.mark.parametrize("levels", [3, 1000])  # of sureness: with ties, and nearly without
def test_thresholds_meet_budgets_from_below_whatever_the_chain(rule, levels):
    random = np.random.default_rng(levels)
    for _ in range(3):
        table = table_of(
            np.zeros((12, 4), np.float32), random.integers(2, size=(12, 4)),
            random.integers(levels, size=(12, 4)) / levels,
            probability=random.integers(levels, size=(12, 4)) / levels,
        )
        chains = policies.cascades(ANSWERING, rule)
        assert len(chains) == 6 + 4 + 1
        for cascade, target in itertools.product(chains, (4.0, 5.0, 24.0, 41.7, 77.0, 185.0)):
            found = policies.with_threshold(cascade, table, ANSWERING, target)
            most = brute_force(cascade, table, ANSWERING, target)
            assert (found is None) == (most is None)
            if found:
                spent = policies.cascaded(table, ANSWERING, found).mean_cost()
                assert spent == pytest.approx(most) and spent <= target + 1e-9


def names_of(costs, rule="margin"):
    return [cascade.name(costs.options) for cascade in policies.cascades(costs, rule)]


def test_every_chain_is_a_cascade_from_cheap_to_dear():
    assert names_of(COSTS) == [
        "8>12 by margin", "8>16 by margin", "12>16 by margin", "8>12>16 by margin"]
    assert names_of(ANSWERING, "probability")[:3] == [
        "predictor>8 by probability", "predictor>12 by probability", "predictor>16 by probability"]
    assert names_of(ANSWERING)[-1] == "predictor>8>12>16 by margin"
    # By cost, also where the predictor is no cheaper than the smallest resolution.
    dear = dataclasses.replace(ANSWERING, predictor=30)
    assert names_of(dear)[-1] == "8>predictor>12>16 by margin"
    assert names_of(Costs((16,), (100,), 5, Parameters(0, 0, 0))) == []


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


def test_best_random_mix_against_all_mixes():
    """Of the shares, in fortieths, that four options may have."""
    shares = np.array([each for each in itertools.product(range(41), repeat=4) if sum(each) == 40])
    shares = shares / 40
    random = np.random.default_rng(0)
    for costs in (ANSWERING.passes, random.permutation([100.0, 60.0, 60.0, 5.0])):
        accuracy = random.random(4)
        of_mix, spent = shares @ accuracy, shares @ costs
        budgets = np.array([5.0, 8.0, 20.0, 41.0, 60.0, 77.0, 100.0, 130.0])
        found = policies.best_random_mix(costs, accuracy, budgets)
        for value, budget in zip(found, budgets, strict=True):
            within = of_mix[spent <= budget + 1e-9].max()
            assert within - 1e-9 <= value <= within + 1 / 40


def test_foresight_by_hand():
    # What the base thinks of each answer: a pass that answers as the base does is as good.
    trust = np.array([[0.9, 0.9, 0.9, 0.9],
                      [0.8, 0.8, 0.1, 0.1],
                      [0.7, 0.2, 0.7, 0.2],
                      [0.6, 0.1, 0.1, 0.1],
                      [0.5, 0.4, 0.3, 0.3],
                      [0.4, 0.4, 0.4, 0.0]])
    table = dataclasses.replace(OWN, trust=trust)
    found = policies.foresight(table, ANSWERING, 56.0)
    assert found.name == "foresight"
    np.testing.assert_array_equal(found.choice, [3, 1, 2, 0, 0, 2])
    assert found.mean_cost() == pytest.approx((0 + 60 + 20 + 100 + 100 + 20) / 6 + 5)
    np.testing.assert_array_equal(found.right, right_of(OWN, [3, 1, 2, 0, 0, 2]))
    # 16 px is worth 0.2 more than the predictor to the fifth image; to the second, 12 px 0.7.
    found = policies.foresight(table, ANSWERING, 54.0)
    np.testing.assert_array_equal(found.choice, [3, 1, 2, 0, 3, 2])


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
    (0, 65, ""), (65, 64, ""),
    (60, 58, "58 multiply-adds where 60 were"), (50, 52, "52 multiply-adds where 50 were"),
])
def test_a_budget_is_missed_by_more_than_two_percent(budget, cost, told):
    assert bool(policies.missed(budget, cost)) == bool(told)
    assert told in policies.missed(budget, cost)


def random_table(costs, count=400):
    random, options = np.random.default_rng(0), len(costs.options)
    return table_of(
        random.random((count, options)).astype(np.float32),
        random.integers(0, 2, (count, options)), random.random((count, options)))


@pytest.mark.parametrize(("costs", "least", "between"), [
    (COSTS, 25, (31.0, 47.0, 62.0, 88.0)),
    (ANSWERING, 5, (11.0, 31.0, 62.0, 88.0)),  # down to the predictor alone
], ids=["chooses", "answers"])
def test_a_routers_dial_reaches_from_the_cheapest_option_to_the_dearest(costs, least, between):
    table, each = random_table(costs), (*costs.classifier, costs.predictor)
    dial = policies.router_dial(table, costs, budget=40.0)
    found = [setting.cost(each) for setting in dial.settings]
    prices = [setting.policy for setting in dial.settings]
    assert (np.diff(found) > 0).all() and (np.diff(prices) < 0).all()
    assert (found[0], found[-1]) == pytest.approx((least, 105))
    # The budget of the run is met to an image, others nearly.
    assert any(cost == pytest.approx(40, abs=0.25) for cost in found)
    for budget in between:
        price = dial.at_cost(budget, each, "", str)
        outcome = policies.routed(table, costs, price)
        assert outcome.mean_cost() == pytest.approx(budget, rel=0.02)
    for setting in dial.settings:
        outcome = policies.routed(table, costs, setting.policy)
        assert setting.top1 == outcome.top(1)
        assert setting.cost(each) == pytest.approx(outcome.mean_cost())


def test_a_cascades_dial_is_of_those_that_are_right_most_often():
    table, each = random_table(ANSWERING), (*ANSWERING.classifier, ANSWERING.predictor)
    dial = policies.cascade_dial(table, ANSWERING, "margin")
    found = [setting.cost(each) for setting in dial.settings]
    assert (np.diff(found) > 0).all() and found[0] == 5
    for setting in dial.settings:
        outcome = policies.cascaded(table, ANSWERING, setting.policy)
        assert setting.top1 == outcome.top(1)
        assert setting.cost(each) == pytest.approx(outcome.mean_cost())
    # At a budget of the dial's no other cascade is right more often.
    budget = dial.settings[-1].cost(each)
    for other in policies.cascades(ANSWERING, "margin"):
        other = policies.with_threshold(other, table, ANSWERING, budget)
        assert policies.cascaded(table, ANSWERING, other).top(1) <= max(
            setting.top1 for setting in dial.settings)


def test_dials_are_of_what_is_known():
    table = random_table(ANSWERING)
    assert policies.dials(table, ANSWERING, 0, "margin").keys() == {"router", "cascade"}
    assert policies.dials(table, ANSWERING, None, "margin").keys() == {"cascade"}
    single = Costs((16,), (100,), 5, Parameters(0, 0, 0))
    assert policies.dials(table, single, 0, "margin") == {}


def test_the_share_of_labels_among_the_best_by_hand():
    outcome = Outcome("", np.array([0, 1, 1]), np.array([0, 2, 5]), np.ones(3))
    assert [outcome.top(k) for k in (1, 2, 3, 5, 6)] == pytest.approx([1/3, 1/3, 2/3, 2/3, 1])
    np.testing.assert_allclose(outcome.mix(3), [1 / 3, 2 / 3, 0])


@pytest.mark.parametrize(("costs", "target"), [
    *((COSTS, target) for target in (0, 25, 65, 105)),
    *((ANSWERING, target) for target in (0, 5, 24, 105)),
])
def test_targets_that_routing_can_meet(costs, target):
    costs.check_budget(target)


@pytest.mark.parametrize("target", [20, 24.9, 105.2, 1e9])
def test_targets_that_it_cannot_meet_are_told_with_the_range(target):
    message = r"expected 2\.5e-08 \(.*8 px for all\) to 1\.05e-07 \(.*16 px for all\)"
    with pytest.raises(UserError, match=message):
        COSTS.check_budget(target)


@pytest.mark.parametrize("target", [4.9, 105.2])
def test_the_range_of_a_predictor_that_answers_begins_with_itself(target):
    message = r"expected 5e-09 \(the predictor\) to 1\.05e-07 \(.*16 px for all\)"
    with pytest.raises(UserError, match=message):
        ANSWERING.check_budget(target)
