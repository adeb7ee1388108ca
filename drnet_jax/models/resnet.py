"""ResNets (He et al. 2016) as PyTorch builds them; with one block a stage, the predictor too."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.models.layers import Conv, dense_init, scaled
from drnet_jax.models.norm import BatchNorm
from drnet_jax.ops import max_pool

CHANNELS = 64  # of the first stage, at width 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., jax.Array]

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(y, name="norm1"))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(y, name="norm2", ends_branch=True)
        return nn.relu(y + shortcut(self, x, y.shape))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides, as in PyTorch) and 1x1 convolutions and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., jax.Array]

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(self.conv(self.features, 1, name="conv1")(x), name="norm1"))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(y, name="norm2"))
        y = self.conv(self.features * self.expansion, 1, name="conv3")(y)
        y = self.norm(y, name="norm3", ends_branch=True)
        return nn.relu(y + shortcut(self, x, y.shape))


def shortcut(block: BasicBlock | Bottleneck, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x itself, or its 1x1 projection where the block changes the shape."""
    if x.shape == shape:
        return x
    x = block.conv(shape[-1], 1, block.stride, name="shortcut_conv")(x)
    return block.norm(x, name="shortcut_norm")


class ResNet(nn.Module):
    """A residual network over images of any size, ended by global average pooling.

    `width` multiplies the published numbers of channels, of which CHANNELS are the first. Modules:
    `stem_conv`, `stem_norm`; `stage1_block1` and on, each with `conv1`, `norm1`, `conv2`, `norm2`,
    in bottlenecks `conv3`, `norm3`, and where it changes the shape `shortcut_conv`,
    `shortcut_norm`; `head`.
    """

    blocks: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    classes: int
    width: float = 1.0
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Classifies images x [S, H, W, 3] into float32 logits [S, classes].

        `train` and `mask` (bool [S], the real rows) go to every norm.
        """
        conv = functools.partial(self.conv, dtype=self.dtype)
        width = scaled(CHANNELS, self.width)

        def norm(y, name, **options):
            return self.norm(dtype=self.dtype, name=name, **options)(y, train, mask)

        x = conv(width, 7, 2, name="stem_conv")(x)
        x = max_pool(nn.relu(norm(x, name="stem_norm")))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                x = self.block(width * 2**stage, stride, conv, norm, name=name)(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, kernel_init=dense_init, name="head")(x)


ResNet18 = functools.partial(ResNet, blocks=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, blocks=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = functools.partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = functools.partial(ResNet, blocks=(3, 4, 23, 3), block=Bottleneck)
ResNet152 = functools.partial(ResNet, blocks=(3, 8, 36, 3), block=Bottleneck)
# The paper's predictor (section 4.2): four stages of one residual basic block each.
ResNet10 = functools.partial(ResNet, blocks=(1, 1, 1, 1), block=BasicBlock)
