"""Sums over all axes but that of the channels: the moments of BatchNorm, and gradients.

XLA CPU's loops have one result each, and its sums of what other loops make are stored in between;
except that a reduction of several operands is one loop with several results. Over eight images that
is unrolled, and vectorised along the channels: everything is read once and nothing stored. Hence
`channel_sums`, and the gradients that are made of it.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.ops.forms import on_cpu


def channel_sums(terms: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each of the terms [S, ..., C], float32 [C], in the form for CPUs."""
    images = math.gcd(len(terms[0]), 8)
    split = [y.astype(jnp.float32).reshape(-1, images, *y.shape[1:]) for y in terms]
    # Of more results at once, the registers do not hold the sums.
    parts = [part for first in range(0, len(split), 9) for part in _added(split[first : first + 9])]
    return [jnp.sum(part.reshape(-1, part.shape[-1]), 0) for part in parts]


def _added(terms: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Each of the terms summed over axis 1, in one reduction."""
    return jax.lax.reduce(
        tuple(terms), (np.float32(0),) * len(terms), lambda *sums: tuple(map(jnp.add, *sums)), (1,)
    )


def moments(
    x: jax.Array, mask: jax.Array | None, count: jax.Array, running_mean: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of x - shift and of its square over the rows of `mask`, and the shift, float32 [C].

    Squares are summed about a shift near the mean, or else they cancel where the mean is large
    against the deviation. On CPU that is a value of x: a good shift from the first step on.
    Elsewhere it is the running mean: a shift that depended on x would keep the sums from being
    fused into the convolution that makes x.

    Args:
        x: [S, ..., C].
        mask: bool [S], the rows that count; None counts all.
        count: of the values that do, in each channel.
        running_mean: float32 [C].
    """
    if on_cpu():
        shift = _shift(x, mask, count, running_mean)
        return *_moments_on_cpu(x, mask, shift), shift
    shifted, axes = _shifted(x, mask, running_mean), tuple(range(x.ndim - 1))
    return jnp.sum(shifted, axes), jnp.sum(jnp.square(shifted), axes), running_mean


def _shifted(x: jax.Array, mask: jax.Array | None, shift: jax.Array) -> jax.Array:
    return _where(mask, x.astype(jnp.float32) - shift)


def _where(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """x [S, ..., C], and 0 in padded rows."""
    if mask is None:
        return x
    # A select, not a product: padded rows may hold anything, even what overflows when squared.
    return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _shift(
    x: jax.Array, mask: jax.Array | None, count: jax.Array, running_mean: jax.Array
) -> jax.Array:
    """A value of x, of a row that counts, float32 [C]; `running_mean` where none does."""
    first = 0 if mask is None else jnp.argmax(mask)
    value = x[first].reshape(-1, x.shape[-1])[0].astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.where(count > 0, value, running_mean))


@jax.custom_vjp
def _moments_on_cpu(
    x: jax.Array, mask: jax.Array | None, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    shifted = _shifted(x, mask, shift)
    total, squares = channel_sums([shifted, jnp.square(shifted)])
    return total, squares


def _moments_forward(x, mask, shift):
    return _moments_on_cpu(x, mask, shift), (x, mask, shift)


def _moments_backward(saved, gradients):
    (x, mask, shift), (of_total, of_squares) = saved, gradients
    dx = of_total + 2 * (x.astype(jnp.float32) - shift) * of_squares
    return _where(mask, dx).astype(x.dtype), None, None


_moments_on_cpu.defvjp(_moments_forward, _moments_backward)


def scale_and_shift(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """x [S, ..., C] * factor + offset, float32 [C] both: float32 [S, ..., C]."""
    return _scale_and_shift_on_cpu(x, factor, offset) if on_cpu() else x * factor + offset


@jax.custom_vjp
def _scale_and_shift_on_cpu(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    return x * factor + offset


def _scale_and_shift_forward(x, factor, offset):
    return _scale_and_shift_on_cpu(x, factor, offset), (x, factor)


def _scale_and_shift_backward(saved, dy):
    x, factor = saved
    return (dy * factor).astype(x.dtype), *channel_sums([x * dy, dy])


_scale_and_shift_on_cpu.defvjp(_scale_and_shift_forward, _scale_and_shift_backward)
