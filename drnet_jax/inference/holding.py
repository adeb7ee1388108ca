"""Holding: a price that follows what images cost, so that their mean is the budget after all.

What a dial tells holds for images like those of validation, and of a thousand even of these by a
few percent: who needs much comes by chance. Here what was spent too much is saved again. Images are
best in no order: where those that need much come last, what they need is saved of them.
"""

import numpy as np

from drnet_jax import routing
from drnet_jax.cost import Costs

WINDOW = 1024  # images, the latest, by whose scores the price is found
HORIZON = 128  # images, at least, over which what was spent too much, or too little, is made up for
EVERY = 32  # images between two prices


class Holding:
    """The price for images to come; it is told of those that have come."""

    def __init__(self, price: float, costs: Costs, budget: float, lag: int):
        """Begins at a price.

        Args:
            price: that a dial gives for the budget.
            costs: of the model.
            budget: mean multiply-adds of an image, the predictor's included.
            lag: images that may be sent before it is told what those before them came to.
        """
        self.price = self._first = price
        self._horizon = max(HORIZON, 2 * lag)  # less, and it would swing
        self._charged, self._budget = costs.charged, budget - costs.predictor
        self._scores = np.zeros((0, len(costs.options)), np.float32)
        self._seen, self._spent, self._new = 0, 0.0, 0

    def saw(self, scores: np.ndarray, choice: np.ndarray) -> None:
        """Is told what the predictor says of images, float32 [N, O], and where they go, int [N]."""
        self._scores = np.concatenate([self._scores, scores])[-WINDOW:]
        self._seen += len(choice)
        self._new += len(choice)
        self._spent += float(self._charged[choice].sum())
        if self._new < EVERY:
            return
        self._new = 0
        owed = self._budget * self._seen - self._spent
        target = np.clip(
            self._budget + owed / self._horizon, self._charged.min(), self._charged.max()
        )
        # Of one size always, as the search is compiled for each: few images count several times.
        scores = np.resize(self._scores, (WINDOW, self._scores.shape[1]))
        found = routing.find_price(scores, self._charged, float(target))
        # Where all are to go to the cheapest, images to come may take more to keep there.
        self.price = max(found, self._first) if target == self._charged.min() else found
