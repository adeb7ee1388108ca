"""Dial: what a model costs, and how often it is right, at each of its settings.

A setting is a policy: routing at a price, or a cascade with a threshold. A dial is what some images
told of several, from the cheapest to the dearest; a budget of multiply-adds or of milliseconds, or
an accuracy that is asked for, is read off it. Axes as in `drnet_jax.buckets`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from drnet_jax.errors import UserError
from drnet_jax.routing import Cascade

Policy = float | Cascade  # the price at which options are charged, or a cascade


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """{"price": ...} or {"cascade": {...}}."""
    if isinstance(policy, Cascade):
        return {"cascade": dataclasses.asdict(policy)}
    return {"price": policy}


def policy_from_json(values: Mapping[str, Any]) -> Policy:
    """The inverse of `policy_to_json`; what else there is is not looked at."""
    cascade = values.get("cascade")
    return values["price"] if cascade is None else Cascade(
        tuple(cascade["options"]), cascade["rule"], cascade["threshold"]
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """A policy, and what images told of it."""

    policy: Policy
    # [R + 1]: share of the images that the classifier ran for at each resolution, and predictor.
    passes: tuple[float, ...]
    top1: float  # accuracy on those images

    def cost(self, each: Sequence[float]) -> float:
        """The mean of an image, of what a pass costs at each resolution and of the predictor."""
        return float(np.dot(self.passes, each))

    def to_json(self) -> dict[str, Any]:
        return policy_to_json(self.policy) | {"passes": list(self.passes), "top1": self.top1}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Setting":
        """The inverse of `to_json`."""
        return cls(policy_from_json(values), tuple(values["passes"]), values["top1"])


@dataclasses.dataclass(frozen=True)
class Dial:
    """Settings of one kind of policy, rising in multiply-adds."""

    settings: tuple[Setting, ...]

    def at_cost(
        self, budget: float, each: Sequence[float], name: str, text: Callable[[float], str]
    ) -> Policy:
        """The policy that costs `budget` on average, on images like those of the dial.

        Args:
            budget: mean of an image.
            each: [R + 1], what a pass costs at each resolution, and of the predictor.
            name: of the flag or argument that asks, for messages.
            text: a cost in its unit.

        Raises:
            UserError: if no setting costs that.
        """
        costs = self._rising(each)
        low, high = costs[0], costs[-1]
        # A hair more on both sides, so that the ends as they are printed will do.
        if not 0.999 * low <= budget <= 1.001 * high:
            raise UserError(
                f"{name}: expected {text(low)} to {text(high)}, received {text(budget)}"
            )
        above = int(np.searchsorted(costs, budget))
        if above == 0 or above == len(costs) or costs[above] == budget:
            return self.settings[min(above, len(costs) - 1)].policy
        below, beyond = self.settings[above - 1].policy, self.settings[above].policy
        if costs[above - 1] >= 0.99 * budget:  # such as what was found for this very budget
            return below
        share = (budget - costs[above - 1]) / (costs[above] - costs[above - 1])
        return _between(below, beyond, float(share))

    def converted(self, budget: float, each: Sequence[float], into: Sequence[float]) -> float:
        """What images cost by `into`, [R + 1], that cost `budget` by `each`; see `at_cost`."""
        return float(np.interp(budget, self._rising(each), self._rising(into)))

    def _rising(self, each: Sequence[float]) -> np.ndarray:
        """What the settings cost, float64 [settings]."""
        # What takes longer is not always what has more multiply-adds: the dearer of the two counts.
        return np.maximum.accumulate([setting.cost(each) for setting in self.settings])

    def at_accuracy(self, top1: float, name: str) -> Policy:
        """The cheapest policy that was right so often; raises UserError if none was."""
        for setting in self.settings:
            if setting.top1 >= top1:
                return setting.policy
        best = max(setting.top1 for setting in self.settings)
        raise UserError(
            f"{name}: expected at most {best:.4g}, which was reached, received {top1:g}"
        )

    def most_accurate(self) -> Policy:
        """The cheapest of those that were right most often."""
        return max(self.settings, key=lambda setting: setting.top1).policy


Dials = Mapping[str, Dial]  # by kind of policy, "router" or "cascade"


def to_json(dials: Dials) -> dict[str, list[dict[str, Any]]]:
    return {kind: [each.to_json() for each in dial.settings] for kind, dial in dials.items()}


def from_json(values: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Dial]:
    """The inverse of `to_json`."""
    return {kind: Dial(tuple(map(Setting.from_json, each))) for kind, each in values.items()}


def milliseconds_of(budget: float | str | None) -> float | None:
    """12.0 of "12ms"; None of a number, or of one as text; raises UserError of anything else."""
    if not isinstance(budget, str):
        return None
    number, unit = (budget[:-2], "ms") if budget.endswith("ms") else (budget, "")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise UserError(
            f"budget: expected a number of multiply-adds, or milliseconds such as 12ms, received "
            f"{budget!r}"
        )
    return value if unit else None


def _between(below: Policy, beyond: Policy, share: float) -> Policy:
    """A policy between two neighbours: of different cascades the cheaper one."""
    if not isinstance(below, Cascade):
        return below + share * (beyond - below)
    if below.options != beyond.options or not np.isfinite(beyond.threshold):
        return below
    threshold = below.threshold + share * (beyond.threshold - below.threshold)
    return dataclasses.replace(below, threshold=threshold)
