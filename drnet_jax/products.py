"""Products: the multiply-adds of a network's layers, worked out from its trace, not measured.

What the paper calls FLOPs are multiply-adds. A network is traced once, on shapes alone, and every
convolution and matrix product in the trace is booked to the module that made it, whatever its
class. An output element costs one multiply-add for every kernel tap and input channel of its group;
taps on padding count in full, as in the common counters, those on the zeros that a transposed
convolution inserts do not. Nothing else counts: no normalisation, activation, pooling or resizing.
Operations that hold products of unknown number are listed as uncounted.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from drnet_jax.errors import UserError
from drnet_jax.ops import plain_forms

# Kernels and code from elsewhere, factorisations, Fourier transforms: their shapes do not tell.
UNCOUNTED = frozenset((
    "buffer_callback", "call_exported", "cholesky", "cholesky_update", "cudnn_fusion",
    "dot_product_attention_fp8_fwd_wrapper", "dot_product_attention_fwd_wrapper", "eig", "eigh",
    "ffi_call", "fft", "geqp3", "geqrf", "hessenberg", "householder_product", "io_callback", "lu",
    "ormqr", "pallas_call", "pure_callback", "qr", "ragged_dot_general", "scaled_dot",
    "scaled_matmul_wrapper", "schur", "svd", "symmetric_product", "tpu_custom_call",
    "triangular_solve", "tridiagonal", "tridiagonal_solve",
))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that owns parameters or makes products, at one resolution, for one image."""

    path: str  # "stage1_block1/conv2"; "" is the network itself
    kind: str  # the module's class
    output: tuple[int, ...]  # shape, without the batch axis
    parameters: int  # its own, without those of its submodules
    multiply_adds: int
    uncounted: tuple[str, ...] = ()  # operations of it whose products are not known, by name


def multiply_adds(layers: Sequence[Layer]) -> int:
    return sum(layer.multiply_adds for layer in layers)


def parameters(layers: Sequence[Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def layer_costs(network: nn.Module, resolution: int, variables: Any = None) -> tuple[Layer, ...]:
    """The layers of a network, in the order in which they are first called.

    Args:
        network: called as `network(images, train)` with images [1, H, W, 3] and train False.
        resolution: H and W in pixels.
        variables: their shapes, where they are known.

    Raises:
        UserError: if there are products inside a `while` or `cond`: their number depends on data.
    """
    variables = variables or variable_shapes(network, resolution)
    jaxpr, called = _trace(network, variables, resolution)
    products, uncounted = Counter(), defaultdict(dict)
    for path, count in _products(jaxpr, "", 1):
        if isinstance(count, str):
            uncounted[path][count] = None
        else:
            products[path] += count
    sizes = Counter()
    for path, leaf in traverse_util.flatten_dict(variables.get("params", {}), sep="/").items():
        sizes[path.rpartition("/")[0]] += leaf.size
    return tuple(
        Layer(path, *called.get(path, ("", ())), sizes[path], products[path],
              tuple(uncounted.get(path, ())))
        for path in dict.fromkeys([*called, *sizes, *products, *uncounted])
        if sizes[path] or products[path] or path in uncounted
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


def _products(jaxpr: Jaxpr, caller: str, times: int) -> Iterator[tuple[str, int | str]]:
    """Yields (module's path, multiply-adds, or the operation's name where they are not known).

    Args:
        jaxpr: the operations.
        caller: the module that those without a mark of their own belong to.
        times: how often the operations are run.
    """
    def is_jaxpr(value: Any) -> bool:
        return isinstance(value, (Jaxpr, ClosedJaxpr))

    for equation in jaxpr.eqns:
        marks = re.findall(r"module<(.*?)>", str(equation.source_info.name_stack))
        path = marks[-1].replace("|", "/") if marks else caller
        name, options = equation.primitive.name, equation.params
        if name in UNCOUNTED:
            yield path, name
            continue  # what a kernel repeats, the operations within it do not say
        if name == "conv_general_dilated":
            yield path, times * _of_convolution(equation)
        elif name == "dot_general":
            (contracted, _), _ = options["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            yield path, times * equation.outvars[0].aval.size * depth
        runs = times * options["length"] if name == "scan" else times
        # jit, remat, custom_jvp, scan and others carry the operations they run as options.
        for option in jax.tree.leaves(list(options.values()), is_leaf=is_jaxpr):
            if is_jaxpr(option):
                inner = list(_products(getattr(option, "jaxpr", option), path, runs))
                if inner and name in ("while", "cond"):
                    raise UserError(
                        f"network: expected products that every image needs, received some inside "
                        f"a {name!r} of module {path!r}; write it without jax.lax.{name}"
                    )
                yield from inner


def _of_convolution(equation: JaxprEqn) -> int:
    """Along an axis every output meets every tap; between inserted zeros, every input does."""
    image, kernel = (variable.aval for variable in equation.invars)
    output, options = equation.outvars[0].aval, equation.params
    axes = options["dimension_numbers"]
    meetings = output.size * kernel.size // kernel.shape[axes.rhs_spec[0]]
    for at, dilation in enumerate(options["lhs_dilation"]):
        if dilation > 1:
            inputs, stride = image.shape[axes.lhs_spec[at + 2]], options["window_strides"][at]
            meetings = meetings // output.shape[axes.out_spec[at + 2]] * inputs // stride
    return meetings
