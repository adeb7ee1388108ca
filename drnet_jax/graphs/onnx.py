"""ONNX: a traced network as a graph of ONNX operators, for other runtimes.

JAX's trace of a network is a list of some thirty kinds of primitives; each becomes an operator or
two. What depends on weights alone is computed here and now.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax import export
from jax.extend.core import Jaxpr, Literal

from drnet_jax.errors import UserError
from drnet_jax.graphs.builder import Builder, Tensor, Value
from drnet_jax.graphs.folding import fold
from drnet_jax.graphs.operators import OPERATORS
from drnet_jax.ops import traced_for

SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier")  # hand on what they are given


def to_onnx(
    function: Callable[[jax.Array], dict[str, jax.Array]], shape: tuple[int, ...], about: str
) -> onnx.ModelProto:
    """The graph of a function of uint8 images [B, H, W, C], for any B; its input is `images`.

    Args:
        function: -> float32 results [B, ...] by name; parameters are constants in it.
        shape: (H, W, C).
        about: a line of what it computes.

    Raises:
        UserError: if it does something that has no translation here.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    with traced_for("graph"):
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(images)
    builder = Builder()
    image = Tensor("images", images.shape, tuple(range(1 + len(shape))))
    consts = [np.asarray(each) for each in traced.consts]
    results = _translate(builder, traced.jaxpr, consts, [image])
    named = {
        name: (builder.plain(result).name, result.shape[1:])
        for name, result in zip(sorted(shapes), results, strict=True)
    }
    graph = fold(builder.graph, {value for value, _ in named.values()})
    return graph.model(("images", shape), named, about)


def _translate(
    builder: Builder, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """Adds what a traced function does; returns its results."""
    known: dict[Any, Value] = dict(zip(
        (*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True
    ))

    def read(variable: Any) -> Value:
        if isinstance(variable, Literal):
            return np.asarray(variable.val, variable.aval.dtype)
        return known[variable]

    for equation in jaxpr.eqns:
        found = _equation(builder, equation, [read(each) for each in equation.invars])
        known |= zip(equation.outvars, found, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _equation(builder: Builder, equation: Any, inputs: list[Value]) -> list[Value]:
    primitive, given = equation.primitive, equation.params
    inner = given.get("jaxpr", given.get("call_jaxpr"))
    if inner is not None:  # a function within: in line
        closed = getattr(inner, "consts", ())
        return _translate(builder, getattr(inner, "jaxpr", inner), closed, inputs)
    if primitive.name in SAME:
        return inputs
    shapes = [each.aval.shape for each in equation.outvars]
    known = not any(isinstance(each, Tensor) for each in inputs)
    if known and all(isinstance(length, int) for shape in shapes for length in shape):
        return _computed(primitive, inputs, given)
    if primitive.name not in OPERATORS:
        raise UserError(
            f"expected operations that have a translation to ONNX ({', '.join(sorted(OPERATORS))}),"
            f" received {primitive.name!r} in the network"
        )
    found = OPERATORS[primitive.name](builder, inputs, shapes[0], given)
    return found if isinstance(found, list) else [found]


def _computed(primitive: Any, inputs: list[np.ndarray], given: dict[str, Any]) -> list[np.ndarray]:
    """The results of what depends on weights alone."""
    if primitive.name in COMPUTED:  # at once: JAX would compile each anew for each shape
        return [np.asarray(COMPUTED[primitive.name](*inputs))]
    found = primitive.bind(*map(jax.numpy.asarray, inputs), **given)
    return [np.asarray(each) for each in (found if primitive.multiple_results else [found])]


COMPUTED: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "sqrt": np.sqrt,
    "neg": np.negative, "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
}
