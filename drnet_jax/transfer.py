"""Transfer: what a DRNet has learnt, for other classes and other resolutions.

Pure functions on variables: (params, batch_stats) in the layout of `drnet_jax.resolutions`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from drnet_jax import models
from drnet_jax.config import Config
from drnet_jax.drnet import PREDICTOR, DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.resolutions import norm_keys

Variables = tuple[Tree, Tree]
NONE = -1  # as an axis


def class_axes(config: Config, classes: int) -> Variables:
    """Of each variable of a config's DRNet the axis along which the classes lie, or NONE.

    No names are known: it is where the shapes for one class more are longer by one. What is longer
    than the classes (the predictor's last layer, if it classifies) begins with them.

    Raises:
        UserError: if the shape of a variable depends on the number of classes in another way.
    """
    drnet = DRNet.from_config(config, classes)
    larger = dataclasses.replace(
        drnet,
        classifier=models.build_classifier(config.classifier, classes + 1, config.dtype),
        predictor=models.build_predictor(
            config.predictor, drnet.options, classes + 1, config.dtype
        ),
    )

    def axis(path: tuple, leaf: jax.ShapeDtypeStruct, longer: jax.ShapeDtypeStruct) -> int:
        if leaf.shape == longer.shape:
            return NONE
        for at, length in enumerate(leaf.shape):
            if longer.shape == (*leaf.shape[:at], length + 1, *leaf.shape[at + 1 :]):
                return at
        raise UserError(
            f"config.classifier.name: expected layers of which only an axis is as long as there "
            f"are classes; of {config.classifier.name!r} with {config.predictor.name!r} "
            f"{jax.tree_util.keystr(path[1:])} is {list(leaf.shape)} for {classes} classes and "
            f"{list(longer.shape)} for one more, so that no classes can be picked from it"
        )

    shapes, longer = (jax.eval_shape(each.init, jax.random.key(0)) for each in (drnet, larger))
    return jax.tree_util.tree_map_with_path(axis, shapes, longer)


def pick_classes(
    variables: Variables, axes: Variables, classes: int, kept: Sequence[int]
) -> Variables:
    """The variables of a DRNet that knows some of the classes only, in the order of `kept`.

    Args:
        axes: see `class_axes`.
        classes: C, of `variables`.
        kept: labels, each below C.
    """
    def pick(axis: int, leaf: jax.Array) -> jax.Array:
        if axis == NONE:
            return leaf
        others = range(classes, leaf.shape[axis])
        return jnp.take(leaf, jnp.array([*kept, *others]), axis)

    return jax.tree.map(pick, axes, variables)


def set_norms(variables: Variables, base: str, keys: Sequence[str]) -> Variables:
    """The variables with a set of norms for each of `keys`: its own, or else a copy of `base`'s."""
    def chosen(norms: Tree) -> Tree:
        return {
            key: norms[key] if key in norms else jax.tree.map(jnp.copy, norms[base])
            for key in keys
        }

    return tuple(tree | {"norms": chosen(tree["norms"])} for tree in variables)


class Knowledge(NamedTuple):
    """What variables are of."""

    config: Config
    classes: tuple[str, ...]

    @property
    def norm_keys(self) -> tuple[str, ...]:
        aware = self.config.classifier.resolution_aware_norm
        return tuple(dict.fromkeys(norm_keys(self.config.resolutions, aware)))


def rows_of(classes: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
    """The label that each class has among those known; None if one of them is not."""
    labels = {name: label for label, name in enumerate(known)}
    return None if set(classes) - set(labels) else tuple(labels[name] for name in classes)


def keeps_predictor(source: Knowledge, target: Knowledge) -> bool:
    """Whether the source's predictor learnt in stage 1 what the target's is to learn."""
    same = all(
        getattr(source.config, key) == getattr(target.config, key)
        for key in ("predictor", "resolutions")
    )
    known = rows_of(target.classes, source.classes) is not None
    return same and known and target.config.predictor.classifies


def move(
    variables: Variables, fresh: Variables, source: Knowledge, target: Knowledge
) -> Variables:
    """What of one DRNet's variables another of the same networks can begin with.

    It has the norms of resolutions that the source lacks from the source's base; its last layer
    anew, unless the source knows all of its classes; and its predictor anew, unless that of the
    source knows them, too, and has the same resolutions to choose from.

    Args:
        variables: of the source.
        fresh: of the target.
    """
    classes, known = target.classes, source.classes
    rows = rows_of(classes, known)
    if rows is not None and classes != known:
        axes = class_axes(source.config, len(known))
        variables = pick_classes(variables, axes, len(known), rows)
    variables = set_norms(variables, source.norm_keys[0], target.norm_keys)
    if not keeps_predictor(source, target):
        variables = tuple(
            tree | {PREDICTOR: new[PREDICTOR]} for tree, new in zip(variables, fresh, strict=True)
        )
    if rows is None:
        axes = class_axes(target.config, len(classes))
        variables = jax.tree.map(
            lambda axis, leaf, new: leaf if axis == NONE else new, axes, variables, fresh
        )
    return variables


def differences(source: Knowledge, target: Knowledge) -> list[str]:
    """What `move` does, in words."""
    lines, base = [], source.norm_keys[0]
    if lacking := [key for key in target.norm_keys if key not in source.norm_keys]:
        lines.append(f"the norms of {', '.join(lacking)} px begin as those of {base} px")
    classes, known = target.classes, source.classes
    if unknown := [name for name in classes if name not in known]:
        lines.append(
            f"the last layer starts anew: {len(unknown)} of the {len(classes)} classes are none of "
            f"the {len(known)} known, such as {unknown[0]!r}"
        )
    elif classes != known:
        lines.append(
            f"of the last layer are kept the rows of {len(classes)} of {len(known)} classes"
        )
    if not keeps_predictor(source, target):
        lines.append("the predictor starts anew")
    return lines
