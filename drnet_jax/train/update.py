"""Updates: what the devices' sums make of the state; the only all-reduce of gradients.

As `drnet_jax.train.device`: what one device computes, on the mesh axis `data`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from drnet_jax.config import Pretrain
from drnet_jax.devices import AXIS
from drnet_jax.drnet import DRNet, Prediction, Tree
from drnet_jax.models.norm import update_statistics
from drnet_jax.train import objectives
from drnet_jax.train.device import Plan, Sums, local
from drnet_jax.train.objectives import Feedback, Objective
from drnet_jax.train.state import TrainState, moved_average


def pretrain_gradients(
    drnet: DRNet, settings: Pretrain, state: TrainState, batch: Tree, plan: Plan, sums: Sums
) -> tuple[Tree, Tree, Tree]:
    """Adds up the devices' sums; the loss is the sum over the resolutions (section 4.1).

    A predictor that knows the classes learns here, too (see `objectives.pretrain_loss`).

    Returns:
        Gradients of all parameters (zero for a predictor that does not learn yet), new batch_stats,
        and metrics: as float32 sums over the global batch, `count`, `loss` (of the classifier) and
        the `correct` of each option [O]; of a predictor that learns, `router_loss` and `logits` as
        of `finetune_gradients`.
    """
    found = {
        "grads": _own(sums.grads), "moments": {"norms": _own(sums.moments)},
        "count": sums.loss.size * 1.0, "loss": jnp.sum(sums.loss),
        "correct": jnp.sum(sums.correct, 0),
    }
    if drnet.classifies:
        size = sums.loss.size * jax.lax.axis_size(AXIS)

        def loss_of(prediction: Prediction):
            loss, options = objectives.pretrain_loss(
                prediction, batch, sums.teacher, sums.trust, settings
            )
            return loss / size, jax.lax.stop_gradient(options)

        learnt = _learn(drnet, state, batch, plan, loss_of)
        found["correct"] = jnp.append(found["correct"], jnp.sum(learnt.correct))
        found["grads"]["predictor"] = learnt.grads
        found["moments"]["predictor"] = learnt.moments
        found |= learnt.metrics
    total = jax.lax.psum(found, AXIS)
    grads = total.pop("grads")
    if not drnet.classifies:
        grads["predictor"] = jax.tree.map(jnp.zeros_like, state.params["predictor"])
    moved = total.pop("moments")
    stats = update_statistics({name: state.batch_stats[name] for name in moved}, moved)
    return grads, state.batch_stats | stats, total


def finetune_gradients(
    drnet: DRNet, objective: Objective, state: TrainState, batch: Tree, noise: jax.Array,
    plan: Plan, sums: Sums,
) -> tuple[Tree, Tree, Tree]:
    """Pulls the predictor's loss back (Eq. 8), and adds up the devices' sums.

    Returns:
        Gradients of all parameters, new batch_stats, and metrics: as float32 sums over the global
        batch, `count`, `loss` (of the classes), `correct` and `chosen` of each option [O],
        `router_loss` (see `drnet_jax.train.objectives`) and the predictor's `logits`, whose sum is
        finite only if all of them are.
    """
    count = jax.lax.psum(sums.loss.size * 1.0, AXIS)
    sent = jax.nn.one_hot(plan.choice, drnet.options)
    chosen = jax.lax.psum(jnp.sum(sent, 0), AXIS)
    cross_entropy = sums.loss if sums.cross_entropy is None else sums.cross_entropy
    feedback = Feedback(
        batch["label"], noise, plan.choice, cross_entropy, sums.choice_grad, mix=chosen / count,
        count=count,
    )
    learnt = _learn(
        drnet, state, batch, plan, lambda prediction: objective.loss(prediction, feedback)
    )
    loss, correct = jnp.sum(sums.loss), jnp.sum(sums.correct, 0)
    if drnet.classifies:
        answered = sent[:, -1]
        of_own = objectives.label_loss(learnt.classes, batch, objective.label_smoothing)
        loss += jnp.sum(answered * of_own)
        correct = jnp.append(correct, jnp.sum(answered * learnt.correct))
    total = jax.lax.psum(
        {
            "grads": _own(sums.grads) | {"predictor": learnt.grads},
            "moments": {"norms": _own(sums.moments), "predictor": learnt.moments},
            "loss": loss, "correct": correct, **learnt.metrics,
        },
        AXIS,
    )
    stats = update_statistics(state.batch_stats, total.pop("moments"))
    return total.pop("grads"), stats, total | {"count": count, "chosen": chosen}


class Learnt(NamedTuple):
    """What a device's predictor learns from a loss."""

    grads: Tree
    moments: Tree
    classes: jax.Array | None  # float32 [B, C], logits of its own answers; None without any
    correct: jax.Array  # float32 [B], whether they are right; 0 without any
    metrics: dict[str, jax.Array]  # "router_loss", and "logits", their sum


def _learn(
    drnet: DRNet, state: TrainState, batch: Tree, plan: Plan,
    loss_of: Callable[[Prediction], tuple[jax.Array, jax.Array]],
) -> Learnt:
    """Runs the predictor on a device's batch; where it has chosen, once more.

    Keeping the residuals of `route` alive would cost more memory than this costs time.

    Args:
        loss_of: what the predictor says of the batch -> its loss, and the `router_loss`.
    """
    def run(predictor: Tree):
        params = state.params | {"predictor": predictor}
        prediction, moments = drnet.predict(
            params, state.batch_stats, batch["image"], True,
            plan.dropout_key(len(drnet.resolutions)),
        )
        loss, router_loss = loss_of(prediction)
        return loss, (router_loss, prediction, moments)

    predictor = local(state.params["predictor"])
    grads, (router_loss, prediction, moments) = jax.grad(run, has_aux=True)(predictor)
    label, classes = batch["label"], prediction.classes
    correct = jnp.zeros(label.shape)
    if classes is not None:
        correct = (jnp.argmax(classes, -1) == label).astype(jnp.float32)
    logits = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(prediction))
    return Learnt(grads, moments, classes, correct, {"router_loss": router_loss, "logits": logits})


def apply_gradients(
    optimizer: optax.GradientTransformation, ema: float, state: TrainState, grads: Tree,
    batch_stats: Tree,
) -> TrainState:
    """The state after a step of these gradients, in the shape of `params`.

    Args:
        ema: decay of the state's average, if it has one.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    moved = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.average is None:
        return moved
    return moved.replace(average=moved_average(state.average, moved.weights, ema, state.step))


def _own(total: Tree) -> Tree:
    """Local sums, [1, ...], as this device's own, [...]."""
    return jax.tree.map(lambda leaf: leaf[0], total)
