"""Runs: what stays the same over a whole run, and the checks before it writes anything."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax import buckets
from drnet_jax.checkpoints.existing import put_damaged_aside
from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.config import STAGES, Config
from drnet_jax.cost import model_costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source, open_source, resolve_classes
from drnet_jax.data.subset import write_classes
from drnet_jax.devices import Programs, check_batch, data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.models import check_names
from drnet_jax.train.bad_images import BadImages
from drnet_jax.train.base_step import Step
from drnet_jax.train.lock import locked, unwritable
from drnet_jax.train.objectives import make_objective
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.resume import Span, resume, spans, starting_point
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState
from drnet_jax.train.step import Setup, make_step
from drnet_jax.train.stopping import Stopping
from drnet_jax.train.telemetry import Telemetry
from drnet_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Run(Setup):
    """What stays the same over a whole run."""

    source: Source  # of the training images
    resumed: Meta | None  # the checkpoint that it goes on from
    spans: dict[str, Span]  # of the stages that it runs
    origin: TrainState | None  # what the first stage begins with, see `config.init_from`
    checkpoints: Checkpoints
    telemetry: Telemetry
    validation: Validation
    bad_images: BadImages
    saving: "Saving"
    stopping: Stopping

    @property
    def last(self) -> int:
        """The step with which the run is complete."""
        return max(span.last for span in self.spans.values())

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.config.batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that a bucket can have."""
        rows = self.config.batch_size // self.mesh.size
        return buckets.sizes(rows, self.config.bucket_multiple)

    def step(self, stage: str, all_sizes: bool) -> Step:
        """A new step of a stage; `all_sizes`: whether its buckets use them all from the start."""
        resolutions = self.drnet.resolutions
        left = Sizes.left_of(self.resumed.bucket_sizes if self.resumed else {}, resolutions)
        if all_sizes:
            left = {(index, size): 0 for index in range(len(resolutions)) for size in self.sizes}
        optimizer = make_optimizer(
            self.config, stage, self.steps_per_epoch, self.spans[stage].ahead
        )
        sizes = Sizes(self.config.bucket_multiple, self.config.bucket_lead, left)
        return make_step(self, stage, optimizer, sizes)


class Saving:
    """When a run saves besides its validations: every so many steps, and every so many minutes."""

    def __init__(self, config: Config):
        self._config = config
        self.saved()

    def saved(self) -> None:
        """Is told of every save."""
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after a step; asked after every one, on all hosts alike."""
        settings = self._config.checkpoint
        if step % settings.every_steps == 0:
            return True
        if not settings.every_minutes or step % self._config.log_every:
            return False
        late = time.monotonic() - self._last >= 60 * settings.every_minutes
        # The clock of the first host is that of all.
        return bool(multihost_utils.broadcast_one_to_all(np.array(late)))


def open_run(
    config: Config, workdir: str, closing: contextlib.ExitStack, changed_data: bool,
    stopping: Stopping,
) -> Run:
    """Checks everything, then makes the workdir, with the config in it, and opens the run.

    Args:
        closing: of what the run holds until its end, which is the lock of the workdir.
        changed_data: whether the run may go on with other training images than before.
        stopping: see `drnet_jax.train.loop.train`.

    Raises:
        UserError: if data, checkpoints, devices or the workdir do not fit; nothing is written then.
    """
    workdir = os.path.expanduser(workdir)
    there = Path(workdir).is_dir()
    if there:
        closing.enter_context(locked(Path(workdir)))
    mesh = data_mesh()
    check_batch(config.batch_size, mesh.size)
    check_names(config)
    source, val_source = _sources(config)  # which may take long to prepare
    classes = resolve_classes(source, config.classifier.classes)
    drnet, costs = DRNet.from_config(config, classes), model_costs(config, classes)
    make_objective(config, costs)  # checks the budget
    resumed, news = resume(workdir, config, drnet, source, changed_data)
    origin = None
    if not resumed:
        origin, news = starting_point(config, drnet, source.classes, mesh)
    telemetry, of_stages = Telemetry(workdir), spans(config, len(source), resumed)
    validation = Validation(config, drnet, costs, val_source, telemetry.compiled)

    if jax.process_count() > 1:
        # Else a process that is late would take what others have made for a run to go on with.
        multihost_utils.sync_global_devices("all processes have looked for checkpoints")
    _make(workdir)
    if not there:
        closing.enter_context(locked(Path(workdir)))
    news += put_damaged_aside(workdir) if resumed and jax.process_index() == 0 else []
    checkpoints = Checkpoints(
        workdir, config.checkpoint.keep, (of_stages[STAGES[-1]].first,), write=True
    )
    if jax.process_index() == 0:
        (Path(workdir) / "config.json").write_text(config.to_json() + "\n")
        write_classes(Path(workdir) / "classes.txt", source.classes)
    telemetry.open(resumed.step if resumed else 0)
    data = config.data
    for line in (
        f"{len(source)} images of {classes} classes to train on ({data.train_split}), "
        f"{len(val_source)} to validate on ({data.val_split})",
        *dict.fromkeys((*source.notes, *val_source.notes)), *news, *_doubts(config, mesh.size),
    ):
        telemetry.say(line)
    return Run(
        config, drnet, costs, mesh, Programs(telemetry.compiled), source, resumed, of_stages,
        origin, checkpoints, telemetry, validation,
        BadImages(workdir, source, config.data, telemetry), Saving(config), stopping,
    )


def _sources(config: Config) -> tuple[Source, Source]:
    """The training images, and those of validation; UserError if these will not do."""
    source, val_source = open_source(config.data, True), open_source(config.data, False)
    if val_source.classes != source.classes:
        raise UserError("config.data: the training and the validation split differ in classes")
    if config.batch_size > len(source):
        raise UserError(
            f"config.batch_size: expected at most the {len(source)} training images, received "
            f"{config.batch_size}"
        )
    for each in (source, val_source):
        check_source(each, config.data, config.resolutions[0])
    return source, val_source


def _doubts(config: Config, devices: int) -> list[str]:
    """What the config allows, but hardly means."""
    found, rows = [], config.batch_size // devices
    if config.bucket_multiple > rows:
        found.append(
            f"config.bucket_multiple: {config.bucket_multiple} is more than the {rows} images of a "
            "device, so that every bucket is padded to all of them"
        )
    if not (config.finetune.epochs or config.predictor.classifies or len(config.resolutions) == 1):
        found.append(
            "config.finetune.epochs: 0, so that a predictor with config.predictor.classifies=False "
            "is never trained: the run gives fixed resolutions and cascades, and no routing"
        )
    learners = config.pretrain.distillation or config.predictor.classifies
    if config.pretrain.teacher == "ensemble" and not learners:
        found.append(
            "config.pretrain.teacher: 'ensemble', of which with config.pretrain.distillation=0 and "
            "config.predictor.classifies=False nobody learns"
        )
    return found


def _make(workdir: str) -> None:
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(Path(workdir), error) from error
