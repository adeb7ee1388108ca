"""Jobs: the runs that tables and figures need, once each, and how far each has come."""

import dataclasses
import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drnet_jax import config_files
from drnet_jax.checkpoints.existing import newest
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.config import STAGES, Config
from drnet_jax.config_check import parse
from drnet_jax.errors import UserError
from drnet_jax.reproduce.paper import Experiment
from drnet_jax.reproduce.results import REPORT
from drnet_jax.reproduce.scales import CONFIGS, Run, Scale, runs_of
from drnet_jax.train.resume import differing

RUNS = "runs"
PLACES = ("init_from", "data.dir")  # keys that say where things lie, not what is trained


@dataclasses.dataclass(frozen=True)
class Job:
    """A run in its place."""

    run: Run
    config: Config
    workdir: Path
    overrides: dict[str, Any]  # of the config's keys, by path

    @property
    def command(self) -> str:
        """The command line that trains the same."""
        config = os.path.relpath(CONFIGS / self.run.config)  # to be called from where we are
        flags = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return shlex.join([
            "drnet", "train", f"--config={config}", f"--workdir={self.workdir}", *flags
        ])

    @property
    def stage(self) -> str:
        """The one stage that it trains."""
        return next(stage for stage in STAGES if self.config.stage(stage).epochs)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a job has come."""

    step: int = 0  # of its newest checkpoint
    trained: bool = False  # whether that is its last
    done: bool = False  # whether it is evaluated, too


def jobs_of(
    scale: Scale, experiments: Iterable[Experiment], folder: Path, data: dict[str, Any]
) -> dict[Experiment, tuple[Job, ...]]:
    """The jobs of each experiment, in order; a run that several need is one job.

    Args:
        folder: in which all runs lie, each in runs/<its name>.
        data: keys of the config, by path, that say where the images are.
    """
    made: dict[str, Job] = {}

    def job(run: Run) -> Job:
        if run.name not in made:
            origin = {"init_from": str(_place(folder, run.origin))} if run.origin else {}
            config = config_of(run, data | origin)
            made[run.name] = Job(run, config, _place(folder, run.name), data | origin)
        return made[run.name]

    return {experiment: tuple(map(job, runs_of(scale, experiment))) for experiment in experiments}


def _place(folder: Path, name: str) -> Path:
    return folder / RUNS / name


def config_of(run: Run, overrides: dict[str, Any]) -> Config:
    """The config of a run, with `overrides` by dotted key."""
    values = config_files.load(str(CONFIGS / run.config))
    values.update_from_flattened_dict(overrides)
    return parse(values)


def distinct(chains: Iterable[tuple[Job, ...]]) -> list[Job]:
    """Each job once, in order."""
    return list({job.run.name: job for chain in chains for job in chain}.values())


def progress(job: Job, images: str | None) -> Progress:
    """How far a job has come.

    Args:
        images: fingerprint of those that it is to be trained on; None: not known.

    Raises:
        UserError: if its folder holds a run of another config, or on other images.
    """
    meta = newest(str(job.workdir))
    if meta is None:
        return Progress()
    _check_same(job, meta, images)
    trained = meta.stage_end and meta.stage == job.stage
    return Progress(meta.step, trained, trained and _evaluated(job, meta.step))


def _evaluated(job: Job, step: int) -> bool:
    report = job.workdir / REPORT
    return report.exists() and json.loads(report.read_text())["checkpoint"] == step


def _check_same(job: Job, meta: Meta, images: str | None) -> None:
    other = "remove it, or use another --workdir"
    for key in differing(meta.config, job.config):
        if key not in PLACES:
            raise UserError(
                f"{job.workdir}: expected a run with config.{key}={job.config.get(key)!r}, found "
                f"one with {meta.config.get(key)!r}; {other}"
            )
    if images not in (None, meta.progress.fingerprint):
        raise UserError(
            f"{job.workdir}: expected a run on the images of {job.config.data.dir}, found one on "
            f"others (fingerprints {images} and {meta.progress.fingerprint}); {other}"
        )
