"""Shapes: what moves, cuts and joins arrays in JAX, as operators of ONNX; see `operators`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drnet_jax.errors import UserError
from drnet_jax.graphs.builder import Builder, Tensor, Value

Shape = tuple[Any, ...]
Given = Mapping[str, Any]


def _without(
    operator: str, axes: Sequence[int], to: Builder, x: Tensor, shape: Shape, **attributes: Any
) -> Tensor:
    """An operator that takes axes away."""
    at = np.array(sorted(x.order.index(axis) for axis in axes))
    left = [axis for axis in x.order if axis not in axes]
    order = tuple(sorted(left).index(axis) for axis in left)
    return Tensor(to.add(operator, x.name, at, **attributes), shape, order)


def reduce(operator: str, to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    return _without(operator, given["axes"], to, inputs[0], shape, keepdims=0)


def squeeze(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    return _without("Squeeze", given["dimensions"], to, inputs[0], shape)


def transpose(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,), permutation = inputs, given["permutation"]
    return Tensor(x.name, shape, tuple(permutation.index(axis) for axis in x.order))


def reshape(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    x = to.plain(inputs[0])
    sizes = [length if isinstance(length, int) else -1 for length in shape]
    if sizes.count(-1) > 1:
        raise UserError(f"expected one axis that depends on the batch, received {shape}")
    if sizes[0] == -1 and x.shape[0] == shape[0]:
        # "As it was": of a length that it cannot name a runtime does not know that it stays the
        # same, and gives each sum of a residual network memory of its own.
        sizes[0] = 0
    name = to.add("Reshape", x.name, np.array(sizes))
    return Tensor(name, shape, tuple(range(len(shape))))


def broadcast(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Value:
    x, dimensions = inputs[0], given["broadcast_dimensions"]
    if isinstance(x, np.ndarray):  # along the batch: every operator does so by itself
        lengths = [1] * len(shape)
        for axis, length in zip(dimensions, x.shape, strict=True):
            lengths[axis] = length
        return x.reshape(lengths)
    added = [axis for axis in range(len(shape)) if axis not in dimensions]
    # The new axes go first in the graph, in whatever order the others are.
    order = (*added, *(dimensions[axis] for axis in x.order))
    name = to.add("Unsqueeze", x.name, np.arange(len(added))) if added else x.name
    had = dict(zip(dimensions, x.shape, strict=True))
    repeats = [
        shape[axis] if isinstance(shape[axis], int) and had.get(axis, 1) != shape[axis] else 1
        for axis in order
    ]
    if set(repeats) != {1}:
        name = to.add("Expand", name, np.array(repeats))
    return Tensor(name, shape, order)


def expand(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Value:
    kept = tuple(axis for axis in range(len(shape)) if axis not in given["dimensions"])
    return broadcast(to, inputs, shape, {"broadcast_dimensions": kept})


def concatenate(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    order = next(each.order for each in inputs if isinstance(each, Tensor))
    names = [to.ordered(each, order).name for each in inputs]
    return Tensor(to.add("Concat", *names, axis=order.index(given["dimension"])), shape, order)


def stack(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    axis = given["axis"]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [
        expand(to, [each], one, {"dimensions": (axis,)}) if isinstance(each, Tensor)
        else np.expand_dims(each, axis) for each in inputs
    ]
    return concatenate(to, parts, shape, {"dimension": axis})


def _cut(to: Builder, x: Tensor, cut: Mapping[int, tuple[int, int, int]]) -> str:
    """Of some axes every `step`-th entry from `start` to `limit`."""
    if not cut:
        return x.name
    starts, limits, steps = (np.array(each) for each in zip(*cut.values(), strict=True))
    return to.add("Slice", x.name, starts, limits, np.array(list(map(x.order.index, cut))), steps)


def slice(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,), steps = inputs, given["strides"] or (1,) * len(shape)
    cut = {
        axis: each for axis, each in enumerate(
            zip(given["start_indices"], given["limit_indices"], steps, strict=True)
        ) if isinstance(each[1], int) and each != (0, x.shape[axis], 1)
    }
    return Tensor(_cut(to, x, cut), shape, x.order)


def gather(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    """What x[:, 0], x[:, 2:5] and x[:, ::2] become where the length of an axis is not known."""
    (x, at), numbers = inputs, given["dimension_numbers"]
    sizes, gone = given["slice_sizes"], numbers.collapsed_slice_dims
    known = not isinstance(at, Tensor) and not numbers.operand_batching_dims
    if known and at.ndim == 2 and gone == numbers.start_index_map and len(gone) == 1:
        return _take(to, x, at[:, 0], shape, gone[0], numbers.offset_dims)
    if not known or at.ndim != 1:
        raise UserError("expected indices that are known before, received others in the network")
    starts = zip(numbers.start_index_map, at.tolist(), strict=True)
    name = _cut(to, x, {axis: (start, start + sizes[axis], 1) for axis, start in starts})
    part = Tensor(name, sizes, x.order)
    return squeeze(to, [part], shape, {"dimensions": gone}) if gone else part


def _take(
    to: Builder, x: Tensor, at: np.ndarray, shape: Shape, axis: int, others: Sequence[int]
) -> Tensor:
    """The entries `at` of an axis; `others` are the axes of the result which x has, too."""
    (new,) = set(range(len(shape))) - set(others)
    goes_to = iter(others)
    to_result = [new if each == axis else next(goes_to) for each in range(len(x.shape))]
    name = to.add("Gather", x.name, at.astype(np.int64), axis=x.order.index(axis))
    return Tensor(name, shape, tuple(to_result[each] for each in x.order))


def split(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> list[Tensor]:
    (x,), sizes, axis = inputs, given["sizes"], given["axis"]
    return [
        Tensor(_cut(to, x, {axis: (end - size, end, 1)}),
               (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.order)
        for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)
    ]


def unstack(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> list[Tensor]:
    (x,), axis = inputs, given["axis"]
    parts = split(to, [x], shape, {"sizes": [1] * x.shape[axis], "axis": axis})
    return [squeeze(to, [part], shape, {"dimensions": (axis,)}) for part in parts]


def pad(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    x, value = inputs
    pads = [given["padding_config"][axis] for axis in x.order]
    if any(inner or min(before, after) < 0 for before, after, inner in pads):
        raise UserError("expected padding around images, received another in the network")
    around = np.array([each[0] for each in pads] + [each[1] for each in pads])
    return Tensor(to.add("Pad", x.name, around, value), shape, x.order)
