"""Parameters and multiply-adds of any Flax network, layer by layer, worked out, not measured.

The network is traced once, on shapes alone, and every convolution and matrix product in the trace
is booked to the module that made it, whatever the module's class. An output element costs one
multiply-add for every kernel tap and input channel of its group; taps that fall on padding count
in full, as in the common counters. Nothing else counts: no normalisation, activation or pooling.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr

from drnet_jax.errors import UserError
from drnet_jax.forms import plain_forms


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that owns parameters or makes products, at one resolution, for one image."""

    path: str  # "stage1_block1/conv2"; "" is the network itself
    kind: str  # the module's class
    output: tuple[int, ...]  # shape, without the batch axis
    parameters: int  # its own, without those of its submodules
    multiply_adds: int


def multiply_adds(layers: Sequence[Layer]) -> int:
    return sum(layer.multiply_adds for layer in layers)


def parameters(layers: Sequence[Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def layer_costs(network: nn.Module, resolution: int) -> tuple[Layer, ...]:
    """The layers of a network, in the order in which they are first called.

    Args:
        network: called as `network(images, train)` with images [1, H, W, 3] and train False.
        resolution: H and W in pixels.

    Raises:
        UserError: if there are products inside a `while` or `cond`: their number depends on data.
    """
    variables = variable_shapes(network, resolution)
    jaxpr, called = _trace(network, variables, resolution)
    products = Counter()
    for path, count in _products(jaxpr, "", 1):
        products[path] += count
    sizes = Counter()
    for path, leaf in traverse_util.flatten_dict(variables.get("params", {}), sep="/").items():
        sizes[path.rpartition("/")[0]] += leaf.size
    return tuple(
        Layer(path, *called.get(path, ("", ())), sizes[path], products[path])
        for path in dict.fromkeys([*called, *sizes, *products])
        if sizes[path] or products[path]
    )


def variable_shapes(network: nn.Module, resolution: int) -> Any:
    """The variables of a network as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return jax.eval_shape(
        lambda images: network.init(jax.random.key(0), images, False), _images(resolution)
    )


def _images(resolution: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)


def _trace(
    network: nn.Module, variables: Any, resolution: int
) -> tuple[Jaxpr, dict[str, tuple[str, tuple[int, ...]]]]:
    """The operations of a forward pass, each marked with its module's path; and the modules.

    Modules are given as {path: (class, output shape without the batch axis)}, in order of call.
    """
    called: dict[str, tuple[str, tuple[int, ...]]] = {}

    def mark(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        kind = type(context.module).__name__
        called.setdefault(path, (kind, ()))
        with jax.named_scope(f"module<{path.replace('/', '|')}>"):
            output = method(*args, **kwargs)
        if context.method_name == "__call__":
            called[path] = (kind, tuple(jax.tree.leaves(output)[0].shape[1:]))
        return output

    def forward(variables: Any, images: jax.Array) -> Any:
        with nn.intercept_methods(mark), plain_forms():
            return network.apply(variables, images, False)

    return jax.make_jaxpr(forward)(variables, _images(resolution)).jaxpr, called


def _products(jaxpr: Jaxpr, caller: str, times: int) -> Iterator[tuple[str, int]]:
    """Yields (module's path, multiply-adds) of each convolution and matrix product.

    Args:
        jaxpr: the operations.
        caller: the module that those without a mark of their own belong to.
        times: how often the operations are run.
    """
    for equation in jaxpr.eqns:
        marks = re.findall(r"module<(.*?)>", str(equation.source_info.name_stack))
        path = marks[-1].replace("|", "/") if marks else caller
        name, options = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[options["dimension_numbers"].rhs_spec[0]]
            yield path, times * equation.outvars[0].aval.size * kernel.size // features
        elif name == "dot_general":
            (contracted, _), _ = options["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            yield path, times * equation.outvars[0].aval.size * depth
        runs = times * options["length"] if name == "scan" else times
        # jit, remat, custom_jvp, scan and others carry the operations they run as options.
        for option in jax.tree.leaves(list(options.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(option):
                inner = list(_products(getattr(option, "jaxpr", option), path, runs))
                if inner and name in ("while", "cond"):
                    raise UserError(
                        f"network: expected products that every image needs, received some inside "
                        f"a {name!r} of module {path!r}; write it without jax.lax.{name}"
                    )
                yield from inner


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
