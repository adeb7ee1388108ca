"""Resuming: where a run goes on, and whether it can.

Steps are counted over the run, and a checkpoint is known by its step. So whatever steps are counted
by must stay as it was; only the training images may change, from the next epoch on and on demand.
"""

import dataclasses
import functools
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh

from drnet_jax.checkpoints.existing import newest, open_existing
from drnet_jax.checkpoints.meta import Meta, Progress
from drnet_jax.config import STAGES, Config
from drnet_jax.data.sources import Source
from drnet_jax.devices import replicated
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.state import TrainState, create_state
from drnet_jax.transfer import Knowledge, Variables, differences, move

NETWORK_KEYS = (
    "dtype", "classifier.name", "classifier.width", "classifier.resolution_aware_norm",
    "preprocessing.mean", "preprocessing.deviation", "preprocessing.interpolation",
)
CLASSIFIER_KEYS = ("resolutions", *NETWORK_KEYS)
PREDICTOR_KEYS = (
    "predictor.name", "predictor.width", "predictor.resolution", "predictor.classifies",
)


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps of a stage."""

    first: int  # the step, counted over the run, after which it begins
    last: int  # the step with which it is complete
    ahead: int = 0  # see `Progress`


def spans(config: Config, images: int, resumed: Meta | None) -> dict[str, Span]:
    """The stages that are to be run, or gone on with from `resumed`, with `images` to train on."""
    stages, first, ahead, done = STAGES, 0, 0, 0
    if resumed:
        stages = STAGES[STAGES.index(resumed.stage) :]
        first, ahead, done = resumed.progress.first_step, resumed.progress.ahead, resumed.step
    result = {}
    for stage in stages:
        # With fewer images than before, a stage may be complete at once.
        last = max(done, first + config.steps(stage, images) - ahead)
        result[stage] = Span(first, last, ahead)
        first, ahead = last, 0
    return result


def resume(
    workdir: str, config: Config, drnet: DRNet, source: Source, changed_data: bool
) -> tuple[Meta | None, list[str]]:
    """The newest checkpoint, if there is one, and what to tell of going on from it.

    Args:
        source: of the training images.
        changed_data: whether to go on at the next epoch if they are not those of the checkpoint.

    Returns:
        Meta as it would be had all its training been on the images at hand, and lines to print.

    Raises:
        UserError: if this configuration cannot go on from it.
    """
    saved = newest(workdir)
    if saved is None:
        return None, []
    if not saved.progress.images:
        raise UserError(
            f"{workdir}: expected a run to go on with, or a new directory, received imported "
            f"weights; use another --workdir, and --config.init_from={workdir} to begin with them"
        )
    check_compatible(saved, config, source.classes, workdir)
    changed = _check_counts(saved, config, source, changed_data, workdir)
    other = differing(saved.config, config)
    _check_optimizer(saved, config, drnet, other, workdir)
    told = [f"going on from step {saved.step} ({saved.stage})"]
    if other:
        told.append("with other values than the checkpoint's: " + ", ".join(
            f"config.{key} {saved.config.get(key)!r} -> {config.get(key)!r}" for key in other
        ))
    if not changed:
        return saved, told
    resumed, epoch = _at_next_epoch(saved, source)
    told.append(
        f"the training images have changed: {saved.progress.images} before, {len(source)} now; "
        f"going on with them in epoch {epoch + 1} of {saved.stage}"
    )
    return resumed, told


def _check_counts(
    saved: Meta, config: Config, source: Source, changed_data: bool, where: str
) -> bool:
    """Whether the training images have changed, which must be allowed; all else must not have."""
    begun = STAGES[: STAGES.index(saved.stage) + 1]
    differences = [
        f"config.{key}: expected {saved.config.get(key)}, received {config.get(key)}"
        for key in ("batch_size", "seed", *(f"{stage}.epochs" for stage in begun))
        if saved.config.get(key) != config.get(key)
    ]
    had, has = (
        f"{images} (fingerprint of their names {fingerprint})" for images, fingerprint in (
            (saved.progress.images, saved.progress.fingerprint), (len(source), source.fingerprint)
        )
    )
    remedy = "Use another --workdir to start anew"
    if had != has and not changed_data:
        differences.append(f"training images: expected {had}, received {has}")
        remedy += "; --changed-data goes on with changed images, from the next epoch on"
    if differences:
        raise UserError(
            f"{where}: expected all that steps are counted by as in the checkpoint of step "
            f"{saved.step}, from which this run would go on; {'; '.join(differences)}. {remedy}"
        )
    return had != has


def _at_next_epoch(saved: Meta, source: Source) -> tuple[Meta, int]:
    """A checkpoint's Meta, moved on to the next epoch with these images, and that epoch, from 0."""
    progress = saved.progress
    steps = saved.step - progress.first_step
    before = progress.images // saved.config.batch_size
    epoch = -(-(steps + progress.ahead) // before)
    now = len(source) // saved.config.batch_size
    moved = Progress(
        first_step=progress.first_step, examples=epoch * len(source), images=len(source),
        fingerprint=source.fingerprint, ahead=epoch * now - steps,
    )
    return dataclasses.replace(saved, progress=moved), epoch


def differing(saved: Config, config: Config) -> list[str]:
    """The keys of which two configs have different values."""
    keys = traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")
    return [key for key in keys if saved.get(key) != config.get(key)]


def _check_optimizer(
    saved: Meta, config: Config, drnet: DRNet, keys: list[str], where: str
) -> None:
    """Raises UserError if one of the keys that differ makes another shape of optimiser state."""
    def shape(config: Config) -> Any:
        optimizer, ema = make_optimizer(config, saved.stage, 1), config.optimizer.ema
        create = functools.partial(create_state, drnet, optimizer, ema)
        return jax.eval_shape(create, jax.random.key(0)).training

    groups = "optimizer", saved.stage
    for group, _, name in (key.partition(".") for key in keys):
        if group in groups and shape(_with(saved.config, config, group, name)) != shape(
            saved.config
        ):
            key = f"{group}.{name}"
            raise UserError(
                f"{where}: config.{key}: expected {saved.config.get(key)!r}, received "
                f"{config.get(key)!r}, with which the optimiser has another state than that of the "
                f"checkpoint of step {saved.step}. Use another --workdir, or the former value"
            )


def _with(saved: Config, config: Config, group: str, name: str) -> Config:
    """The first config with one key as in the second."""
    value = {name: config.get(f"{group}.{name}")}
    return dataclasses.replace(
        saved, **{group: dataclasses.replace(saved.get(group), **value)}
    )


def check_compatible(
    saved: Meta, config: Config, classes: tuple[str, ...] | None, where: str,
    keys: tuple[str, ...] = CLASSIFIER_KEYS + PREDICTOR_KEYS,
) -> None:
    """Raises UserError if a checkpoint's networks differ from the ones at hand, or its classes from
    `classes`, unless these are None."""
    differences = [
        f"config.{key}: {saved.config.get(key)!r} in the checkpoint, {config.get(key)!r} here"
        for key in keys if saved.config.get(key) != config.get(key)
    ]
    if classes is not None and saved.classes != classes:
        differences.append(
            f"classes: {len(saved.classes)} in the checkpoint ({', '.join(saved.classes[:3])}, "
            f"...), {len(classes)} in the data set ({', '.join(classes[:3])}, ...)"
        )
    if differences:
        raise UserError(
            f"{where}: expected a checkpoint of the same networks"
            + " and classes" * (classes is not None) + f"; {'; '.join(differences)}. "
            "Use another --workdir, or the configuration that it was made with"
        )


def starting_point(
    config: Config, drnet: DRNet, classes: tuple[str, ...], mesh: Mesh
) -> tuple[TrainState | None, list[str]]:
    """A state with what the run or import that the config names has learnt, and lines to print.

    It is that of the end of stage 1, or else of the newest checkpoint; `transfer.move` says what of
    it is taken. None if the config names none.

    Raises:
        UserError: if there is no checkpoint, or one of another network.
    """
    origin = config.init_from
    if not origin:
        return None, []
    checkpoints = open_existing(origin)
    metas = [checkpoints.meta(step) for step in checkpoints.steps()]
    meta = ([meta for meta in metas if meta.stage == STAGES[0]] or metas)[-1]
    check_compatible(meta, config, None, origin, NETWORK_KEYS)
    variables = checkpoints.restore_model(meta.step, mesh)
    checkpoints.close()
    source, target = Knowledge(meta.config, meta.classes), Knowledge(config, classes)

    # In one program, which makes of the fresh variables only those that are needed.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def begin(variables: Variables, key: jax.Array) -> Variables:
        return move(variables, drnet.init(key), source, target)

    params, batch_stats = begin(variables, jax.random.key(config.seed))
    told = f"beginning with the weights of {origin}, step {meta.step} ({meta.stage})"
    return TrainState(None, params, batch_stats, None), [told, *differences(source, target)]
