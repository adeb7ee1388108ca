"""Imports: a network trained with PyTorch, as a checkpoint that runs can begin with."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from drnet_jax.checkpoints.existing import newest
from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.checkpoints.meta import Meta, Progress
from drnet_jax.config import GIGA, STAGES, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.imagenet import synsets
from drnet_jax.data.transforms import preprocessing
from drnet_jax.devices import data_mesh, replicated
from drnet_jax.drnet import PREDICTOR, DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.products import variable_shapes
from drnet_jax.resolutions import replicate_norms, split
from drnet_jax.weights.convert import convert, count_classes
from drnet_jax.weights.files import read_weights
from drnet_jax.weights.names import RULES, Rules


class Imported(NamedTuple):
    """What was imported."""

    meta: Meta  # of the checkpoint
    tensors: int  # in the file
    costs: Costs  # and parameters


def import_torch(
    path: str, config: Config, workdir: str, classes: Sequence[str] | None = None
) -> Imported:
    """Makes a checkpoint of step 0 from the weights in a file, each resolution with their norms.

    It is of stage 1, and its predictor is a fresh one that does not know the classes, so that it is
    nowhere taken for trained.

    Args:
        path: of a state dict, see `read_weights`.
        config: of the network that the weights are of; it is saved with them.
        workdir: to be made, or without checkpoints.
        classes: names in the order of the last layer; None: ImageNet's.

    Raises:
        UserError: if the file holds anything but a state dict of this network; nothing is written.
    """
    config = dataclasses.replace(
        config, predictor=dataclasses.replace(config.predictor, classifies=False)
    )
    workdir = os.path.expanduser(workdir)
    if newest(workdir):
        raise UserError(f"--workdir: expected a new directory, received {workdir!r}, a run's")
    rules, tensors = _rules(config), read_weights(Path(path).expanduser())
    names = _names(count_classes(tensors, rules), config, classes)
    drnet, costs = DRNet.from_config(config, len(names)), model_costs(config, len(names))
    shapes = variable_shapes(drnet.classifier, min(config.resolutions))
    plain = convert(tensors, rules, shapes, path)
    costs.check_budget(config.budget * GIGA)
    meta = Meta(
        stage=STAGES[0], step=0, stage_end=True, config=config, classes=names, metrics={},
        bucket_sizes={}, progress=Progress(first_step=0, examples=0, images=0, fingerprint=""),
        preprocessing=preprocessing(config),
    )
    model = jax.device_put(_model(drnet, plain, config.seed), replicated(data_mesh()))
    checkpoints = Checkpoints(workdir, write=True)
    checkpoints.save(model, {"step": np.int32(0)}, meta)
    checkpoints.close()
    (Path(workdir) / "config.json").write_text(config.to_json() + "\n")
    return Imported(meta, len(tensors), costs)


def _rules(config: Config) -> Rules:
    if config.classifier.name not in RULES:
        raise UserError(
            f"config.classifier.name: expected a network that weights can be imported for "
            f"({', '.join(RULES)}), received {config.classifier.name!r}"
        )
    return RULES[config.classifier.name]


def _names(
    found: int | None, config: Config, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The names of the classes, `found` of which the last layer of the weights has.

    None if it has not been found, of which `convert` will tell.
    """
    names = tuple(synsets() if classes is None else classes)
    if found not in (None, len(names)):
        raise UserError(
            f"--classes: expected a file with the names of the {found} classes that the weights "
            f"are of, in their order, received {len(names)}"
            + " (ImageNet's, by default)" * (classes is None)
        )
    if config.classifier.classes not in (0, len(names)):
        raise UserError(
            f"config.classifier.classes: expected 0 or the {len(names)} classes of the weights, "
            f"received {config.classifier.classes}"
        )
    return names


def _model(drnet: DRNet, plain: Tree, seed: int) -> dict[str, Any]:
    """{"params", "batch_stats"} with the variables of a plain network at every resolution."""
    # In one program, which makes no classifier.
    fresh = jax.jit(lambda key: [tree[PREDICTOR] for tree in drnet.init(key)])
    params, batch_stats = fresh(jax.random.key(seed))
    shared, norms, stats = split(plain)
    return {
        "params": {
            PREDICTOR: params, "shared": shared, "norms": replicate_norms(norms, drnet.norm_keys),
        },
        "batch_stats": {PREDICTOR: batch_stats, "norms": replicate_norms(stats, drnet.norm_keys)},
    }
