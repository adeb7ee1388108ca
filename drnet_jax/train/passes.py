"""Passes: what one device computes where all resolutions see all samples in one program.

As `drnet_jax.train.device`, of whose buckets these take the place; axes as in `drnet_jax.buckets`.
"""

import jax
import jax.numpy as jnp

from drnet_jax.config import Pretrain
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.train import objectives
from drnet_jax.train.device import (
    Plan,
    Sums,
    add,
    add_moments,
    classifier_params,
    global_size,
    local,
)


def add_dense(
    drnet: DRNet, label_smoothing: float, params: Tree, batch_stats: Tree, batch: Tree, plan: Plan,
    sums: Sums,
) -> Sums:
    """Adds all resolutions for all samples: the full gradient of Eq. 11, at R times the cost.

    The loss is the cross-entropy of y = sum_j h_j F_j(x), and every entry of h gets its
    derivative. The classifier's gradient and the statistics are those of the buckets; it has
    nothing to learn from a sample that it does not answer.
    """
    resolutions = len(drnet.resolutions)
    hard, answered = jax.nn.one_hot(plan.choice, resolutions), plan.choice < resolutions

    def loss_of(trainable: Tree, hard: jax.Array):
        logits, moments = _classify_all(drnet, trainable, batch_stats, batch, plan, masked=True)
        y = jnp.einsum("br,brc->bc", hard, logits)
        losses = jnp.where(answered, objectives.label_loss(y, batch, label_smoothing), 0)
        return jnp.sum(losses) / global_size(batch), (losses, y, logits, moments)

    gradient = jax.grad(loss_of, argnums=(0, 1), has_aux=True)
    (grads, choice_grad), (losses, y, logits, moments) = gradient(
        local(classifier_params(params)), hard
    )
    cross_entropy = sums.cross_entropy
    if cross_entropy is not None:
        cross_entropy += jnp.where(answered, objectives.cross_entropy(y, batch["label"]), 0)
    return Sums(
        grads=add(sums.grads, grads),
        moments=_add_all_moments(drnet, sums.moments, moments),
        choice_grad=sums.choice_grad + choice_grad,
        loss=sums.loss + losses,
        correct=sums.correct + hard * (jnp.argmax(logits, -1) == batch["label"][:, None]),
        teacher=None,
        trust=None,
        cross_entropy=cross_entropy,
    )


def add_ensemble(
    drnet: DRNet, settings: Pretrain, params: Tree, batch_stats: Tree, batch: Tree, plan: Plan,
    sums: Sums,
) -> Sums:
    """Adds all resolutions for all samples, each taught by the mean of all their probabilities.

    So RS-Nets are trained (Wang et al., Resolution Switchable Networks, ECCV 2020), with weights of
    the resolutions learnt besides. That mean is there once all have answered: in one program, in
    which no pass is run twice, but all are kept until then.
    """
    def loss_of(trainable: Tree):
        logits, moments = _classify_all(drnet, trainable, batch_stats, batch, plan, masked=False)
        teacher = jax.lax.stop_gradient(jnp.mean(jax.nn.softmax(logits), axis=1))
        distillation, losses = settings.distillation, 0.0
        for each in jnp.unstack(logits, axis=1):
            of_labels = objectives.label_loss(each, batch, settings.label_smoothing)
            taught = objectives.soft_cross_entropy(each, teacher)
            losses += (1 - distillation) * of_labels + distillation * taught
        return jnp.sum(losses) / global_size(batch), (losses, logits, moments, teacher)

    gradient = jax.grad(loss_of, has_aux=True)
    grads, (losses, logits, moments, teacher) = gradient(local(classifier_params(params)))
    answers, label = jnp.argmax(logits, -1), batch["label"][:, None]
    return Sums(
        grads=add(sums.grads, grads),
        moments=_add_all_moments(drnet, sums.moments, moments),
        choice_grad=sums.choice_grad,
        loss=sums.loss + losses,
        correct=sums.correct + (answers == label),
        teacher=teacher,
        trust=jnp.take_along_axis(teacher, answers, axis=1),
        cross_entropy=None,
    )


def _classify_all(
    drnet: DRNet, trainable: Tree, batch_stats: Tree, batch: Tree, plan: Plan, masked: bool
) -> tuple[jax.Array, list[Tree]]:
    """Logits [B, R, C] and moments [R] of all samples, or for the latter of those that are sent."""
    passes = [
        drnet.classify(
            index, trainable, batch_stats, batch["image"], True,
            plan.choice == index if masked else None, plan.dropout_key(index),
        )
        for index in range(len(drnet.resolutions))
    ]
    return jnp.stack([logits for logits, _ in passes], axis=1), [moments for _, moments in passes]


def _add_all_moments(drnet: DRNet, total: Tree, moments: list[Tree]) -> Tree:
    for key, each in zip(drnet.norm_keys, moments, strict=True):
        total = add_moments(total, key, each)
    return total
