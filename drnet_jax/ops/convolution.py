"""Convolution and pooling."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.ops.forms import on_cpu
from drnet_jax.ops.sums import channel_sums

Pads = Sequence[tuple[int, int]]  # zeros before and after, of rows and of columns

def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: str = "symmetric") -> jax.Array:
    """Convolves x [S, H, W, in] with kernel [k, k, in, out], k odd.

    Args:
        stride: the output is [S, ceil(H/stride), ceil(W/stride), out].
        padding: "symmetric", (k-1)//2 on every side, as in PyTorch; or "same", TensorFlow's, which
            for strides above 1 pads less, and more at the end than at the beginning.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    pads = [_pads(length, size, stride, padding) for length in x.shape[1:3]]
    if on_cpu():
        edge = -(-min(x.shape[1:3]) // stride)
        # XLA CPU is slow at the weight gradient of 1x1 convolutions, which matrix products have
        # not; at maps smaller than the kernel, which it convolves by naive loops; and from 512
        # channels on, where copying the patches costs less than it saves. No form for accelerators:
        # there products over flattened pixels move more bytes, and jax 0.10.1 aborts on some
        # (openxla/xla#47381).
        if size == 1 or edge < size or features >= 512:
            return _product(x, kernel, stride, pads)
        # With few channels in and out, too: the stem of a small network runs folded.
        if stride == 2 and x.shape[-1] < 8 and features < 64:
            return _folded_conv(x, kernel, pads)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: str = "symmetric"
) -> jax.Array:
    """Convolves each channel of x [S, H, W, C] by its own kernel [k, k, 1, C]; else as `conv`."""
    pads = [_pads(length, kernel.shape[0], stride, padding) for length in x.shape[1:3]]
    if on_cpu():
        # XLA CPU convolves one group of channels after the other, by naive loops.
        return _depthwise_on_cpu(x, kernel, stride, tuple(pads))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pads(length: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after an axis of this length."""
    total = size - 1
    if padding == "same":
        total = max(0, (-(-length // stride) - 1) * stride + size - length)
    return total // 2, total - total // 2


def _product(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """`conv` as one matrix product over patches, which for a 1x1 kernel are the pixels."""
    if x.shape[:3] == (1, 1, 1):
        # One pixel meets one tap. XLA CPU multiplies a single row by the zeros about it, too, and
        # more slowly than two rows.
        (row, _), (column, _) = pads
        kernel, pads = kernel[row, column][None, None], ((0, 0), (0, 0))
    patches = jnp.concatenate(_shifted(x, kernel.shape[0], stride, pads), axis=-1)
    # Two axes: with four, XLA CPU copies the operands of the weight gradient transposed.
    y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*patches.shape[:3], kernel.shape[-1])


def _shifted(x: jax.Array, size: int, stride: int, pads: Pads) -> list[jax.Array]:
    """What each of the size * size taps meets of x [S, H, W, C]: [S, H/stride, W/stride, C]."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size) for column in range(size)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_on_cpu(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """`depthwise_conv` as a sum of shifted slices times weights, which is one fused loop."""
    slices = _shifted(x, len(kernel), stride, pads)
    return sum(map(jnp.multiply, slices, kernel.reshape(-1, x.shape[-1])))


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise_on_cpu(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and kernel; derived automatically they would be many times slower."""
    x, kernel = saved
    taps = channel_sums([y * dy for y in _shifted(x, len(kernel), stride, pads)])
    # In two halves of the batch, joined: XLA fuses no joint into what reads it, where it would
    # compute the sums anew in each of several loops. With strides there are joints already.
    parts = jnp.split(dy, [len(dy) // 2]) if stride == 1 else [dy]
    dx = jnp.concatenate([_depthwise_transposed(part, kernel, stride, pads) for part in parts])
    dk = jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)
    return dx[:, : x.shape[1], : x.shape[2]], dk


def _depthwise_transposed(
    dy: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    """The gradient of `depthwise_conv`'s x [S, H, W, C], its sides rounded up to whole strides.

    Of every `stride` rows of x each meets taps of its own, and so do columns: these are sums of
    slices of dy times weights, which are then interleaved.
    """
    size, (rows, columns) = len(kernel), dy.shape[1:3]
    before = [(size - 1 - pad + stride - 1) // stride for pad, _ in pads]
    after = [(pad + stride - 1) // stride for pad, _ in pads]
    padded = jnp.pad(dy, ((0, 0), *zip(before, after, strict=True), (0, 0)))

    def met(axis: int, phase: int) -> list[tuple[int, int]]:
        """The taps that a phase meets, each with the first of the entries of dy that it weighs."""
        at = phase + pads[axis][0]
        return [(tap, before[axis] + (at - tap) // stride)
                for tap in range(size) if (at - tap) % stride == 0]

    def met_by(row_phase: int, column_phase: int) -> jax.Array:
        return sum(
            padded[:, top : top + rows, left : left + columns] * kernel[row, column, 0]
            for row, top in met(0, row_phase) for column, left in met(1, column_phase)
        )

    lines = [jnp.stack([met_by(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    dx = jnp.stack(lines, axis=2)
    return dx.reshape(len(dy), rows * stride, columns * stride, dy.shape[-1])


_depthwise_on_cpu.defvjp(_depthwise_forward, _depthwise_backward)


def _folded_conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """`conv` of stride 2, with pairs of columns folded into channels, which costs no copy."""
    (height, width, channels), (size, features) = x.shape[1:], (kernel.shape[0], kernel.shape[-1])
    (rows, (before, _)), blocks = pads, (size + 1) // 2
    left = before % 2  # a column of zeros on this side of the kernel lets windows begin at a pair
    columns = 2 * (-(-width // 2) + blocks - 1)
    before += left
    x = jnp.pad(x, ((0, 0), rows, (before, columns - before - width), (0, 0)))
    kernel = jnp.pad(kernel, ((0, 0), (left, 1 - left), (0, 0), (0, 0)))
    return jax.lax.conv_general_dilated(
        x.reshape(-1, height + sum(rows), columns // 2, 2 * channels),
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


def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
    """The maximum of x[2i-1], x[2i] and x[2i+1] along one axis, for every i."""
    length = x.shape[axis]
    widths = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, widths, constant_values=-jnp.inf)
    first, second, third = (
        jax.lax.slice_in_dim(x, start, start + length, stride=2, axis=axis) for start in range(3)
    )
    return jnp.maximum(jnp.maximum(first, second), third)
