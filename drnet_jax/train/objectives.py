"""What the predictor learns: how it chooses in training, and the loss that moves it.

Both objectives have the same two methods, and run on one device of a mesh with the axis `data`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drnet_jax import losses, routing
from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.mesh import AXIS
from drnet_jax.policies import GIGA, check_target


class Feedback(NamedTuple):
    """What the predictor can learn from: how a device's samples were sent, and what came of it."""

    noise: jax.Array  # float32 [B, R], that `choose` was given
    choice: jax.Array  # int32 [B], that it returned
    cross_entropy: jax.Array  # float32 [B], of the classifier at the chosen resolutions
    choice_grad: jax.Array  # float32 [B, R], derivative of the mean cross-entropy with respect to h
    mix: jax.Array  # float32 [R], shares of the global batch
    count: jax.Array  # scalar, size of the global batch


@dataclasses.dataclass(frozen=True)
class Gumbel:
    """The paper's: straight-through Gumbel-softmax and a cost regulariser (Eqs. 6-11)."""

    costs: tuple[int, ...]  # multiply-adds of the classifier at each resolution, [R]
    alpha: float  # target in multiply-adds, predictor excluded
    eta: float
    temperature: float

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the predictor's logits and Gumbel noise, both [B, R] (Eq. 9)."""
        return routing.choose(routing.perturb(logits, noise))

    def loss(self, logits: jax.Array, feedback: Feedback) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples, from its logits, float32 [B, R].

        Returns:
            A scalar whose gradient is that of Eq. 8, and the sum that the `router_loss` metric is a
            mean of: eta * L_reg for each sample.
        """
        costs = jnp.array(self.costs, jnp.float32)  # large networks are beyond int32

        def penalty(mix: jax.Array) -> jax.Array:
            mean = losses.mean_cost(mix, costs)
            return self.eta * losses.cost_regulariser(mean, costs, self.alpha)

        value, mix_grad = jax.value_and_grad(penalty)(feedback.mix)
        soft = routing.relax(routing.perturb(logits, feedback.noise), self.temperature)
        grad = feedback.choice_grad + mix_grad / feedback.count
        return jnp.sum(soft * grad), value * logits.shape[0]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The predictor estimates, for each resolution, the probability of a right answer.

    It learns from what became of each sample at the one resolution that it was sent to, by
    cross-entropy against the probability that the classifier gave the label. Who goes where follows
    from the estimates and a dial that is set in every step so that the batch costs the target: the
    budget holds from the first step to the last, whatever the predictor believes, and no weight of
    a regulariser needs tuning. Noise on the estimates lets every resolution be tried.
    """

    costs: tuple[int, ...]  # multiply-adds of the classifier at each resolution, [R]
    target: float  # mean multiply-adds of an image at its resolution, predictor excluded
    exploration: float  # scale of the Gumbel noise, in units of probability

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the predictor's logits and Gumbel noise, both [B, R]."""
        costs = jnp.array(self.costs, jnp.float32)
        scores = routing.scores(logits, "outcome") + self.exploration * noise
        everyone = jax.lax.all_gather(scores, AXIS, tiled=True)
        dial = routing.dial_for(everyone, costs, self.target)
        return routing.choose(routing.charge(scores, costs, dial))

    def loss(self, logits: jax.Array, feedback: Feedback) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples, from its logits, float32 [B, R].

        Returns:
            A scalar, this device's part of the mean over the global batch, and the sum that the
            `router_loss` metric is a mean of.
        """
        chosen = jnp.take_along_axis(logits, feedback.choice[:, None], axis=1)[:, 0]
        right = jnp.exp(-feedback.cross_entropy)
        total = jnp.sum(losses.binary_cross_entropy(chosen, right))
        return total / feedback.count, jax.lax.stop_gradient(total)


Objective = Gumbel | Outcome


def make_objective(config: Config, costs: Costs) -> Objective:
    """The objective that `config.router` names, with its constants in multiply-adds.

    Raises:
        UserError: if no mix of the resolutions costs `config.budget.target`.
    """
    router, target = config.router, GIGA * config.budget.target
    check_target(costs, target)
    if router.objective == "gumbel":
        return Gumbel(costs.classifier, router.alpha * GIGA, router.eta, router.temperature)
    return Outcome(costs.classifier, target - costs.predictor, router.exploration)
