"""Policies: ways to spend a budget on images, read off a table of what every resolution answers.

Nothing is run here: what a policy makes of each image follows from the predictor's scores and the
classifier's answers at every resolution. `evaluate` runs some of them for real.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.evaluation.table import Table
from drnet_jax.formatting import short
from drnet_jax.routing import Cascade


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy makes of each of N images."""

    name: str
    choice: np.ndarray  # int [N], index of the resolution whose answer counts (the last)
    rank: np.ndarray  # int [N], of the label in that answer: 0 is right
    cost: np.ndarray  # float64 [N], multiply-adds of all that is run for the image

    @property
    def right(self) -> np.ndarray:
        """bool [N]: whether the answer is the label."""
        return self.rank == 0

    def top(self, k: int) -> float:
        """The share of the images whose label is among the k best classes."""
        return float((self.rank < k).mean())

    def mean_cost(self) -> float:
        """Multiply-adds of an image."""
        return float(self.cost.mean())

    def mix(self, resolutions: int) -> np.ndarray:
        """float64 [R]: the share of the images at each resolution."""
        return np.bincount(self.choice, minlength=resolutions) / len(self.choice)


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


def prices(scores: np.ndarray, costs: Costs, points: int = 33) -> list[list[float]]:
    """Mean multiply-adds of routing, the predictor included, over its price: [points, 2].

    Rising in cost, for budgets evenly from the cheapest resolution to the dearest.
    """
    least, most = min(costs.classifier), max(costs.classifier)
    found = {}
    for budget in np.linspace(least, most, points):
        # A hair more, as means are rounded: else the dearest mix of all is never reached.
        price = routing.find_price(scores, costs.array, float(budget) * (1 + 1e-6))
        choice = routing.choose_at(scores, costs.array, price)
        found[float(np.array(costs.classifier, float)[choice].mean() + costs.predictor)] = price
    return [[cost, found[cost]] for cost in sorted(found)]


def missed(budget: float, cost: float) -> str:
    """Why routing that costs `cost` misses a budget by more than 2 %; "" if it does not."""
    if not budget or abs(cost - budget) <= 0.02 * budget:
        return ""
    return (
        f"routing costs {cost / budget - 1:+.1%} of the {short(budget)} that were asked for, and "
        "no price comes closer from below: too many images have nearly the same scores, so that "
        "they change their resolution together"
    )


def at_choice(
    name: str, table: Table, costs: Costs, choice: np.ndarray, with_predictor: bool = False
) -> Outcome:
    """Each image where a table of choices, int [N], sends it; the predictor's cost on request."""
    spent = np.array(costs.classifier, float)[choice] + costs.predictor * with_predictor
    return Outcome(name, choice, table.rank[np.arange(len(choice)), choice], spent)


def fixed(table: Table, costs: Costs, index: int) -> Outcome:
    """Every image at one resolution."""
    everywhere = np.full(len(table.label), index)
    return at_choice(f"fixed {costs.resolutions[index]}", table, costs, everywhere)


def routed(table: Table, costs: Costs, price: float) -> Outcome:
    """Each image where the predictor sends it at a price."""
    choice = routing.choose_at(table.scores, costs.array, price)
    return at_choice("routed", table, costs, choice, with_predictor=True)


def oracle(table: Table, costs: Costs) -> Outcome:
    """Each image at the cheapest resolution that answers it right, labels being known."""
    return at_choice("oracle", table, costs, oracle_choice(table.right, np.array(costs.classifier)))


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


def cascaded(table: Table, costs: Costs, cascade: Cascade) -> Outcome:
    """Each image through a cascade; every pass is paid for."""
    low, high = cascade.low, cascade.high
    again = table.confidence[:, low] < cascade.threshold
    second = table.fused_rank[:, low, high] if cascade.fused else table.rank[:, high]
    return Outcome(
        "cascade " + cascade.name(costs.resolutions),
        np.where(again, high, low),
        np.where(again, second, table.rank[:, low]),
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


def cross_fit(outcomes: Sequence[Outcome]) -> tuple[tuple[int, int], Outcome]:
    """The best policy, chosen for each half of the images by the labels of the other half.

    The halves are the images of even and of odd index. The choice of a policy is a fit to labels,
    so its accuracy counts on images that had no say in it. Prices and thresholds are met on all
    images together, so that a policy's cost on one half may lie a little off the budget.

    Returns:
        Which outcome each half gets, and what that makes of all images.
    """
    half = np.arange(len(outcomes[0].rank)) % 2
    # The first of equals, so that the order of the policies is a preference.
    tops = [[outcome.right[half == side].mean() for outcome in outcomes] for side in (0, 1)]
    picked = (int(np.argmax(tops[1])), int(np.argmax(tops[0])))
    names = dict.fromkeys(outcomes[which].name for which in picked)
    choice, rank, cost = (
        np.where(half == 0, *(getattr(outcomes[which], name) for which in picked))
        for name in ("choice", "rank", "cost")
    )
    return picked, Outcome(" / ".join(names), choice, rank, cost)
