"""Updates: what the devices' sums make of the state; the only all-reduce of gradients.

As `drnet_jax.train.device`: what one device computes, on the mesh axis `data`.
"""

import jax
import jax.numpy as jnp
import optax

from drnet_jax.devices import AXIS
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.models.norm import update_statistics
from drnet_jax.train.device import Plan, Sums, local
from drnet_jax.train.objectives import Feedback, Objective
from drnet_jax.train.state import TrainState


def pretrain_gradients(state: TrainState, sums: Sums) -> tuple[Tree, Tree, Tree]:
    """Adds up the devices' sums; the loss is the sum over the resolutions (section 4.1).

    Returns:
        Gradients of all parameters (zero for the predictor), new batch_stats, and metrics: as
        float32 sums over the global batch, `count`, `loss` and the `correct` of each resolution
        [R].
    """
    total = jax.lax.psum(
        {
            "grads": _own(sums.grads), "moments": _own(sums.moments),
            "count": sums.loss.size * 1.0, "loss": jnp.sum(sums.loss),
            "correct": jnp.sum(sums.correct, 0),
        },
        AXIS,
    )
    grads = total.pop("grads")
    grads["predictor"] = jax.tree.map(jnp.zeros_like, state.params["predictor"])
    norms = update_statistics(state.batch_stats["norms"], total.pop("moments"))
    return grads, state.batch_stats | {"norms": norms}, total


def finetune_gradients(
    drnet: DRNet, objective: Objective, state: TrainState, batch: Tree, noise: jax.Array,
    plan: Plan, sums: Sums,
) -> tuple[Tree, Tree, Tree]:
    """Pulls the predictor's loss back (Eq. 8), and adds up the devices' sums.

    The predictor runs once more here: keeping the residuals of `route` alive would cost more memory
    than this costs time.

    Returns:
        Gradients of all parameters, new batch_stats, and metrics: as float32 sums over the global
        batch, `count`, `loss` (cross-entropy), `correct` and `chosen` of each resolution [R],
        `router_loss` (see `drnet_jax.train.objectives`) and the predictor's `logits`, whose sum is
        finite only if all of them are.
    """
    count = jax.lax.psum(sums.loss.size * 1.0, AXIS)
    resolutions = len(drnet.resolutions)
    chosen = jax.lax.psum(jnp.sum(jax.nn.one_hot(plan.choice, resolutions), 0), AXIS)
    feedback = Feedback(
        noise, plan.choice, sums.loss, sums.choice_grad, mix=chosen / count, count=count
    )

    def loss_of(predictor: Tree):
        params = state.params | {"predictor": predictor}
        logits, moments = drnet.score(
            params, state.batch_stats, batch["image"], True, plan.dropout_key(resolutions)
        )
        loss, router_loss = objective.loss(logits, feedback)
        return loss, (router_loss, jnp.sum(logits), moments)

    predictor = local(state.params["predictor"])
    predictor_grads, (router_loss, logits, moments) = jax.grad(loss_of, has_aux=True)(predictor)
    total = jax.lax.psum(
        {
            "grads": _own(sums.grads) | {"predictor": predictor_grads},
            "moments": {"norms": _own(sums.moments), "predictor": moments},
            "loss": jnp.sum(sums.loss), "correct": jnp.sum(sums.correct, 0),
            "router_loss": router_loss, "logits": logits,
        },
        AXIS,
    )
    stats = update_statistics(state.batch_stats, total.pop("moments"))
    return total.pop("grads"), stats, total | {"count": count, "chosen": chosen}


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
