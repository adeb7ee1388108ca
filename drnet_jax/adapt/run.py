"""Runs of adaptation: from the newest checkpoint of a workdir to an adapted one beside it."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnet_jax.adapt.step import AdaptState, adapt_program, begin, make_optimizer
from drnet_jax.checkpoints.existing import open_existing
from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.checkpoints.meta import Meta, Progress
from drnet_jax.config import STAGES, Config
from drnet_jax.config_check import parse
from drnet_jax.data.loader import check_source, train_batches
from drnet_jax.data.protocol import Source
from drnet_jax.data.transforms import preprocessing
from drnet_jax.devices import Programs, check_batch, data_mesh, put_batch, replicated
from drnet_jax.drnet import DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.formatting import by_option
from drnet_jax.resolutions import norm_keys
from drnet_jax.train.bad_images import BadImages
from drnet_jax.train.lock import locked
from drnet_jax.train.stopping import Stopping
from drnet_jax.train.telemetry import Telemetry

SETTINGS = "adapt.json"  # in the workdir: of what was last begun there
LOG_EVERY, SAVE_EVERY = 10, 50  # steps


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to adapt."""

    resolutions: tuple[int, ...]  # besides the base
    classes: tuple[str, ...] = ()  # in use; none for all that the network knows
    epochs: float = 2.0
    batch_size: int = 64  # global
    learning_rate: float = 2e-3
    crop_area: tuple[float, ...] = (0.25, 1.0)  # of the random crops, as shares of the image
    seed: int = 0

    def steps(self, images: int) -> int:
        return max(1, round(self.epochs * images / self.batch_size))


def adapt(
    workdir: str, source: Source, settings: Settings, stopping: Stopping | None = None
) -> None:
    """Adapts the network of a workdir's newest checkpoint, and saves it as the next checkpoint.

    A run that was stopped goes on where it was, given the same settings and images.

    Args:
        workdir: of a finished run, or of an import.
        source: the images to learn from; their labels are not looked at.
        settings: of the run; its classes must be those of the network.
        stopping: says when to stop before the end; None: never.

    Raises:
        UserError: if the checkpoint, the settings or the images do not fit, or another run writes
            to the workdir, before anything is written.
        Stopped: if it was asked to stop; what it has done is saved.
    """
    workdir = os.path.expanduser(workdir)
    with contextlib.ExitStack() as closing:
        if Path(workdir).is_dir():
            closing.enter_context(locked(Path(workdir)))
        run = _open(workdir, source, settings)
        closing.callback(run.programs.close)
        closing.callback(run.checkpoints.close)
        closing.enter_context(run.telemetry)
        _steps(run, stopping or Stopping())
        run.checkpoints.wait()


@dataclasses.dataclass(frozen=True)
class _Run:
    workdir: str
    settings: Settings
    source: Source
    first: int  # step of the checkpoint that is adapted
    meta: Meta  # of that checkpoint, with the config of the adapted network
    drnet: DRNet
    variables: tuple[Tree, Tree]  # (params, batch_stats) to begin with
    checkpoints: Checkpoints
    telemetry: Telemetry
    programs: Programs
    going_on: int | None  # the step of the checkpoint to go on from, None at the beginning

    @property
    def steps(self) -> int:
        return self.settings.steps(len(self.source))


def _open(workdir: str, source: Source, settings: Settings) -> _Run:
    mesh = data_mesh()
    check_batch(settings.batch_size, mesh.size)
    reading = open_existing(workdir)
    try:
        newest = reading.meta(reading.latest())
        wanted = {
            **dataclasses.asdict(settings), "images": len(source),
            "fingerprint": source.fingerprint,
        }
        first, going_on = newest.step, None
        if not newest.stage_end:
            first, going_on = _begun(Path(workdir), newest, wanted), newest.step
        meta = reading.meta(first)
        config = _adapted(meta, settings)
        check_source(source, config.data, config.resolutions[0])
        if settings.batch_size > len(source):
            raise UserError(
                f"--batch: expected at most the {len(source)} images, received "
                f"{settings.batch_size}"
            )
        drnet = DRNet.from_config(config, len(meta.classes))
        base = norm_keys(meta.resolutions, meta.config.classifier.resolution_aware_norm)[0]
        variables = begin(
            drnet, base, *reading.restore_model(first, mesh), jax.random.key(settings.seed)
        )
    finally:
        reading.close()
    telemetry = Telemetry(workdir)
    ends = first, first + settings.steps(len(source))
    checkpoints = Checkpoints(workdir, 1, ends, write=True)
    if jax.process_index() == 0:
        text = json.dumps(wanted | {"first_step": first}, indent=2)
        (Path(workdir) / SETTINGS).write_text(text + "\n")
    telemetry.open(newest.step)
    meta = dataclasses.replace(meta, config=config)
    return _Run(
        workdir, settings, source, first, meta, drnet, variables, checkpoints, telemetry,
        Programs(telemetry.compiled), going_on,
    )


def _begun(workdir: Path, newest: Meta, wanted: dict[str, Any]) -> int:
    """The step after which the adaptation began that is to go on; UserError if there is none."""
    try:
        begun = json.loads((workdir / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{workdir}: expected a run that is complete, received one that stopped at step "
            f"{newest.step} of stage {newest.stage}; train it to its end first"
        ) from error
    first = begun.pop("first_step")
    # Tuples have become lists.
    different = [
        f"{key}: {begun.get(key)} then, {value} now"
        for key, value in json.loads(json.dumps(wanted)).items() if begun.get(key) != value
    ]
    if different:
        raise UserError(
            f"{workdir}: an adaptation was stopped at step {newest.step}, and goes on with the "
            f"same settings only ({'; '.join(different)}); give those, or remove checkpoint "
            f"{newest.step} to begin anew"
        )
    return first


def _adapted(meta: Meta, settings: Settings) -> Config:
    """The config of the adapted network, whose predictor is not trained and has no budget."""
    base = meta.resolutions[0]
    wanted = tuple(sorted(settings.resolutions, reverse=True))
    if not wanted or wanted[0] >= base or len(set(wanted)) < len(wanted):
        raise UserError(
            f"--resolutions: expected different sizes below the base, {base}, received "
            f"{','.join(map(str, settings.resolutions)) or 'none'}"
        )
    if unknown := [name for name in settings.classes if name not in meta.classes]:
        raise UserError(
            f"--classes: expected some of the network's {len(meta.classes)} classes "
            f"({', '.join(meta.classes[:3])}, ...), received {unknown[0]!r}"
        )
    values = json.loads(meta.config.to_json())
    values["resolutions"] = [base, *wanted]
    values["classifier"]["resolution_aware_norm"] = True
    values["predictor"]["classifies"], values["budget"] = False, 0.0
    values["router"]["objective"] = "gumbel"
    values["data"]["crop_area"] = list(settings.crop_area)
    return parse(values)


def _steps(run: _Run, stopping: Stopping) -> None:
    settings, telemetry, mesh = run.settings, run.telemetry, data_mesh()
    optimizer = make_optimizer(settings.learning_rate, run.steps)
    among = [run.meta.classes.index(name) for name in settings.classes]
    program = adapt_program(run.drnet, mesh, optimizer, among)
    params, batch_stats = jax.device_put(run.variables, replicated(mesh))
    state = _state(run, params, optimizer)
    resolutions = [str(size) for size in run.drnet.resolutions[1:]]
    batches = train_batches(
        run.source, run.meta.config.data, size=run.drnet.resolutions[0],
        batch_size=settings.batch_size // jax.process_count(), seed=settings.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    batches.set_state({"examples": int(state.step) * settings.batch_size})
    with contextlib.closing(batches):
        done, window = int(state.step), []
        telemetry.say(
            f"adapting {', '.join(resolutions)} px to {run.drnet.resolutions[0]} px, among "
            f"{len(among) or len(run.meta.classes)} classes, on {len(run.source)} images"
        )
        bad = BadImages(run.workdir, run.source, run.meta.config.data, telemetry)
        telemetry.begin("adapt", done, run.steps)
        while done < run.steps:
            batch = next(batches)
            bad.take_from(batch, run.first + done + 1)
            batch = put_batch(mesh, {"image": batch["image"]})
            state, metrics = run.programs.run(program, state, params, batch_stats, batch["image"])
            window.append(metrics)
            done += 1
            telemetry.step()
            stopped = stopping.after(run.first + done) and done < run.steps
            saved = stopped or done == run.steps or done % SAVE_EVERY == 0
            if saved or done % LOG_EVERY == 0:
                _log(run, done, jax.tree.map(np.asarray, window), resolutions)
                window = []
            if saved:
                _save(run, state, params, batch_stats, done)
            if stopped:
                run.checkpoints.wait()
                raise stopping.stopped(run.first + done)
        telemetry.end()


def _state(run: _Run, params: Tree, optimizer: Any) -> AdaptState:
    """The state to begin with, or to go on with."""
    def create(norms: Tree) -> AdaptState:
        return AdaptState(jax.numpy.int32(0), norms, optimizer.init(norms))

    norms = {key: params["norms"][key] for key in run.drnet.norm_keys[1:]}
    state = jax.jit(create, out_shardings=replicated(data_mesh()))(norms)
    if run.going_on is None:
        return state
    model = dict(zip(("params", "batch_stats"), run.variables, strict=True))
    training = {"step": state.step, "opt_state": state.opt_state}
    found, training = run.checkpoints.restore(run.going_on, model, training, data_mesh())
    run.telemetry.say(f"going on from step {run.going_on}")
    return AdaptState(
        norms={key: found["params"]["norms"][key] for key in norms}, **training
    )


def _log(run: _Run, done: int, window: Sequence[Tree], resolutions: list[str]) -> None:
    means = {name: np.mean([each[name] for each in window], axis=0) for name in window[0]}
    if not np.isfinite(means["loss"]).all():
        raise UserError(
            f"the loss of step {done} is {means['loss']}; nothing of it is saved; try a lower "
            "--learning_rate"
        )
    run.telemetry.write("adapt", run.first + done, {
        name: by_option(resolutions, values) for name, values in means.items()
    })


def _save(run: _Run, state: AdaptState, params: Tree, batch_stats: Tree, done: int) -> None:
    model = {
        "params": params | {"norms": params["norms"] | state.norms}, "batch_stats": batch_stats
    }
    examples = done * run.settings.batch_size
    run.checkpoints.save(
        model, {"step": state.step, "opt_state": state.opt_state},
        dataclasses.replace(
            run.meta, stage=STAGES[0], step=run.first + done, stage_end=done == run.steps,
            metrics={}, bucket_sizes={}, preprocessing=preprocessing(run.meta.config),
            progress=Progress(run.first, examples, len(run.source), run.source.fingerprint),
        ),
    )
    run.telemetry.flush()
