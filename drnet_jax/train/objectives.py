"""Objectives: what the predictor learns, how it chooses in training, and the losses (Eqs. 5-11).

Both objectives have the same three methods, and run on one device of a mesh with the axis `data`.
Their `label_smoothing` is of the classes, which classifier and class head learn (see `label_loss`).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from drnet_jax import routing
from drnet_jax.config import GIGA, Config, Pretrain
from drnet_jax.cost import Costs
from drnet_jax.devices import AXIS
from drnet_jax.drnet import Prediction


class Feedback(NamedTuple):
    """What the predictor can learn from: how a device's samples were sent, and what came of it."""

    label: jax.Array  # int32 [B]
    noise: jax.Array  # float32 [B, O], that `choose` was given
    choice: jax.Array  # int32 [B], that it returned
    # float32 [B], of the classifier where it answered, else 0; the label is taken as it is.
    cross_entropy: jax.Array
    choice_grad: jax.Array  # float32 [B, R], derivative of the mean cross-entropy with respect to h
    mix: jax.Array  # float32 [O], shares of the global batch
    count: jax.Array  # scalar, size of the global batch


@dataclasses.dataclass(frozen=True)
class GumbelObjective:
    """The paper's: straight-through Gumbel-softmax and a cost regulariser (Eqs. 6-11)."""

    costs: tuple[int, ...]  # multiply-adds of the classifier at each resolution, [R]
    alpha: float  # target in multiply-adds, predictor excluded
    eta: float
    temperature: float
    label_smoothing: float = 0.0

    def scores(self, logits: jax.Array) -> jax.Array:
        """Log-probabilities of choosing each resolution, [B, R], of predictor logits [B, R]."""
        return routing.choice_scores(logits)

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the options' logits and Gumbel noise, both [B, R] (Eq. 9)."""
        return routing.choose(self.scores(logits) + noise)

    def loss(
        self, prediction: Prediction, feedback: Feedback
    ) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples.

        Returns:
            A scalar whose gradient is that of Eq. 8, and the sum that the `router_loss` metric is a
            mean of: eta * L_reg for each sample.
        """
        costs = jnp.array(self.costs, jnp.float32)  # large networks are beyond int32

        def penalty(mix: jax.Array) -> jax.Array:
            mean = mean_cost(mix, costs)
            return self.eta * cost_regulariser(mean, costs, self.alpha)

        value, mix_grad = jax.value_and_grad(penalty)(feedback.mix)
        scores = self.scores(prediction.options)
        soft = routing.relax(scores + feedback.noise, self.temperature)
        grad = feedback.choice_grad + mix_grad / feedback.count
        return jnp.sum(soft * grad), value * scores.shape[0]


@dataclasses.dataclass(frozen=True)
class OutcomeObjective:
    """The predictor estimates, for each option, the probability of a right answer.

    It learns from what became of each sample at the one option that it was sent to, by
    cross-entropy against the probability that the answering network gave the label; one that knows
    the classes learns these besides, and in stage 1 the options from all resolutions (see
    `pretrain_loss`). Who goes where follows from the estimates and a price that is set in every
    step so that the batch costs the target: the budget holds from the first step to the last,
    whatever the predictor believes, and no weight of a regulariser needs tuning. Noise on the
    estimates lets every option be tried.
    """

    costs: tuple[int, ...]  # multiply-adds that each option adds to the predictor's, [O]
    target: float  # mean multiply-adds of an image at its option, predictor excluded
    exploration: float  # scale of the Gumbel noise, in units of probability
    label_smoothing: float = 0.0

    def scores(self, logits: jax.Array) -> jax.Array:
        """How probably each option answers right, [B, O], of predictor logits."""
        return routing.outcome_scores(logits)

    def choose(self, logits: jax.Array, noise: jax.Array) -> jax.Array:
        """Choices int32 [B] from the options' logits and Gumbel noise, both [B, O]."""
        costs = jnp.array(self.costs, jnp.float32)
        scores = self.scores(logits) + self.exploration * noise
        everyone = jax.lax.all_gather(scores, AXIS, tiled=True)
        price = routing.search_price(everyone, costs, self.target)
        return routing.choose(routing.charge(scores, costs, price))

    def loss(
        self, prediction: Prediction, feedback: Feedback
    ) -> tuple[jax.Array, jax.Array]:
        """The predictor's loss over this device's samples.

        Returns:
            A scalar, this device's part of the mean over the global batch, and the sum that the
            `router_loss` metric is a mean of: the options' part.
        """
        logits, own = prediction
        answered = feedback.cross_entropy
        classes = 0.0
        if own is not None:
            classes = jnp.sum(label_loss(own, {"label": feedback.label}, self.label_smoothing))
            by_predictor = feedback.choice == logits.shape[1] - 1
            of_label = jax.lax.stop_gradient(cross_entropy(own, feedback.label))
            answered = jnp.where(by_predictor, of_label, answered)
        chosen = jnp.take_along_axis(logits, feedback.choice[:, None], axis=1)[:, 0]
        options = jnp.sum(binary_cross_entropy(chosen, jnp.exp(-answered)))
        return (options + classes) / feedback.count, jax.lax.stop_gradient(options)


Objective = GumbelObjective | OutcomeObjective


def make_objective(config: Config, costs: Costs) -> Objective:
    """The objective that `config.router` names, with its constants in multiply-adds.

    Raises:
        UserError: if no mix of the options costs `config.budget`.
    """
    router, target = config.router, GIGA * config.budget
    smoothing = config.finetune.label_smoothing
    costs.check_budget(target)
    if router.objective == "gumbel":
        gumbel = router.gumbel
        return GumbelObjective(
            costs.classifier, gumbel.alpha * GIGA, gumbel.eta, gumbel.temperature, smoothing
        )
    return OutcomeObjective(
        costs.added, target - costs.predictor, router.outcome.exploration, smoothing
    )


def pretrain_loss(
    prediction: Prediction, labels: Mapping[str, jax.Array], teacher: jax.Array, trust: jax.Array,
    settings: Pretrain,
) -> tuple[jax.Array, jax.Array]:
    """The loss of a predictor that knows the classes in stage 1, summed over samples.

    There every sample is run at every resolution, so that each option has a target without the
    noise of right and wrong: the probability that the teacher, the base or all resolutions' mean,
    gives to the option's answer. No label is in it.

    Args:
        prediction: of B samples.
        labels: as of `label_loss`.
        teacher: float32 [B, C], probabilities.
        trust: float32 [B, R], of these that of each resolution's answer.
        settings: how much of the class head's target is the teacher, and not the label.

    Returns:
        Two sums over the samples, both scalars: the loss, and the options' part of it, in which
        each option counts as much as the one that a sample has in stage 2.
    """
    logits, own = prediction
    of_own = jnp.take_along_axis(teacher, jnp.argmax(own, axis=1)[:, None], axis=1)
    trust = jnp.concatenate([trust, of_own], axis=1)
    options = jnp.sum(binary_cross_entropy(logits, trust))
    distillation = settings.distillation
    classes = jnp.sum(
        (1 - distillation) * label_loss(own, labels, settings.label_smoothing)
        + distillation * soft_cross_entropy(own, teacher)
    )
    return options + classes, options


def label_loss(
    logits: jax.Array, labels: Mapping[str, jax.Array], smoothing: float
) -> jax.Array:
    """The loss against the labels of a batch, float32 [B], of logits [B, C].

    Args:
        labels: "label", int32 [B]; of mixed images besides "other", int32 [B], and "share", float32
            [B], that of "label" (see `drnet_jax.train.mixing`).
        smoothing: share of the labels' weight that is spread evenly over all classes (Szegedy et
            al., CVPR 2016).
    """
    loss = cross_entropy(logits, labels["label"])
    if "other" in labels:
        share = labels["share"]
        loss = share * loss + (1 - share) * cross_entropy(logits, labels["other"])
    if smoothing:
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        loss = (1 - smoothing) * loss + smoothing * even
    return loss


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [B], of logits [B, C] and integer labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy, float32 [B], of softmax(logits [B, C]) against probabilities [B, C]."""
    return optax.softmax_cross_entropy(logits, probabilities)


def binary_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Cross-entropy of sigmoid(logits) against probabilities, float32, entry by entry."""
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
