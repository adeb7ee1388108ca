"""The training step: pure functions for one device of a mesh with the axis `data`.

A step is a few programs, because the work of each resolution needs a shape of its own:

    route                      -> plan: who goes to which bucket, and how many
    bucket, once a resolution  -> sums: gradients and moments, local to the device
    update                     -> new state, metrics: the only all-reduce of gradients

The host reads the counts of the plan, picks the static size of each bucket and skips the empty
ones (`drnet_jax.train.step`). Pretraining is the same step with the plan in which every bucket
holds every sample. `dense` replaces the buckets by all resolutions for all samples.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drnet_jax import buckets
from drnet_jax.devices import AXIS
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.models.norm import update_statistics
from drnet_jax.train import objectives
from drnet_jax.train.objectives import Feedback, Objective
from drnet_jax.train.state import TrainState


class Plan(struct.PyTreeNode):
    """A device's samples dealt out to buckets (see `drnet_jax.buckets.plan`)."""

    choice: jax.Array  # int32 [B]
    order: jax.Array  # int32 [B, R]: batch first, so that it is sharded like the batch
    counts: jax.Array  # int32 [1, R]
    key: jax.Array | None = None  # [1], for dropout in this step on this device

    def dropout_key(self, network: int) -> jax.Array | None:
        """For the classifier at candidate `network`, or for the predictor, R."""
        return None if self.key is None else jax.random.fold_in(self.key[0], network)


class Sums(struct.PyTreeNode):
    """What the buckets of one device have added up so far."""

    grads: Tree  # of `shared` and `norms`
    moments: Tree  # of the BatchNorms, per norm key
    choice_grad: jax.Array  # float32 [B, R], d(loss)/dh
    loss: jax.Array  # float32 [B], cross-entropy summed over the buckets a sample is in
    correct: jax.Array  # float32 [B, R], 1 where the label came out on top
    teacher: jax.Array | None  # float32 [B, C], probabilities at the base; None: nobody learns them


def classifier_params(params: Tree) -> Tree:
    """The part of the parameters that the buckets differentiate."""
    return {"shared": params["shared"], "norms": params["norms"]}


def local(tree: Tree) -> Tree:
    """Marks replicated values as each device's own, so that gradients stay local.

    Else each bucket's gradient would be summed over the devices: an all-reduce a bucket for the
    parameters, and for h a sum over samples that have nothing to do with each other.
    """
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


def plan_of(choice: jax.Array, resolutions: int) -> Plan:
    """Deals a device's samples out by their choices, int32 [B]."""
    order, counts = buckets.plan(choice, resolutions)
    return Plan(choice, order.T, counts[None])


def device_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """The `key` of a plan: [1], of a run's key, the step's number and the device."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), jax.lax.axis_index(AXIS))
    return key[None]


def route(
    drnet: DRNet, objective: Objective, params: Tree, batch_stats: Tree, batch: Tree,
    noise: jax.Array, key: jax.Array,
) -> tuple[Plan, jax.Array]:
    """Chooses a resolution for each sample (Eqs. 1, 2) and deals them out.

    Args:
        batch: {"image": uint8 [B, H, W, 3], "label": int32 [B], ...}.
        noise: Gumbel noise, float32 [B, R].
        key: the plan's, [1].

    Returns:
        The plan, and the largest count of each bucket over all devices, int32 [R], the same
        everywhere: padded sizes follow from it, and every host must launch the same programs.
    """
    resolutions = len(drnet.resolutions)
    logits, _ = drnet.score(
        params, batch_stats, batch["image"], True, jax.random.fold_in(key[0], resolutions)
    )
    plan = plan_of(objective.choose(logits, noise), resolutions).replace(key=key)
    return plan, jax.lax.pmax(plan.counts[0], AXIS)


def everyone(drnet: DRNet, batch: Tree, key: jax.Array | None = None) -> Plan:
    """The plan of pretraining: every sample at every resolution (section 4.1)."""
    size = batch["label"].shape[0]
    order, counts = buckets.everyone(size, len(drnet.resolutions))
    return Plan(jnp.zeros(size, jnp.int32), order.T, counts[None], key)


def start(
    drnet: DRNet, params: Tree, batch_stats: Tree, batch: Tree, teach: bool = False
) -> Sums:
    """Sums of zero for a batch; with room for the base's answers if it is to teach."""
    size, resolutions = batch["label"].shape[0], len(drnet.resolutions)
    grads = jax.tree.map(jnp.zeros_like, classifier_params(params))
    logits, moments = jax.eval_shape(
        lambda: drnet.classify(
            0, params, batch_stats, batch["image"][:1], True, key=jax.random.key(0)
        )
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), moments)
    return Sums(
        grads=grads,
        moments={key: zeros for key in dict.fromkeys(drnet.norm_keys)},
        choice_grad=jnp.zeros((size, resolutions)),
        loss=jnp.zeros(size),
        correct=jnp.zeros((size, resolutions)),
        teacher=jnp.zeros((size, logits.shape[-1])) if teach else None,
    )


def bucket(
    drnet: DRNet, index: int, size: int, global_batch: int, distillation: float, whole: bool,
    params: Tree, batch_stats: Tree, batch: Tree, plan: Plan, sums: Sums,
) -> Sums:
    """Adds one bucket, padded to `size` rows, to the sums.

    The loss is the cross-entropy of y = h * F(x), with h = 1 the chosen entry of the choice, over
    the global batch; its derivative with respect to h is the `selected` estimator's.

    Args:
        distillation: at resolutions other than the base, how much of the target is the base's
            answer to the same samples, which must have been run before, and not the label.
        whole: whether it is known that no row is padding, so that nothing need be masked.
    """
    order = plan.order[:, index]
    real = jnp.ones(size, bool) if whole else buckets.mask(plan.counts[0, index], size)
    rows = buckets.gather(batch, order, size)
    batch_size = batch["label"].shape[0]

    def loss_of(trainable: Tree, chosen: jax.Array):
        logits, moments = drnet.classify(
            index, trainable, batch_stats, rows["image"], True, None if whole else real,
            plan.dropout_key(index),
        )
        each = objectives.cross_entropy(chosen[:, None] * logits, rows["label"])
        if distillation and index > 0:
            teacher = buckets.gather(sums.teacher, order, size)
            taught = objectives.soft_cross_entropy(logits, teacher)
            each = (1 - distillation) * each + distillation * taught
        # A select, not a product: garbage in a padded row must not become 0 * inf.
        each = jnp.where(real, each, 0)
        return jnp.sum(each) / global_batch, (each, logits, moments)

    gradient = jax.grad(loss_of, argnums=(0, 1), has_aux=True)
    (grads, chosen_grad), (each, logits, moments) = gradient(
        local(classifier_params(params)), local(jnp.ones(size))
    )

    def back(values: jax.Array) -> jax.Array:
        return buckets.scatter(values, order, real, batch_size)

    correct = back((jnp.argmax(logits, -1) == rows["label"]).astype(jnp.float32))
    teacher = sums.teacher
    if distillation and index == 0:
        teacher = back(jax.nn.softmax(logits))
    return Sums(
        grads=jax.tree.map(jnp.add, sums.grads, grads),
        moments=_add_moments(sums.moments, drnet.norm_keys[index], moments),
        choice_grad=sums.choice_grad.at[:, index].add(back(chosen_grad)),
        loss=sums.loss + back(each),
        correct=sums.correct.at[:, index].add(correct),
        teacher=teacher,
    )


def dense(
    drnet: DRNet, global_batch: int,
    params: Tree, batch_stats: Tree, batch: Tree, plan: Plan, sums: Sums,
) -> Sums:
    """All resolutions for all samples: the full gradient of Eq. 11, at R times the cost.

    The loss is the cross-entropy of y = sum_j h_j F_j(x), and every entry of h gets its
    derivative. The classifier's gradient and the statistics are those of the buckets.
    """
    indices = range(len(drnet.resolutions))
    hard = jax.nn.one_hot(plan.choice, len(drnet.resolutions))

    def loss_of(trainable: Tree, hard: jax.Array):
        passes = [
            drnet.classify(
                index, trainable, batch_stats, batch["image"], True, plan.choice == index,
                plan.dropout_key(index),
            )
            for index in indices
        ]
        logits = jnp.stack([logits for logits, _ in passes], axis=1)  # [B, R, C]
        each = objectives.cross_entropy(jnp.einsum("br,brc->bc", hard, logits), batch["label"])
        return jnp.sum(each) / global_batch, (each, logits, [moments for _, moments in passes])

    gradient = jax.grad(loss_of, argnums=(0, 1), has_aux=True)
    (grads, choice_grad), (each, logits, moments) = gradient(
        local(classifier_params(params)), hard
    )
    total = sums.moments
    for index in indices:
        total = _add_moments(total, drnet.norm_keys[index], moments[index])
    return Sums(
        grads=jax.tree.map(jnp.add, sums.grads, grads),
        moments=total,
        choice_grad=sums.choice_grad + choice_grad,
        loss=sums.loss + each,
        correct=sums.correct + hard * (jnp.argmax(logits, -1) == batch["label"][:, None]),
        teacher=None,
    )


def _add_moments(total: Tree, key: str, moments: Tree) -> Tree:
    return total | {key: jax.tree.map(jnp.add, total[key], moments)}


def pretrain_update(
    optimizer: optax.GradientTransformation, state: TrainState, sums: Sums
) -> tuple[TrainState, Tree]:
    """Moves the classifier; the loss is the sum over the resolutions (section 4.1).

    Returns:
        The new state and, as float32 sums over the global batch, `count`, `loss` and the
        `correct` of each resolution [R].
    """
    sums_over_devices = jax.lax.psum(
        {
            "grads": sums.grads, "moments": sums.moments, "count": sums.loss.size * 1.0,
            "loss": jnp.sum(sums.loss), "correct": jnp.sum(sums.correct, 0),
        },
        AXIS,
    )
    grads = sums_over_devices.pop("grads")
    grads["predictor"] = jax.tree.map(jnp.zeros_like, state.params["predictor"])
    stats = state.batch_stats | {
        "norms": update_statistics(state.batch_stats["norms"], sums_over_devices.pop("moments"))
    }
    return _apply(optimizer, state, grads, stats), sums_over_devices


def finetune_update(
    drnet: DRNet, optimizer: optax.GradientTransformation, objective: Objective,
    state: TrainState, batch: Tree, noise: jax.Array, plan: Plan, sums: Sums,
) -> tuple[TrainState, Tree]:
    """Moves classifier and predictor (Eq. 8).

    The predictor runs once more here, to pull its loss back: keeping the residuals of `route` alive
    would cost more memory than this costs time.

    Returns:
        The new state and, as float32 sums over the global batch: `count`, `loss` (cross-entropy),
        `correct` and `chosen` of each resolution [R], and `router_loss` (see
        `drnet_jax.train.objectives`).
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
        loss, told = objective.loss(logits, feedback)
        return loss, (told, moments)

    predictor = local(state.params["predictor"])
    predictor_grads, (told, moments) = jax.grad(loss_of, has_aux=True)(predictor)

    total = jax.lax.psum(
        {
            "grads": sums.grads | {"predictor": predictor_grads},
            "moments": {"norms": sums.moments, "predictor": moments},
            "loss": jnp.sum(sums.loss), "correct": jnp.sum(sums.correct, 0), "router_loss": told,
        },
        AXIS,
    )
    stats = update_statistics(state.batch_stats, total.pop("moments"))
    state = _apply(optimizer, state, total.pop("grads"), stats)
    return state, total | {"count": count, "chosen": chosen}


def _apply(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Tree, batch_stats: Tree
) -> TrainState:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
