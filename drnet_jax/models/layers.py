"""Layers: convolution with PyTorch's explicit padding, its initialisers, and widths."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.ops import conv

# PyTorch's initialisers: He-normal over fan-out for convolutions, uniform for the last layer.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scaled(channels: int, width: float) -> int:
    """A network's `width`, a multiplier, applied to a published number of channels; at least 1."""
    return max(1, round(channels * width))


class Conv(nn.Module):
    """Square convolution without bias; pads (k-1)//2 on every side, as PyTorch models do.

    SAME would pad (0, 1) on even inputs with stride 2, and imported weights would be wrong.
    Input [S, H, W, in], output [S, ceil(H/stride), ceil(W/stride), features] in `dtype`.
    """

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
