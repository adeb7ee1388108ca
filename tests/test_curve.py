"""The curve over budgets, on the table that `test_policies` works by hand."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from drnet_jax.evaluation import curve, intervals, policies
from tests.test_policies import ANSWERING, COSTS, OWN, TABLE
from tests.test_table import table_of

CASCADES = [f"cascade_{chain}_by_margin" for chain in ("8>12", "8>16", "12>16", "8>12>16")]


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def swept():
    return curve.sweep(TABLE, COSTS, seed=0, rule="margin")


@pytest.fixture(scope="module")
def answering():
    """With a predictor that answers."""
    return curve.sweep(OWN, ANSWERING, seed=0, rule="margin")


def at(swept, budget):
    point, = (point for point in swept["points"] if np.isclose(point["budget"], budget))
    return point


def test_what_does_not_depend_on_the_budget(swept):
    assert swept["resolutions"] == [16, 12, 8] and swept["options"] == ["16", "12", "8"]
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
    assert policies["cascade_8>16_by_margin"] == pytest.approx(
        {"top1": 4 / 6, "multiply_adds": 20 + 200 / 6})
    assert policies["cascade_12>16_by_margin"]["multiply_adds"] == pytest.approx(60)
    assert policies["random_best_resolution_mix"] == policies["random_best_mix"]


def test_what_a_budget_does_not_pay_for_is_missing(swept):
    point = swept["points"][0]  # 8 px for all, and no predictor
    figures = point["policies"]
    assert point["price"] is None and point["mix"] is None and figures["routed"] is None
    assert figures["foresight"] is None and figures["cascade_12>16_by_margin"] is None
    assert figures["cascade_8>16_by_margin"]["top1"] == figures["random_best_mix"]["top1"]
    assert figures["best_policy"]["is"] == figures["best_cascade"]["is"] == "cascade 8>12 by margin"
    gains = point["gains"]
    assert gains["routed"] is gains["routed_over_resolution_mix"] is None
    assert gains["routed_over_cascade"] is None
    assert gains["best_policy"]["value"] == pytest.approx(0)


def test_a_point_with_a_predictor_that_answers_by_hand(answering):
    assert answering["options"] == ["16", "12", "8", "predictor"]
    assert answering["fixed"]["predictor"] == pytest.approx({"top1": 2 / 6, "multiply_adds": 5})
    point = at(answering, 40.0)
    # At a price of 0.75 the fifth image goes to 8 px, as the fourth; the others by the predictor.
    assert point["mix"] == pytest.approx({"16": 1 / 6, "12": 0, "8": 2 / 6, "predictor": 3 / 6})
    figures = point["policies"]
    assert figures["routed"] == pytest.approx({"top1": 2 / 6, "multiply_adds": 140 / 6 + 5})
    assert figures["random_same_mix"] == pytest.approx(
        {"top1": (4 + 2 * 2 + 3 * 2) / 36, "multiply_adds": (100 + 40 + 15) / 6})
    # The predictor is as good as 8 px, and cheaper, so that more is left for 16 px.
    assert figures["random_best_mix"]["top1"] == pytest.approx((2 + 2 * 35 / 95) / 6)
    assert figures["random_best_resolution_mix"]["top1"] == pytest.approx((2 + 2 * 20 / 80) / 6)
    three = figures["cascade_predictor>8>16_by_margin"]
    assert three["multiply_adds"] == pytest.approx(5 + 20 / 6)


def test_the_cheapest_point_is_the_predictor_alone(answering):
    point = answering["points"][0]
    assert point["budget"] == 5 and point["mix"]["predictor"] == 1
    for name in ("routed", "best_cascade", "random_best_mix", "random_same_mix"):
        assert point["policies"][name]["top1"] == pytest.approx(2 / 6), name
    assert point["policies"]["random_best_resolution_mix"] is None
    assert point["gains"]["routed"] == {"value": 0, "interval": [0, 0]}


def test_no_policy_costs_more_than_the_budget(swept):
    for point in swept["points"]:
        assert [name for name in point["policies"] if name.startswith("cascade_")] == CASCADES
        for name, figures in point["policies"].items():
            # A cross-fitted one may cost a little more on one half of the images.
            if figures is not None and not name.startswith("best"):
                assert figures["multiply_adds"] <= point["budget"] * (1 + 1e-6), name


@pytest.mark.parametrize(("table", "costs", "which"), [
    (TABLE, COSTS, "swept"), (OWN, ANSWERING, "answering")], ids=["resolutions", "options"])
def test_the_best_policy_is_cross_fitted(table, costs, which, request):
    for point in request.getfixturevalue(which)["points"]:
        budget, routed = point["budget"], None
        if point["price"] is not None:
            routed = policies.routed(table, costs, point["price"])
        cascades = []
        for cascade in policies.cascades(costs, "margin"):
            fitted = policies.with_threshold(cascade, table, costs, budget)
            cascades += [policies.cascaded(table, costs, fitted)] if fitted else []
        _, best_cascade = policies.cross_fit(cascades)
        _, best = policies.cross_fit(([routed] if routed else []) + cascades)
        for name, expected in (("best_policy", best), ("best_cascade", best_cascade)):
            figures = point["policies"][name]
            assert (figures["is"], figures["top1"]) == (expected.name, expected.top(1))
        for name, policy in (("best_policy", best), ("routed", routed)):
            gains = policy and intervals.over_best_mix(table.right, [policy], costs, seed=0)
            for suffix, mix in (("", "options"), ("_over_resolution_mix", "resolutions")):
                if suffix and policy and policy.mean_cost() < min(costs.classifier):
                    gains = None  # no mix of resolutions is so cheap
                assert point["gains"][name + suffix] == (gains and {
                    "value": gains[mix]["value"][0],
                    "interval": [end for end, in gains[mix]["interval"]]})
        over = routed and intervals.differences([routed], [best_cascade], seed=0)
        assert point["gains"]["routed_over_cascade"] == (over and {
            "value": over["value"][0], "interval": [end for end, in over["interval"]]})


def test_budgets_that_scores_cannot_meet_are_told(swept):
    assert "nearly the same scores" in swept["missed"]
    text = curve.text_of(swept)
    assert text.splitlines()[-1].startswith("warning: routing costs ")
    many = np.random.default_rng(0).permutation(3000).reshape(-1, 3).astype(np.float32)
    table = table_of(many, np.zeros(many.shape, int), many)
    assert "missed" not in curve.sweep(table, COSTS, seed=0, rule="margin")


def test_a_hair_below_what_the_cheapest_route_costs():
    """What the rounding of a budget allows, and no routing pays for: the line has no routed point.
    """
    costs = dataclasses.replace(COSTS, predictor=40 - 20 + 1e-3)  # 40 % of the base is shown
    assert costs.can_cost(40.0) and costs.routed.min() > 40
    found = curve.sweep(TABLE, costs, seed=0, rule="margin")
    point = at(found, 40.0)
    assert point["policies"]["routed"] is point["gains"]["routed"] is point["price"] is None
    assert point["policies"]["best_cascade"] is not None


@pytest.mark.parametrize("which", ["swept", "answering"])
def test_files_hold_the_same_numbers(which, request, tmp_path):
    swept = request.getfixturevalue(which)
    curve.write(swept, tmp_path)
    assert json.loads((tmp_path / "curve.json").read_text()) == swept
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(swept["points"])
    assert not any(" " in name for name in rows[0])
    assert (rows[0]["routed_top1"] == "") == (which == "swept") and rows[-1]["mix_16"] != ""
    assert ("mix_predictor" in rows[0]) == (which == "answering")
    for row, point in zip(rows, swept["points"], strict=True):
        assert float(row["best_policy_top1"]) == point["policies"]["best_policy"]["top1"]
        gain = point["gains"]["best_policy"]
        assert [gain["value"], *gain["interval"]] == [
            float(row[f"gain_best_policy{end}"]) for end in ("", "_low", "_high")]
    curve.draw(swept, tmp_path / "curve.png", routed=True)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("routed", [True, False])
def test_routing_by_a_predictor_that_is_not_trained_is_not_drawn(swept, monkeypatch, routed):
    found = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, dpi: found.extend(
            text.get_text() for text in figure.axes[0].get_legend().get_texts()))
    curve.draw(swept, "curve.png", routed)
    assert "best cascade" in found and "oracle" in found
    assert any("routed" in label for label in found) == routed


def test_the_table_shows_the_round_shares(swept):
    lines = curve.text_of(swept).splitlines()
    assert [line.split(" %")[0] for line in lines[3:11]] == [
        "40", "50", "60", "70", "75", "80", "90", "100"]
    # Routed, cross-fitted twice, and the best random mix; then routed's gain.
    assert lines[5].split()[:8] == ["60", "%", "60", "50.00", "66.67", "50.00", "50.00", "+0.69"]
