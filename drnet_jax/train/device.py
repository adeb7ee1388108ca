"""Device: what one device computes in a training step; pure functions on the mesh axis `data`.

A step is a few programs, because the work of each resolution needs a shape of its own:

    route                      -> plan: who goes to which bucket, and how many
    bucket, once a resolution  -> sums: gradients and moments, local to the device
    update                     -> new state, metrics (see `drnet_jax.train.update`)

The host reads the counts of the plan, picks the static size of each bucket and skips the empty
ones (`drnet_jax.train.finetune_step`). Pretraining is the same step with the plan in which every
bucket holds every sample. `drnet_jax.train.passes` has what replaces the buckets by all resolutions
for all samples at once.

Sums that are local to a device have an axis of devices before their own, of which each device sees
its own entry. Axes as in `drnet_jax.buckets`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from drnet_jax import buckets
from drnet_jax.devices import AXIS
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.train import objectives
from drnet_jax.train.objectives import Objective


class Plan(struct.PyTreeNode):
    """A device's samples dealt out to buckets (see `drnet_jax.buckets.plan`)."""

    choice: jax.Array  # int32 [B]
    order: jax.Array  # int32 [B, R]
    counts: jax.Array  # int32 [1, R], local
    key: jax.Array | None = None  # [1], local: for dropout in this step

    def dropout_key(self, network: int) -> jax.Array | None:
        """For the classifier at candidate `network`, or for the predictor, R."""
        return None if self.key is None else jax.random.fold_in(self.key[0], network)


class Sums(struct.PyTreeNode):
    """What the buckets of one device have added up so far."""

    grads: Tree  # of `shared` and `norms`, [1, ...], local
    moments: Tree  # of the BatchNorms, per norm key, [1, ...], local
    choice_grad: jax.Array  # float32 [B, R], d(loss)/dh
    loss: jax.Array  # float32 [B], what is optimised, summed over the buckets a sample is in
    correct: jax.Array  # float32 [B, R], 1 where the label came out on top
    # For those who learn from a teacher, None if nobody does: its probabilities, float32 [B, C],
    # and of these that of each resolution's answer, float32 [B, R].
    teacher: jax.Array | None
    trust: jax.Array | None
    # Where stage 2 smooths the labels: `loss` without that, float32 [B]. Else None.
    cross_entropy: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What is static of a bucket."""

    index: int  # of its resolution
    size: int  # rows, padding included
    whole: bool = False  # whether it is known that no row is padding, so that nothing be masked
    # At resolutions other than the base, how much of the target is the base's answer to the same
    # samples, and not the label. Where the sums keep a teacher, the base's bucket is the first.
    distillation: float = 0.0
    label_smoothing: float = 0.0


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
    return Plan(choice, order, counts[None])


def device_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """The `key` of a plan, [1], from a run's key, the step's number and the device."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), jax.lax.axis_index(AXIS))
    return key[None]


def route(
    drnet: DRNet, objective: Objective, params: Tree, batch_stats: Tree, batch: Tree,
    noise: jax.Array, key: jax.Array,
) -> tuple[Plan, jax.Array]:
    """Chooses an option for each sample (Eqs. 1, 2) and deals those of the classifier out.

    Args:
        batch: {"image": uint8 [B, H, W, 3], "label": int32 [B], ...}.
        noise: Gumbel noise, float32 [B, O].
        key: the plan's, [1].

    Returns:
        The plan, and the largest count of each bucket over all devices, int32 [R], the same
        everywhere: padded sizes follow from it, and every host must launch the same programs.
    """
    resolutions = len(drnet.resolutions)
    prediction, _ = drnet.predict(
        params, batch_stats, batch["image"], True, jax.random.fold_in(key[0], resolutions)
    )
    plan = plan_of(objective.choose(prediction.options, noise), resolutions).replace(key=key)
    return plan, jax.lax.pmax(plan.counts[0], AXIS)


def everyone(drnet: DRNet, batch: Tree, key: jax.Array | None = None) -> Plan:
    """The plan of pretraining: every sample at every resolution (section 4.1)."""
    size = batch["label"].shape[0]
    order, counts = buckets.everyone(size, len(drnet.resolutions))
    return Plan(jnp.zeros(size, jnp.int32), order, counts[None], key)


def start(
    drnet: DRNet, params: Tree, batch_stats: Tree, batch: Tree, teach: bool = False,
    smooth: bool = False,
) -> Sums:
    """Sums of zero for a batch.

    Args:
        teach: whether somebody learns from a teacher, whose answers need room.
        smooth: whether stage 2 smooths the labels.
    """
    size, resolutions = batch["label"].shape[0], len(drnet.resolutions)
    logits, moments = jax.eval_shape(
        lambda: drnet.classify(
            0, params, batch_stats, batch["image"][:1], True, key=jax.random.key(0)
        )
    )

    def zeros(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), tree)

    return Sums(
        grads=zeros(classifier_params(params)),
        moments={key: zeros(moments) for key in dict.fromkeys(drnet.norm_keys)},
        choice_grad=jnp.zeros((size, resolutions)),
        loss=jnp.zeros(size),
        correct=jnp.zeros((size, resolutions)),
        teacher=jnp.zeros((size, logits.shape[-1])) if teach else None,
        trust=jnp.zeros((size, resolutions)) if teach else None,
        cross_entropy=jnp.zeros(size) if smooth else None,
    )


def add_bucket(
    drnet: DRNet, bucket: Bucket, params: Tree, batch_stats: Tree, batch: Tree, plan: Plan,
    sums: Sums,
) -> Sums:
    """Adds one bucket, padded to its size, to the sums.

    The loss is the cross-entropy of y = h * F(x), with h = 1 the chosen entry of the choice, over
    the global batch; its derivative with respect to h is the `selected` estimator's.
    """
    index, size, distillation = bucket.index, bucket.size, bucket.distillation
    order = plan.order[:, index]
    real = jnp.ones(size, bool) if bucket.whole else buckets.mask(plan.counts[0, index], size)
    rows = buckets.gather(batch, order, size)
    batch_size = batch["label"].shape[0]

    def loss_of(trainable: Tree, chosen: jax.Array):
        logits, moments = drnet.classify(
            index, trainable, batch_stats, rows["image"], True, None if bucket.whole else real,
            plan.dropout_key(index),
        )
        losses = objectives.label_loss(chosen[:, None] * logits, rows, bucket.label_smoothing)
        if distillation and index > 0:
            teacher = buckets.gather(sums.teacher, order, size)
            taught = objectives.soft_cross_entropy(logits, teacher)
            losses = (1 - distillation) * losses + distillation * taught
        # A select, not a product: garbage in a padded row must not become 0 * inf.
        losses = jnp.where(real, losses, 0)
        return jnp.sum(losses) / global_size(batch), (losses, logits, moments)

    gradient = jax.grad(loss_of, argnums=(0, 1), has_aux=True)
    (grads, chosen_grad), (losses, logits, moments) = gradient(
        local(classifier_params(params)), local(jnp.ones(size))
    )

    def back(values: jax.Array) -> jax.Array:
        return buckets.scatter(values, order, real, batch_size)

    correct = back((jnp.argmax(logits, -1) == rows["label"]).astype(jnp.float32))
    teacher, trust, cross_entropy = sums.teacher, sums.trust, sums.cross_entropy
    if cross_entropy is not None:
        cross_entropy += back(objectives.cross_entropy(logits, rows["label"]))
    if teacher is not None:
        if index == 0:
            teacher = back(jax.nn.softmax(logits))
        answer = back(jnp.argmax(logits, -1))
        of_answer = jnp.take_along_axis(teacher, answer[:, None], axis=1)[:, 0]
        trust = trust.at[:, index].set(of_answer)
    return Sums(
        grads=add(sums.grads, grads),
        moments=add_moments(sums.moments, drnet.norm_keys[index], moments),
        choice_grad=sums.choice_grad.at[:, index].add(back(chosen_grad)),
        loss=sums.loss + back(losses),
        correct=sums.correct.at[:, index].add(correct),
        teacher=teacher,
        trust=trust,
        cross_entropy=cross_entropy,
    )


def global_size(batch: Tree) -> int:
    """Samples of all devices together."""
    return batch["label"].shape[0] * jax.lax.axis_size(AXIS)


def add(total: Tree, tree: Tree) -> Tree:
    """Adds to local sums, [1, ...], what was computed just now, [...]."""
    return jax.tree.map(jnp.add, total, tree)


def add_moments(total: Tree, key: str, moments: Tree) -> Tree:
    return total | {key: add(total[key], moments)}
