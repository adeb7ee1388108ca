"""Objectives: what the predictor learns, how it chooses in training, and the losses (Eqs. 5-11).

Both objectives have the same three methods, and run on one device of a mesh with the axis `data`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from drnet_jax import routing
from drnet_jax.config import GIGA, Config
from drnet_jax.cost import Costs
from drnet_jax.devices import AXIS


class Feedback(NamedTuple):
    """What the predictor can learn from: how a device's samples were sent, and what came of it."""

    noise: jax.Array  # float32 [B, R], that `choose` was given
    choice: jax.Array  # int32 [B], that it returned
    cross_entropy: jax.Array  # float32 [B], of the classifier at the chosen resolutions
    choice_grad: jax.Array  # float32 [B, R], derivative of the mean cross-entropy with respect to h
    mix: jax.Array  # float32 [R], shares of the global batch
    count: jax.Array  # scalar, size of the global batch


@dataclasses.dataclass(frozen=True)
class GumbelObjective:
    """The paper's: straight-through Gumbel-softmax and a cost regulariser (Eqs. 6-11)."""

    costs: tuple[int, ...]  # multiply-adds of the classifier at each resolution, [R]
    alpha: float  # target in multiply-adds, predictor excluded
    eta: float
    temperature: float

    def scores(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of choosing each resolution, [B, R], of predictor logits [B, R]."""
        return routing.choice_scores(logits)

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the predictor's logits and Gumbel noise, both [B, R] (Eq. 9)."""
        return routing.choose(self.scores(logits) + noise)

    def loss(self, logits: jax.Array, feedback: Feedback) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples, from its logits, float32 [B, R].

        Returns:
            A scalar whose gradient is that of Eq. 8, and the sum that the `router_loss` metric is a
            mean of: eta * L_reg for each sample.
        """
        costs = jnp.array(self.costs, jnp.float32)  # large networks are beyond int32

        def penalty(mix: jax.Array) -> jax.Array:
            mean = mean_cost(mix, costs)
            return self.eta * cost_regulariser(mean, costs, self.alpha)

        value, mix_grad = jax.value_and_grad(penalty)(feedback.mix)
        soft = routing.relax(self.scores(logits) + feedback.noise, self.temperature)
        grad = feedback.choice_grad + mix_grad / feedback.count
        return jnp.sum(soft * grad), value * logits.shape[0]


@dataclasses.dataclass(frozen=True)
class OutcomeObjective:
    """The predictor estimates, for each resolution, the probability of a right answer.

    It learns from what became of each sample at the one resolution that it was sent to, by
    cross-entropy against the probability that the classifier gave the label. Who goes where follows
    from the estimates and a price that is set in every step so that the batch costs the target: the
    budget holds from the first step to the last, whatever the predictor believes, and no weight of
    a regulariser needs tuning. Noise on the estimates lets every resolution be tried.
    """

    costs: tuple[int, ...]  # multiply-adds of the classifier at each resolution, [R]
    target: float  # mean multiply-adds of an image at its resolution, predictor excluded
    exploration: float  # scale of the Gumbel noise, in units of probability

    def scores(self, logits: jax.Array) -> jax.Array:
        """Probabilities of a right answer at each resolution, [B, R], of predictor logits."""
        return routing.outcome_scores(logits)

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the predictor's logits and Gumbel noise, both [B, R]."""
        costs = jnp.array(self.costs, jnp.float32)
        scores = self.scores(logits) + self.exploration * noise
        everyone = jax.lax.all_gather(scores, AXIS, tiled=True)
        price = routing.search_price(everyone, costs, self.target)
        return routing.choose(routing.charge(scores, costs, price))

    def loss(self, logits: jax.Array, feedback: Feedback) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples, from its logits, float32 [B, R].

        Returns:
            A scalar, this device's part of the mean over the global batch, and the sum that the
            `router_loss` metric is a mean of.
        """
        chosen = jnp.take_along_axis(logits, feedback.choice[:, None], axis=1)[:, 0]
        right = jnp.exp(-feedback.cross_entropy)
        total = jnp.sum(binary_cross_entropy(chosen, right))
        return total / feedback.count, jax.lax.stop_gradient(total)


Objective = GumbelObjective | OutcomeObjective


def make_objective(config: Config, costs: Costs) -> Objective:
    """The objective that `config.router` names, with its constants in multiply-adds.

    Raises:
        UserError: if no mix of the resolutions costs `config.budget`.
    """
    router, target = config.router, GIGA * config.budget
    costs.check_budget(target)
    if router.objective == "gumbel":
        gumbel = router.gumbel
        return GumbelObjective(
            costs.classifier, gumbel.alpha * GIGA, gumbel.eta, gumbel.temperature
        )
    return OutcomeObjective(costs.classifier, target - costs.predictor, router.outcome.exploration)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [B], of logits [B, C] and integer labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy, float32 [B], of softmax(logits [B, C]) against probabilities [B, C]."""
    return optax.softmax_cross_entropy(logits, probabilities)


def binary_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy, float32 [B], of sigmoid(logits [B]) against probabilities [B]."""
    return optax.sigmoid_binary_cross_entropy(logits, probabilities)


def mean_cost(mix: jax.Array, costs: jax.Array) -> jax.Array:
    """E[F] of Eq. 6: mix [R], the share of the global batch at each resolution, and costs [R]."""
    return jnp.dot(mix, costs)


def cost_regulariser(mean: jax.Array, costs: jax.Array, alpha: float) -> jax.Array:
    """L_reg of Eq. 7: how far the mean cost exceeds the target, on the scale of the candidates'.

    Args:
        mean: scalar, E[F] over the global batch, in multiply-adds.
        costs: [R], multiply-adds of the classifier at each resolution.
        alpha: target in multiply-adds, predictor excluded.

    Returns:
        Scalar; zero, and without gradient, when the mean is at or below the target. Zero for a
        single candidate, for which nothing can be chosen.
    """
    span = jnp.max(costs) - jnp.min(costs)
    return jnp.where(span > 0, jax.nn.relu(mean - alpha) / jnp.where(span > 0, span, 1), 0.0)
