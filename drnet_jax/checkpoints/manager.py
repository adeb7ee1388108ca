"""Checkpoints: everything needed to go on, or to evaluate, from a directory alone (orbax).

A checkpoint holds three items: `model` (params, batch_stats), `training` (step, optimiser state,
and the weights of which `model` may be an average) and `meta` (what it is: stage, config, classes,
preprocessing, progress), and the digests of its files. Each is written under a temporary name and
renamed when whole, so a kill never leaves half of one; one that is damaged later is found out, and
the newest that is whole is taken. Nothing in it depends on how many processes or devices wrote it.
"""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError

from drnet_jax.checkpoints import digests
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.devices import replicated
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import REMEDIES, UserError, first_line

FOLDER = "checkpoints"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what is being written


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
        self._damage: dict[int, str | None] = {}  # of the steps that were looked at
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
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._digested),
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

    def _digested(self) -> None:
        """Adds the digests to what is written, before it has its final name."""
        if jax.process_index() == 0:
            for written in self.directory.glob(f"*{TEMPORARY}*"):
                digests.write(written)

    def wait(self) -> None:
        """Returns when all is on disk; raises UserError as `save` does."""
        self._guarded(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits and closes; raises UserError as `save` does."""
        self._guarded(self._manager.close)

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is whole, or None."""
        return next((step for step in reversed(self.steps()) if not self.damage(step)), None)

    def best(self) -> int | None:
        """The step of the checkpoint that validated best, of those that are whole, or None."""
        ranks = {step: _rank(self.meta(step)) for step in self.steps() if not self.damage(step)}
        return max(ranks, key=ranks.get) if any(ranks.values()) else None

    def steps(self) -> list[int]:
        """The steps of all checkpoints there are, damaged ones, too."""
        return steps_in(self.directory)

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; None if it is whole."""
        if step not in self._damage:
            self._damage[step] = digests.damage(self.directory / str(step))
        return self._damage[step]

    def damaged(self) -> list[str]:
        """Of the checkpoints that are not whole, what is wrong with each."""
        return [
            f"{self.directory / str(step)} is damaged: {found}"
            for step in self.steps() if (found := self.damage(step))
        ]

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
            raise UserError(
                f"{self.directory}: a checkpoint could not be written ({first_line(error)}). "
                f"Whole checkpoints: {good}. {_remedy(error, self.directory)}, and run the same "
                "command to go on"
            ) from error


def steps_in(directory: Path) -> list[int]:
    """The steps of all checkpoints that lie in a directory."""
    names = (path.name for path in directory.glob("*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def _remedy(error: Exception, directory: Path) -> str:
    """What to do where a checkpoint could not be written."""
    if not directory.is_dir():
        return "Put the workdir back, or use another"
    if isinstance(error, StepAlreadyExistsError):
        return "Use another --workdir"
    # By its words, as TensorStore's errors have no number.
    known = (remedy for code, remedy in REMEDIES.items() if os.strerror(code) in str(error))
    return next(known, "look at the disk").capitalize()


def _rank(meta: Meta) -> float:
    """Orders checkpoints by accuracy: a routed one outranks any of a stage that does not route."""
    return 1 + ("router" in meta.dials) + meta.metrics["top1"] if meta.metrics else 0.0


def _on(mesh: Mesh, tree: Tree) -> Tree:
    array = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    return jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), tree)
