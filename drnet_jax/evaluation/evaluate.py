"""Evaluation: how good and how costly a DRNet is, under several policies."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from drnet_jax import routing
from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch
from drnet_jax.evaluation import intervals, policies, runs
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Sample, Table, tabulate
from drnet_jax.formatting import by_option
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
    engine: Engine, batches: Iterable[Batch], images: int, budget: float, config: Config
) -> Evaluation:
    """The evaluation of a model: every fixed option, routed, random, oracle, a cascade.

    One pass over the images makes a table, off which every policy is read. For images/s, and to
    check the table, the policies then really run on a sample of the images, and the base on their
    mirror images.

    The random router deals the routed choices out to other images, `RANDOM_DRAWS` times. The
    cascade is the best that costs what routing does, chosen by cross-fitting (see
    `policies.cross_fit`). Routing pays for the predictor on every image; of the others those that
    run it do.

    Args:
        engine: of the model.
        batches: this host's share of the images, each once.
        images: in that share.
        budget: mean multiply-adds that routing is to cost, the predictor's included; 0 for none.
        config: whose `evaluation` to follow; its seed is that of the random router and of the
            bootstrap.
    """
    costs, seed = engine.costs, config.seed
    engine.warm_up()
    sample = Sample(images, max(1, config.evaluation.speed_images // jax.process_count()))
    table = tabulate(engine, sample.watch(batches))
    held = sample.batches(engine.batch_size)

    price = policies.price_for(table.scores, costs, budget)
    routed = policies.routed(table, costs, price)
    draws = [routing.shuffled(routed.choice, seed + draw) for draw in range(RANDOM_DRAWS)]
    random = policies.at_choice("random", table, draws[0], costs.passes)
    alone = [policies.fixed(table, costs, option) for option in range(len(costs.options))]
    outcomes = [*alone, random, policies.oracle(table, costs)]
    found = {each.name: runs.run(runs.given(engine, held, each.choice)) for each in outcomes}
    found["routed"] = runs.run(route(engine, held, price))

    rows = {each.name: _row(each, found[each.name], costs) for each in [*outcomes, routed]}
    rows["random"] |= _draws(table, draws)
    order = [*(each.name for each in alone), "routed", "random", "oracle"]
    spent = routed.mean_cost()
    missed = policies.missed(budget, spent)
    report = {
        "images": len(table.label),
        "batch_size": engine.batch_size,
        "resolutions": list(costs.resolutions),
        "options": list(costs.options),
        "policies": [
            *(rows[name] for name in order),
            *_cascade(engine, held, table, spent, config.evaluation.rule),
        ],
        "budget": {
            "target": budget, "price": price, "multiply_adds": spent,
            **({"missed": missed} if missed else {}),
        },
        "router": _router(table, routed, costs, seed),
        "ceilings": _ceilings(table, costs, spent, runs.run(runs.mirrored(engine, held))),
        "speed": {
            "images": len(found["routed"].index),
            "differing": runs.differing(found["routed"], table, routed),
        },
    }
    if table.needed_scale.any():
        scales = np.array(costs.resolutions) / costs.resolutions[0]
        classified = routed.choice < len(scales)  # the others were sent to no resolution
        enough = scales[routed.choice[classified]] >= table.needed_scale[classified] - 1e-6
        if classified.any():
            report["at_or_above_needed_scale"] = float(enough.mean())
    return Evaluation(report, table, routed, held)


def _row(outcome: Outcome, found: runs.PolicyRun, costs: Costs) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "top1": outcome.top(1),
        "top5": outcome.top(5),
        "multiply_adds": outcome.mean_cost(),
        "mix": by_option(costs.options, outcome.mix(len(costs.options))),
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
    engine: Engine, held: runs.Batches, table: Table, budget: float, rule: str
) -> list[dict[str, Any]]:
    """The row of the best cascade that costs at most `budget`; none with a single option.

    Besides the usual it has "cascades", their names, and "threshold", how sure an answer must be to
    be the last: both for the images of even index and for those of odd.
    """
    costs = engine.costs
    found = [policies.with_threshold(each, table, costs, budget) for each in
             policies.cascades(costs, rule)]
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
        # Where all images go through all passes, or none goes on, the threshold is infinite, and
        # JSON knows no infinity; sureness lies between 0 and 1.
        "threshold": [float(np.clip(cascade.threshold, 0, 1)) for cascade in pair],
    }]


def _router(table: Table, routed: Outcome, costs: Costs, seed: int) -> dict[str, Any]:
    """How good the choices were.

    Returns:
        {"gains" (see `intervals.router_gains`), "entropy" (of the mix, in nats), "agreement" (see
        `intervals.agreement`), "foretold" (see `intervals.foretold`)}.
    """
    return {
        "gains": intervals.router_gains(table.right, routed.choice, routed.right, costs, seed),
        "entropy": routing.entropy(routed.mix(len(costs.options))),
        "agreement": intervals.agreement(table.right, routed.choice, costs).tolist(),
        **({"foretold": intervals.foretold(table, costs)} if len(costs.resolutions) > 1 else {}),
    }


def _ceilings(
    table: Table, costs: Costs, spent: float, mirrored: runs.PolicyRun
) -> dict[str, float]:
    """Top-1 that knowledge no router has would reach, to tell what of it is luck.

    Args:
        spent: multiply-adds of an image when routed.
        mirrored: the base's answers to the mirror images of those in memory.

    Returns:
        {"foresight": of `policies.foresight`, at the cost of routing; and of the images in memory
        "resolutions": of the oracle over the resolutions, and "mirror": of an oracle over two
        passes of the base, the image and its mirror image, which differ by luck alone}.
    """
    held = np.searchsorted(table.index, mirrored.index)
    right = table.right[held, : len(costs.resolutions)]
    again = mirrored.answer == table.label[held]
    return {
        "foresight": policies.foresight(table, costs, spent).top(1),
        "resolutions": float(right.any(axis=1).mean()),
        "mirror": float((right[:, 0] | again).mean()),
    }
