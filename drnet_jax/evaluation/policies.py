"""Policies of spending a budget on images, read off a table of what every resolution answers.

Nothing is run here: what a policy makes of each image follows from the predictor's scores and the
classifier's answers at every resolution. `evaluate` runs some of them for real.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.routing import Cascade, confidence, fuse


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of N images, in the order of their index in the data set."""

    scores: np.ndarray  # float32 [N, R], see `routing.scores`
    right: np.ndarray  # bool [N, R], whether the classifier's best class is the label
    confidence: np.ndarray  # float64 [N, R], see `confidence`
    fused: np.ndarray  # bool [N, R, R], whether resolutions i and j, fused, are right; i > j only

    @classmethod
    def of(cls, scores: np.ndarray, log_p: Sequence[np.ndarray], label: np.ndarray) -> "Table":
        """From scores [N, R], log-probabilities [N, C] at each resolution, and labels [N]."""
        count, resolutions = scores.shape
        fused = np.zeros((count, resolutions, resolutions), bool)
        for high, low in itertools.combinations(range(resolutions), 2):
            fused[:, low, high] = rank(fuse(log_p[low], log_p[high]), label) == 0
        return cls(
            scores,
            np.stack([rank(values, label) == 0 for values in log_p], axis=1),
            np.stack([confidence(values) for values in log_p], axis=1),
            fused,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a policy makes of each of N images."""

    name: str
    right: np.ndarray  # bool [N]
    cost: np.ndarray  # float64 [N], multiply-adds of all that is run for the image

    def top1(self) -> float:
        """The share of the images answered right."""
        return float(self.right.mean())

    def mean_cost(self) -> float:
        """Multiply-adds of an image."""
        return float(self.cost.mean())


def rank(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many classes of log_p [N, C] are at least as likely as the label, int [N]: 0 is right.

    A tie counts against the label, and so do answers that are not numbers.
    """
    own = log_p[np.arange(len(label)), label]
    return (~(log_p < own[:, None])).sum(axis=1) - 1


def price_for(scores: np.ndarray, costs: Costs, budget: float) -> float:
    """The price at which routing costs at most `budget`, the predictor's included; 0 without one.

    Args:
        scores: float32 [N, R] of the images to meet the budget on. No label is looked at.
        costs: of the model.
        budget: mean multiply-adds of an image; 0 if there is none.
    """
    if not budget:
        return 0.0
    return routing.find_price(scores, costs.array, budget - costs.predictor)


def at_choice(table: Table, costs: Costs, choice: np.ndarray) -> Result:
    """Each image where the predictor sends it, by a table of choices [N]."""
    right = table.right[np.arange(len(choice)), choice]
    return Result("routed", right, np.array(costs.classifier, float)[choice] + costs.predictor)


def cascades(costs: Costs) -> list[Cascade]:
    """Every pair of resolutions, each fused and not, without thresholds."""
    return [
        Cascade(low, high, fused)
        for high, low in itertools.combinations(range(len(costs.resolutions)), 2)
        for fused in (False, True)
    ]


def with_threshold(
    cascade: Cascade, table: Table, costs: Costs, target: float
) -> Cascade | None:
    """The cascade that costs at most `target` on the images of a table, or None if it cannot.

    As many of the least sure images as the target pays for get a second pass; the threshold lies
    halfway between the last of these and the first of the others. No label is looked at.
    """
    first, second = costs.classifier[cascade.low], costs.classifier[cascade.high]
    if target < first:
        return None
    sure = np.sort(table.confidence[:, cascade.low])
    # A hair more, for targets that are sums of these very costs, rounded.
    again = min(int(len(sure) * (target - first) / second + 1e-6), len(sure))
    ends = np.concatenate([[-np.inf], sure, [np.inf]])[again : again + 2]
    return dataclasses.replace(cascade, threshold=float(ends.mean()))


def cascaded(table: Table, costs: Costs, cascade: Cascade) -> Result:
    """Each image through a cascade; every pass is paid for."""
    low, high = cascade.low, cascade.high
    again = table.confidence[:, low] < cascade.threshold
    second = table.fused[:, low, high] if cascade.fused else table.right[:, high]
    return Result(
        "cascade " + cascade.name(costs.resolutions),
        np.where(again, second, table.right[:, low]),
        costs.classifier[low] + again * float(costs.classifier[high]),
    )


def oracle_choice(right: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The cheapest resolution at which each image is right, int [N]; if none is, the cheapest.

    Args:
        right: bool [N, R].
        costs: [R], multiply-adds.
    """
    cheapest = np.argmin(np.where(right, costs, np.inf), axis=1)
    return np.where(right.any(axis=1), cheapest, np.argmin(costs))


def best_random_mix(
    costs: np.ndarray, accuracy: np.ndarray, budget: np.ndarray | float
) -> np.ndarray:
    """The accuracy of the best random mix of resolutions that costs at most a budget.

    That is the upper concave envelope of the points (cost, accuracy) of the fixed resolutions,
    level to the right of its highest point; a budget below the cheapest buys the cheapest.

    Args:
        costs: [R], multiply-adds.
        accuracy: [..., R] of the fixed resolutions.
        budget: [...], multiply-adds.
    """
    budget = np.maximum(budget, np.min(costs))
    order = np.argsort(costs)
    # The best of all lines between two points; a point is the line to itself.
    found = np.full(np.broadcast_shapes(np.shape(budget), accuracy.shape[:-1]), -np.inf)
    for i, j in itertools.combinations_with_replacement(order, 2):
        share = np.clip((budget - costs[i]) / max(costs[j] - costs[i], 1), 0, 1)
        value = accuracy[..., i] + share * (accuracy[..., j] - accuracy[..., i])
        found = np.maximum(found, np.where(budget >= costs[i], value, -np.inf))
    return found


def cross_fit(results: Sequence[Result]) -> tuple[tuple[int, int], Result]:
    """The best policy, chosen for each half of the images by the labels of the other half.

    The halves are the images of even and of odd index. The choice of a policy is a fit to labels,
    so its accuracy counts on images that had no say in it. Prices and thresholds are met on all
    images together, so that a policy's cost on one half may lie a little off the budget.

    Returns:
        Which result each half gets, and what that makes of all images.
    """
    half = np.arange(len(results[0].right)) % 2
    # The first of equals, so that the order of the policies is a preference.
    tops = [[result.right[half == side].mean() for result in results] for side in (0, 1)]
    picked = (int(np.argmax(tops[1])), int(np.argmax(tops[0])))
    names = dict.fromkeys(results[which].name for which in picked)
    right, cost = (
        np.where(half == 0, *(getattr(results[which], name) for which in picked))
        for name in ("right", "cost")
    )
    return picked, Result(" / ".join(names), right, cost)
