"""Updates: what the devices' sums make of the state; the only all-reduce of gradients.

As `drnet_jax.train.device`: what one device computes, on the mesh axis `data`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from drnet_jax.devices import AXIS
from drnet_jax.drnet import DRNet, Prediction, Tree
from drnet_jax.models.norm import update_statistics
from drnet_jax.train import objectives
from drnet_jax.train.device import Plan, Sums, local
from drnet_jax.train.objectives import Feedback, Objective
from drnet_jax.train.state import TrainState


def pretrain_gradients(
    drnet: DRNet, distillation: float, state: TrainState, batch: Tree, plan: Plan, sums: Sums
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
                prediction, batch["label"], sums.teacher, sums.trust, distillation
            )
            return loss / size, jax.lax.stop_gradient(options)

        of_predictor = _learn(drnet, state, batch, plan, loss_of)
        right = jnp.sum(of_predictor.pop("correct"), keepdims=True)
        found["correct"] = jnp.concatenate([found["correct"], right])
        found["grads"]["predictor"] = of_predictor.pop("grads")
        found["moments"]["predictor"] = of_predictor.pop("moments")
        del of_predictor["loss"]
        found |= of_predictor
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
        batch, `count`, `loss` (cross-entropy), `correct` and `chosen` of each option [O],
        `router_loss` (see `drnet_jax.train.objectives`) and the predictor's `logits`, whose sum is
        finite only if all of them are.
    """
    count = jax.lax.psum(sums.loss.size * 1.0, AXIS)
    sent = jax.nn.one_hot(plan.choice, drnet.options)
    chosen = jax.lax.psum(jnp.sum(sent, 0), AXIS)
    feedback = Feedback(
        batch["label"], noise, plan.choice, sums.loss, sums.choice_grad, mix=chosen / count,
        count=count,
    )
    of_predictor = _learn(
        drnet, state, batch, plan, lambda prediction: objective.loss(prediction, feedback)
    )
    loss, correct = jnp.sum(sums.loss), jnp.sum(sums.correct, 0)
    own_loss, own_correct = of_predictor.pop("loss"), of_predictor.pop("correct")
    if drnet.classifies:
        answered = sent[:, -1]
        loss += jnp.sum(answered * own_loss)
        correct = jnp.append(correct, jnp.sum(answered * own_correct))
    total = jax.lax.psum(
        {
            "grads": _own(sums.grads) | {"predictor": of_predictor.pop("grads")},
            "moments": {"norms": _own(sums.moments), "predictor": of_predictor.pop("moments")},
            "loss": loss, "correct": correct, **of_predictor,
        },
        AXIS,
    )
    stats = update_statistics(state.batch_stats, total.pop("moments"))
    return total.pop("grads"), stats, total | {"count": count, "chosen": chosen}


def _learn(
    drnet: DRNet, state: TrainState, batch: Tree, plan: Plan,
    loss_of: Callable[[Prediction], tuple[jax.Array, jax.Array]],
) -> Tree:
    """What a device's predictor learns from a loss.

    Where it has chosen it runs once more here: keeping the residuals of `route` alive would cost
    more memory than this costs time.

    Args:
        loss_of: what the predictor says of the batch -> its loss, and the `router_loss`.

    Returns:
        "grads", "moments", "router_loss", and "logits", their sum; and of each sample the "loss"
        and whether it was "correct" by the predictor's own answer, float32 [B] (0 without one).
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
    label = batch["label"]
    loss = correct = jnp.zeros(label.shape)
    if prediction.classes is not None:
        loss = objectives.cross_entropy(prediction.classes, label)
        correct = (jnp.argmax(prediction.classes, -1) == label).astype(jnp.float32)
    return {
        "grads": grads, "moments": moments, "router_loss": router_loss, "loss": loss,
        "correct": correct, "logits": sum(jnp.sum(leaf) for leaf in jax.tree.leaves(prediction)),
    }


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Tree, batch_stats: Tree
) -> TrainState:
    """The state after a step of these gradients, in the shape of `params`."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )


def _own(total: Tree) -> Tree:
    """Local sums, [1, ...], as this device's own, [...]."""
    return jax.tree.map(lambda leaf: leaf[0], total)
