"""Policies: ways to spend a budget on images, read off a table of what every option answers.

Nothing is run here: what a policy makes of each image follows from the predictor's scores and the
answers of all options. `evaluate` runs some of them for real.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs
from drnet_jax.dial import Dial, Policy, Setting
from drnet_jax.evaluation.table import Table
from drnet_jax.formatting import short
from drnet_jax.routing import Cascade


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy makes of each of N images."""

    name: str
    choice: np.ndarray  # int [N], index of the option whose answer counts (the last)
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

    def mix(self, options: int) -> np.ndarray:
        """float64 [O]: the share of the images that each option answers."""
        return np.bincount(self.choice, minlength=options) / len(self.choice)


def price_for(scores: np.ndarray, costs: Costs, budget: float) -> float:
    """The price at which routing costs at most `budget`, the predictor's included; 0 without one.

    Args:
        scores: float32 [N, O] of the images to meet the budget on. No label is looked at.
        costs: of the model.
        budget: mean multiply-adds of an image; 0 if there is none.
    """
    if not budget:
        return 0.0
    return routing.find_price(scores, costs.charged, budget - costs.predictor)


def dials(table: Table, costs: Costs, budget: float | None, rule: str) -> dict[str, Dial]:
    """Of images what their table tells of routing and of cascades; {} with a single option.

    Args:
        budget: that routing is meant to cost, 0 for none; None if the predictor is not trained.
        rule: of the cascades.
    """
    if len(costs.options) == 1:
        return {}
    found = {} if budget is None else {"router": router_dial(table, costs, budget)}
    return found | {"cascade": cascade_dial(table, costs, rule)}


def router_dial(table: Table, costs: Costs, budget: float = 0, points: int = 33) -> Dial:
    """Routing at budgets evenly from the cheapest option to the dearest, and at `budget`."""
    charged, found = costs.charged, {}
    for each in np.linspace(charged.min(), charged.max(), points):
        # A hair more, as means are rounded: else the dearest mix of all is never reached.
        price = routing.find_price(table.scores, charged, float(each) * (1 + 1e-6))
        found[routed(table, costs, price).mean_cost()] = price
    if budget and costs.can_cost(budget):
        price = price_for(table.scores, costs, budget)
        found[routed(table, costs, price).mean_cost()] = price
    return Dial(tuple(_routed_setting(table, costs, found[cost]) for cost in sorted(found)))


def _routed_setting(table: Table, costs: Costs, price: float) -> Setting:
    outcome = routed(table, costs, price)
    mix = outcome.mix(len(costs.options))[: len(costs.resolutions)]
    return Setting(price, (*mix.tolist(), 1.0), outcome.top(1))


def cascade_dial(table: Table, costs: Costs, rule: str, points: int = 33) -> Dial:
    """At budgets evenly from the cheapest option to the dearest, the cascade that is right most
    often; for that, labels are looked at.
    """
    everyone, found = cascades(costs, rule), {}
    for budget in np.linspace(costs.passes.min(), costs.passes.max(), points):
        fitting = [with_threshold(each, table, costs, budget) for each in everyone]
        outcomes = [(each, cascaded(table, costs, each)) for each in fitting if each]
        cascade, outcome = max(outcomes, key=lambda pair: pair[1].top(1))
        found[outcome.mean_cost()] = _cascade_setting(table, costs, cascade, outcome)
    return Dial(tuple(found[cost] for cost in sorted(found)))


def _cascade_setting(table: Table, costs: Costs, cascade: Cascade, outcome: Outcome) -> Setting:
    runs, left = np.zeros(len(costs.resolutions) + 1), 1.0
    for option in cascade.options:
        runs[option] = left  # the predictor as an option comes after all resolutions
        left -= float(np.mean(outcome.choice == option))
    return Setting(cascade, tuple(runs.tolist()), outcome.top(1))


def missed(budget: float, cost: float) -> str:
    """Why routing that costs `cost` misses a budget by more than 2 %; "" if it does not."""
    if not budget or abs(cost - budget) <= 0.02 * budget:
        return ""
    return (
        f"routing costs {short(cost)} multiply-adds where {short(budget)} were asked for, and "
        "no price comes closer from below: too many images have nearly the same scores, so that "
        "they change their option together"
    )


def at_choice(name: str, table: Table, choice: np.ndarray, spent: np.ndarray) -> Outcome:
    """Each image answered by the option of a table of choices, int [N].

    Args:
        spent: float64 [O], multiply-adds of an image of each option: `Costs.routed` if the
            predictor chooses, `Costs.passes` if that is known without it.
    """
    return Outcome(name, choice, table.rank[np.arange(len(choice)), choice], spent[choice])


def fixed(table: Table, costs: Costs, option: int) -> Outcome:
    """Every image by one option, for the cost of its pass alone."""
    everywhere = np.full(len(table.label), option)
    return at_choice(f"fixed {costs.options[option]}", table, everywhere, costs.passes)


def routed(table: Table, costs: Costs, price: float) -> Outcome:
    """Each image where the predictor sends it at a price."""
    choice = routing.choose_at(table.scores, costs.charged, price)
    return at_choice("routed", table, choice, costs.routed)


def outcome(table: Table, costs: Costs, policy: Policy) -> Outcome:
    """Each image by a policy."""
    if isinstance(policy, Cascade):
        return cascaded(table, costs, policy)
    return routed(table, costs, policy)


def oracle(table: Table, costs: Costs) -> Outcome:
    """Each image by the cheapest option that answers it right, labels being known."""
    choice = oracle_choice(table.right, costs.passes)
    return at_choice("oracle", table, choice, costs.passes)


def foresight(table: Table, costs: Costs, budget: float) -> Outcome:
    """Routing, for what it costs, by what no predictor can know, and no label tells.

    The scores are what the base will think of each option's answer (`Table.trust`), so that an
    image goes up only if the answers are going to differ.
    """
    scores = table.trust.astype(np.float32)
    choice = routing.choose_at(scores, costs.charged, price_for(scores, costs, budget))
    return at_choice("foresight", table, choice, costs.routed)


def cascades(costs: Costs, rule: str) -> list[Cascade]:
    """Every cascade, of any length, from cheaper options to dearer ones; without thresholds."""
    order = [int(option) for option in np.argsort(costs.passes, kind="stable")]
    return [
        Cascade(options, rule)
        for length in range(2, len(order) + 1) for options in itertools.combinations(order, length)
    ]


def with_threshold(
    cascade: Cascade, table: Table, costs: Costs, target: float
) -> Cascade | None:
    """The cascade that costs at most `target` on the images of a table, or None if it cannot.

    The threshold is the same for all passes, and halfway between two values of sureness that
    occur. No label is looked at.
    """
    first, *following = costs.passes[list(cascade.options)]
    sureness = table.sureness(cascade.rule)[:, cascade.options[:-1]]
    found = np.unique(sureness[~np.isnan(sureness)])
    # No answer is less sure than 0 but those that are no numbers: these are never sure enough.
    thresholds = np.concatenate([[0], (found[1:] + found[:-1]) / 2, [np.inf]])
    sureness = np.where(np.isnan(sureness), -np.inf, sureness)
    # An image goes on while none of its answers so far is sure enough.
    highest = np.sort(np.maximum.accumulate(sureness, axis=1), axis=0)
    gone_on = [np.searchsorted(column, thresholds) / len(column) for column in highest.T]
    cost = first + following @ np.array(gone_on)  # rises with the threshold
    # A hair more, for targets that are sums of these very costs, rounded.
    number = np.searchsorted(cost, target * (1 + 1e-9), side="right") - 1
    if number < 0:
        return None
    return dataclasses.replace(cascade, threshold=float(thresholds[number]))


def cascaded(table: Table, costs: Costs, cascade: Cascade) -> Outcome:
    """Each image through a cascade; every pass is paid for."""
    sureness, first = table.sureness(cascade.rule), cascade.options[0]
    choice = np.full(len(table.label), first)
    spent = np.full(len(choice), costs.passes[first])
    for option, following in itertools.pairwise(cascade.options):
        again = (choice == option) & ~(sureness[:, option] >= cascade.threshold)
        choice[again] = following
        spent += again * costs.passes[following]
    name = "cascade " + cascade.name(costs.options)
    return Outcome(name, choice, table.rank[np.arange(len(choice)), choice], spent)


def oracle_choice(right: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The cheapest option that answers each image right, int [N]; if none does, the cheapest.

    Args:
        right: bool [N, O].
        costs: [O], multiply-adds.
    """
    cheapest = np.argmin(np.where(right, costs, np.inf), axis=1)
    return np.where(right.any(axis=1), cheapest, np.argmin(costs))


def best_random_mix(
    costs: np.ndarray, accuracy: np.ndarray, budget: np.ndarray | float
) -> np.ndarray:
    """The accuracy of the best random mix of options that costs at most a budget.

    That is the upper concave envelope of the points (cost, accuracy) of the fixed options, level to
    the right of its highest point; a budget below the cheapest buys the cheapest.

    Args:
        costs: [O], multiply-adds of a pass of each.
        accuracy: [..., O] of the fixed options.
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
