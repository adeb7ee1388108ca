"""Checks of a network: that it can be trained and routed here, found before anything starts.

A network of the user's own can be wrong in ways that would end in a traceback far from their cause,
or in no message at all: statistics that nobody moves, padded rows that count. All of these show in
its traces, which are made on shapes alone: nothing is computed and nothing compiled.
"""

import functools
import importlib
import inspect
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.errors import InvalidRngError

from drnet_jax.errors import UserError, first_line
from drnet_jax.models.norm import MOMENTS, BatchNorm
from drnet_jax.ops import plain_forms

ROWS = 2  # of the batches that are traced
LIBRARIES = (
    "site-packages", "dist-packages", "<frozen", str(Path(importlib.__file__).parent),
    str(Path(__file__).parents[1]),
)
CALL = "__call__(self, x, train, mask=None)"
FACTORY = "factory(width=..., classes=..., norm=..., dtype=...)"


def call_factory(factory: Any, address: str, **arguments: Any) -> nn.Module:
    """What a factory returns for `arguments`.

    Args:
        factory: what the config names.
        address: how messages name it, such as "config.classifier.name: 'my_networks:Net'".
        arguments: of the factory, by keyword.

    Raises:
        UserError: if it cannot be called so, fails, or returns anything but a linen module.
    """
    if not callable(factory):
        raise UserError(
            f"{address}: expected a class or a function, called as {FACTORY}, received "
            f"{_kind(factory)}"
        )
    try:
        _signature_of(factory, **arguments)
    except TypeError as error:
        raise UserError(
            f"{address}: cannot be called as {FACTORY}: {error}; let it take these four"
        ) from error
    try:
        network = factory(**arguments)
    except Exception as error:
        raise UserError(f"{address}: the factory failed: {gist(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{address}: expected the factory to return a module of flax.linen, received "
            f"{_kind(network)}"
        )
    return network


def check_network(
    network: nn.Module, address: str, classes: int, sizes: tuple[int, ...], masked: bool
) -> None:
    """Traces a network in evaluation at every size, and in training at the smallest.

    Done once for networks that compare equal.

    Args:
        network: to be called as `network(images, train, mask)`, images float32 [S, H, W, 3].
        address: how messages name it, see `call_factory`.
        classes: C, the length of its answers [S, C].
        sizes: H and W in pixels, of all images that it will see.
        masked: whether it will be trained on batches with padded rows.

    Raises:
        UserError: if it cannot be traced, answers in another shape, fits one size only, draws
            random numbers in evaluation or for anything but dropout, holds a norm that keeps its
            statistics by itself, does not heed the mask, or is used twice, or marks no norm
            that ends a residual branch where these are to begin at 0.
    """
    try:
        hash(network)
    except TypeError:  # a field of it has no hash
        _checked.__wrapped__(network, address, classes, sizes, masked)
    else:
        _checked(network, address, classes, sizes, masked)


@functools.lru_cache(maxsize=32)
def _checked(
    network: nn.Module, address: str, classes: int, sizes: tuple[int, ...], masked: bool
) -> None:
    try:
        for train in (False, True):
            _signature_of(network.__call__, jnp.zeros(0), train)
        _signature_of(network.__call__, jnp.zeros(0), True, jnp.zeros(0))
    except TypeError as error:
        raise UserError(f"{address}: expected {CALL}, but {error}") from error
    smallest = min(sizes)
    with plain_forms():
        variables = _trace(
            f"{address}: cannot be initialised at {smallest} px",
            lambda images: network.init(jax.random.key(0), images, False), _images(smallest),
        )
        if other := sorted(set(variables) - {"params", "batch_stats"}):
            raise UserError(
                f"{address}: expected variables in 'params', and running statistics of norms, "
                f"received the collection {other[0]!r}, which is not kept from step to step"
            )
        for size in sorted(sizes):
            _check_evaluation(network, address, classes, size, smallest, variables)
        _check_training(network, address, smallest, variables, masked)


def _check_evaluation(
    network: nn.Module, address: str, classes: int, size: int, smallest: int, variables: Any
) -> None:
    fails = f"{address}: cannot be evaluated at {size} px"
    if size > smallest:
        fails = (
            f"{address}: works at {smallest} px and not at {size} px; let it end in an average "
            "over height and width (x.mean((1, 2)))"
        )
    answers = _trace(
        fails, lambda variables, images: network.apply(variables, images, False),
        variables, _images(size),
    )
    received, expected = _kind(answers), f"float {[ROWS, classes]}"
    if isinstance(answers, jax.ShapeDtypeStruct):
        kind = "float" if jnp.issubdtype(answers.dtype, jnp.floating) else str(answers.dtype)
        received = f"{kind} {list(answers.shape)}"
    if received != expected:
        raise UserError(
            f"{address}: expected logits {expected} of {ROWS} images, one for each of the "
            f"factory's `classes`, received {received}"
        )


def _check_training(
    network: nn.Module, address: str, size: int, variables: Any, masked: bool
) -> None:
    kinds: dict[str, str] = {}
    unmasked: list[str] = []
    uses: Counter[str] = Counter()
    begin: list[bool] = []  # for each norm that could: whether it begins at 0

    def watch(method: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        kinds.setdefault(path, type(context.module).__name__)
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            called = inspect.signature(method).bind(*args, **kwargs).arguments
            uses[path] += bool(called["train"])
            if context.module.zero_init:
                begin.append(context.module.ends_branch)
            if called["train"] and called.get("mask") is None:
                unmasked.append(path)
        return method(*args, **kwargs)

    def train(variables: Any, images: jax.Array, mask: jax.Array | None) -> Any:
        with nn.intercept_methods(watch):
            return network.apply(
                variables, images, True, mask, mutable=[MOMENTS, "batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )[1]

    mask = jax.ShapeDtypeStruct((ROWS,), bool) if masked else None
    mutated = _trace(
        f"{address}: cannot be trained at {size} px", train, variables, _images(size), mask
    )
    call = "norm(dtype=...)(x, train, mask), `norm` being what the factory is given"
    for path in _owners(variables.get("batch_stats", {})):
        if path not in _owners(mutated.get(MOMENTS, {})):
            raise UserError(
                f"{address}: module {path!r} ({kinds.get(path, 'never called')}) keeps its "
                f"statistics by itself, where each resolution must have its own; use {call}"
            )
    if masked and unmasked:
        raise UserError(
            f"{address}: norm {unmasked[0]!r} is called without the mask, so that padded rows "
            f"would count; call it as {call}"
        )
    if begin and not any(begin):
        raise UserError(
            f"{address}: expected norms that end residual branches, which "
            "config.classifier.zero_init lets begin at 0, received none; make them with "
            "norm(dtype=..., ends_branch=True), or leave zero_init out"
        )
    for path, count in uses.items():
        if count > 1:
            raise UserError(
                f"{address}: norm {path!r} is called {count} times in one pass, and would keep "
                "the statistics of the last; make one norm for each place"
            )


def _owners(collection: Any) -> list[str]:
    """The paths of the modules that own variables of a collection, in order."""
    paths = traverse_util.flatten_dict(collection)
    return list(dict.fromkeys("/".join(path[:-1]) for path in paths))


def _images(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((ROWS, size, size, 3), jnp.float32)


def _trace(fails: str, function: Callable[..., Any], *shapes: Any) -> Any:
    """The shapes of what a function of the network returns; `fails` begins the message if none."""
    try:
        return jax.eval_shape(function, *shapes)
    except InvalidRngError as error:
        raise UserError(
            f"{fails}: random numbers are for dropout alone, and in training alone "
            f"(nn.Dropout(rate, deterministic=not train)): {gist(error)}"
        ) from error
    except Exception as error:
        raise UserError(f"{fails}: {gist(error)}") from error


def gist(error: BaseException) -> str:
    """One line: what an error says, and the line of the user's own code that it comes from."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if not any(library in frame.filename for library in LIBRARIES)
    ]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _kind(value: Any) -> str:
    """What a value is, in a few words."""
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"


def _signature_of(function: Callable, *args: Any, **kwargs: Any) -> None:
    """Raises TypeError if a function cannot be called with these arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # it does not say
        return
    signature.bind(*args, **kwargs)
