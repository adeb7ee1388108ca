"""Governor: which budget requests are answered at, less of it while answers take too long."""

import time
from collections.abc import Callable

import numpy as np

from drnet_jax.dial import Policy

PERIOD = 0.5  # seconds between two moves, at least
FEWEST = 8  # answers that a 95th percentile is taken of


class Governor:
    """A budget that gives way to load, between what is configured and the cheapest there is."""

    def __init__(
        self, policy_at: Callable[[float], Policy], budget: float, cheapest: float,
        target: float | None, clock: Callable[[], float] = time.monotonic,
    ):
        """A governor at the configured budget.

        Args:
            policy_at: of a budget the policy, as `Model.policy` has it.
            budget: mean multiply-adds of an image.
            cheapest: the least that a budget can be.
            target: seconds within which 95 % of the answers are to come; None: the budget stays.
            clock: in seconds.
        """
        self._policy_at, self._cheapest, self._target, self._clock = (
            policy_at, cheapest, target, clock
        )
        self._latencies: list[float] = []  # since it last looked
        self._moved = clock()
        self.set(budget)

    def set(self, budget: float) -> None:
        """Takes another budget, from which it gives way anew; raises as `policy_at` does."""
        self.policy, self.budget, self.level = self._policy_at(budget), budget, 0.0

    @property
    def present(self) -> float:
        """The budget that is in force, in multiply-adds."""
        return self.budget + self.level * (min(self.budget, self._cheapest) - self.budget)

    def saw(self, seconds: float) -> None:
        """Is told how long an answer took."""
        if self._target is None:
            return
        self._latencies.append(seconds)
        now = self._clock()
        if now - self._moved < PERIOD or len(self._latencies) < FEWEST:
            return
        found, self._moved, self._latencies = np.quantile(self._latencies, 0.95), now, []
        # Down fast, up slowly, and nowhere in between: else it would swing.
        step = 0.2 if found > self._target else -0.05 if found < 0.7 * self._target else 0.0
        level = min(1.0, max(0.0, self.level + step))
        if level != self.level:
            self.level = level
            self.policy = self._policy_at(self.present)
