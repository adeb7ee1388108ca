"""Loop: the training loop, one for both stages, which differ in step, schedule and length."""

import contextlib
import functools
import time
from typing import Any

import grain
import jax
import numpy as np
from clu import parameter_overview

from drnet_jax.checkpoints.meta import Meta, Progress
from drnet_jax.config import STAGES, Config
from drnet_jax.data.loader import train_batches
from drnet_jax.data.transforms import preprocessing
from drnet_jax.devices import put_batch, replicated
from drnet_jax.drnet import Tree
from drnet_jax.train.base_step import Step
from drnet_jax.train.finite import check_state, check_step, check_validation
from drnet_jax.train.optimizer import learning_rate
from drnet_jax.train.run import Run, open_run
from drnet_jax.train.state import TrainState, create_state
from drnet_jax.train.step import batch_shapes
from drnet_jax.train.stopping import Stopping
from drnet_jax.train.telemetry import HINT, Window


def train(
    config: Config, workdir: str, warm_up: bool = False, changed_data: bool = False,
    stopping: Stopping | None = None,
) -> None:
    """Runs both stages, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: what to train, and how.
        workdir: where checkpoints and metrics go.
        warm_up: whether to compile every program of training before the first step, and to use all
            bucket sizes from there on (which a run that goes on from here does, too).
        changed_data: whether to go on, from the next epoch, with other training images than before.
        stopping: says when to stop before the end; None: never.

    Raises:
        UserError: if data, checkpoints or devices do not fit the config (before anything is
            compiled or written), if another run writes to the workdir, if a number stops being
            finite, or if a checkpoint cannot be written.
        Stopped: if it was asked to stop; what it has done is saved.
    """
    with contextlib.ExitStack() as closing:
        run = open_run(config, workdir, closing, changed_data, stopping or Stopping())
        # Last, as it may have to wait for the compiler.
        closing.callback(run.programs.close)
        closing.callback(run.checkpoints.close)
        closing.enter_context(run.telemetry)
        steps = {
            stage: run.step(stage, all_sizes=warm_up)
            for stage in run.spans if config.stage(stage).epochs
        }
        if warm_up:
            for step in steps.values():
                _compile_all(run, step)
        state = run.origin
        for stage, step in steps.items():
            state = _run_stage(run, stage, step, state)
        run.checkpoints.wait()


def _compile_all(run: Run, step: Step) -> None:
    """Compiles every program of a step, at every size that a bucket can have."""
    create = functools.partial(create_state, run.drnet, step.optimizer, step.ema)
    state = jax.eval_shape(create, jax.eval_shape(jax.random.key, 0))
    sizes = [run.sizes] * len(run.drnet.resolutions)
    for program, arguments in step.all_programs(state, batch_shapes(run.config), sizes):
        run.programs.compile(program, *arguments)


def _run_stage(run: Run, stage: str, step: Step, previous: TrainState | None) -> TrainState:
    """Runs a stage to its end: from a checkpoint, or else with what `previous` has learnt."""
    config = run.config
    batches = train_batches(
        run.source, config.data, size=config.resolutions[0],
        batch_size=config.batch_size // jax.process_count(),
        seed=len(STAGES) * config.seed + STAGES.index(stage),
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    try:
        if run.resumed and run.resumed.stage == stage:
            state = _restored(run, step)
            batches.set_state({"examples": run.resumed.progress.examples})
        else:
            state = _fresh(run, step, previous)
        return _steps(run, stage, step, state, batches)
    finally:
        batches.close()


def _restored(run: Run, step: Step) -> TrainState:
    """The state of the checkpoint that the run goes on from."""
    create = functools.partial(create_state, run.drnet, step.optimizer, step.ema)
    abstract = jax.eval_shape(create, jax.random.key(0))
    model, training = run.checkpoints.restore(
        run.resumed.step, abstract.model, abstract.training, run.mesh
    )
    return TrainState.restored(model, training)


def _fresh(run: Run, step: Step, previous: TrainState | None) -> TrainState:
    """The state that a stage begins with: fresh, but for what the stage before has trained."""
    create = functools.partial(create_state, run.drnet, step.optimizer, step.ema)
    # Created under its sharding: moved there later, the step would compile twice.
    state = jax.jit(create, out_shardings=replicated(run.mesh))(jax.random.key(run.config.seed))
    if previous is None:
        run.telemetry.say(parameter_overview.get_parameter_overview(state.params))
        return state
    learnt = previous.model
    if not run.drnet.classifies:
        learnt = {
            name: tree | {"predictor": state.weights[name]["predictor"]}
            for name, tree in learnt.items()
        }
    return state.beginning_with(**learnt)


def _steps(
    run: Run, stage: str, step: Step, state: TrainState, batches: grain.DatasetIterator
) -> TrainState:
    """The loop proper.

    The host works one step ahead of the device: while the buckets of a step run, the next batch
    is fetched and put on the device, and only then are the step's metrics read.
    """
    config, telemetry, window, span = run.config, run.telemetry, Window(run.costs), run.spans[stage]
    number = span.first + int(state.step)
    validation_steps = max(1, round(run.steps_per_epoch * config.evaluation.every_epochs))
    rate = jax.jit(learning_rate(config.stage(stage), run.steps_per_epoch, span.ahead))
    # Under jit, as device_put cannot reach the devices of other hosts.
    key = jax.jit(jax.random.key, out_shardings=replicated(run.mesh))(config.seed + 1)
    behind = _Behind(run, window)
    telemetry.begin(stage, number - span.first, span.last - span.first)
    while number < span.last:
        began = time.perf_counter()
        batch = next(batches)
        run.bad_images.take_from(batch, number + 1)
        for_data, compiling = time.perf_counter() - began, run.programs.waited
        index = batch.pop("index")
        batch = put_batch(run.mesh, batch)
        behind.settle()
        state, sums = step(state, batch, key)
        window.waited(for_data, run.programs.waited - compiling)
        number += 1
        behind.add(number, index, sums)
        telemetry.step()

        place = number - span.first
        validated = number == span.last or (place + span.ahead) % validation_steps == 0
        stopped = run.stopping.after(number)
        saved = stopped or validated or run.saving.due(number)
        # Also before a save, so that a run that goes on from there logs what this one would.
        if saved or number % config.log_every == 0:
            behind.settle()
            means = window.values(steps_left=span.last - number)
            telemetry.write("train", number, {
                "stage": stage, "loss": means.pop("loss"),
                # The first step is number 0 to the optimiser.
                "learning_rate": float(rate(place - 1)), **means,
            })
            if window.collapsed():
                telemetry.say(f"warning: step {number}: {HINT}")
            if saved:
                check_state(state, number, run.checkpoints)
                metrics = _validate(run, stage, state, number) if validated else {}
                _save(run, stage, step, state, batches, number, metrics)
            window.clear()
        if stopped and number < run.last:
            run.checkpoints.wait()
            raise run.stopping.stopped(number)
    telemetry.end()
    return state


class _Behind:
    """The metrics of the step before, which may have to wait for the device to be read."""

    def __init__(self, run: Run, window: Window):
        self._run, self._window = run, window
        self._waiting: tuple[int, np.ndarray, Tree] | None = None

    def add(self, number: int, index: np.ndarray, sums: Tree) -> None:
        """Takes the metrics of a step, and which images of the source it was of."""
        self._waiting = number, index, sums

    def settle(self) -> None:
        """Reads and checks them, if they have not been yet, and adds them to the window."""
        if self._waiting:
            number, index, sums = self._waiting
            sums = jax.tree.map(np.asarray, sums)
            check_step(sums, number, self._run.source, index, self._run.checkpoints)
            self._window.add(sums)
            self._waiting = None


def _validate(run: Run, stage: str, state: TrainState, number: int) -> dict[str, Any]:
    metrics = run.validation(stage, state)
    check_validation(metrics, number, run.checkpoints)
    run.telemetry.write("validation", number, {"stage": stage} | metrics)
    if "missed" in metrics:
        run.telemetry.say(f"warning: step {number}: {metrics['missed']}")
    return metrics


def _save(
    run: Run, stage: str, step: Step, state: TrainState, batches: grain.DatasetIterator,
    number: int, metrics: dict[str, Any],
) -> None:
    """Begins to write a checkpoint; `metrics` are those of the validation, if there was one."""
    run.saving.saved()
    span = run.spans[stage]
    of_buckets = step.sizes.by_resolution(run.drnet.resolutions) if stage == STAGES[1] else {}
    run.checkpoints.save(state.model, state.training, Meta(
        stage=stage, step=number, stage_end=number == span.last, config=run.config,
        classes=run.source.classes, metrics=metrics, bucket_sizes=of_buckets,
        progress=Progress(
            first_step=span.first, examples=batches.get_state()["examples"],
            images=len(run.source), fingerprint=run.source.fingerprint, ahead=span.ahead,
        ),
        preprocessing=preprocessing(run.config),
        dials=run.validation.dials if metrics else {},
    ))
    run.telemetry.flush()
