"""Accuracy over cost: what every policy makes of every budget, as files and a picture."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drnet_jax import formatting, routing
from drnet_jax.cost import Costs
from drnet_jax.evaluation import intervals, policies
from drnet_jax.evaluation.policies import Result, Table

POINTS = 60  # budgets, evenly from the cheapest resolution to the dearest
SHOWN = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)  # of the base's cost: the budgets also printed


def sweep(table: Table, costs: Costs, seed: int) -> dict[str, Any]:
    """Every policy at every budget.

    Args:
        table: of the images to go through.
        costs: of the model, with several resolutions.
        seed: of the bootstrap.

    Returns:
        What curve.json holds: "resolutions"; "fixed", a list of {"top1", "multiply_adds"};
        "oracle", likewise; "predictor", its multiply-adds; and "points", for which see `_point`,
        with "gain", of the best policy over the best random mix of the same cost, and the ends of
        its 95 % interval over images, "gain low" and "gain high".
    """
    classifier = np.array(costs.classifier, float)
    least, most, base = classifier.min(), classifier.max(), classifier[0]
    shown = np.array([share * base for share in SHOWN if least <= share * base <= most])
    best = policies.oracle_choice(table.right, classifier)
    points, results = zip(*(
        _point(table, costs, float(budget))
        for budget in np.union1d(np.linspace(least, most, POINTS), shown)
    ), strict=True)
    gain = intervals.over_best_mix(table.right, results, costs, seed)
    return {
        "resolutions": list(costs.resolutions),
        "fixed": [
            {"top1": float(top1), "multiply_adds": float(cost)}
            for top1, cost in zip(table.right.mean(axis=0), classifier, strict=True)
        ],
        "oracle": {
            "top1": float(table.right.any(axis=1).mean()),
            "multiply_adds": float(classifier[best].mean()),
        },
        "predictor": costs.predictor,
        "points": [
            point | {"gain": value, "gain low": low, "gain high": high}
            for point, value, low, high in zip(
                points, gain["value"], *gain["interval"], strict=True
            )
        ],
    }


def _point(table: Table, costs: Costs, budget: float) -> tuple[dict[str, Any], Result]:
    """All policies at a budget of multiply-adds, flat, and what the best of them makes of it.

    "budget", "of_base"; "price" and "mix ..." of the routed choice; "... top1" and "... cost" of
    "routed", "same mix" (a random mix of its proportions), "best mix" (see `best_random_mix`), each
    cascade, "best cascade" and "best policy" (routed or a cascade), both chosen by cross-fitting,
    and under their bare names which these are. Numbers of policies that the budget does not pay for
    are None.
    """
    classifier, fixed = np.array(costs.classifier, float), table.right.mean(axis=0)
    point: dict[str, Any] = {"budget": budget, "of_base": budget / classifier[0]}

    routed, mix = None, None
    # No price is found where not even the cheapest resolution is paid for.
    if budget >= costs.predictor + classifier.min():
        price = policies.price_for(table.scores, costs, budget)
        choice = routing.choose_at(table.scores, costs.array, price)
        routed = policies.at_choice(table, costs, choice)
        mix = np.bincount(choice, minlength=len(classifier)) / len(choice)
    point["price"] = None if routed is None else price
    for index, resolution in enumerate(costs.resolutions):
        point[f"mix {resolution}"] = None if mix is None else float(mix[index])
    point |= _numbers("routed", routed)
    point["same mix top1"] = None if mix is None else float(mix @ fixed)
    point["same mix cost"] = None if mix is None else float(mix @ classifier)
    point["best mix top1"] = float(policies.best_random_mix(classifier, fixed, budget))
    point["best mix cost"] = budget

    cascades = []
    for cascade in policies.cascades(costs):
        found = policies.with_threshold(cascade, table, costs, budget)
        result = found and policies.cascaded(table, costs, found)
        point |= _numbers("cascade " + cascade.name(costs.resolutions), result)
        cascades += [result] if result else []
    for name, results in (
        ("best cascade", cascades), ("best policy", ([routed] if routed else []) + cascades),
    ):
        _, best = policies.cross_fit(results)
        point |= _numbers(name, best) | {name: best.name}
    return point, best


def _numbers(name: str, result: Result | None) -> dict[str, float | None]:
    return {
        f"{name} top1": result.top1() if result else None,
        f"{name} cost": result.mean_cost() if result else None,
    }


def write(swept: dict[str, Any], folder: Path) -> None:
    """Writes curve.json, curve.csv (a line a budget) and curve.png."""
    (folder / "curve.json").write_text(json.dumps(swept, indent=2) + "\n")
    with (folder / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, swept["points"][0])
        writer.writeheader()
        writer.writerows(swept["points"])
    _draw(swept, folder / "curve.png")


def text_of(swept: dict[str, Any]) -> str:
    """A table of some of the budgets."""
    columns = ("routed", "best cascade", "best policy", "same mix", "best mix")
    rows = [("of base", "budget", *columns, "gain (95 %)", "best policy is")]
    for point in swept["points"]:
        if any(np.isclose(point["of_base"], share, rtol=1e-9) for share in SHOWN):
            tops = (point[f"{name} top1"] for name in columns)
            rows.append((
                f"{100 * point['of_base']:.0f} %", formatting.short(point["budget"]),
                *("-" if top is None else f"{100 * top:.2f}" for top in tops),
                formatting.interval(point["gain"], point["gain low"], point["gain high"], "+.2f"),
                point["best policy"],
            ))
    return (
        "top-1 % by budget; `best` of routed and the cascades is chosen for each half of the "
        "images by the other half;\ngain is that of the best policy over the best random mix of "
        "the same cost\n" + formatting.table(rows)
    )


def _draw(swept: dict[str, Any], path: Path) -> None:
    fixed, points = swept["fixed"], swept["points"]
    base = fixed[0]["multiply_adds"]
    unit, prefix = (1e9, "G") if base >= 1e9 else (1e6, "M")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()

    def line(name: str, style: str, label: str) -> None:
        known = [point for point in points if point[f"{name} top1"] is not None]
        axes.plot(
            [point[f"{name} cost"] / unit for point in known],
            [100 * point[f"{name} top1"] for point in known], style, label=label,
        )

    line("routed", "-", "routed, predictor included")
    line("best cascade", "-", "best cascade")
    line("same mix", ":", "random, at the routed mix")
    axes.plot(
        [each["multiply_adds"] / unit for each in fixed], [100 * each["top1"] for each in fixed],
        "ko--", label="fixed resolutions, and random mixes between", linewidth=1,
    )
    for each, resolution in zip(fixed, swept["resolutions"], strict=True):
        axes.annotate(
            f"{resolution} px", (each["multiply_adds"] / unit, 100 * each["top1"]),
            xytext=(4, -12), textcoords="offset points", fontsize=8,
        )
    oracle = swept["oracle"]
    axes.plot(oracle["multiply_adds"] / unit, 100 * oracle["top1"], "k*", label="oracle")
    axes.set(xlabel=f"multiply-adds an image, {prefix}", ylabel="top-1, %")
    share = axes.secondary_xaxis(
        "top", functions=(lambda x: x * unit / base, lambda x: x * base / unit)
    )
    share.set_xlabel(f"share of {swept['resolutions'][0]} px for all")
    axes.margins(x=0.08)  # for the base's label
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
