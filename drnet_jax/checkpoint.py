"""Checkpoints: everything needed to go on, or to evaluate, from a directory alone (orbax).

A checkpoint holds three items: `model` (params, batch_stats), `training` (step, optimiser state,
and the weights of which `model` may be an average) and `meta` (what it is: stage, config, classes,
preprocessing, progress). Each is written under a temporary name and renamed when whole, so a kill
never leaves half of one. Nothing in it depends on how many processes or devices wrote it.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError

from drnet_jax import dial
from drnet_jax.config import Config
from drnet_jax.config_check import parse
from drnet_jax.devices import replicated
from drnet_jax.dial import Dials
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where in its stage, and in which training images, a run stands."""

    first_step: int  # over all stages, the step after which the stage began
    examples: int  # that all processes together have taken from the stage's stream of examples
    images: int  # in the training split
    fingerprint: str  # of their names, see `drnet_jax.data.sources.Source`
    # Steps by which schedule and epochs are ahead of the steps of the stage: 0 until the training
    # images change, and with them the steps of an epoch.
    ahead: int = 0


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint is."""

    stage: str
    step: int  # over all stages
    stage_end: bool  # whether it is the last of its stage
    config: Config
    classes: tuple[str, ...]
    metrics: dict[str, Any]  # of the validation at this step; {} where there was none
    bucket_sizes: dict[str, dict[str, int]]  # steps until each is in use (see `train.sizes`)
    progress: Progress
    preprocessing: dict[str, Any]  # that the networks expect, see `transforms.preprocessing`
    # What a validation at this step found.
    dials: Dials = dataclasses.field(default_factory=dict)

    @property
    def resolutions(self) -> tuple[int, ...]:
        return self.config.resolutions

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {
            "config": json.loads(self.config.to_json()),
            "classes": list(self.classes), "resolutions": list(self.resolutions),
            "dials": dial.to_json(self.dials),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> "Meta":
        """The inverse of `to_json`; raises UserError, naming `where`, for another version's."""
        try:
            values = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            return cls(**values | {
                "config": parse(values["config"]), "classes": tuple(values["classes"]),
                "progress": Progress(**values["progress"]),
                "dials": dial.from_json(values["dials"]),
            })
        except (KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{where}: expected a checkpoint of this version of drnet_jax ({error})"
            ) from error


class Checkpoints:
    """The checkpoints of one run: the latest few, the best, and the end of each stage."""

    def __init__(
        self, workdir: str, keep: int = 1, stage_ends: tuple[int, ...] = (), write: bool = False
    ):
        """Opens `workdir/checkpoints`.

        Args:
            keep: how many of the latest to keep.
            stage_ends: steps to keep for good.
            write: whether to create the directory, and to remove what a killed run left half
                written. Not for readers: the run may be alive, and writing.
        """
        self.directory = Path(workdir).absolute() / FOLDER
        policies = checkpoint_managers
        kept = [
            policies.LatestN(keep),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["rank"], n=1,
                keep_checkpoints_without_metrics=False,
            ),
            policies.CustomSteps(stage_ends),
        ]
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(kept),
                    create=write,
                    cleanup_tmp_directories=write,
                ),
                item_handlers={
                    "model": ocp.StandardCheckpointHandler(),
                    "training": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise UserError(
                f"--workdir: expected a directory that can be written, received {workdir!r} "
                f"({error})"
            ) from error

    def save(self, model: Tree, training: Tree, meta: Meta) -> None:
        """Begins to save; training goes on while orbax writes.

        Args:
            model: {"params", "batch_stats"}, as in `drnet_jax.resolutions`.
            training: whatever else a run needs to go on; of its optimiser nothing is known here.
            meta: what the checkpoint is.

        Raises:
            UserError: if this or the save before it could not be written (disk full, say); the
                checkpoints before that are still good.
        """
        metrics = {"rank": _rank(meta)} if meta.metrics else None
        items = {
            "model": ocp.args.StandardSave(model),
            "training": ocp.args.StandardSave(training),
            "meta": ocp.args.JsonSave(meta.to_json()),
        }
        self._guarded(functools.partial(
            self._manager.save, meta.step, args=ocp.args.Composite(**items), metrics=metrics,
            force=True,
        ))

    def wait(self) -> None:
        """Returns when all is on disk; raises UserError as `save` does."""
        self._guarded(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and closes; raises UserError as `save` does."""
        self._guarded(self._manager.close)

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint that validated best, or None."""
        ranks = {step: _rank(self.meta(step)) for step in self.steps()}
        return max(ranks, key=ranks.get) if any(ranks.values()) else None

    def steps(self) -> list[int]:
        """The steps of all checkpoints there are."""
        return sorted(self._manager.all_steps())

    def meta(self, step: int) -> Meta:
        """What the checkpoint of a step is."""
        restored = self._restore(step, meta=ocp.args.JsonRestore())
        return Meta.from_json(restored["meta"], str(self.directory / str(step)))

    def validated(self, step: int) -> Meta | None:
        """The newest up to a step, of its stage, that has dials for scores of its objective."""
        here = self.meta(step)
        wanted = here.stage, here.config.router.objective
        for meta in map(self.meta, reversed([each for each in self.steps() if each <= step])):
            if meta.dials and (meta.stage, meta.config.router.objective) == wanted:
                return meta
        return None

    def restore_model(self, step: int, mesh: Mesh) -> tuple[Tree, Tree]:
        """(params, batch_stats) of a step, replicated over a mesh, with nothing known before."""
        meta = self.meta(step)
        drnet = DRNet.from_config(meta.config, len(meta.classes))
        params, batch_stats = jax.eval_shape(drnet.init, jax.random.key(0))
        target = _on(mesh, {"params": params, "batch_stats": batch_stats})
        model = self._restore(step, model=ocp.args.StandardRestore(target))["model"]
        return model["params"], model["batch_stats"]

    def restore(self, step: int, model: Tree, training: Tree, mesh: Mesh) -> tuple[Tree, Tree]:
        """(model, training) of a step, in the shapes of those given, replicated over a mesh."""
        restored = self._restore(
            step, model=ocp.args.StandardRestore(_on(mesh, model)),
            training=ocp.args.StandardRestore(_on(mesh, training)),
        )
        return restored["model"], restored["training"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{self.directory / str(step)}: expected a whole checkpoint of this "
                f"configuration's networks; orbax says: {error}"
            ) from error

    def _guarded(self, call) -> None:
        try:
            call()
        except (OSError, ValueError) as error:
            good = ", ".join(map(str, self.steps())) or "none"
            there = isinstance(error, StepAlreadyExistsError)
            remedy = "Use another --workdir" if there else "Make room"
            raise UserError(
                f"{self.directory}: a checkpoint could not be written ({error}). "
                f"Whole checkpoints: {good}. {remedy} and run the same command to go on."
            ) from error


def newest(workdir: str) -> Meta | None:
    """What the newest checkpoint of a run is; None if there is none. Creates nothing."""
    if not (Path(workdir) / FOLDER).is_dir():
        return None
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    meta = None if step is None else checkpoints.meta(step)
    checkpoints.close()
    return meta


def is_checkpoint(path: str) -> bool:
    """Whether a path is that of one checkpoint, `workdir/checkpoints/STEP`."""
    directory = Path(path).absolute()
    return directory.name.isdecimal() and directory.parent.name == FOLDER


def find_checkpoint(path: str, which: str) -> tuple[Checkpoints, int]:
    """The checkpoints of a run, opened for reading, and the step of the one that is meant.

    Args:
        path: a workdir, or a checkpoint's directory in it, `workdir/checkpoints/STEP`.
        which: "last" or "best" of a workdir.

    Raises:
        UserError: if there is none.
    """
    directory = Path(path).absolute()
    if is_checkpoint(path):
        checkpoints = open_existing(str(directory.parents[1]))
        step = int(directory.name) if int(directory.name) in checkpoints.steps() else None
        expected = f"one of the steps {', '.join(map(str, checkpoints.steps()))}"
    else:
        checkpoints = open_existing(str(directory))
        step = checkpoints.best() if which == "best" else checkpoints.latest()
        expected = "one that was validated; take the last one with --checkpoint=last"
    if step is None:
        checkpoints.close()
        raise UserError(f"{path}: no such checkpoint is there; expected {expected}")
    return checkpoints, step


def open_existing(workdir: str) -> Checkpoints:
    """Opens the checkpoints of a run that has some; raises UserError if there is none."""
    workdir = os.path.expanduser(workdir)
    if not (Path(workdir) / FOLDER).is_dir():
        raise UserError(
            f"{workdir}: expected a working directory with checkpoints, found none; train first, "
            "with --mode train and the same --workdir"
        )
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest() is None:
        raise UserError(f"{checkpoints.directory}: no checkpoint is whole; train first")
    return checkpoints


def _rank(meta: Meta) -> float:
    """Orders checkpoints by accuracy: a routed one outranks any of a stage that does not route."""
    return 1 + ("router" in meta.dials) + meta.metrics["top1"] if meta.metrics else 0.0


def _on(mesh: Mesh, tree: Tree) -> Tree:
    array = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    return jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), tree)
