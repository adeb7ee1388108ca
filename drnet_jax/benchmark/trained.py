"""Trained: what a trained model takes in milliseconds, beside how often it is right.

    drnet benchmark --latency --workdir runs/demo --data FOLDER --out runs/demo/latency

Each option by itself, and each dial at budgets evenly from its cheapest to its dearest. How often
is told by all images, those of a folder or of validation, and so is what a budget came to; time,
that of uploading, choosing, resizing and classifying until the answer is back, by some of them,
taken evenly. Reading and decoding are not in it. All is measured in turns, so that all see the same
machine.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax import routing
from drnet_jax.api import POLICIES, Model
from drnet_jax.benchmark import picture, timing
from drnet_jax.benchmark.picture import Dot, Panel, Series, hardware, latencies
from drnet_jax.cost import Costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source
from drnet_jax.devices import data_mesh
from drnet_jax.dial import Policy
from drnet_jax.environment import environment
from drnet_jax.evaluation import policies, runs
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Sample, Table, host_batches, tabulate
from drnet_jax.formatting import short
from drnet_jax.formatting import table as text_table
from drnet_jax.inference import runtimes
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine
from drnet_jax.inference.holding import Holding
from drnet_jax.inference.queues import IN_FLIGHT, cascade, route
from drnet_jax.inference.runtimes import Runtime
from drnet_jax.routing import Cascade

ALONE = 64  # images that are answered one at a time
BATCH = 32
BATCHES = 4  # that are answered at once
BUDGETS = 5  # of each dial
KINDS = {  # and what the picture calls them
    "fixed": "one option for all; between them, random mixes",
    "router": "routed, by budget",
    "cascade": "cascade, by budget",
}
STYLES = {"fixed": "fixed", "router": "drnet", "cascade": "cascade"}


@dataclasses.dataclass(frozen=True)
class Way:
    """How images are answered: all at one resolution, or by a policy."""

    policy: Policy = 0.0
    fixed: int | None = None  # index of the option, in place of a policy


def images_of(model: Model, source: Source, count: int) -> np.ndarray:
    """So many images of a source at most, taken evenly, uint8 [N, H, W, 3]."""
    sample = Sample(len(source), count)
    batches = host_batches(model.engine, source, model.config.data, model.square)
    for _ in sample.watch(batches):
        pass
    return np.concatenate([images for images, _ in sample.batches(count)])


def answering(
    engine: Engine | GraphEngine, way: Way, images: np.ndarray, size: int
) -> Callable[[], list[Any]]:
    """What answers all images: each by itself if the size is 1, else batches through queues."""
    tickets, capacity = np.arange(len(images)), engine.size_for(size)
    starts = range(0, len(images), size)
    batches = [(images[at : at + size], tickets[at : at + size]) for at in starts]
    streams = [[batch] for batch in batches] if size == 1 else [batches]
    if way.fixed is not None:
        choice = np.full(len(images), way.fixed)
        return lambda: [list(runs.given(engine, each, choice, capacity)) for each in streams]
    if isinstance(way.policy, Cascade):
        return lambda: [
            list(cascade(engine, each, [way.policy], np.zeros_like, capacity=capacity))
            for each in streams
        ]
    return lambda: [list(route(engine, each, way.policy, capacity=capacity)) for each in streams]


def milliseconds(
    calls: Sequence[Callable[[], list[Any]]], images: int, repeats: int
) -> list[dict[str, float]]:
    """Of an image the "median", "fastest" and "slowest" of the turns, for each call."""
    cases = [timing.Case("", images, call) for call in calls]
    return [
        {
            "median": 1e3 / found.median,
            "fastest": 1e3 / max(found.rates),
            "slowest": 1e3 / min(found.rates),
        }
        for found in timing.measure(cases, repeats, lambda: 0.0)
    ]


def measure(model: Model, folder: str | None, repeats: int, precision: str) -> dict[str, Any]:
    """Measures a model in every runtime that is installed.

    Args:
        model: with dials, if it has several options.
        folder: of the images, as of `Model.evaluate`; None: those of validation, of which the dials
            were made, so that nothing is learnt of other images.
        repeats: turns.
        precision: of all runtimes that know it.

    Returns:
        "environment", "checkpoint" (its step), "precision", "images" (how many, and of what),
        "base" (multiply-adds there), "batch_sizes", and "rows": of each "runtime" and way to answer
        "kind" (of KINDS), "name", "budget" (multiply-adds that were asked for; None of one option),
        "multiply_adds" (that an image took), "top1" in that runtime, "random_mix" (top-1 of the
        best random mix of options that costs as much), "held" (of the router at a budget
        "multiply_adds" and "top1" where it is held, as of `Model.predict`; else None), and
        "milliseconds", a list by batch size, as of `milliseconds`.

    Raises:
        UserError: if the images are not there, no runtime has the precision, or nothing is known of
            what policies cost.
    """
    source = model.source(folder)
    check_source(source, model.config.data, model.resolutions[0])
    names = runtimes.installed(precision)
    engines = {
        name: model.like(BATCH, Runtime(name, precision)).predicting for name in names
    }
    ways = [
        (name, *each) for name, engine in engines.items() for each in _ways(model, engine, source)
    ]
    images = images_of(model, source, BATCHES * BATCH)
    shown = {1: images[:ALONE], BATCH: images}
    times = [
        milliseconds(
            [answering(engines[name], way, shown[size], size) for name, _, way in ways],
            len(shown[size]), repeats,
        ) for size in shown
    ]
    whose = Path(folder).name if folder else "validation"
    return {
        "environment": environment(data_mesh()), "checkpoint": model.meta.step,
        "precision": precision, "images": f"{len(source)} of {whose}",
        "base": model.costs.classifier[0], "batch_sizes": list(shown),
        "rows": [
            {"runtime": name} | known | {"milliseconds": list(each)}
            for (name, known, _), each in zip(ways, zip(*times, strict=True), strict=True)
        ],
    }


def _ways(
    model: Model, engine: Engine | GraphEngine, source: Source
) -> Iterator[tuple[dict[str, Any], Way]]:
    """What is to be measured, and what the images say of it."""
    table = tabulate(engine, host_batches(engine, source, model.config.data, model.square))
    costs, fixed = model.costs, table.right.mean(axis=0)

    def known(kind: str, name: str, budget: float | None, outcome: Outcome) -> dict[str, Any]:
        spent = outcome.mean_cost()
        mix = float(policies.best_random_mix(costs.passes, fixed, spent))
        return {"kind": kind, "name": name, "budget": budget, "multiply_adds": spent,
                "top1": outcome.top(1), "random_mix": mix, "held": None}

    for option, name in enumerate(costs.options):
        yield known("fixed", name, None, policies.fixed(table, costs, option)), Way(fixed=option)
    if len(costs.options) == 1:
        return
    for kind in POLICIES[not model.predictor_trained :]:
        settings = model.dial(kind).settings
        cheapest, *_, dearest = (setting.cost(costs.networks) for setting in settings)
        for budget in np.linspace(cheapest, dearest, BUDGETS).tolist():
            policy = model.policy(budget, kind=kind)
            outcome = policies.outcome(table, costs, policy)
            name = f"{budget / costs.classifier[0]:.2f}"
            found = known(kind, name, budget, outcome)
            if kind == "router":
                holding = model.like(BATCH).holding(budget, policy)
                held = _held(table, costs, holding)
                found["held"] = {"multiply_adds": held.mean_cost(), "top1": held.top(1)}
            yield found, Way(policy)


def _held(table: Table, costs: Costs, holding: Holding) -> Outcome:
    """Where the images of a table are sent, in no order, while a budget is held."""
    order = np.random.default_rng(0).permutation(len(table.label))
    choice, waiting = np.zeros(len(order), int), []
    for batch in np.split(order, range(BATCH, len(order), BATCH)):
        choice[batch] = routing.choose_at(table.scores[batch], costs.charged, holding.price)
        waiting.append(batch)
        if len(waiting) == IN_FLIGHT:  # as in `route`
            told = waiting.pop(0)
            holding.saw(table.scores[told], choice[told])
    return policies.at_choice("held", table, choice, costs.routed)


def text(report: dict[str, Any]) -> str:
    """The report as a table."""
    base, sizes = report["base"], report["batch_sizes"]
    at_base: dict[str, list[float]] = {}
    rows = [(
        "", "asked", "spent", "top-1 %", "random mix", "held", "top-1 %",
        *(f"ms, batch {size}" for size in sizes), *("of base" for _ in sizes),
    )]
    for row in report["rows"]:
        times = [each["median"] for each in row["milliseconds"]]
        static = at_base.setdefault(row["runtime"], times)
        rows.append((
            f"{row['runtime']} {row['kind']} {row['name']}",
            "" if row["budget"] is None else f"{row['budget'] / base:.4f}",
            f"{row['multiply_adds'] / base:.4f}", f"{100 * row['top1']:.2f}",
            f"{100 * row['random_mix']:.2f}",
            *(("", "") if row["held"] is None else (
                f"{row['held']['multiply_adds'] / base:.4f}", f"{100 * row['held']['top1']:.2f}"
            )),
            *(f"{each:.3g}" for each in times),
            *(f"{each / own:.2f}" for each, own in zip(times, static, strict=True)),
        ))
    return (
        f"step {report['checkpoint']}, images: {report['images']}; asked and spent are multiply-"
        f"adds, of the base's {short(base)}; milliseconds of an image, medians, "
        f"{report['precision']}, {hardware(report['environment'])}\n{text_table(rows)}"
    )


def draw(report: dict[str, Any], folder: Path) -> None:
    """Draws accuracy over arithmetic and milliseconds, a picture a runtime: latency-RUNTIME.png."""
    for runtime in dict.fromkeys(row["runtime"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["runtime"] == runtime]
        kinds = dict.fromkeys(row["kind"] for row in rows)
        dots = {
            kind: [_dot(row, report["base"]) for row in rows if row["kind"] == kind]
            for kind in kinds
        }
        series = [Series(KINDS[kind], STYLES[kind], dots[kind]) for kind in kinds]
        picture.draw(
            folder / f"latency-{runtime}.png", series,
            [
                Panel("arithmetic", "multiply-adds an image, over those of the base"),
                *latencies(report["batch_sizes"], hardware(report["environment"])),
            ],
            f"Accuracy over cost: {runtime}, {report['precision']}, {report['images']}; of "
            "policies the budget that was asked for",
        )


def _dot(row: dict[str, Any], base: int) -> Dot:
    spent = row["multiply_adds"] / base
    return Dot(row["name"], row["top1"], *(
        (spent, *(each[name] for each in row["milliseconds"]))
        for name in ("median", "fastest", "slowest")
    ))
