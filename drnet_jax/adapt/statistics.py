"""Statistics taken anew: of every resolution's norms, in a pass over images.

For networks that were trained at several sizes and share one set of norms, or whose images have
changed. A resolution takes the new ones only if it answers no worse by them, on other images: a
network that was trained at one size loses by them, at that size above all (docs/pretrained.md).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from drnet_jax.checkpoints.existing import open_existing
from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.cost import model_costs
from drnet_jax.data.protocol import Source
from drnet_jax.data.transforms import Square
from drnet_jax.devices import AXIS, Program, data_mesh, put_batch
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.evaluation.table import host_batches, tabulate
from drnet_jax.inference.engine import Engine
from drnet_jax.models.norm import update_statistics
from drnet_jax.resolutions import only
from drnet_jax.transfer import Knowledge, Variables, set_norms


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one resolution."""

    resolution: int
    before: float  # top-1 of the images that judge, by the statistics that it had
    after: float  # and by those taken anew

    @property
    def taken(self) -> bool:
        return self.after >= self.before

    def __str__(self) -> str:
        return (
            f"{self.resolution} px: top-1 {100 * self.before:.2f} % by its statistics, "
            f"{100 * self.after:.2f} % by those taken anew: "
            + ("replaced" if self.taken else "left as they were")
        )


def recalibrate(
    workdir: str, source: Source, images: int = 2048, batch_size: int = 128, seed: int = 0
) -> list[Verdict]:
    """Takes the statistics of a workdir's newest checkpoint anew, and saves the next checkpoint.

    Norms that all resolutions shared become norms of each, with equal scales and biases.

    Args:
        workdir: of a finished run.
        source: labelled images; not those that the network is evaluated on afterwards.
        images: that the statistics are of, drawn at random; as many others judge. Half of the
            source each where it has fewer.
        batch_size: global; it is also how many images the norms see at a time.

    Returns:
        What became of each resolution; nothing is saved if nothing was replaced.

    Raises:
        UserError: if the checkpoint or the images do not fit.
    """
    workdir = os.path.expanduser(workdir)
    half = min(images, len(source) // 2)
    if half < batch_size:
        raise UserError(
            f"--data: expected at least {2 * batch_size} images, received {len(source)}"
        )
    meta, (params, batch_stats) = _read(workdir)
    engine = _engine(meta, batch_size)
    order = np.random.default_rng(seed).permutation(len(source))
    new = batch_stats | {"norms": statistics(
        engine, params, batch_stats, Part(source, order[:half]), meta
    )}
    before, after = (
        _top1(engine, params, stats, Part(source, order[half : 2 * half]), meta)
        for stats in (batch_stats, new)
    )
    verdicts = [
        Verdict(*each) for each in zip(engine.drnet.resolutions, before, after, strict=True)
    ]
    kept = batch_stats["norms"] | {
        str(verdict.resolution): new["norms"][str(verdict.resolution)]
        for verdict in verdicts if verdict.taken
    }
    if any(verdict.taken for verdict in verdicts):
        _save(workdir, meta, {"params": params, "batch_stats": batch_stats | {"norms": kept}})
    return verdicts


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the examples of a `Source`, by their places in it."""

    source: Source
    places: np.ndarray
    notes = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[int(self.places[index])]

    def key(self, index: int) -> str:
        return self.source.key(int(self.places[index]))


def statistics(
    engine: Engine, params: Tree, batch_stats: Tree, source: Source, meta: Meta
) -> dict[str, Tree]:
    """The mean and variance of every norm over a source's images, by norm key.

    The images are those of evaluation, not of training: cropped as there. Each batch is normalised
    by its own statistics, as in training.
    """
    drnet, total = engine.drnet, {}

    def program(index: int) -> Program:
        def moments(params, batch_stats, images, mask, key):
            _, found = drnet.classify(index, params, batch_stats, images, True, mask, key)
            return jax.lax.psum(found, AXIS)

        specs = P(), P(), P(AXIS), P(AXIS), P()
        name = f"moments {drnet.resolutions[index]}px x{engine.batch_size}"
        return Program.mapped(name, engine.mesh, moments, specs, P())

    programs, key = list(map(program, range(len(drnet.resolutions)))), jax.random.key(0)
    square = Square.of(meta.preprocessing)
    for batch in host_batches(engine, source, meta.config.data, square):
        batch = put_batch(engine.mesh, {name: batch[name] for name in ("image", "mask")})
        for norms, each in zip(drnet.norm_keys, programs, strict=True):
            found = engine.programs.run(
                each, only(params, norms), only(batch_stats, norms), *batch.values(), key
            )
            total[norms] = jax.tree.map(jnp.add, total[norms], found) if norms in total else found
    return {
        norms: update_statistics(batch_stats["norms"][norms], moments, momentum=0.0)
        for norms, moments in total.items()
    }


def _read(workdir: str) -> tuple[Meta, Variables]:
    """The newest checkpoint, as one with norms of each resolution."""
    reading = open_existing(workdir)
    try:
        meta = reading.meta(reading.latest())
        if not meta.stage_end:
            raise UserError(
                f"{workdir}: expected a run that is complete, received one that stopped at step "
                f"{meta.step} of stage {meta.stage}; train it to its end first"
            )
        variables = reading.restore_model(meta.step, data_mesh(jax.local_devices()))
    finally:
        reading.close()
    own = dataclasses.replace(
        meta.config.classifier, resolution_aware_norm=True, fixed_statistics=False
    )
    config = dataclasses.replace(meta.config, classifier=own)
    was, now = (Knowledge(each, meta.classes).norm_keys for each in (meta.config, config))
    return dataclasses.replace(meta, config=config), set_norms(variables, was[0], now)


def _engine(meta: Meta, batch_size: int) -> Engine:
    classes = len(meta.classes)
    drnet = DRNet.from_config(meta.config, classes)
    return Engine(drnet, model_costs(meta.config, classes), batch_size)


def _top1(
    engine: Engine, params: Tree, batch_stats: Tree, source: Source, meta: Meta
) -> list[float]:
    """Of each resolution [R]."""
    engine.load(params, batch_stats)
    square = Square.of(meta.preprocessing)
    batches = host_batches(engine, source, meta.config.data, square)
    return tabulate(engine, batches).right.mean(axis=0)[: len(engine.drnet.resolutions)].tolist()


def _save(workdir: str, meta: Meta, model: Tree) -> None:
    """As the checkpoint after that of `meta`, which is kept; nothing trains on from there."""
    checkpoints = Checkpoints(workdir, 1, (meta.step,), write=True)
    try:
        training = {"step": jnp.int32(0)}
        checkpoints.save(model, training, dataclasses.replace(
            meta, step=meta.step + 1, metrics={}
        ))
    finally:
        checkpoints.close()
