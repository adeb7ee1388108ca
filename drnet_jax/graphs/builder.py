"""Builder: a graph in the making, whose tensors know the order of their axes.

JAX's images are [B, H, W, C] and the convolutions of ONNX are of [B, C, H, W]: one is transposed
where an operator needs that, and nowhere else.
"""

import dataclasses
from typing import Any

import numpy as np

from drnet_jax.graphs.graph import Graph


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that depends on the images."""

    name: str  # in the graph
    shape: tuple[Any, ...]  # in JAX's order of axes; the batch is not a number
    order: tuple[int, ...]  # axis i in the graph is axis order[i] of JAX


Value = Tensor | np.ndarray  # an array: known here and now


class Builder:
    """Adds operators to a graph."""

    def __init__(self) -> None:
        self.graph = Graph()

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """See `Graph.add`."""
        return self.graph.add(operator, *inputs, **attributes)

    def ordered(self, x: Value, order: tuple[int, ...]) -> Tensor:
        """A tensor with its axes in an order."""
        if isinstance(x, np.ndarray):
            return Tensor(self.graph.constant(x.transpose(order)), x.shape, order)
        if x.order == order:
            return x
        moved = [x.order.index(axis) for axis in order]
        return Tensor(self.add("Transpose", x.name, perm=moved), x.shape, order)

    def plain(self, x: Value) -> Tensor:
        """A tensor with its axes in JAX's order."""
        return self.ordered(x, tuple(range(len(x.shape))))

    def elementwise(self, operator: str, inputs: list[Value], shape: tuple[Any, ...]) -> Tensor:
        """An operator that meets its inputs entry by entry, at least one of them a tensor."""
        like = next(each for each in inputs if isinstance(each, Tensor))
        names = [
            self.ordered(each, like.order).name if isinstance(each, Tensor)
            else _short(each).transpose(like.order) if each.ndim else each for each in inputs
        ]
        return Tensor(self.add(operator, *names), shape, like.order)


def _short(x: np.ndarray) -> np.ndarray:
    """Without what is repeated along an axis: every operator repeats it by itself."""
    for axis in range(x.ndim):
        first = x.take([0], axis)
        x = first if (x == first).all() else x
    return x
