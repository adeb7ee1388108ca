"""A plain stack of strided convolutions: the cheapest predictor that sees the whole image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.models.layers import Conv, dense_init
from drnet_jax.models.norm import BatchNorm


class ConvNet(nn.Module):
    """Four 3x3 convolutions that halve the map and double the channels, then average pooling.

    At 32 pixels the last one sees them all. Where small images are routed to small networks, a
    residual predictor's many thin layers cost more time than their multiply-adds tell.
    """

    classes: int
    width: int = 16
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Images x [S, H, W, 3] -> float32 logits [S, classes]; as `resnet.ResNet`."""
        for layer in range(4):
            x = Conv(self.width * 2**layer, 3, 2, self.dtype, name=f"conv{layer + 1}")(x)
            x = nn.relu(self.norm(dtype=self.dtype, name=f"norm{layer + 1}")(x, train, mask))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, kernel_init=dense_init, name="head")(x)
