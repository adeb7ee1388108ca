"""Intervals: what a router gains over chance, and how surely."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from drnet_jax.cost import Costs
from drnet_jax.evaluation.policies import Outcome, best_random_mix, oracle_choice
from drnet_jax.evaluation.table import Table

RESAMPLES = 1000
LEVEL = 0.95  # of the bootstrap intervals

# Means [..., K] -> numbers [...], or [..., P].
Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]


def resampled_means(columns: np.ndarray, seed: int) -> np.ndarray:
    """Means of columns [N, K] over bootstrap resamples of the rows: float64 [RESAMPLES, K]."""
    count, random = len(columns), np.random.default_rng(seed)
    # How often a resample holds each row is all that a mean needs of it.
    return np.stack([
        np.bincount(random.integers(count, size=count), minlength=count) @ columns / count
        for _ in range(RESAMPLES)
    ])


def with_intervals(
    columns: np.ndarray, statistics: Statistics, seed: int
) -> dict[str, dict[str, Any]]:
    """Statistics of the column means, each as {"value", "interval": [low, high]} (lists: [P]).

    Args:
        columns: float [N, K], one row an image.
        statistics: numbers by name, from the means of the columns.
        seed: of the resamples.
    """
    values = statistics(columns.mean(axis=0))
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        name: {
            "value": values[name].tolist(),
            "interval": np.quantile(resampled, ends, axis=0).tolist(),
        }
        for name, resampled in statistics(resampled_means(columns, seed)).items()
    }


def over_best_mix(
    right: np.ndarray, outcomes: Sequence[Outcome], costs: Costs, seed: int
) -> dict[str, Any]:
    """Each policy's top-1 less that of the best random mix of the same cost.

    Args:
        right: bool [N, O], whether each option answers each image right.
        outcomes: what P policies make of the same images.
        costs: of the model.
        seed: of the bootstrap, over images: policies, prices and thresholds stay as they are.

    Returns:
        "options": over the mix of all options, the answering predictor among them; "resolutions":
        over that of the resolutions alone; each {"value": [P], "interval": [[P], [P]]}, see
        `with_intervals`.
    """
    options = right.shape[1]

    def statistics(means: np.ndarray) -> dict[str, np.ndarray]:
        fixed, top1, spent = np.split(means, [options, options + len(outcomes)], axis=-1)
        return {
            name: top1 - best_random_mix(passes, fixed[..., None, : len(passes)], spent)
            for name, passes in mixes(costs).items()
        }

    columns = [right, *(each.right for each in outcomes), *(each.cost for each in outcomes)]
    return with_intervals(np.column_stack(columns).astype(float), statistics, seed)


def mixes(costs: Costs) -> dict[str, np.ndarray]:
    """Of which options random mixes are made, each by the multiply-adds of their passes."""
    return {"options": costs.passes, "resolutions": costs.passes[: len(costs.resolutions)]}


def differences(
    ones: Sequence[Outcome], others: Sequence[Outcome], seed: int
) -> dict[str, Any]:
    """The top-1 of P policies less that of as many others on the same images.

    Returns:
        {"value": [P], "interval": [[P], [P]]}, see `with_intervals`.
    """
    if not ones:
        return {"value": [], "interval": [[], []]}
    pairs = zip(ones, others, strict=True)
    columns = np.stack([one.right.astype(float) - other.right for one, other in pairs], axis=1)
    return with_intervals(columns, lambda means: {"top1": means}, seed)["top1"]


def router_gains(
    right: np.ndarray, choice: np.ndarray, routed_right: np.ndarray, costs: Costs, seed: int
) -> dict[str, dict[str, Any]]:
    """What routing gains, with intervals over images (the price stays as it is).

    Args:
        right: bool [N, O], whether each option answers each image right.
        choice: int [N], where the router sent it.
        routed_right: bool [N], whether it was answered right there.
        costs: of the model.
        seed: of the bootstrap.

    Returns:
        Numbers by name, see `with_intervals`: "top1"; "over_same_mix", top-1 less that of a random
        mix of the same proportions; "over_best_mix", less that of the best random mix of all
        options at the same cost, where routing pays for the predictor and the mix only where that
        answers (`best_random_mix`); "over_resolution_mix", so with the resolutions alone; and
        "of_oracle", "over_best_mix" as a share of what the oracle gains over the same mix (or over
        that of its own cost where that is higher), 0 where that is nothing.
    """
    passes, options = costs.passes, right.shape[1]
    best = oracle_choice(right, passes)
    columns = np.column_stack([
        right, choice[:, None] == np.arange(options), routed_right, right.any(axis=1),
        passes[best],
    ]).astype(float)

    def statistics(means: np.ndarray) -> dict[str, np.ndarray]:
        fixed, mix = means[..., :options], means[..., options : 2 * options]
        top1, oracle, oracle_cost = np.moveaxis(means[..., 2 * options :], -1, 0)
        spent = mix @ costs.routed
        over = {
            name: top1 - best_random_mix(of_mix, fixed[..., : len(of_mix)], spent)
            for name, of_mix in mixes(costs).items()
        }
        gain = over["options"]
        most = oracle - best_random_mix(passes, fixed, np.maximum(spent, oracle_cost))
        return {
            "top1": top1,
            "over_same_mix": top1 - (fixed * mix).sum(axis=-1),
            "over_best_mix": gain,
            "over_resolution_mix": over["resolutions"],
            "of_oracle": np.where(most > 0, gain / np.where(most > 0, most, 1), 0.0),
        }

    return with_intervals(columns, statistics, seed)


def foretold(table: Table, costs: Costs) -> float:
    """How well the predictor foretells where the smallest resolution, of several, is in doubt.

    The correlation, over images, of what it expects to lose there against the base with the doubt
    that the pass itself turns out to leave (the negative of its margin): a cascade, which makes the
    pass and looks, knows that doubt. 0 where either is the same for all images.
    """
    smallest = len(costs.resolutions) - 1
    loss = table.scores[:, 0] - table.scores[:, smallest]
    doubt = -table.margin[:, smallest]
    if loss.std() == 0 or doubt.std() == 0:
        return 0.0
    return float(np.corrcoef(loss, doubt)[0, 1])


def agreement(right: np.ndarray, choice: np.ndarray, costs: Costs) -> np.ndarray:
    """How many images whose cheapest right option is i (row) were sent to j (column).

    int [O, O], of right [N, O] and choice [N]; images that no option gets right do not count.
    """
    some = right.any(axis=1)
    cheapest = oracle_choice(right, costs.passes)
    return counts(cheapest[some], choice[some], (right.shape[1], right.shape[1]))


def counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair of a row and a column number, both int [N], comes up: int `shape`."""
    table = np.zeros(shape, int)
    np.add.at(table, (rows, columns), 1)
    return table
