"""Mixing: mixup and cutmix, on the device, of uint8 images at the base size.

What is drawn is drawn once for a global batch, from the run's key and the number of the step: it is
the same on all devices, and after a kill. Neighbours in a device's batch are mixed with each other.
So who is mixed with whom depends on the number of hosts, which deal the images out in turn, but not
on that of a host's devices; only where a device has an odd number of images its last one stays as
it is.
"""

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.config import Pretrain
from drnet_jax.drnet import Tree

STREAM = 2**31 - 1  # apart from the keys of devices, which are folded in by number


def mixes(settings: Pretrain) -> bool:
    """Whether a stage mixes its images at all."""
    return settings.mixup > 0 or settings.cutmix > 0


def mix(settings: Pretrain, batch: Tree, key: jax.Array, step: jax.Array) -> Tree:
    """A device's batch with its images mixed: by mixup or cutmix, or if by both, by either in turn.

    Args:
        batch: {"image": uint8 [B, H, W, 3], "label": int32 [B]}.
        key: of the run.
        step: within the stage.

    Returns:
        The batch with other images, and "label": int32 [B], of which most of an image is, "other":
        int32 [B], of which the rest is, and "share": float32 [B], of the former, at least a half.
        As resizing is linear, to mix before it is to mix at every resolution, but for the rounding.
    """
    image, label = batch["image"], batch["label"]
    height, width = image.shape[1:3]
    key = jax.random.fold_in(jax.random.fold_in(key, step), STREAM)
    weights = _draw(settings, key, height, width)[..., None]
    partner = np.arange(len(label)) ^ 1
    partner = np.where(partner < len(label), partner, np.arange(len(label)))
    mixed = weights * image + (1 - weights) * image[partner]
    share, other = jnp.mean(weights), label[partner]
    return batch | {
        "image": jnp.round(mixed).astype(jnp.uint8),
        "label": jnp.where(share < 0.5, other, label),
        "other": jnp.where(share < 0.5, label, other),
        "share": jnp.full(label.shape, jnp.maximum(share, 1 - share)),
    }


def _draw(settings: Pretrain, key: jax.Array, height: int, width: int) -> jax.Array:
    """How much of each pixel stays the image's own, float32 [H, W]; the mean is the label's share.
    """
    which, of_mixup, of_cutmix = jax.random.split(key, 3)
    drawn = []
    if settings.mixup:
        share = jax.random.beta(of_mixup, settings.mixup, settings.mixup)
        drawn.append(jnp.full((height, width), share))
    if settings.cutmix:
        drawn.append(_outside_of_box(settings.cutmix, of_cutmix, height, width))
    return jnp.where(jax.random.bernoulli(which), drawn[0], drawn[-1])


def _outside_of_box(alpha: float, key: jax.Array, height: int, width: int) -> jax.Array:
    """1 but for a box of 0, float32 [H, W] (Yun et al., CutMix, ICCV 2019).

    Its sides are sqrt(1 - share) of the image's, share from Beta(alpha, alpha), and its centre lies
    anywhere; what lies beyond the image's edge is cut off.
    """
    of_share, of_row, of_column = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(of_share, alpha, alpha))

    def within(key: jax.Array, size: int) -> jax.Array:
        centre = jax.random.randint(key, (), 0, size)
        half = jnp.floor(side * size).astype(jnp.int32) // 2
        at = jnp.arange(size)
        return (at >= centre - half) & (at < centre + half)

    box = within(of_row, height)[:, None] & within(of_column, width)
    return 1 - box.astype(jnp.float32)
