"""Curve: accuracy over cost, of every policy at every budget, as files and a picture."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drnet_jax.cost import Costs
from drnet_jax.drnet import PREDICTOR
from drnet_jax.evaluation import intervals, policies
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Table
from drnet_jax.formatting import by_option, interval, short
from drnet_jax.formatting import table as text_table

POINTS = 60  # budgets, evenly from the cheapest option to the dearest
SHOWN = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)  # of the base's cost: the budgets also printed


def sweep(table: Table, costs: Costs, seed: int, rule: str) -> dict[str, Any]:
    """Every policy at every budget.

    Args:
        table: of the images to go through.
        costs: of the model, with several options.
        seed: of the bootstrap.
        rule: of the cascades.

    Returns:
        What curve.json holds (docs/files.md): "resolutions"; "options"; "fixed", by option, and
        "oracle", each {"top1", "multiply_adds"}; "predictor", its multiply-adds; "missed", why a
        budget cannot be met, where there is one; and "points", for which see `_point`, each with
        "gains", {"value", "interval"} of "routed" and "best_policy" over the best random mix of all
        options, and, as "..._over_resolution_mix", of the resolutions alone; and of
        "routed_over_cascade", routing less the best cascade. Of what a budget does not pay for
        there is None.
    """
    passes, base = costs.passes, costs.classifier[0]
    least, most = passes.min(), passes.max()
    shown = np.array([share * base for share in SHOWN if least <= share * base <= most])
    points, outcomes = zip(*(
        _point(table, costs, float(budget), rule)
        for budget in np.union1d(np.linspace(least, most, POINTS), shown)
    ), strict=True)
    missed = list(filter(None, (
        policies.missed(point["budget"], point["policies"]["routed"]["multiply_adds"])
        for point in points if point["policies"]["routed"] and costs.can_cost(point["budget"])
    )))
    return {
        "resolutions": list(costs.resolutions),
        "options": list(costs.options),
        "fixed": {
            name: _figures(policies.fixed(table, costs, option))
            for option, name in enumerate(costs.options)
        },
        "oracle": _figures(policies.oracle(table, costs)),
        "predictor": costs.predictor,
        **({"missed": missed[0]} if missed else {}),
        "points": [
            point | {"gains": gains}
            for point, gains in zip(points, _gains(table, outcomes, costs, seed), strict=True)
        ],
    }


Found = dict[str, Outcome | None]  # "routed", "best_cascade" and "best_policy"


def _point(
    table: Table, costs: Costs, budget: float, rule: str
) -> tuple[dict[str, Any], Found]:
    """All policies at a budget of multiply-adds, and what the best of them make of it.

    "budget"; "of_base", its share of the base's cost; "price" and "mix" of routing; "policies",
    {"top1", "multiply_adds"} of "routed", "foresight" (see `policies`), "random_same_mix" (a random
    mix of its proportions), "random_best_mix" (see `best_random_mix`; of all options, and as
    "random_best_resolution_mix" of the resolutions alone), each cascade, "best_cascade" and
    "best_policy" (routed or a cascade), both chosen by cross-fitting, with "is", which these are.
    Of what the budget does not pay for there is None.
    """
    fixed = table.right.mean(axis=0)
    routed, price, mix, foresight = None, None, None, None
    # No price is found where not even the cheapest option is paid for.
    if budget >= costs.routed.min():
        price = policies.price_for(table.scores, costs, budget)
        routed = policies.routed(table, costs, price)
        mix = routed.mix(len(costs.options))
        foresight = policies.foresight(table, costs, budget)
    figures: dict[str, Any] = {
        "routed": _figures(routed),
        "foresight": _figures(foresight),
        "random_same_mix": None if mix is None else {
            "top1": float(mix @ fixed), "multiply_adds": float(mix @ costs.passes)
        },
        **{
            {"options": "random_best_mix", "resolutions": "random_best_resolution_mix"}[name]:
            None if budget < passes.min()
            else {
                "top1": float(policies.best_random_mix(passes, fixed[: len(passes)], budget)),
                "multiply_adds": budget,
            }
            for name, passes in intervals.mixes(costs).items()
        },
    }
    cascades = []
    for cascade in policies.cascades(costs, rule):
        found = policies.with_threshold(cascade, table, costs, budget)
        outcome = found and policies.cascaded(table, costs, found)
        figures[f"cascade_{cascade.name(costs.options)}".replace(" ", "_")] = _figures(outcome)
        cascades += [outcome] if outcome else []
    best: Found = {"routed": routed}
    for name, outcomes in (
        ("best_cascade", cascades), ("best_policy", ([routed] if routed else []) + cascades),
    ):
        best[name] = policies.cross_fit(outcomes)[1] if outcomes else None
        figures[name] = best[name] and _figures(best[name]) | {"is": best[name].name}
    return {
        "budget": budget,
        "of_base": budget / costs.classifier[0],
        "price": price,
        "mix": None if mix is None else by_option(costs.options, mix),
        "policies": figures,
    }, best


def _gains(
    table: Table, points: Sequence[Found], costs: Costs, seed: int
) -> list[dict[str, dict[str, Any] | None]]:
    """The "gains" of each point, see `sweep`."""
    found: list[dict[str, Any]] = [{} for _ in points]

    def fill(name: str, known: Sequence[int], gain: dict[str, Any]) -> None:
        for each in found:
            each[name] = None
        for at, value, low, high in zip(known, gain["value"], *gain["interval"], strict=True):
            found[at][name] = {"value": value, "interval": [low, high]}

    for name in ("routed", "best_policy"):
        known = [at for at, point in enumerate(points) if point[name]]
        over = intervals.over_best_mix(
            table.right, [points[at][name] for at in known], costs, seed
        )
        fill(name, known, over["options"])
        fill(f"{name}_over_resolution_mix", known, over["resolutions"])
        for at in known:  # no mix of resolutions costs less than the cheapest of them
            if points[at][name].mean_cost() < min(costs.classifier):
                found[at][f"{name}_over_resolution_mix"] = None
    both = [at for at, point in enumerate(points) if point["routed"] and point["best_cascade"]]
    fill("routed_over_cascade", both, intervals.differences(
        [points[at]["routed"] for at in both], [points[at]["best_cascade"] for at in both], seed
    ))
    return found


def _figures(outcome: Outcome | None) -> dict[str, float] | None:
    return outcome and {"top1": outcome.top(1), "multiply_adds": outcome.mean_cost()}


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
    line = {name: point[name] for name in ("budget", "of_base", "price")}
    line |= {f"mix_{name}": share for name, share in (point["mix"] or {}).items()}
    for policy, figures in point["policies"].items():
        line |= {f"{policy}_{name}": value for name, value in (figures or {}).items()}
    for name, gain in point["gains"].items():
        if gain:
            low, high = gain["interval"]
            line |= {f"gain_{name}": gain["value"], f"gain_{name}_low": low,
                     f"gain_{name}_high": high}
    return line


def text_of(swept: dict[str, Any]) -> str:
    """A table of some of the budgets."""
    columns = {
        "routed": "routed", "best_cascade": "best cascade", "best_policy": "best policy",
        "random_best_mix": "best mix",
    }
    gains = {"routed": "routed's gain (95 %)", "best_policy": "best policy's gain"}
    rows = [("of base", "budget", *columns.values(), *gains.values(), "best policy is")]

    def top1(figures: dict[str, Any] | None) -> str:
        return f"{100 * figures['top1']:.2f}" if figures else "-"

    def gain(found: dict[str, Any] | None) -> str:
        return interval(found["value"], *found["interval"], "+.2f") if found else "-"

    for point in swept["points"]:
        if any(np.isclose(point["of_base"], share, rtol=1e-9) for share in SHOWN):
            rows.append((
                f"{100 * point['of_base']:.0f} %", short(point["budget"]),
                *(top1(point["policies"][name]) for name in columns),
                *(gain(point["gains"][name]) for name in gains),
                (point["policies"]["best_policy"] or {"is": "-"})["is"],
            ))
    text = (
        "top-1 % by budget; `best` of routed and the cascades is chosen for each half of the "
        "images by the other half;\ngains are over the best random mix of all options at the same "
        "cost\n" + text_table(rows)
    )
    return text + (f"\nwarning: {swept['missed']}" if "missed" in swept else "")


def draw(swept: dict[str, Any], path: Path, routed: bool) -> None:
    """Draws curve.png; `routed`: with routing, of a predictor that is trained."""
    fixed, points = swept["fixed"], swept["points"]
    base = fixed[str(swept["resolutions"][0])]["multiply_adds"]
    unit, prefix = (1e9, "G") if base >= 1e9 else (1e6, "M")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()

    def line(name: str, style: str, label: str, **how: Any) -> None:
        known = [point["policies"][name] for point in points if point["policies"][name]]
        axes.plot(
            [each["multiply_adds"] / unit for each in known],
            [100 * each["top1"] for each in known], style, label=label, **how,
        )

    if routed:
        line("routed", "-", "routed, predictor included")
        line("foresight", ":", "routed with foresight of the base's opinion", color="tab:grey")
    line("best_cascade", "-", "best cascade", color="tab:orange")
    line("random_best_mix", "k--", "best random mix of the options", linewidth=1)
    for name, each in fixed.items():
        at = each["multiply_adds"] / unit, 100 * each["top1"]
        axes.plot(*at, "ko")
        label = name if name == PREDICTOR else f"{name} px"
        axes.annotate(label, at, xytext=(4, -12), textcoords="offset points", fontsize=8)
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
