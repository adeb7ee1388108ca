"""Evaluation: how good and how costly a DRNet is, under several policies."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch
from drnet_jax.evaluation import intervals, policies, runs
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Sample, Table, tabulate
from drnet_jax.formatting import by_resolution
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import route

RANDOM_DRAWS = 5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    report: dict[str, Any]  # what eval.json holds, see docs/files.md
    table: Table
    routed: Outcome
    sample: runs.Batches  # the images, of this host, that are held in memory


def evaluate(
    engine: Engine, batches: Iterable[Batch], images: int, budget: float, seed: int,
    speed_images: int,
) -> Evaluation:
    """The evaluation of a model: every fixed resolution, routed, random, oracle, a cascade.

    One pass over the images makes a table, off which every policy is read. For images/s, and to
    check the table, the policies then really run on a sample of the images.

    The random router deals the routed choices out to other images, `RANDOM_DRAWS` times. The
    cascade is the best that costs what routing does, chosen by cross-fitting (see
    `policies.cross_fit`). The predictor's cost is part of the routed cost alone: nothing else runs
    it.

    Args:
        engine: of the model.
        batches: this host's share of the images, each once.
        images: in that share.
        budget: mean multiply-adds that routing is to cost, the predictor's included; 0 for none.
        seed: of the random router and of the bootstrap.
        speed_images: how many images of all hosts are held in memory for images/s.
    """
    costs = engine.costs
    engine.warm_up()
    sample = Sample(images, max(1, speed_images // jax.process_count()))
    table = tabulate(engine, sample.watch(batches))
    held = sample.batches(engine.batch_size)

    price = policies.price_for(table.scores, costs, budget)
    routed = policies.routed(table, costs, price)
    draws = [routing.shuffled(routed.choice, seed + draw) for draw in range(RANDOM_DRAWS)]
    random = policies.at_choice("random", table, costs, draws[0])
    outcomes = [policies.fixed(table, costs, index) for index in range(len(costs.resolutions))]
    outcomes += [random, policies.oracle(table, costs)]
    found = {each.name: runs.run(runs.given(engine, held, each.choice)) for each in outcomes}
    found["routed"] = runs.run(route(engine, held, price))

    rows = {each.name: _row(each, found[each.name], costs) for each in [*outcomes, routed]}
    rows["random"] |= _draws(table, draws)
    order = [*(f"fixed {size}" for size in costs.resolutions), "routed", "random", "oracle"]
    spent = routed.mean_cost()
    missed = policies.missed(budget, spent)
    report = {
        "images": len(table.label),
        "batch_size": engine.batch_size,
        "resolutions": list(costs.resolutions),
        "policies": [
            *(rows[name] for name in order), *_cascade(engine, held, table, spent)
        ],
        "budget": {
            "target": budget, "price": price, "multiply_adds": spent,
            **({"missed": missed} if missed else {}),
        },
        "router": _router(table, routed, costs, seed),
        "speed": {
            "images": len(found["routed"].index),
            "differing": runs.differing(found["routed"], table, routed),
        },
    }
    if table.needed_scale.any():
        scales = np.array(costs.resolutions) / costs.resolutions[0]
        enough = scales[routed.choice] >= table.needed_scale - 1e-6
        report["at_or_above_needed_scale"] = float(enough.mean())
    return Evaluation(report, table, routed, held)


def _row(outcome: Outcome, found: runs.PolicyRun, costs: Costs) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "top1": outcome.top(1),
        "top5": outcome.top(5),
        "multiply_adds": outcome.mean_cost(),
        "mix": by_resolution(costs.resolutions, outcome.mix(len(costs.resolutions))),
        "images_per_second": found.images_per_second,
    }


def _draws(table: Table, draws: list[np.ndarray]) -> dict[str, float]:
    """Mean and deviation of the accuracy over random draws."""
    found = {}
    for k in (1, 5):
        shares = [
            (table.rank[np.arange(len(draw)), draw] < k).mean() for draw in draws
        ]
        found |= {f"top{k}": float(np.mean(shares)), f"top{k}_deviation": float(np.std(shares))}
    return found


def _cascade(
    engine: Engine, held: runs.Batches, table: Table, budget: float
) -> list[dict[str, Any]]:
    """The row of the best cascade that costs at most `budget`; none with a single resolution.

    Besides the usual it has "cascades", their names, and "confidence": below which probability of
    the best class an image goes again, for the images of even index and for those of odd.
    """
    costs = engine.costs
    found = [policies.with_threshold(each, table, costs, budget) for each in
             policies.cascades(costs)]
    found = [cascade for cascade in found if cascade]
    if not found:
        return []
    picked, outcome = policies.cross_fit(
        [policies.cascaded(table, costs, cascade) for cascade in found]
    )
    pair = (found[picked[0]], found[picked[1]])
    row = _row(outcome, runs.run(runs.cascaded(engine, held, pair)), costs)
    return [row | {
        "name": "cascade",
        "cascades": outcome.name.replace("cascade ", ""),
        # Where every image goes again the threshold is infinite, and JSON knows no infinity.
        "confidence": [float(np.exp(min(cascade.threshold, 0))) for cascade in pair],
    }]


def _router(table: Table, routed: Outcome, costs: Costs, seed: int) -> dict[str, Any]:
    """How good the choices were.

    Returns:
        {"gains" (see `intervals.router_gains`), "entropy" (of the mix, in nats), "agreement" (see
        `intervals.agreement`)}.
    """
    return {
        "gains": intervals.router_gains(table.right, routed.choice, routed.right, costs, seed),
        "entropy": routing.entropy(routed.mix(len(costs.resolutions))),
        "agreement": intervals.agreement(table.right, routed.choice, costs).tolist(),
    }
