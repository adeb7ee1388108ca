"""Baseline: the same ResNets of flax's own layers, to see how lean our compiled programs are.

As plain as they come: no resolution, no mask, no moments to hand out. Only `plan` imports this.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from drnet_jax import images
from drnet_jax.devices import AXIS, Program
from drnet_jax.models.layers import Conv, conv_init
from drnet_jax.models.norm import MOMENTS, BatchNorm
from drnet_jax.models.resnet import Bottleneck, ResNet
from drnet_jax.products import variable_shapes
from drnet_jax.train import objectives
from drnet_jax.train.device import local


def flax_conv(features: int, size: int = 3, stride: int = 1, **options: Any) -> nn.Conv:
    """flax's convolution, called as ours is."""
    return nn.Conv(
        features, (size, size), stride, (size - 1) // 2, use_bias=False, kernel_init=conv_init,
        **options,
    )


class FlaxBatchNorm(nn.BatchNorm):
    """flax's BatchNorm, called as ours is; it knows no mask."""

    momentum: float = 0.9
    ends_branch: bool = False  # which makes no difference here

    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        return super().__call__(x, use_running_average=not train)


def flax_twin(network: ResNet) -> ResNet:
    """The same network of flax's layers."""
    return dataclasses.replace(network, conv=flax_conv, norm=FlaxBatchNorm)


def training_program(
    mesh: Mesh, network: nn.Module, resolution: int, rows: int
) -> tuple[Program, tuple[Any, ...]]:
    """Forward and backward of a batch, gradients and statistics added in place; and arguments.

    Args:
        network: whose layers keep their statistics themselves.
        resolution: of the images, uint8 [rows * devices, resolution, resolution, 3].
        rows: of one device.

    Returns:
        (params, batch_stats, images, labels, sums) -> sums, and the shapes of its arguments.
    """
    def train(params, batch_stats, batch, labels, sums):
        def loss_of(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, mutated = network.apply(
                variables, images.view(batch, resolution), True, mutable=["batch_stats"]
            )
            return jnp.sum(objectives.cross_entropy(logits, labels)), mutated["batch_stats"]

        grads, stats = jax.grad(loss_of, has_aux=True)(local(params))
        found = {"grads": grads, "stats": stats}
        return jax.tree.map(lambda total, leaf: total + leaf[None], sums, found)

    specs = (P(), P(), P(AXIS), P(AXIS), P(AXIS))
    name = f"flax layers, {resolution}px x{rows}"
    program = Program.mapped(name, mesh, train, specs, P(AXIS), donate=(4,))
    variables, size = variable_shapes(network, resolution), rows * mesh.size
    params, stats = variables["params"], variables["batch_stats"]
    sums = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((mesh.size, *leaf.shape), leaf.dtype),
        {"grads": params, "stats": stats},
    )
    return program, (
        params, stats, jax.ShapeDtypeStruct((size, resolution, resolution, 3), np.uint8),
        jax.ShapeDtypeStruct((size,), np.int32), sums,
    )


class Blocks(nn.Module):
    """Three bottlenecks over maps of 56 x 56 x 256, as early in a ResNet-50 at 224 pixels."""

    conv: Any
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        conv = functools.partial(self.conv, dtype=self.dtype)

        def norm(y, name, **options):
            return self.norm(dtype=self.dtype, name=name, **options)(y, train, mask)

        for index in range(3):
            x = Bottleneck(64, 1, conv, norm, name=f"block{index + 1}")(x)
        return x


def blocks_program(
    mesh: Mesh, dtype: Any, rows: int, ours: bool, masked: bool = False
) -> tuple[Program, tuple[Any, ...]]:
    """Forward and backward of `Blocks` of our layers or of flax's, and its arguments' shapes.

    Ours may mask padded rows, as the buckets of stage 2 do.
    """
    network = Blocks(Conv, BatchNorm, dtype) if ours else Blocks(flax_conv, FlaxBatchNorm, dtype)

    def train(params, batch_stats, x, mask):
        def loss_of(params, x):
            variables = {"params": params, "batch_stats": batch_stats}
            y, mutated = network.apply(
                variables, x, True, mask if masked else None, mutable=["batch_stats", MOMENTS]
            )
            return jnp.sum(y.astype(jnp.float32)), mutated

        found = jax.grad(loss_of, (0, 1), has_aux=True)(local(params), x)
        return jax.tree.map(lambda leaf: leaf[None], found)

    x = jax.ShapeDtypeStruct((rows * mesh.size, 56, 56, 256), dtype)
    mask = jax.ShapeDtypeStruct((rows * mesh.size,), bool)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 56, 56, 256), dtype), False)
    )
    name = f"three blocks of {'our' if ours else 'flax'} layers{', masked' if masked else ''}"
    program = Program.mapped(name, mesh, train, (P(), P(), P(AXIS), P(AXIS)), P(AXIS))
    return program, (variables["params"], variables["batch_stats"], x, mask)
