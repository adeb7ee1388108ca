"""Resolutions: one set of shared weights, and one set of norms for each.

    params      = {"predictor": tree, "shared": tree, "norms": {"224": tree, "112": tree}}
    batch_stats = {"predictor": tree,                 "norms": {"224": tree, "112": tree}}

The classifier is an ordinary network that knows no resolution. What belongs to `norms` needs no
list of names: it is the parameters of every module that owns `batch_stats`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util

Tree = Any  # a nested dict of arrays
SHARED_NORM = "all"  # the only key of `norms` when all resolutions share one set


def norm_keys(resolutions: Sequence[int], aware: bool) -> tuple[str, ...]:
    """The key into `norms` of each candidate resolution: its own if norms are resolution-aware."""
    return tuple(str(resolution) if aware else SHARED_NORM for resolution in resolutions)


def split(variables: Mapping[str, Tree]) -> tuple[Tree, Tree, Tree]:
    """Splits plain flax variables into (shared params, norm params, norm statistics)."""
    stats = variables.get("batch_stats", {})
    owners = {path[:-1] for path in traverse_util.flatten_dict(stats)}
    shared, norms = {}, {}
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items():
        (norms if path[:-1] in owners else shared)[path] = leaf
    return traverse_util.unflatten_dict(shared), traverse_util.unflatten_dict(norms), stats


def merge(shared: Tree, norms: Tree) -> Tree:
    """The inverse of `split`: the `params` of a plain network from shared and norm parameters."""
    leaves = traverse_util.flatten_dict(shared) | traverse_util.flatten_dict(norms)
    return traverse_util.unflatten_dict(leaves)


def replicate_norms(norms: Tree, keys: tuple[str, ...]) -> dict[str, Tree]:
    """One copy of a tree for each distinct key: every resolution starts from the same norms."""
    return {key: jax.tree.map(lambda leaf: leaf.copy(), norms) for key in dict.fromkeys(keys)}


def only(tree: Tree, key: str) -> Tree:
    """The part of params or batch_stats that the classifier needs at one resolution."""
    shared = {"shared": tree["shared"]} if "shared" in tree else {}
    return shared | {"norms": {key: tree["norms"][key]}}


def plain_variables(params: Tree, batch_stats: Tree, key: str) -> dict[str, Tree]:
    """The variables of the plain classifier at one resolution, ready for `network.apply`."""
    return {
        "params": merge(params["shared"], params["norms"][key]),
        "batch_stats": batch_stats["norms"][key],
    }
