"""The training loop: one for both stages, which differ in step, schedule and length."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from drnet_jax import buckets
from drnet_jax.checkpoint import CLASSIFIER, Checkpoints, Meta, check_compatible, open_existing
from drnet_jax.config import STAGES, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import check_source, train_batches
from drnet_jax.data.sources import Source, open_source, resolve_classes
from drnet_jax.devices import Programs, check_batch, data_mesh, put_batch, replicated
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.train.objectives import Objective, make_objective
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.sizes import Sizes
from drnet_jax.train.state import TrainState, create_state
from drnet_jax.train.step import Step
from drnet_jax.train.telemetry import HINT, Telemetry, Window
from drnet_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same over a whole run."""

    config: Config
    mesh: Mesh
    drnet: DRNet
    costs: Costs
    objective: Objective
    train_source: Source
    val_source: Source
    checkpoints: Checkpoints
    telemetry: Telemetry
    programs: Programs  # of training
    validation: Validation
    warm_up: bool  # whether all bucket sizes are compiled, and in use, from the start

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_source) // self.config.batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that a bucket can have."""
        local = self.config.batch_size // self.mesh.size
        return buckets.sizes(local, self.config.bucket_multiple)

    def first_step(self, stage: str) -> int:
        """The step, counted over the run, at which a stage begins."""
        return 0 if stage == STAGES[0] else self.last_step(STAGES[0])

    def last_step(self, stage: str) -> int:
        """The step, counted over the run, at which a stage is complete."""
        return self.first_step(stage) + self.config.steps(stage, len(self.train_source))


def train(config: Config, workdir: str, warm_up: bool = False) -> None:
    """Runs both stages, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: what to train, and how.
        workdir: where checkpoints and metrics go.
        warm_up: whether to compile every program of training before the first step, and to use all
            bucket sizes from there on (which a run that goes on from here does, too).

    Raises:
        UserError: if data, checkpoints or devices do not fit the config (before anything is
            compiled), if the loss stops being finite, or if a checkpoint cannot be written.
    """
    train_source, val_source = open_source(config.data, True), open_source(config.data, False)
    classes = resolve_classes(train_source, config.classifier.classes)
    if val_source.classes != train_source.classes:
        raise UserError("config.data: the training and the validation split differ in classes")
    mesh = data_mesh()
    _check_batch(config, mesh, len(train_source))
    base = config.resolutions[0]
    for source in (train_source, val_source):
        check_source(source, config.data, base)
    drnet, costs = DRNet.from_config(config, classes), model_costs(config, classes)
    objective = make_objective(config, costs)

    Path(workdir).mkdir(parents=True, exist_ok=True)
    telemetry = Telemetry(workdir)
    run = Run(
        config, mesh, drnet, costs, objective, train_source, val_source,
        Checkpoints(
            workdir, config.checkpoint.keep,
            (config.steps("pretrain", len(train_source)),), cleanup=True,
        ),
        telemetry, Programs(telemetry.compiled),
        Validation(config, drnet, costs, val_source, telemetry.compiled), warm_up,
    )
    newest = _newest(run, workdir)
    if jax.process_index() == 0:
        (Path(workdir) / "config.json").write_text(config.to_json() + "\n")
    telemetry.rewind(newest.step if newest else 0)

    try:
        if run.warm_up:
            _warm_up(run, STAGES[STAGES.index(newest.stage) if newest else 0 :])
        state = None if newest else _starting_point(run)
        for stage in STAGES:
            if config.stage(stage).epochs == 0:
                continue
            if newest and STAGES.index(newest.stage) > STAGES.index(stage):
                continue
            state = _run_stage(run, stage, state, newest)
            newest = None
        run.checkpoints.wait()
    finally:
        telemetry.close()
        run.checkpoints.close()
        # Last, as it may have to wait for the compiler.
        run.programs.close()


def _check_batch(config: Config, mesh: Mesh, images: int) -> None:
    check_batch(config.batch_size, mesh.size)
    if config.batch_size > images:
        raise UserError(
            f"config.batch_size: expected at most the {images} training images, received "
            f"{config.batch_size}"
        )


def _newest(run: Run, workdir: str) -> Meta | None:
    """The newest checkpoint of this run; raises UserError if this config cannot go on from it."""
    step = run.checkpoints.latest()
    if step is None:
        return None
    meta = run.checkpoints.meta(step)
    check_compatible(meta, run.config, run.train_source.classes, workdir)
    # Steps are counted by these: with others the run would go on at another place.
    counted = {"batch_size": (meta.config.batch_size, run.config.batch_size)}
    if meta.stage != STAGES[0]:
        counted["pretrain.epochs"] = (meta.config.pretrain.epochs, run.config.pretrain.epochs)
    for key, (old, new) in counted.items():
        if old != new:
            raise UserError(
                f"config.{key}: expected {old}, as in the checkpoint of step {step} that this run "
                f"would go on from, received {new}. Use another --workdir to start anew"
            )
    return meta


def _starting_point(run: Run) -> TrainState | None:
    """A state that holds the classifier of another run's stage 1, if the config names one."""
    origin = run.config.finetune.init_from
    if not origin:
        return None
    checkpoints = open_existing(origin)
    metas = [checkpoints.meta(step) for step in checkpoints.steps()]
    of_stage_1 = [meta for meta in metas if meta.stage == STAGES[0]]
    if not of_stage_1:
        raise UserError(
            f"config.finetune.init_from: expected the workdir of a run that has pretrained, "
            f"received {origin!r}, which holds no checkpoint of that stage"
        )
    check_compatible(
        of_stage_1[-1], run.config, run.train_source.classes, origin, keys=CLASSIFIER
    )
    params, batch_stats = checkpoints.restore_model(of_stage_1[-1].step, run.mesh)
    checkpoints.close()
    return TrainState(None, params, batch_stats, None)


def _run_stage(
    run: Run, stage: str, previous: TrainState | None, newest: Meta | None
) -> TrainState:
    """Runs a stage to its end: from `newest`, or else with the classifier of `previous`."""
    config, telemetry = run.config, run.telemetry
    key = jax.random.key(config.seed)
    create = functools.partial(
        create_state, run.drnet, make_optimizer(config, stage, run.steps_per_epoch)
    )
    host_batch = config.batch_size // jax.process_count()
    batches = train_batches(
        run.train_source, config.data, size=config.resolutions[0], batch_size=host_batch,
        seed=len(STAGES) * config.seed + STAGES.index(stage),
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    if newest:
        abstract = jax.eval_shape(create, key)
        model, training = run.checkpoints.restore(
            newest.step, abstract.model, abstract.training, batches, run.mesh
        )
        state = TrainState(**model, **training)
        telemetry.say(f"going on from step {newest.step} ({stage})")
    else:
        # Created under its sharding: moved there later, the step would compile twice.
        state = jax.jit(create, out_shardings=replicated(run.mesh))(key)
        if previous:
            state = state.replace(
                params=previous.params | {"predictor": state.params["predictor"]},
                batch_stats=previous.batch_stats | {"predictor": state.batch_stats["predictor"]},
            )
        else:
            telemetry.say(parameter_overview.get_parameter_overview(state.params))

    step = _make_step(run, stage, newest.bucket_sizes if newest else {})
    try:
        return _steps(run, stage, step, state, batches)
    finally:
        batches.close()


def _make_step(run: Run, stage: str, bucket_sizes: dict[str, dict[str, int]]) -> Step:
    """The step of a stage, with the bucket sizes of a run that goes on (see `Meta`)."""
    config, resolutions = run.config, list(map(str, run.drnet.resolutions))
    left = {
        (resolutions.index(resolution), int(size)): steps
        for resolution, sizes in bucket_sizes.items() for size, steps in sizes.items()
    }
    if run.warm_up:
        left |= {(index, size): 0 for index in range(len(resolutions)) for size in run.sizes}
    return Step(
        drnet=run.drnet, optimizer=make_optimizer(config, stage, run.steps_per_epoch),
        mesh=run.mesh, programs=run.programs, stage=stage,
        estimator=config.router.gumbel.estimator,
        sizes=Sizes(config.bucket_multiple, config.bucket_lead, left), objective=run.objective,
        distillation=config.pretrain.distillation,
    )


def _warm_up(run: Run, stages: Sequence[str]) -> None:
    """Compiles every training program of some stages, at every size that a bucket can have."""
    config, base = run.config, run.config.resolutions[0]
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, base, base, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    for stage in stages:
        if config.stage(stage).epochs:
            step = _make_step(run, stage, {})
            state = jax.eval_shape(
                functools.partial(create_state, run.drnet, step.optimizer), key
            )
            for program, arguments in step.all_programs(
                state, batch, key, [run.sizes] * len(config.resolutions)
            ):
                run.programs.compile(program, *arguments)


def _steps(
    run: Run, stage: str, step: Step, state: TrainState, batches: grain.DatasetIterator
) -> TrainState:
    """The loop proper.

    The host works one step ahead of the device: while the buckets of a step run, the next batch
    is fetched and put on the device, and only then are the step's metrics read.
    """
    config, telemetry, window = run.config, run.telemetry, Window(run.costs)
    first, last = run.first_step(stage), run.last_step(stage)
    number = first + int(state.step)
    validation_steps = max(1, round(run.steps_per_epoch * config.evaluation.every_epochs))
    # Under jit, as device_put cannot reach the devices of other hosts.
    make_key = jax.jit(jax.random.key, out_shardings=replicated(run.mesh))
    key = make_key(config.seed + 1)
    pending: tuple[int, np.ndarray, Tree] | None = None
    telemetry.begin(stage, number - first, last - first)

    def settle() -> None:
        """Reads the metrics of the step before, which may have to wait for the device."""
        nonlocal pending
        if pending:
            at, index, sums = pending
            sums = jax.tree.map(np.asarray, sums)
            _check_finite(run, at, index, sums)
            window.add(sums)
            pending = None

    while number < last:
        began = time.perf_counter()
        batch = next(batches)
        for_data, compiling = time.perf_counter() - began, run.programs.waited
        index = batch.pop("index")
        batch = put_batch(run.mesh, batch)
        settle()
        state, sums = step(state, batch, key)
        window.waited(for_data, run.programs.waited - compiling)
        number += 1
        pending = (number, index, sums)
        telemetry.step()

        validated = number == last or (number - first) % validation_steps == 0
        saved = validated or number % config.checkpoint.every_steps == 0
        # Also before a save, so that a run that goes on from there logs what this one would.
        if saved or number % config.log_every == 0:
            settle()
            values = window.values(steps_left=last - number)
            telemetry.write("train", number, {"stage": stage} | values)
            if window.collapsed():
                telemetry.say(f"warning: step {number}: {HINT}")
            if saved:
                metrics = run.validation(stage, state) if validated else {}
                if validated:
                    telemetry.write("validation", number, {"stage": stage} | metrics)
                run.checkpoints.save(state.model, state.training, batches, Meta(
                    stage=stage, step=number, stage_end=number == last, config=config,
                    classes=run.train_source.classes, metrics=metrics,
                    bucket_sizes=step.sizes.by_resolution(run.drnet.resolutions),
                    prices=run.validation.prices if validated else [],
                ))
            window.clear()
    telemetry.end()
    return state


def _check_finite(run: Run, step: int, index: np.ndarray, sums: dict[str, Any]) -> None:
    if math.isfinite(float(sums["loss"])):
        return
    run.checkpoints.wait()
    keys = [run.train_source.key(int(i)) for i in index]
    good = run.checkpoints.latest()
    raise UserError(
        f"the loss of step {step} is {float(sums['loss'])}. The last good checkpoint is that of "
        f"step {good}; try a lower learning rate, or look at the images of this batch: "
        + ", ".join(keys)
    )
