"""Study: what is to be reproduced in one folder, on which images, and how far it has come."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drnet_jax.config import Config, Data
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.errors import UserError
from drnet_jax.reproduce import estimate
from drnet_jax.reproduce.jobs import RUNS, Job, Progress, distinct, jobs_of, progress
from drnet_jax.reproduce.paper import NEEDS, Experiment, base
from drnet_jax.reproduce.results import Result, read
from drnet_jax.reproduce.scales import Scale


@dataclasses.dataclass(frozen=True)
class Images:
    """What is known of the images that a run is trained and tried on."""

    train: int
    classes: int
    fingerprint: str | None  # of the training images; None: they are not at hand
    missing: str = ""  # why not


@dataclasses.dataclass(frozen=True)
class Item:
    """A job with what it takes and how far it has come."""

    job: Job
    costs: Costs
    work: estimate.Work
    progress: Progress


class Study:
    """Tables and figures, and the runs that they share."""

    def __init__(
        self, scale: Scale, folder: Path, names: Sequence[str], data: dict[str, Any], given: bool
    ):
        """A study; nothing is made or run.

        Args:
            scale: of its runs.
            folder: in which everything lies.
            names: of NEEDS.
            data: keys of the config, by path, that say which images, and where.
            given: whether somebody chose these images, so that they must be there.
        """
        self.scale, self.folder, self.names, self._given = scale, folder, names, given
        experiments = dict.fromkeys(each for name in names for each in NEEDS[name])
        # What a row is compared with is read if it is there.
        experiments |= dict.fromkeys(map(base, experiments))
        self.jobs = jobs_of(scale, experiments, folder, data)
        self._images: dict[Data, Images] = {}
        self._costs: dict[Any, Costs] = {}
        self._done: dict[str, Progress] = {}

    def needed(self, *names: str) -> list[Job]:
        """The jobs of tables and figures, by default of all, in order, each once."""
        return distinct(
            self.jobs[each][: 1 if name == "figure1" else None]  # which is of stage 1
            for name in names or self.names for each in NEEDS[name]
        )

    def run_folder(self, name: str) -> Path:
        """Where a run lies."""
        return self.folder / RUNS / name

    def items(self) -> list[Item]:
        """The needed jobs, as far as they have come now."""
        return [self._item(job) for job in self.needed()]

    def _item(self, job: Job) -> Item:
        costs, at = self.costs(job.config), self.progress(job)
        images = self.images(job.config).train
        return Item(job, costs, estimate.work(job.config, costs, images, at.step, at.done), at)

    def progress(self, job: Job) -> Progress:
        """How far a job has come; of one that is done it is not asked again."""
        if job.run.name in self._done:
            return self._done[job.run.name]
        found = progress(job, self.images(job.config).fingerprint)
        if found.done:
            self._done[job.run.name] = found
        return found

    def result(self, experiment: Experiment) -> Result | None:
        """What an experiment's last run has found; None if it is not done."""
        job = self.jobs[experiment][-1]
        return read(job.workdir) if self.progress(job).done else None

    def costs(self, config: Config) -> Costs:
        """The costs of a config's model, worked out once for the same networks."""
        networks = config.classifier, config.predictor, config.resolutions
        if networks not in self._costs:
            self._costs[networks] = model_costs(config, self.images(config).classes)
        return self._costs[networks]

    def images(self, config: Config) -> Images:
        """The images of a config.

        Raises:
            UserError: if they cannot be opened, unless their number is known beforehand.
        """
        if config.data not in self._images:
            self._images[config.data] = self._look(config)
        return self._images[config.data]

    def _look(self, config: Config) -> Images:
        try:
            train, val = (open_source(config.data, training) for training in (True, False))
            for source in (train, val):
                check_source(source, config.data, config.resolutions[0])
            classes = resolve_classes(train, config.classifier.classes)
            return Images(len(train), classes, train.fingerprint)
        except UserError as error:
            if self._given or not self.scale.train_images:
                raise
            classes = config.classifier.classes
            return Images(self.scale.train_images[classes], classes, None, str(error))

    def missing(self) -> list[str]:
        """Why images of the needed jobs are not at hand; none if they are."""
        return list(dict.fromkeys(filter(None, (
            self.images(job.config).missing for job in self.needed()
        ))))
