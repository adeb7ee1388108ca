"""BatchNorm: over the real rows of a padded batch, handing out its moments.

It knows nothing of resolutions: resolution-aware BN (Eq. 3) is a choice of which parameters and
statistics this module is given (`drnet_jax.resolutions`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax import ops

MOMENTS = "moments"  # collection in which a training pass leaves what `update_statistics` needs


class BatchNorm(nn.Module):
    """Batch normalisation with a row mask.

    In training it normalises by the mean and variance of the rows where `mask` is true and leaves
    `{"sum", "sum_of_squares", "count"}` in the `moments` collection; it never touches its running
    statistics. These are updated once a step, by `update_statistics`, from moments added over
    buckets and devices. Fewer than two values have no variance: they are normalised by the running
    statistics.

    With `fixed_statistics` it normalises by the running statistics in training, too, and its
    moments are of no value at all, by which nothing is updated.

    With an `axis` of the mesh that a step is mapped over, it normalises by the mean and variance of
    the rows of all devices, as one device would that has them all.

    Networks mark the norm that ends a residual branch, `ends_branch`; with `zero_init` its scale
    begins at 0, so that each block begins as its shortcut.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    ends_branch: bool = False
    zero_init: bool = False
    fixed_statistics: bool = False
    axis: str = ""

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
        begin = self.ends_branch and self.zero_init
        scale_init = nn.initializers.zeros if begin else nn.initializers.ones
        scale = self.param("scale", scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32).value
        if train and self.fixed_statistics:
            self._hand_out({"sum": jnp.zeros_like(mean), "sum_of_squares": jnp.zeros_like(mean),
                            "count": jnp.float32(0)})
        elif train:
            moments, batch_mean, batch_var = _moments(x, mask, mean)
            self._hand_out(moments)
            if self.axis:
                moments = jax.lax.psum(moments, self.axis)
                offset, batch_var = _mean_and_variance(moments)
                batch_mean = mean + offset
            mean = jnp.where(moments["count"] < 2, mean, batch_mean)
            var = jnp.where(moments["count"] < 2, var, batch_var)
        # One multiply-add per element, whatever the number of per-channel terms.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = ops.scale_and_shift(x, factor, bias - mean * factor)
        return y.astype(self.dtype)

    def _hand_out(self, moments: dict[str, jax.Array]) -> None:
        if not self.is_initializing():
            for name, value in moments.items():
                self.put_variable(MOMENTS, name, jax.lax.stop_gradient(value))


def _moments(
    x: jax.Array, mask: jax.Array | None, running_mean: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """What the rows of `mask` [N] in x [N, ..., channels] add to the moments; mean and variance.

    They are taken about the running mean, which is the same for all buckets and devices of a step,
    so that they can be added.
    """
    rows = x.shape[0] if mask is None else jnp.sum(mask)
    count = jnp.float32(rows) * math.prod(x.shape[1:-1])
    total, squares, shift = ops.moments(x, mask, count, running_mean)
    moments = {"sum": total, "sum_of_squares": squares, "count": count}
    offset, var = _mean_and_variance(moments)
    if shift is not running_mean:
        moments = _moved(moments, shift - running_mean)
    return moments, shift + offset, var


def _moved(moments: dict[str, jax.Array], by: jax.Array) -> dict[str, jax.Array]:
    """Moments about another point, which lies `by` below the one that they are about."""
    total = moments["sum"] + moments["count"] * by
    squares = moments["sum_of_squares"] + by * (moments["sum"] + total)
    return moments | {"sum": total, "sum_of_squares": squares}


def _mean_and_variance(moments: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The mean, less what the moments are about, and the variance."""
    count = jnp.maximum(moments["count"], 1)
    mean = moments["sum"] / count
    return mean, jnp.maximum(moments["sum_of_squares"] / count - jnp.square(mean), 0)


def update_statistics(stats: Any, moments: Any, momentum: float = 0.9) -> Any:
    """Moves running statistics towards the batch's, as PyTorch does (unbiased variance).

    Args:
        stats: a `batch_stats` tree of {"mean", "var"} per BatchNorm, float32.
        moments: the `moments` tree of the same modules, about the means in `stats`, summed over
            buckets and devices.
        momentum: share of the old value that is kept.

    Returns:
        The new `batch_stats` tree; modules that saw fewer than two values, which have no variance,
        keep theirs bit for bit.
    """
    if "count" not in moments:
        return {name: update_statistics(stats[name], moments[name], momentum) for name in stats}
    count = moments["count"]
    offset, var = _mean_and_variance(moments)
    var = var * count / jnp.maximum(count - 1, 1)

    def move(old, new):
        return jnp.where(count < 2, old, momentum * old + (1 - momentum) * new)

    return {"mean": move(stats["mean"], stats["mean"] + offset), "var": move(stats["var"], var)}
