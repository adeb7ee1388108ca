"""Conversion: the tensors of a PyTorch network as the variables of the same flax network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from drnet_jax.errors import UserError
from drnet_jax.weights.names import Rules, renamed

HEAD = "head"  # the last layer of every network
COUNTER = "num_batches_tracked"  # of BatchNorm in PyTorch, of no use in evaluation
LEAVES = {"weight": "kernel", "bias": "bias"}
NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}

Path = tuple[str, ...]  # of a variable: its collection, modules, and name


def count_classes(tensors: Mapping[str, np.ndarray], rules: Rules) -> int | None:
    """How many classes the last layer of a state dict has, if that layer is found."""
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if renamed(rules, module, ()) == HEAD and leaf == "weight" and tensor.ndim:
            return len(tensor)
    return None


def convert(tensors: Mapping[str, np.ndarray], rules: Rules, shapes: Any, where: str) -> Any:
    """The variables of a flax network from the state dict of its PyTorch twin.

    Args:
        tensors: by PyTorch's names.
        rules: of `drnet_jax.weights.names`.
        shapes: of the variables of the flax network.
        where: begins the message of an error.

    Returns:
        {"params", "batch_stats"}, float32 numpy arrays.

    Raises:
        UserError: unless there is for each variable a tensor of its shape, of finite numbers, and
            for each tensor a variable; one message names all that are not.
    """
    wanted = traverse_util.flatten_dict(shapes)
    blocks = _blocks(shapes["params"])
    found: dict[Path, np.ndarray] = {}
    unexpected, unfit = [], []
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] == COUNTER:
            continue
        path = _path(name, rules, blocks, wanted)
        if path not in wanted or path in found:
            unexpected.append(name)
            continue
        found[path] = _in_our_layout(tensor, len(wanted[path].shape)).astype(np.float32)
        if found[path].shape != wanted[path].shape:
            unfit.append(
                f"{name} of shape {list(tensor.shape)} (for {_text(path)}, in our layout "
                f"{list(wanted[path].shape)})"
            )
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            unfit.append(f"{name} of type {tensor.dtype}")
        elif not _is_sound(path, found[path]):
            unfit.append(f"{name}, whose numbers are not finite, or a variance below 0")
    problems = {
        "missing": [_text(path) for path in wanted if path not in found],
        "unexpected": unexpected, "unfit": unfit,
    }
    if any(problems.values()):
        raise UserError(
            f"{where}: expected a tensor for each variable of this network, and no others; "
            + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        )
    return traverse_util.unflatten_dict(found)


def _blocks(modules: Iterable[str]) -> list[str]:
    """The blocks among the modules of a network, in their order: stage1_block1 and on."""
    numbers = {name: tuple(map(int, re.findall(r"\d+", name))) for name in modules}
    return sorted((name for name in modules if "_block" in name), key=numbers.get)


def _path(
    name: str, rules: Rules, blocks: Sequence[str], wanted: Mapping[Path, Any]
) -> Path | None:
    """The variable that a tensor is for, if a rule knows its module."""
    module, _, leaf = name.rpartition(".")
    here = renamed(rules, module, blocks)
    if here is None:
        return None
    modules = tuple(here.split("/"))
    normalises = ("batch_stats", *modules, "mean") in wanted
    leaf = (NORM_LEAVES if normalises else LEAVES).get(leaf, leaf)
    return ("batch_stats" if leaf in ("mean", "var") else "params", *modules, leaf)


def _in_our_layout(tensor: np.ndarray, axes: int) -> np.ndarray:
    """OIHW -> HWIO, and OI -> IO, also from a 1x1 convolution if only 2 axes are wanted."""
    if axes == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    return tensor.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim)))


def _is_sound(path: Path, numbers: np.ndarray) -> bool:
    return bool(np.isfinite(numbers).all()) and (path[-1] != "var" or (numbers >= 0).all())


def _text(path: Path) -> str:
    return "/".join(path[1:])
