"""Operators: what each of JAX's primitives becomes in ONNX.

Every translation is a function (to, inputs, shape, given) -> result, or results: `to` the graph in
the making, `inputs` the values that the primitive is given, `shape` that of its (first) result, and
`given` its parameters by JAX's names.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx

from drnet_jax.errors import UserError
from drnet_jax.graphs import shapes
from drnet_jax.graphs.builder import Builder, Tensor, Value
from drnet_jax.graphs.convolution import convolution, pads
from drnet_jax.graphs.shapes import Given, Shape


def _window(operator: str, to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,), window = inputs, given["window_dimensions"]
    first, *middle, last = range(len(x.shape))  # [B, ..., C]
    dilations = set(given["base_dilation"]) | set(given["window_dilation"])
    if not window[first] == window[last] == 1 or dilations != {1}:
        raise UserError("expected pooling over height and width, received another in the network")
    order, sizes = (first, last, *middle), [window[axis] for axis in middle]
    name = to.add(
        operator, to.ordered(x, order).name, kernel_shape=sizes,
        strides=[given["window_strides"][axis] for axis in middle],
        pads=pads([given["padding"][axis] for axis in middle]),
        **({"count_include_pad": 1} if operator == "AveragePool" else {}),
    )
    if operator == "AveragePool":  # JAX sums
        name = to.add("Mul", name, np.float32(math.prod(sizes)))
    return Tensor(name, shape, order)


def _product(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    x, y = inputs
    contracted, batched = given["dimension_numbers"]
    by_weights = isinstance(x, Tensor) and not isinstance(y, Tensor) and y.ndim == 2
    if by_weights and len(contracted[0]) == 1 and not batched[0]:
        (axis,), (row,) = contracted
        weights = y if row == 0 else y.T
        free = [each for each in x.order if each != axis]
        columns = x.shape[x.order[-1]]
        as_it_lies = axis == x.order[-2] and isinstance(columns, int) and columns > len(weights)
        if not as_it_lies and axis != x.order[-1] and len(free) == 3:
            free = [free[0], free[2], free[1]]  # as what is moved anyway had best be: [B, C, ...]
        places = [*(sorted(free).index(each) for each in free), len(free)]  # in the result's shape
        if as_it_lies:  # of so many columns the product is quick enough
            name = to.add("MatMul", weights.T, x.name)
            return Tensor(name, shape, (*places[:-2], places[-1], places[-2]))
        # The axis that is summed goes last.
        name = to.add("MatMul", to.ordered(x, (*free, axis)).name, weights)
        return Tensor(name, shape, tuple(places))
    letters = map(chr, itertools.count(ord("a")))
    of_x, of_y = ([next(letters) for _ in each.shape] for each in inputs)
    for mine, theirs in (*zip(*contracted, strict=True), *zip(*batched, strict=True)):
        of_y[theirs] = of_x[mine]
    result = [of_x[axis] for axis in batched[0]] + [
        letter for mine, letters_of, other in ((0, of_x, batched[0]), (1, of_y, batched[1]))
        for axis, letter in enumerate(letters_of) if axis not in (*contracted[mine], *other)
    ]
    equation = f"{''.join(of_x)},{''.join(of_y)}->{''.join(result)}"
    name = to.add("Einsum", to.plain(x).name, to.plain(y).name, equation=equation)
    return Tensor(name, shape, tuple(range(len(shape))))


def _convert(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given["new_dtype"]))
    return Tensor(to.add("Cast", inputs[0].name, to=kind), shape, inputs[0].order)


def _clamp(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    low, x, high = inputs
    return Tensor(to.add("Clip", x.name, low, high), shape, x.order)


def _select(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    which, otherwise, then = inputs
    return to.elementwise("Where", [which, then, otherwise], shape)


def _inverse_root(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,) = inputs
    return Tensor(to.add("Reciprocal", to.add("Sqrt", x.name)), shape, x.order)


def _power(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,) = inputs
    return Tensor(to.add("Pow", x.name, np.float32(given["y"])), shape, x.order)


def _square(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    (x,) = inputs
    return Tensor(to.add("Mul", x.name, x.name), shape, x.order)


def _maximum(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    over = [each for each in inputs if isinstance(each, Tensor) or each.any()]
    if len(over) == 1:  # the other is 0
        return Tensor(to.add("Relu", over[0].name), shape, over[0].order)
    return to.elementwise("Max", inputs, shape)


ONE = np.float32(1)


def _other(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    """`ne`."""
    same = to.elementwise("Equal", inputs, shape)
    return Tensor(to.add("Not", same.name), shape, same.order)


def _error(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    """`erfc`: 1 - erf, small values of which lose digits."""
    (x,) = inputs
    return Tensor(to.add("Sub", ONE, to.add("Erf", x.name)), shape, x.order)


def _log_of_more(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    """`log1p`."""
    (x,) = inputs
    return Tensor(to.add("Log", to.add("Add", x.name, ONE)), shape, x.order)


def _exp_less_one(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    """`expm1`."""
    (x,) = inputs
    return Tensor(to.add("Sub", to.add("Exp", x.name), ONE), shape, x.order)


def _best(to: Builder, inputs: list[Value], shape: Shape, given: Given) -> list[Value]:
    """`top_k`: of its results the values alone."""
    name = to.add("TopK", to.plain(inputs[0]).name, np.array([given["k"]]), axis=-1)
    return [Tensor(name, shape, tuple(range(len(shape)))), np.zeros(0)]


def _each(operator: str, to: Builder, inputs: list[Value], shape: Shape, given: Given) -> Tensor:
    return to.elementwise(operator, inputs, shape)


ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "pow": "Pow",
    "neg": "Neg", "exp": "Exp", "log": "Log", "logistic": "Sigmoid", "tanh": "Tanh",
    "sqrt": "Sqrt", "abs": "Abs", "sign": "Sign", "erf": "Erf", "floor": "Floor", "ceil": "Ceil",
    "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
    "and": "And", "or": "Or", "not": "Not", "sin": "Sin", "cos": "Cos",
}
OPERATORS: dict[str, Callable[..., Value | list[Value]]] = {
    **{name: functools.partial(_each, operator) for name, operator in ELEMENTWISE.items()},
    "max": _maximum,
    "conv_general_dilated": convolution,
    "reduce_window_max": functools.partial(_window, "MaxPool"),
    "reduce_window_sum": functools.partial(_window, "AveragePool"),
    "reduce_sum": functools.partial(shapes.reduce, "ReduceSum"),
    "reduce_max": functools.partial(shapes.reduce, "ReduceMax"),
    "reduce_min": functools.partial(shapes.reduce, "ReduceMin"),
    "dot_general": _product,
    "transpose": shapes.transpose,
    "reshape": shapes.reshape,
    "broadcast_in_dim": shapes.broadcast,
    "squeeze": shapes.squeeze,
    "expand_dims": shapes.expand,
    "concatenate": shapes.concatenate,
    "stack": shapes.stack,
    "unstack": shapes.unstack,
    "slice": shapes.slice,
    "gather": shapes.gather,
    "split": shapes.split,
    "pad": shapes.pad,
    "convert_element_type": _convert,
    "clamp": _clamp,
    "select_n": _select,
    "rsqrt": _inverse_root,
    "integer_pow": _power,
    "square": _square,
    "ne": _other,
    "erfc": _error,
    "log1p": _log_of_more,
    "expm1": _exp_less_one,
    "top_k": _best,
}
