"""Layers: convolutions with explicit padding, PyTorch's initialisers, activations, and widths."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.ops import conv, depthwise_conv

# PyTorch's initialisers: He-normal over fan-out for convolutions, uniform for the last layer. The
# fan-out of a depthwise kernel [k, k, 1, C] is its k * k taps, which flax knows as the fan-in.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scaled(channels: int, width: float) -> int:
    """A network's `width`, a multiplier, applied to a published number of channels; at least 1."""
    return max(1, round(channels * width))


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8, or the next where that is less than nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with no gradient at the two ends, as PyTorch's."""
    return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


class Conv(nn.Module):
    """Square convolution without bias; pads (k-1)//2 on every side, as PyTorch models do.

    "same" pads as TensorFlow does, (0, 1) for a kernel of 3 on even inputs with stride 2: weights
    imported from one framework are wrong with the padding of the other. Input [S, H, W, in], output
    [S, ceil(H/stride), ceil(W/stride), features] in `dtype`.
    """

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    padding: str = "symmetric"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return conv(x, kernel, self.stride, self.padding)


class DepthwiseConv(nn.Module):
    """As `Conv`, each channel by itself: [S, H, W, C] -> [S, ceil(H/stride), ceil(W/stride), C]."""

    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    padding: str = "symmetric"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", depthwise_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return depthwise_conv(x, kernel, self.stride, self.padding)
