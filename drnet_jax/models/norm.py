"""BatchNorm over the real rows of a padded batch, which also hands out its moments.

It knows nothing of resolutions: resolution-aware BN (Eq. 3) is a choice of which parameters and
statistics this module is given (`drnet_jax.resolutions`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

MOMENTS = "moments"  # collection in which a training pass leaves what `update_statistics` needs


class BatchNorm(nn.Module):
    """Batch normalisation with a row mask.

    In training it normalises by the mean and variance of the rows where `mask` is true (by its
    running statistics when no row is) and leaves `{"sum", "sum_of_squares", "count"}` in the
    `moments` collection; it never touches its running statistics. These are updated once a step,
    by `update_statistics`, from moments added over buckets and devices.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalises the last axis of x.

        Args:
            x: [S, ..., channels], any float type.
            train: whether to normalise by the batch's statistics or by the running ones.
            mask: bool [S], the rows that count; None counts all.

        Returns:
            [S, ..., channels] in `dtype`.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32).value
        # Two axes: XLA CPU sums over one leading axis several times faster than over three.
        pixels = x.reshape(-1, channels)
        if train:
            moments = _moments(pixels, mask)
            if not self.is_initializing():
                for name, value in moments.items():
                    self.put_variable(MOMENTS, name, jax.lax.stop_gradient(value))
            batch_mean, batch_var = _mean_and_variance(moments)
            # An empty bucket has no statistics of its own.
            mean = jnp.where(moments["count"] > 0, batch_mean, mean)
            var = jnp.where(moments["count"] > 0, batch_var, var)
        # One multiply-add per element, whatever the number of per-channel terms.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = pixels * factor + (bias - mean * factor)
        return y.reshape(x.shape).astype(self.dtype)


def _moments(pixels: jax.Array, mask: jax.Array | None) -> dict[str, jax.Array]:
    """Sums over pixels [N, channels], which belong in equal shares to the rows of mask [S]."""
    pixels, count = pixels.astype(jnp.float32), jnp.float32(pixels.shape[0])
    if mask is not None:
        each = pixels.shape[0] // mask.shape[0]
        # A select, not a product: padded rows may hold anything, even what overflows when squared.
        pixels = jnp.where(jnp.repeat(mask, each)[:, None], pixels, 0)
        count = jnp.sum(mask) * jnp.float32(each)
    return {
        "sum": jnp.sum(pixels, 0),
        "sum_of_squares": jnp.sum(jnp.square(pixels), 0),
        "count": count,
    }


def _mean_and_variance(moments: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    count = jnp.maximum(moments["count"], 1)
    mean = moments["sum"] / count
    return mean, jnp.maximum(moments["sum_of_squares"] / count - jnp.square(mean), 0)


def update_statistics(stats: Any, moments: Any, momentum: float = 0.9) -> Any:
    """Moves running statistics towards the batch's, as PyTorch does (unbiased variance).

    Args:
        stats: a `batch_stats` tree of {"mean", "var"} per BatchNorm, float32.
        moments: the `moments` tree of the same modules, summed over buckets and devices.
        momentum: share of the old value that is kept.

    Returns:
        The new `batch_stats` tree; modules that saw no row keep theirs bit for bit.
    """
    if "count" not in moments:
        return {name: update_statistics(stats[name], moments[name], momentum) for name in stats}
    count = moments["count"]
    mean, var = _mean_and_variance(moments)
    var = var * count / jnp.maximum(count - 1, 1)

    def move(old, new):
        return jnp.where(count > 0, momentum * old + (1 - momentum) * new, old)

    return {"mean": move(stats["mean"], mean), "var": move(stats["var"], var)}
