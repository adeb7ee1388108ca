"""Steps of adaptation: the norms of new resolutions, taught by the base's own answers.

All weights and the base's norms stand still, so that the base goes on to answer as before, bit for
bit. Learnt are the scales and biases of the other resolutions' norms, from the base's on. They are
normalised by the base's running statistics throughout: by those of the batch, as in training, the
network would come to answer worse than without any adaptation (docs/pretrained.md).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import resolutions
from drnet_jax.devices import AXIS, Program
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.train.device import local
from drnet_jax.train.objectives import soft_cross_entropy

WARMUP_STEPS = 20


class AdaptState(struct.PyTreeNode):
    """What adaptation carries from step to step, replicated over the devices."""

    step: jax.Array  # int32
    norms: dict[str, Tree]  # of the resolutions that learn, by their keys
    opt_state: optax.OptState


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, with a linear warm-up and half a cosine down to 0 after so many steps."""
    return optax.adam(optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(WARMUP_STEPS, steps // 2), steps
    ))


def begin(
    drnet: DRNet, base: str, params: Tree, batch_stats: Tree, key: jax.Array
) -> tuple[Tree, Tree]:
    """The variables to begin with: norms as the base's at every resolution, and a new predictor.

    Args:
        drnet: with the resolutions that are wanted, each with norms of its own.
        base: the key of the norms that the network has at its base.
        params: of the trained network, as in `drnet_jax.resolutions`; so are the `batch_stats`.
        key: for the predictor, which has as many options as there are resolutions now.
    """
    def fitted(tree: Tree, fresh: Tree) -> Tree:
        norms = resolutions.replicate_norms(tree["norms"][base], drnet.norm_keys)
        return tree | {"norms": norms, "predictor": fresh["predictor"]}

    fresh = drnet.init(key)
    return fitted(params, fresh[0]), fitted(batch_stats, fresh[1])


def adapt_program(
    drnet: DRNet, mesh: Mesh, optimizer: optax.GradientTransformation, among: Sequence[int] = ()
) -> Program:
    """(state, params, batch_stats, images) -> (state, metrics): a step.

    Each resolution but the base learns the probabilities that the base gives to the classes in use,
    by the cross-entropy against them, averaged over the batch. The images are uint8 [B, H, W, 3],
    split over the devices; params and batch_stats hold all that stands still, and are those of
    `begin`. The metrics are means over the global batch: `loss` and `agreement` of each resolution
    but the base, float32 [R - 1], the agreement being the share of the images that it answers as
    the base does.

    Args:
        among: the classes in use; none for all. Taught all that a network knows, it learns which
            of its classes occur rather than how to tell them apart (docs/pretrained.md).
    """
    def answer(index: int, params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        logits, _ = drnet.classify(index, params, batch_stats, images)
        return logits[:, jnp.array(among)] if among else logits

    def step(state, params, batch_stats, images):
        count = images.shape[0] * jax.lax.axis_size(AXIS)
        params = local(params)
        teacher = jax.nn.softmax(answer(0, params, batch_stats, images))

        def loss_of(norms: Mapping[str, Tree]):
            losses, agreements = [], []
            for index, key in enumerate(drnet.norm_keys[1:], 1):
                own = {"shared": params["shared"], "norms": {key: norms[key]}}
                logits = answer(index, own, batch_stats, images)
                losses.append(jnp.sum(soft_cross_entropy(logits, teacher)))
                agreements.append(jnp.sum(logits.argmax(1) == teacher.argmax(1)))
            losses = jnp.stack(losses) / count
            return jnp.sum(losses), {
                "loss": losses, "agreement": jnp.stack(agreements).astype(jnp.float32) / count
            }

        found = jax.grad(loss_of, has_aux=True)(local(state.norms))
        grads, metrics = jax.lax.psum(found, AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.norms)
        norms = optax.apply_updates(state.norms, updates)
        return AdaptState(state.step + 1, norms, opt_state), metrics

    specs = P(), P(), P(), P(AXIS)
    return Program.mapped("adapt", mesh, step, specs, (P(), P()), donate=(0,))
