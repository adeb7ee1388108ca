"""Convolutions in ONNX: as such or, of small maps, as one product for all images."""

from collections.abc import Sequence

import numpy as np

from drnet_jax.errors import UserError
from drnet_jax.graphs.builder import Builder, Tensor, Value
from drnet_jax.graphs.shapes import Given, Shape

# Runtimes go through all weights of a convolution anew for each image, which is long for the few
# positions of a small map where the weights are too many to stay in a core's cache.
FEW_POSITIONS, MANY_WEIGHTS = 16, 2**18


def convolution(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    x, kernel = inputs
    numbers, padding = given["dimension_numbers"], given["padding"]
    whole = set(given["lhs_dilation"]) == {1} and given["batch_group_count"] == 1
    if not whole or min(map(min, padding)) < 0:
        raise UserError("expected plain convolutions, received a transposed one in the network")
    if _of_a_small_map(kernel, [shape[axis] for axis in numbers.out_spec[2:]], given):
        return _product(to, x, kernel.transpose(numbers.rhs_spec), shape, given)
    name = to.add(
        "Conv", to.ordered(x, numbers.lhs_spec).name, to.ordered(kernel, numbers.rhs_spec).name,
        strides=list(given["window_strides"]), pads=pads(padding),
        dilations=list(given["rhs_dilation"]), group=given["feature_group_count"],
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
    )
    return Tensor(name, shape, numbers.out_spec)


def _of_a_small_map(kernel: Value, outside: Sequence[int], given: Given) -> bool:
    known = isinstance(kernel, np.ndarray) and given["feature_group_count"] == 1
    near = max(given["window_strides"]) <= 2  # no patches of a large image
    return known and near and np.prod(outside) <= FEW_POSITIONS and kernel.size >= MANY_WEIGHTS


def pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [before for before, _ in padding] + [after for _, after in padding]


def _product(
    to: Builder, x: Tensor, kernel: np.ndarray, shape: Shape, given: Given
) -> Tensor:
    """A convolution by a kernel [out, in, h, w]: what each position sees, times the weights."""
    numbers = given["dimension_numbers"]
    batch, channels, *space = numbers.lhs_spec
    x = to.ordered(x, (batch, *space, channels))
    inside = [x.shape[axis] for axis in space]
    outside = [shape[axis] for axis in numbers.out_spec[2:]]
    seen, nothing = _seen(inside, outside, kernel.shape[2:], given), np.prod(inside)
    useful = (seen != nothing).any(axis=0)  # taps
    weights = kernel.transpose(2, 3, 1, 0).reshape(len(useful), -1, len(kernel))[useful]
    weights, seen = weights.reshape(-1, len(kernel)), seen[:, useful]
    name = x.name
    if not np.array_equal(seen, np.arange(nothing)[:, None]):  # each position itself alone
        name = to.add("Reshape", name, np.array([0, nothing, kernel.shape[1]]))
        if nothing in seen:
            name = to.add("Pad", name, np.array([0, 0, 0, 0, 1, 0]))
        name = to.add("Gather", name, seen.ravel(), axis=1)
        name = to.add("Reshape", name, np.array([0, *outside, len(weights)]))
    batch, channels, *space = numbers.out_spec
    return Tensor(to.add("MatMul", name, weights), shape, (batch, *space, channels))


def _seen(
    inside: Sequence[int], outside: Sequence[int], kernel: Sequence[int], given: Given
) -> np.ndarray:
    """int64 [positions of the result, taps]: the position of the input that each tap sees; where
    that lies outside one past the last, which is a position of zeros."""
    rows, columns = (
        np.arange(length)[:, None] * stride + np.arange(taps) * dilation - before
        for length, stride, taps, dilation, (before, _) in zip(
            outside, given["window_strides"], kernel, given["rhs_dilation"], given["padding"],
            strict=True)
    )
    height, width = inside
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.where(known, rows * width + columns, height * width).reshape(
        np.prod(outside), np.prod(kernel))
