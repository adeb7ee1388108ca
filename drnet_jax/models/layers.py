"""Convolution and pooling with PyTorch's explicit padding, and the forms in which CPUs run them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.forms import on_cpu

# PyTorch's initialisers: He-normal over fan-out for convolutions, uniform for the last layer.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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


def conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves x [S, H, W, in] with kernel [k, k, in, out], k odd, padding (k-1)//2."""
    size, features = kernel.shape[0], kernel.shape[-1]
    if on_cpu():
        edge = -(-min(x.shape[1:3]) // stride)
        # XLA CPU is slow at the weight gradient of 1x1 convolutions, which matrix products have
        # not; at maps smaller than the kernel, which it convolves by naive loops; and from 512
        # channels on, where copying the patches costs less than it saves. No form for accelerators:
        # there products over flattened pixels move more bytes, and jax 0.10.1 aborts on some
        # (openxla/xla#47381).
        if size == 1 or edge < size or features >= 512:
            return _product(x, kernel, stride)
        # With few channels in and out, too: the stem of a small network runs folded.
        if stride == 2 and x.shape[-1] < 8 and features < 64:
            return _folded_conv(x, kernel)
    pad = (size - 1) // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv` as one matrix product over patches, which for a 1x1 kernel are the pixels."""
    patches = _patches(x, kernel.shape[0], stride)
    # Two axes: with four, XLA CPU copies the operands of the weight gradient transposed.
    y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*patches.shape[:3], kernel.shape[-1])


def _folded_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv` of stride 2, with pairs of columns folded into channels, which costs no copy."""
    (height, width, channels), (size, features) = x.shape[1:], (kernel.shape[0], kernel.shape[-1])
    pad, blocks = (size - 1) // 2, (size + 1) // 2
    left = pad % 2  # a column of zeros on this side of the kernel lets windows begin at a pair
    columns = 2 * (-(-width // 2) + blocks - 1)
    before = pad + left
    x = jnp.pad(x, ((0, 0), (pad, pad), (before, columns - before - width), (0, 0)))
    kernel = jnp.pad(kernel, ((0, 0), (left, 1 - left), (0, 0), (0, 0)))
    return jax.lax.conv_general_dilated(
        x.reshape(-1, height + 2 * pad, columns // 2, 2 * channels),
        kernel.reshape(size, blocks, 2 * channels, features),
        (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2 and padding 1: [S, H, W, C] -> [S, ceil(H/2), ceil(W/2), C].

    On CPU equal maxima share their gradient; elsewhere the first takes it. After a ReLU, which
    stops the gradient of equal zeros, that makes no difference.
    """
    if on_cpu():
        # Down the rows, then the columns: XLA CPU is slow at windows, backwards above all.
        return _max_of_three(_max_of_three(x, 1), 2)
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """[S, H, W, C] -> [S, ceil(H/stride), ceil(W/stride), size * size * C]."""
    (height, width), pad = x.shape[1:3], (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jnp.concatenate([
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size) for column in range(size)
    ], axis=-1)


def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    """The maximum of x[2i-1], x[2i] and x[2i+1] along one axis, for every i."""
    length = x.shape[axis]
    widths = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, widths, constant_values=-jnp.inf)
    first, second, third = (
        jax.lax.slice_in_dim(x, start, start + length, stride=2, axis=axis) for start in range(3)
    )
    return jnp.maximum(jnp.maximum(first, second), third)
