"""ConvNet: a plain stack of strided convolutions, the cheapest predictor of whole images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.models.layers import Conv, dense_init, scaled
from drnet_jax.models.norm import BatchNorm


class ConvNet(nn.Module):
    """Squares of 2x2 pixels as channels, three 3x3 convolutions of stride 2, average pooling.

    The convolutions have 32, 64 and 128 channels at width 1, a multiplier of all three; each output
    of the last sees 30 pixels a side. Where small images are routed to small networks, a residual
    predictor's many thin layers, and any convolution of 3 channels, cost more time than their
    multiply-adds tell.
    """

    classes: int
    width: float = 1.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Images x [S, H, W, 3] -> float32 logits [S, classes]; as `resnet.ResNet`."""
        x = fold_pixels(x)
        for layer in (1, 2, 3):
            x = Conv(scaled(16, self.width) * 2**layer, 3, 2, self.dtype, name=f"conv{layer}")(x)
            x = nn.relu(self.norm(dtype=self.dtype, name=f"norm{layer}")(x, train, mask))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, kernel_init=dense_init, name="head")(x)


def fold_pixels(x: jax.Array) -> jax.Array:
    """[S, H, W, C] -> [S, ceil(H/2), ceil(W/2), 4C]: each square of 2x2 pixels becomes one."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2 * channels)
    return x.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4 * channels)
