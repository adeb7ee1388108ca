"""MobileNetV2 (Sandler et al. 2018) and EfficientNets (Tan & Le 2019): inverted residual blocks.

Stochastic depth, with which EfficientNets were trained, is left out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.models.layers import Conv, DepthwiseConv, dense_init, relu6, round_to_8
from drnet_jax.models.norm import BatchNorm


class Stage(NamedTuple):
    """Blocks in a row, of which only the first strides."""

    expansion: int  # the channels of a block's depthwise convolution, over those of its input
    channels: int  # at width 1
    blocks: int
    stride: int
    size: int = 3  # of the depthwise kernels


class SqueezeExcite(nn.Module):
    """Weighs each channel by what the means of all channels say; Dense layers with biases."""

    reduced: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        y = self.activation(nn.Dense(self.reduced, dtype=self.dtype, name="reduce")(y))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(y))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; and the input where that has its shape.

    An expansion of 1 has no convolution.
    """

    features: int
    expansion: int
    size: int
    stride: int
    squeeze_excite: bool
    conv: Callable[..., nn.Module]
    depthwise: Callable[..., nn.Module]
    norm: Callable[..., jax.Array]
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, channels = x, x.shape[-1]
        if self.expansion > 1:
            y = self.conv(self.expansion * channels, 1, name="expand_conv")(y)
            y = self.activation(self.norm(y, name="expand_norm"))
        y = self.depthwise(self.size, self.stride, name="depthwise_conv")(y)
        y = self.activation(self.norm(y, name="depthwise_norm"))
        if self.squeeze_excite:
            reduced = max(1, channels // 4)
            y = SqueezeExcite(reduced, self.activation, self.dtype, name="squeeze_excite")(y)
        y = self.conv(self.features, 1, name="project_conv")(y)
        residual = x.shape == y.shape
        y = self.norm(y, name="project_norm", ends_branch=residual)
        return x + y if residual else y


class MobileNet(nn.Module):
    """A stem, stages of inverted residual blocks, a last 1x1 convolution, and average pooling.

    `width` multiplies the published numbers of channels, which are then rounded to multiples of 8.
    Modules: `stem_conv`, `stem_norm`; `stage1_block1` and on, each with `expand_conv`,
    `expand_norm` (but where the expansion is 1), `depthwise_conv`, `depthwise_norm`,
    `squeeze_excite` (`reduce`, `expand`) if it has one, `project_conv`, `project_norm`;
    `last_conv`, `last_norm`, if there are; `head`.
    """

    stages: tuple[Stage, ...]
    classes: int
    last: int = 1280  # channels of the last convolution; 0: none
    narrows: bool = True  # whether the last convolution has fewer channels at a width below 1
    fixed_ends: bool = False  # whether `width` leaves the stem and the last convolution alone
    squeeze_excite: bool = False
    activation: Callable[[jax.Array], jax.Array] = relu6
    padding: str = "symmetric"
    epsilon: float = 1e-5
    dropout: float = 0.2
    width: float = 1.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Images x [S, H, W, 3] -> float32 logits [S, classes]; as `resnet.ResNet`."""
        options = dict(dtype=self.dtype, padding=self.padding)
        conv, depthwise = (functools.partial(kind, **options) for kind in (Conv, DepthwiseConv))

        def norm(y, name, **options):
            norm = self.norm(epsilon=self.epsilon, dtype=self.dtype, name=name, **options)
            return norm(y, train, mask)

        def scaled(channels, width=self.width):
            return round_to_8(channels * width)

        x = conv(32 if self.fixed_ends else scaled(32), 3, 2, name="stem_conv")(x)
        x = self.activation(norm(x, name="stem_norm"))
        for number, stage in enumerate(self.stages, 1):
            for index in range(stage.blocks):
                x = InvertedResidual(
                    scaled(stage.channels), stage.expansion, stage.size,
                    stage.stride if index == 0 else 1, self.squeeze_excite, conv, depthwise, norm,
                    self.activation, self.dtype, name=f"stage{number}_block{index + 1}",
                )(x)
        if self.last:
            width = 1.0 if self.fixed_ends else self.width if self.narrows else max(1.0, self.width)
            x = conv(scaled(self.last, width), 1, name="last_conv")(x)
            x = self.activation(norm(x, name="last_norm"))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, kernel_init=dense_init, name="head")(x)


MobileNetV2 = functools.partial(MobileNet, narrows=False, stages=(
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
))
# The predictor of the paper's MobileNetV2 (section 4.4): four stages of one block each.
MobileNetV2Tiny = functools.partial(MobileNet, last=0, dropout=0.0, stages=(
    Stage(6, 32, 1, 2), Stage(6, 64, 1, 2), Stage(6, 96, 1, 2), Stage(6, 160, 1, 2),
))
_B0 = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 40, 2, 2, 5), Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, 5), Stage(6, 192, 4, 2, 5), Stage(6, 320, 1, 1),
)
EfficientNetB0 = functools.partial(
    MobileNet, stages=_B0, squeeze_excite=True, activation=nn.silu)
EfficientNetLite0 = functools.partial(MobileNet, stages=_B0, fixed_ends=True)
# As TensorFlow trained them.
TFEfficientNetB0, TFEfficientNetLite0 = (
    functools.partial(network, padding="same", epsilon=1e-3)
    for network in (EfficientNetB0, EfficientNetLite0)
)
