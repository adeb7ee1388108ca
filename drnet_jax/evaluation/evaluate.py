"""How good and how costly a DRNet is, under several routers."""

from typing import Any

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.evaluation import intervals, outcomes, policies
from drnet_jax.evaluation.outcomes import Batches, Outcome
from drnet_jax.evaluation.policies import Table
from drnet_jax.inference.engine import Engine

RANDOM_DRAWS = 5


def evaluate(
    engine: Engine, open_batches: Batches, costs: Costs, target: float, seed: int
) -> tuple[dict[str, Any], Outcome, Table]:
    """The evaluation of a checkpoint: every fixed resolution, routed, random, oracle, a cascade.

    Each is really run, through the same queues. The random router deals the routed choices out to
    other images, `RANDOM_DRAWS` times; one draw is run for its speed, and the accuracy of all is
    read off the fixed runs, which hold every image at every resolution. The cascade is the best
    that costs what routing does, chosen by cross-fitting (see `policies.cross_fit`). The
    predictor's cost is part of the routed cost alone: nothing else runs it.

    Args:
        engine: of the model.
        open_batches: opens the images, each once.
        costs: of the model.
        target: mean multiply-adds that routing is to cost, the predictor's included; 0 for none.
        seed: of the random router and of the bootstrap.

    Returns:
        What `eval.json` holds: "images", "batch_size", "resolutions", "policies", a list of
        {"name", "top1", "top5" (shares), "multiply_adds" (mean), "mix" ([R] shares, a cascade's
        by the last pass), "images_per_second"}, "budget" (see `_budget`), "router" (see
        `_router`); what routing did to each image; and the table that all policies can be read off.
    """
    engine.warm_up()
    scores = outcomes.all_scores(engine, open_batches())
    at = outcomes.at_every_resolution(engine, open_batches)
    label, classifier = at[0].label, np.array(costs.classifier, float)
    table = Table.of(scores, [outcome.log_p for outcome in at], label)

    def run(router: outcomes.Router) -> Outcome:
        return outcomes.run(engine, open_batches(), router)

    price = policies.price_for(scores, costs, target)
    by_predictor = run(outcomes.routed(engine, price))
    draws = [routing.shuffled(by_predictor.choice, seed + draw) for draw in range(RANDOM_DRAWS)]
    at_random = run(outcomes.given(draws[0]))
    at_best = run(outcomes.given(policies.oracle_choice(table.right, classifier)))

    def row(name: str, outcome: Outcome, extra: float = 0) -> dict[str, Any]:
        return _policy(name, outcome, classifier[outcome.choice] + extra, len(classifier))

    by_routing = row("routed", by_predictor, costs.predictor)
    spent = by_routing["multiply_adds"]
    report = {
        "images": len(label),
        "batch_size": engine.batch_size,
        "resolutions": list(costs.resolutions),
        "policies": [
            *(row(f"fixed {size}", outcome)
              for size, outcome in zip(costs.resolutions, at, strict=True)),
            by_routing,
            row("random", at_random) | _draws(at, draws),
            row("oracle", at_best),
            *_cascade(engine, open_batches, table, costs, spent),
        ],
        "budget": _budget(target, price, spent),
        "router": _router(table.right, by_predictor, costs, seed),
    }
    if by_predictor.needed_scale.any():
        scales = np.array(costs.resolutions) / costs.resolutions[0]
        enough = scales[by_predictor.choice] >= by_predictor.needed_scale - 1e-6
        report["at_or_above_needed_scale"] = float(enough.mean())
    return report, by_predictor, table


def _policy(name: str, outcome: Outcome, cost: np.ndarray, resolutions: int) -> dict[str, Any]:
    return {
        "name": name,
        "top1": float(outcome.hits(1).mean()),
        "top5": float(outcome.hits(5).mean()),
        "multiply_adds": float(cost.mean()),
        "mix": outcome.mix(resolutions).tolist(),
        "images_per_second": outcome.images_per_second,
    }


def _draws(at: list[Outcome], draws: list[np.ndarray]) -> dict[str, float]:
    """Mean and deviation of the accuracy over random draws, from the fixed runs."""
    found = {}
    for k in (1, 5):
        hits = np.stack([outcome.hits(k) for outcome in at], axis=1)  # [N, R]
        shares = [hits[np.arange(len(draw)), draw].mean() for draw in draws]
        found |= {f"top{k}": float(np.mean(shares)), f"top{k}_deviation": float(np.std(shares))}
    return found


def _cascade(
    engine: Engine, open_batches: Batches, table: Table, costs: Costs, target: float
) -> list[dict[str, Any]]:
    """The row of the best cascade that costs at most `target`; none with a single resolution.

    Besides the usual it has "cascades", their names, and "confidence": below which probability of
    the best class an image goes again, for the images of even index and for those of odd.
    """
    found = [policies.with_threshold(each, table, costs, target) for each in
             policies.cascades(costs)]
    found = [cascade for cascade in found if cascade]
    if not found:
        return []
    picked, expected = policies.cross_fit(
        [policies.cascaded(table, costs, cascade) for cascade in found]
    )
    pair = (found[picked[0]], found[picked[1]])
    outcome = outcomes.run_cascades(engine, open_batches(), pair)
    # Where an image ended says what was run for it.
    ended, classifier = outcome.choice, np.array(costs.classifier, float)
    low = np.array([cascade.low for cascade in pair])[outcome.index % 2]
    cost = classifier[low] + np.where(ended == low, 0, classifier[ended])
    row = _policy("cascade", outcome, cost, len(classifier))
    return [row | {
        "cascades": expected.name.replace("cascade ", ""),
        # Where every image goes again the threshold is infinite, and JSON knows no infinity.
        "confidence": [float(np.exp(min(cascade.threshold, 0))) for cascade in pair],
    }]


def _budget(target: float, price: float, cost: float) -> dict[str, Any]:
    """{"target", "price", "multiply_adds"}, and "missed", why if the cost is 2 % off the target."""
    found = {"target": target, "price": price, "multiply_adds": cost}
    if target and abs(cost - target) > 0.02 * target:
        found["missed"] = (
            f"routing costs {cost / target - 1:+.1%} of what was asked for, and no price comes "
            "closer from below: too many images have nearly the same scores, so that they change "
            "their resolution together"
        )
    return found


def _router(right: np.ndarray, outcome: Outcome, costs: Costs, seed: int) -> dict[str, Any]:
    """How good the choices were.

    Returns:
        {"gains" (see `intervals.router_gains`), "entropy" (of the mix, in nats), "agreement" (see
        `intervals.agreement`), "choices_by_class" ([C, R] images)}.
    """
    resolutions = right.shape[1]
    shape = (outcome.log_p.shape[1], resolutions)
    return {
        "gains": intervals.router_gains(right, outcome.choice, outcome.hits(1), costs, seed),
        "entropy": routing.entropy(outcome.mix(resolutions)),
        "agreement": intervals.agreement(right, outcome.choice, costs).tolist(),
        "choices_by_class": intervals.counts(outcome.label, outcome.choice, shape).tolist(),
    }
