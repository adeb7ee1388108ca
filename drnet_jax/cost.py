"""Cost: parameters, and multiply-adds of one image at each resolution, worked out, not measured.

What the paper calls FLOPs are multiply-adds. A network is traced once, on shapes alone, and every
convolution and matrix product in the trace is booked to the module that made it, whatever the
module's class. An output element costs one multiply-add for every kernel tap and input channel of
its group; taps that fall on padding count in full, as in the common counters. Nothing else counts:
no normalisation, activation, pooling or resizing.
"""

import dataclasses
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr

from drnet_jax.config import GIGA, Config
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.ops import plain_forms
from drnet_jax.resolutions import split

# A training step counts as three forward passes: forward, and two products per layer back.
TRAINING_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many trainable numbers a model holds (running statistics are not among them)."""

    classifier: int  # the plain network, with one set of norms
    predictor: int
    extra_norms: int  # the norm sets of the other resolutions; 0 where all share one

    @property
    def total(self) -> int:
        return self.classifier + self.predictor + self.extra_norms


@dataclasses.dataclass(frozen=True)
class Costs:
    """Multiply-adds for one image and parameters of a whole model."""

    resolutions: tuple[int, ...]  # [R], as in the config
    classifier: tuple[int, ...]  # [R], multiply-adds at each resolution
    predictor: int  # multiply-adds at the size at which the predictor sees the image
    parameters: Parameters

    @property
    def array(self) -> np.ndarray:
        """Multiply-adds of the classifier, float32 [R], as routing charges them."""
        return np.array(self.classifier, np.float32)

    def can_cost(self, budget: float) -> bool:
        """Whether routing, the predictor included, can cost `budget` multiply-adds on average."""
        # A hair more on both sides, so that the ends as the message prints them will do.
        low, high = min(self.classifier), max(self.classifier)
        return 0.999 * (self.predictor + low) <= budget <= 1.001 * (self.predictor + high)

    def check_budget(self, budget: float) -> None:
        """Raises UserError unless `budget` is 0, for none, or routing `can_cost` it."""
        low, high = (self.predictor + end for end in (min(self.classifier), max(self.classifier)))
        if budget and not self.can_cost(budget):
            raise UserError(
                f"config.budget (or --budget): expected {low / GIGA:.4g} (the predictor, and "
                f"{min(self.resolutions)} px for all) to {high / GIGA:.4g} (the predictor, and "
                f"{max(self.resolutions)} px for all) 1e9 multiply-adds, received "
                f"{budget / GIGA:.4g}"
            )

    def mean(self, mix: Sequence[float], with_predictor: bool) -> float:
        """Mean multiply-adds of an image, E[F] of Eq. 6.

        Args:
            mix: [R], the share of the images at each resolution.
            with_predictor: add the predictor's own, as the paper's tables do; its target alpha
                leaves them out.

        Raises:
            UserError: if `mix` is not R shares that sum to 1 within 0.001.
        """
        # A hair more than 0.001, so that 0.333 three times will do.
        if (
            len(mix) != len(self.resolutions)
            or not all(share >= 0 for share in mix)
            or not abs(sum(mix) - 1) < 1.001e-3
        ):
            raise UserError(
                f"mix: expected {len(self.resolutions)} shares, one for each resolution "
                f"{self.resolutions}, none negative and 1 in sum, received {tuple(mix)}"
            )
        mean = sum(p * c for p, c in zip(mix, self.classifier, strict=True)) / sum(mix)
        return mean + (self.predictor if with_predictor else 0)


def model_costs(config: Config, classes: int) -> Costs:
    """The costs of the model that `config` describes.

    Args:
        config: of which the networks and resolutions matter.
        classes: of the classifier; `config.classifier.classes` may leave them to the data set.

    Raises:
        UserError: if a network is unknown or cannot be counted (see `layer_costs`).
    """
    drnet = DRNet.from_config(config, classes)
    classifier, predictor = drnet.classifier, drnet.predictor
    resolutions = config.resolutions
    layers = [layer_costs(classifier, resolution) for resolution in resolutions]
    router = layer_costs(predictor, config.predictor.resolution)
    _, norms, _ = split(variable_shapes(classifier, resolutions[0]))
    extra_sets = len(set(drnet.norm_keys)) - 1
    return Costs(
        resolutions=resolutions,
        classifier=tuple(map(multiply_adds, layers)),
        predictor=multiply_adds(router),
        parameters=Parameters(
            classifier=parameters(layers[0]),
            predictor=parameters(router),
            extra_norms=extra_sets * sum(leaf.size for leaf in jax.tree.leaves(norms)),
        ),
    )


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


if __name__ == "__main__":
    from drnet_jax.commands import main

    main(["drnet", "cost", *sys.argv[1:]])
