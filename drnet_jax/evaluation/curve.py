"""Curve: accuracy over cost, of every policy at every budget, as files and a picture."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drnet_jax.cost import Costs
from drnet_jax.evaluation import intervals, policies
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Table
from drnet_jax.formatting import by_resolution, interval, short
from drnet_jax.formatting import table as text_table

POINTS = 60  # budgets, evenly from the cheapest resolution to the dearest
SHOWN = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)  # of the base's cost: the budgets also printed


def sweep(table: Table, costs: Costs, seed: int) -> dict[str, Any]:
    """Every policy at every budget.

    Args:
        table: of the images to go through.
        costs: of the model, with several resolutions.
        seed: of the bootstrap.

    Returns:
        What curve.json holds (docs/files.md): "resolutions"; "fixed", by resolution, and "oracle",
        each {"top1", "multiply_adds"}; "predictor", its multiply-adds; "missed", why a budget
        cannot be met, where there is one; and "points", for which see `_point`, each with
        "gain", {"value", "interval"}: of the best policy over the best random mix of its cost.
    """
    classifier = np.array(costs.classifier, float)
    least, most, base = classifier.min(), classifier.max(), classifier[0]
    shown = np.array([share * base for share in SHOWN if least <= share * base <= most])
    points, outcomes = zip(*(
        _point(table, costs, float(budget))
        for budget in np.union1d(np.linspace(least, most, POINTS), shown)
    ), strict=True)
    gain = intervals.over_best_mix(table.right, outcomes, costs, seed)
    missed = list(filter(None, (
        policies.missed(point["budget"], point["policies"]["routed"]["multiply_adds"])
        for point in points if costs.can_cost(point["budget"])
    )))
    return {
        "resolutions": list(costs.resolutions),
        "fixed": {
            str(size): _figures(policies.fixed(table, costs, index))
            for index, size in enumerate(costs.resolutions)
        },
        "oracle": _figures(policies.oracle(table, costs)),
        "predictor": costs.predictor,
        **({"missed": missed[0]} if missed else {}),
        "points": [
            point | {"gain": {"value": value, "interval": [low, high]}}
            for point, value, low, high in zip(
                points, gain["value"], *gain["interval"], strict=True
            )
        ],
    }


def _point(table: Table, costs: Costs, budget: float) -> tuple[dict[str, Any], Outcome]:
    """All policies at a budget of multiply-adds, and what the best of them makes of it.

    "budget"; "of_base", its share of the base's cost; "price" and "mix" of routing; "policies",
    {"top1", "multiply_adds"} of "routed", "random_same_mix" (a random mix of its proportions),
    "random_best_mix" (see `best_random_mix`), each cascade, "best_cascade" and "best_policy"
    (routed or a cascade), both chosen by cross-fitting, with "is", which these are. Of what the
    budget does not pay for there is None.
    """
    classifier, fixed = np.array(costs.classifier, float), table.right.mean(axis=0)
    routed, price, mix = None, None, None
    # No price is found where not even the cheapest resolution is paid for.
    if budget >= costs.predictor + classifier.min():
        price = policies.price_for(table.scores, costs, budget)
        routed = policies.routed(table, costs, price)
        mix = routed.mix(len(classifier))
    figures: dict[str, Any] = {
        "routed": routed and _figures(routed),
        "random_same_mix": None if mix is None else {
            "top1": float(mix @ fixed), "multiply_adds": float(mix @ classifier)
        },
        "random_best_mix": {
            "top1": float(policies.best_random_mix(classifier, fixed, budget)),
            "multiply_adds": budget,
        },
    }
    cascades = []
    for cascade in policies.cascades(costs):
        found = policies.with_threshold(cascade, table, costs, budget)
        outcome = found and policies.cascaded(table, costs, found)
        name = f"cascade_{cascade.name(costs.resolutions)}".replace(" ", "_")
        figures[name] = outcome and _figures(outcome)
        cascades += [outcome] if outcome else []
    for name, outcomes in (
        ("best_cascade", cascades), ("best_policy", ([routed] if routed else []) + cascades),
    ):
        _, best = policies.cross_fit(outcomes)
        figures[name] = _figures(best) | {"is": best.name}
    return {
        "budget": budget,
        "of_base": budget / classifier[0],
        "price": price,
        "mix": None if mix is None else by_resolution(costs.resolutions, mix),
        "policies": figures,
    }, best


def _figures(outcome: Outcome) -> dict[str, float]:
    return {"top1": outcome.top(1), "multiply_adds": outcome.mean_cost()}


def write(swept: dict[str, Any], folder: Path) -> None:
    """Writes curve.json and curve.csv, a line a budget."""
    (folder / "curve.json").write_text(json.dumps(swept, indent=2) + "\n")
    with (folder / "curve.csv").open("w", newline="") as file:
        lines = [_line(point) for point in swept["points"]]
        writer = csv.DictWriter(file, dict.fromkeys(name for line in lines for name in line))
        writer.writeheader()
        writer.writerows(lines)


def _line(point: dict[str, Any]) -> dict[str, Any]:
    """A point without groups: "routed_top1" for the "top1" of "routed", and so on."""
    low, high = point["gain"]["interval"]
    line = {name: point[name] for name in ("budget", "of_base", "price")}
    line |= {f"mix_{size}": share for size, share in (point["mix"] or {}).items()}
    for policy, figures in point["policies"].items():
        line |= {f"{policy}_{name}": value for name, value in (figures or {}).items()}
    return line | {"gain": point["gain"]["value"], "gain_low": low, "gain_high": high}


def text_of(swept: dict[str, Any]) -> str:
    """A table of some of the budgets."""
    columns = {
        "routed": "routed", "best_cascade": "best cascade", "best_policy": "best policy",
        "random_same_mix": "same mix", "random_best_mix": "best mix",
    }
    rows = [("of base", "budget", *columns.values(), "gain (95 %)", "best policy is")]
    for point in swept["points"]:
        if any(np.isclose(point["of_base"], share, rtol=1e-9) for share in SHOWN):
            figures = [point["policies"][name] for name in columns]
            rows.append((
                f"{100 * point['of_base']:.0f} %", short(point["budget"]),
                *("-" if each is None else f"{100 * each['top1']:.2f}" for each in figures),
                interval(point["gain"]["value"], *point["gain"]["interval"], "+.2f"),
                point["policies"]["best_policy"]["is"],
            ))
    text = (
        "top-1 % by budget; `best` of routed and the cascades is chosen for each half of the "
        "images by the other half;\ngain is that of the best policy over the best random mix of "
        "the same cost\n" + text_table(rows)
    )
    return text + (f"\nwarning: {swept['missed']}" if "missed" in swept else "")


def draw(swept: dict[str, Any], path: Path) -> None:
    """Draws curve.png."""
    fixed, points = list(swept["fixed"].values()), swept["points"]
    base = fixed[0]["multiply_adds"]
    unit, prefix = (1e9, "G") if base >= 1e9 else (1e6, "M")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()

    def line(name: str, style: str, label: str) -> None:
        known = [point["policies"][name] for point in points if point["policies"][name]]
        axes.plot(
            [each["multiply_adds"] / unit for each in known],
            [100 * each["top1"] for each in known], style, label=label,
        )

    line("routed", "-", "routed, predictor included")
    line("best_cascade", "-", "best cascade")
    line("random_same_mix", ":", "random, at the routed mix")
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
