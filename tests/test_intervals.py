"""Intervals that are known, and gains by hand."""

import dataclasses

import numpy as np
import pytest

from drnet_jax.evaluation import intervals
from drnet_jax.evaluation.policies import Outcome
from tests.test_policies import ANSWERING, OWN, right_of
from tests.test_table import table_of
from tests.tiny import COSTS, RIGHT

CHOICE = np.array([2, 1, 2, 0, 2, 2])


def routed(choice=CHOICE):
    return RIGHT[np.arange(6), choice]


def test_gains_by_hand():
    found = intervals.router_gains(RIGHT, CHOICE, routed(), COSTS, seed=0)
    values = {name: value["value"] for name, value in found.items()}
    # Fixed: 4, 3 and 2 of six. Routed: 4 of six, at (100 + 60 + 4 * 20) / 6 = 40 and the predictor.
    same = (4 / 6 + 3 / 6 + 4 * 2 / 6) / 6
    line = (2 + 2 * (45 - 20) / 80) / 6  # all three lie on one line
    # The oracle: 5 of six, at (20 + 60 + 20 + 100 + 20 + 60) / 6.
    of_oracle = 5 / 6 - (2 + 2 * (280 / 6 - 20) / 80) / 6
    assert values == pytest.approx({
        "top1": 4 / 6, "over_same_mix": 4 / 6 - same, "over_best_mix": 4 / 6 - line,
        "over_resolution_mix": 4 / 6 - line, "of_oracle": (4 / 6 - line) / of_oracle,
    })
    for value in found.values():
        low, high = value["interval"]
        assert low <= value["value"] <= high and low < high


OWN_CHOICE = np.array([3, 1, 3, 0, 2, 3])


def test_gains_over_mixes_with_an_answering_predictor_by_hand():
    right = OWN.right
    found = intervals.router_gains(
        right, OWN_CHOICE, right_of(OWN, OWN_CHOICE), ANSWERING, seed=0)
    values = {name: value["value"] for name, value in found.items()}
    # Fixed: 4, 3 and 2 of six, and the predictor 2, for 5. Routed: 4 of six, and each pays for 5.
    spent = (0 + 60 + 0 + 100 + 20 + 0) / 6 + 5
    same = (1 * 4 + 1 * 3 + 1 * 2 + 3 * 2) / 36
    with_predictor = (2 + 2 * (spent - 5) / 95) / 6
    without = (2 + 2 * (spent - 20) / 80) / 6
    assert with_predictor > without
    # The oracle: 5 of six, by the predictor twice and where nothing is right; it costs as much.
    oracle = 5 / 6 - (2 + 2 * ((5 + 60 + 5 + 100 + 5 + 60) / 6 - 5) / 95) / 6
    assert values == pytest.approx({
        "top1": 4 / 6, "over_same_mix": 4 / 6 - same, "over_best_mix": 4 / 6 - with_predictor,
        "over_resolution_mix": 4 / 6 - without, "of_oracle": (4 / 6 - with_predictor) / oracle,
    })


@pytest.mark.parametrize(("costs", "right", "choice"), [
    (COSTS, RIGHT, CHOICE), (ANSWERING, OWN.right, OWN_CHOICE),
], ids=["resolutions", "options"])
def test_any_policy_is_measured_as_the_router_is(costs, right, choice):
    hit = right[np.arange(6), choice]
    other = Outcome("always right", choice, np.zeros(6, int), np.full(6, 100.0))
    by_router = Outcome("routed", choice, np.where(hit, 0, 1), costs.routed[choice])
    found = intervals.over_best_mix(right, [by_router, other], costs, seed=0)
    gains = intervals.router_gains(right, choice, hit, costs, seed=0)
    for mix, name in (("options", "over_best_mix"), ("resolutions", "over_resolution_mix")):
        # The other's 2 of six are over the largest resolution's 4.
        assert found[mix]["value"] == pytest.approx([gains[name]["value"], 2 / 6])
        for ends, end in zip(found[mix]["interval"], gains[name]["interval"], strict=True):
            assert ends[0] == pytest.approx(end)


def test_differences_of_policies_by_hand():
    one = Outcome("one", CHOICE, np.array([0, 0, 0, 0, 0, 1]), np.ones(6))
    other = Outcome("other", CHOICE, np.array([1, 0, 0, 2, 3, 0]), np.ones(6))
    found = intervals.differences([one, other, one], [other, one, one], seed=0)
    # Paired: a policy against itself is surely nothing.
    assert found["value"] == pytest.approx([2 / 6, -2 / 6, 0])
    low, high = found["interval"]
    assert low[0] < 2 / 6 < high[0] and (low[2], high[2]) == (0, 0)
    assert (low[1], high[1]) == pytest.approx((-high[0], -low[0]))
    # Each as it is alone, and of none there are none.
    alone = intervals.differences([one], [other], seed=0)
    assert (alone["value"], alone["interval"]) == (
        [found["value"][0]], [[low[0]], [high[0]]])
    assert intervals.differences([], [], seed=0) == {"value": [], "interval": [[], []]}


@pytest.mark.parametrize(("margin", "expected"), [
    # Expected losses at 8 px, the third option, against 16 px: 0.1, 0.2, 0.3, 0.4.
    ([0.4, 0.3, 0.2, 0.1], 1.0),
    ([0.1, 0.2, 0.3, 0.4], -1.0),
    ([0.4, 0.1, 0.4, 0.1], np.corrcoef([1, 2, 3, 4], [-4, -1, -4, -1])[0, 1]),
    ([0.5, 0.5, 0.5, 0.5], 0.0),  # nothing to foretell
])
def test_how_well_doubt_is_foretold_by_hand(margin, expected):
    scores = np.array([[0.9, 0, 0.8, 0], [0.9, 1, 0.7, 1], [0.7, 0, 0.4, 0], [0.5, 1, 0.1, 0]])
    others = np.array([0.0, 1.0, 0.0, 1.0])
    table = table_of(
        scores.astype(np.float32), np.zeros((4, 4), int),
        np.column_stack([others, others, margin, others]))
    assert intervals.foretold(table, ANSWERING) == pytest.approx(expected, abs=1e-6)
    # A router that knows no image from another foretells nothing.
    alike = dataclasses.replace(table, scores=np.ones((4, 4), np.float32))
    assert intervals.foretold(alike, ANSWERING) == 0


def test_where_the_oracle_gains_nothing_its_share_is_none():
    everything = np.ones((6, 3), bool)
    found = intervals.router_gains(everything, CHOICE, np.ones(6, bool), COSTS, seed=0)
    assert found["of_oracle"]["value"] == 0
    assert found["over_best_mix"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert found["top1"]["interval"] == [1.0, 1.0]


def test_the_bootstrap_is_of_its_seed():
    columns = np.random.default_rng(0).random((50, 2))
    first, again = (intervals.resampled_means(columns, 3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != intervals.resampled_means(columns, 4)).any()
    assert first.shape == (intervals.RESAMPLES, 2)


def test_intervals_are_those_of_a_known_distribution():
    # The share of 400 out of 1000: the normal interval is 0.4 +- 1.96 * sqrt(0.4 * 0.6 / 1000).
    columns = (np.arange(1000) < 400)[:, None].astype(float)
    found = intervals.with_intervals(columns, lambda means: {"it": means[..., 0]}, seed=0)["it"]
    assert found["value"] == 0.4
    np.testing.assert_allclose(found["interval"], [0.4 - 0.0304, 0.4 + 0.0304], atol=0.003)


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    random, covered = np.random.default_rng(0), 0
    for seed in range(200):
        columns = (random.random((200, 1)) < 0.7).astype(float)
        found = intervals.with_intervals(columns, lambda means: {"it": means[..., 0]}, seed)["it"]
        low, high = found["interval"]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 198  # 190 expected, with a deviation of 3


def test_paired_gains_are_surer_than_accuracies():
    # Routed is right wherever fixed is, and on 5 % more: the gain hardly varies, accuracies do.
    random = np.random.default_rng(0)
    right = np.repeat(random.random((1000, 1)) < 0.5, 3, axis=1)
    better = right[:, 0] | (random.random(1000) < 0.05)
    found = intervals.router_gains(right, np.zeros(1000, int), better, COSTS, seed=0)
    widths = {name: np.ptp(value["interval"]) for name, value in found.items()}
    assert widths["over_best_mix"] < 0.5 * widths["top1"]


def test_agreement_by_hand():
    # Cheapest right: 8, 12, 8, 16, none, 12 px; chosen 8, 12, 8, 16, 8, 8.
    np.testing.assert_array_equal(
        intervals.agreement(RIGHT, CHOICE, COSTS), [[1, 0, 0], [0, 1, 1], [0, 0, 2]])


def test_agreement_with_an_answering_predictor_by_hand():
    # Cheapest right: the predictor, 12, the predictor, 16, none, 12 px; chosen p, 12, p, 16, 8, p.
    np.testing.assert_array_equal(
        intervals.agreement(OWN.right, OWN_CHOICE, ANSWERING),
        [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 2]])
