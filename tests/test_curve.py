"""The curve over budgets, on the table that `test_policies` works by hand."""

import csv
import json

import numpy as np
import pytest

from drnet_jax.evaluation import curve, intervals, policies
from tests.test_policies import COSTS, TABLE
from tests.test_table import table_of

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
    assert list(swept["fixed"]) == ["16", "12", "8"]
    tops = [each["top1"] for each in swept["fixed"].values()]
    assert tops == pytest.approx([4 / 6, 3 / 6, 2 / 6])
    costs = [each["multiply_adds"] for each in swept["fixed"].values()]
    assert costs == [100, 60, 20]
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
    assert point["mix"] == pytest.approx({"16": 2 / 6, "12": 1 / 6, "8": 3 / 6})
    policies = point["policies"]
    assert policies["routed"] == pytest.approx({"top1": 3 / 6, "multiply_adds": 320 / 6 + 5})
    assert policies["random_same_mix"] == pytest.approx(
        {"top1": (2 * 4 + 1 * 3 + 3 * 2) / 36, "multiply_adds": 320 / 6})
    assert policies["random_best_mix"] == pytest.approx({"top1": 3 / 6, "multiply_adds": 60})
    # 8 px for all, and 16 px too for the two least sure: the second image and the fourth.
    assert policies["cascade_8>16"] == pytest.approx(
        {"top1": 4 / 6, "multiply_adds": 20 + 200 / 6})
    assert policies["cascade_8>16_fused"]["top1"] == pytest.approx(3 / 6)
    assert policies["cascade_12>16"]["multiply_adds"] == pytest.approx(60)


def test_what_a_budget_does_not_pay_for_is_missing(swept):
    point = swept["points"][0]  # 8 px for all, and no predictor
    figures = point["policies"]
    assert point["price"] is None and point["mix"] is None and figures["routed"] is None
    assert figures["cascade_12>16"] is None
    assert figures["cascade_8>16"]["top1"] == figures["random_best_mix"]["top1"]
    assert figures["best_policy"]["is"] == figures["best_cascade"]["is"] == "cascade 8>16"


def test_no_policy_costs_more_than_the_budget(swept):
    for point in swept["points"]:
        assert {name.replace(" ", "_") for name in CASCADES} <= {
            name.removeprefix("cascade_") for name in point["policies"]}
        for name, figures in point["policies"].items():
            # A cross-fitted one may cost a little more on one half of the images.
            if figures is not None and not name.startswith("best"):
                assert figures["multiply_adds"] <= point["budget"] * (1 + 1e-6), name


def test_the_best_policy_is_cross_fitted(swept):
    for point in swept["points"]:
        budget, outcomes = point["budget"], []
        if point["price"] is not None:
            outcomes.append(policies.routed(TABLE, COSTS, point["price"]))
        for cascade in policies.cascades(COSTS):
            fitted = policies.with_threshold(cascade, TABLE, COSTS, budget)
            outcomes += [policies.cascaded(TABLE, COSTS, fitted)] if fitted else []
        _, best = policies.cross_fit(outcomes)
        figures = point["policies"]["best_policy"]
        assert (figures["is"], figures["top1"]) == (best.name, best.top(1))
        gain = intervals.over_best_mix(TABLE.right, [best], COSTS, seed=0)
        assert point["gain"] == {
            "value": gain["value"][0], "interval": [end for end, in gain["interval"]]}


def test_budgets_that_scores_cannot_meet_are_told(swept):
    assert "nearly the same scores" in swept["missed"]
    text = curve.text_of(swept)
    assert text.splitlines()[-1].startswith("warning: routing costs ")
    many = np.random.default_rng(0).permutation(3000).reshape(-1, 3).astype(np.float32)
    table = table_of(many, np.zeros(many.shape, int), many, np.zeros((*many.shape, 3), int))
    assert "missed" not in curve.sweep(table, COSTS, seed=0)


def test_files_hold_the_same_numbers(swept, tmp_path):
    curve.write(swept, tmp_path)
    assert json.loads((tmp_path / "curve.json").read_text()) == swept
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(swept["points"])
    assert not any(" " in name for name in rows[0])
    assert rows[0]["routed_top1"] == "" and rows[-1]["mix_16"] != ""
    for row, point in zip(rows, swept["points"], strict=True):
        assert float(row["best_policy_top1"]) == point["policies"]["best_policy"]["top1"]
    curve.draw(swept, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_the_round_shares(swept):
    lines = curve.text_of(swept).splitlines()
    assert [line.split(" %")[0] for line in lines[3:11]] == [
        "40", "50", "60", "70", "75", "80", "90", "100"]
    # Of which routed, cross-fitted twice, and the two random mixes.
    assert lines[5].split()[:8] == ["60", "%", "60", "50.00", "50.00", "33.33", "47.22", "50.00"]
