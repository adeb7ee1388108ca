"""The curve over budgets, on the table that `test_policies` works by hand."""

import csv
import json

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.evaluation import curve, intervals, policies
from tests.test_policies import COSTS, TABLE

CASCADES = ("12>16", "12>16 fused", "8>16", "8>16 fused", "8>12", "8>12 fused")


@pytest.fixture(scope="module")
def swept():
    return curve.sweep(TABLE, COSTS, seed=0)


def at(swept, budget):
    point, = (point for point in swept["points"] if np.isclose(point["budget"], budget))
    return point


def test_what_does_not_depend_on_the_budget(swept):
    assert swept["resolutions"] == [16, 12, 8]
    assert swept["predictor"] == 5
    assert [each["top1"] for each in swept["fixed"]] == pytest.approx([4 / 6, 3 / 6, 2 / 6])
    assert [each["multiply_adds"] for each in swept["fixed"]] == [100, 60, 20]
    assert swept["oracle"] == pytest.approx({"top1": 5 / 6, "multiply_adds": 280 / 6})


def test_budgets_are_even_and_hold_those_shown(swept):
    budgets = [point["budget"] for point in swept["points"]]
    assert budgets == sorted(set(budgets))
    assert set(np.linspace(20, 100, 60)) <= set(budgets)
    assert len(budgets) <= 60 + len(curve.SHOWN)
    for share in curve.SHOWN:
        assert at(swept, 100 * share)["of_base"] == pytest.approx(share)


def test_a_point_by_hand(swept):
    point = at(swept, 60.0)
    # The price moves the fourth image: 8 px for three, 12 px for one, 16 px for two.
    assert point["price"] == pytest.approx(0.5, abs=1e-4)
    assert [point[f"mix {size}"] for size in (16, 12, 8)] == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    assert point["routed top1"] == pytest.approx(3 / 6)
    assert point["routed cost"] == pytest.approx(320 / 6 + 5)
    assert point["same mix top1"] == pytest.approx((2 * 4 + 1 * 3 + 3 * 2) / 36)
    assert point["same mix cost"] == pytest.approx(320 / 6)
    assert point["best mix top1"] == pytest.approx(3 / 6)
    # 8 px for all, and 16 px too for the two least sure: the second image and the fourth.
    assert point["cascade 8>16 top1"] == pytest.approx(4 / 6)
    assert point["cascade 8>16 fused top1"] == pytest.approx(3 / 6)
    assert point["cascade 8>16 cost"] == pytest.approx(20 + 200 / 6)
    assert point["cascade 12>16 cost"] == pytest.approx(60)


def test_what_a_budget_does_not_pay_for_is_missing(swept):
    point = swept["points"][0]  # 8 px for all, and no predictor
    assert point["routed top1"] is None and point["price"] is None and point["mix 16"] is None
    assert point["cascade 12>16 top1"] is None
    assert point["cascade 8>16 top1"] == point["best mix top1"] == pytest.approx(2 / 6)
    assert point["best policy"] == point["best cascade"] == "cascade 8>16"


def test_no_policy_costs_more_than_the_budget(swept):
    for point in swept["points"]:
        for name in ("routed", "same mix", *(f"cascade {name}" for name in CASCADES)):
            cost = point[f"{name} cost"]
            assert cost is None or cost <= point["budget"] * (1 + 1e-6), name


def test_the_best_policy_is_cross_fitted(swept):
    for point in swept["points"]:
        budget, results = point["budget"], []
        if point["routed top1"] is not None:
            choice = routing.choose_at(TABLE.scores, COSTS.array, point["price"])
            results.append(policies.at_choice(TABLE, COSTS, choice))
        for cascade in policies.cascades(COSTS):
            fitted = policies.with_threshold(cascade, TABLE, COSTS, budget)
            results += [policies.cascaded(TABLE, COSTS, fitted)] if fitted else []
        _, best = policies.cross_fit(results)
        assert (point["best policy"], point["best policy top1"]) == (best.name, best.top1())
        gain = intervals.over_best_mix(TABLE.right, [best], COSTS, seed=0)
        assert [[point["gain"]], [point["gain low"]], [point["gain high"]]] == [
            gain["value"], *gain["interval"]]


def test_files_hold_the_same_numbers(swept, tmp_path):
    curve.write(swept, tmp_path)
    assert json.loads((tmp_path / "curve.json").read_text()) == swept
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(swept["points"])
    assert rows[0]["routed top1"] == ""
    for row, point in zip(rows, swept["points"], strict=True):
        assert float(row["best policy top1"]) == point["best policy top1"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_the_round_shares(swept):
    lines = curve.text_of(swept).splitlines()
    assert [line.split(" %")[0] for line in lines[3:]] == [
        "40", "50", "60", "70", "75", "80", "90", "100"]
    # Of which routed, cross-fitted twice, and the two random mixes.
    assert lines[5].split()[:8] == ["60", "%", "60", "50.00", "50.00", "33.33", "47.22", "50.00"]
