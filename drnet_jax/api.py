"""Model: a trained DRNet, to use from Python.

    model = drnet_jax.load("runs/demo")
    for answer in model.predict(paths_or_arrays):
        print(answer.label, answer.probability, answer.resolution, answer.multiply_adds)
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from drnet_jax import transfer
from drnet_jax.checkpoint import Meta, find_checkpoint
from drnet_jax.config import GIGA, STAGES, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source, open_source
from drnet_jax.data.transforms import Square
from drnet_jax.devices import data_mesh, replicated
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.evaluation.evaluate import Evaluation, evaluate
from drnet_jax.evaluation.files import by_class
from drnet_jax.evaluation.table import host_batches
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.predict import Answer, Image, check_images, predict
from drnet_jax.transfer import Variables

FEW = 8  # images at most that are not worth a batch of the configured size


class Model:
    """A checkpoint, ready to answer."""

    def __init__(
        self, meta: Meta, config: Config, variables: Variables, priced: Meta | None,
        classes: tuple[str, ...] | None = None,
    ):
        """See `load`, which reads all of this from a checkpoint; `variables` are of `classes`."""
        self.meta = meta
        self.config = config
        self.classes = classes or meta.classes
        self.resolutions = meta.config.resolutions
        self.costs: Costs = model_costs(meta.config, len(self.classes))
        self.budget = meta.config.budget * GIGA  # multiply-adds; 0: none
        self._variables = variables
        self._priced = priced  # of which the prices of this checkpoint are

    @functools.cached_property
    def engine(self) -> Engine:
        """The compiled networks, for batches of `config.evaluation.batch_size`."""
        return self.engine_for(self.config.evaluation.batch_size)

    @functools.cached_property
    def _engine_of_few(self) -> Engine:
        return self.engine_for(FEW)

    def engine_for(self, batch_size: int) -> Engine:
        """A new engine for batches of a size."""
        drnet = DRNet.from_config(self.meta.config, len(self.classes))
        engine = Engine(drnet, self.costs, batch_size)
        engine.load(*self._variables)
        return engine

    def predict(
        self, images: Iterable[Image], budget: float | None = None, skip_errors: bool = False
    ) -> Iterator[Answer]:
        """Classifies any number of images of any sizes, each by the option that it needs.

        Args:
            images: files, their bytes, or arrays uint8 [H, W, 3] in RGB.
            budget: mean multiply-adds of an image, the predictor's included, in place of the one
                the model was trained for; 0 for none. It is met as far as these images are like
                those of validation.
            skip_errors: whether an image that cannot be read becomes an Answer with an `error`.

        Yields:
            An Answer for each image, in the order given.

        Raises:
            UserError: if an image cannot be read, unless `skip_errors`; at once if `images` is a
                single one, if no choice of options costs the budget, or if the checkpoint knows no
                price for it, or is of stage 1 and its predictor not trained.
        """
        check_images(images)
        if not self.predictor_trained and len(self.costs.options) > 1:
            raise UserError(
                f"expected a checkpoint of stage {STAGES[1]}, received one of stage "
                f"{self.meta.stage} (step {self.meta.step}): its predictor is not trained, so that "
                "it cannot choose resolutions; evaluate compares the fixed resolutions"
            )
        return self._answers(images, self._checked_price(budget), skip_errors)

    def _answers(
        self, images: Iterable[Image], price: float, skip_errors: bool
    ) -> Iterator[Answer]:
        coming = iter(images)
        first = list(itertools.islice(coming, FEW + 1))
        few = len(first) <= FEW < self.config.evaluation.batch_size
        engine = self._engine_of_few if few else self.engine
        all_images = itertools.chain(first, coming)
        yield from predict(engine, self.classes, self.square, all_images, price, skip_errors)

    def evaluate(
        self, folder: str | os.PathLike | None = None, budget: float | None = None
    ) -> dict[str, Any]:
        """Measures the model on labelled images.

        Args:
            folder: holds <class>/*, or the validation split's folder with these; None: the
                validation split that the model was trained with.
            budget: as for `predict`; here it is met on these very images.

        Returns:
            What eval.json holds, see docs/files.md.

        Raises:
            UserError: if there are no such images, or no choice of options costs the budget.
        """
        return self.measure(self.source(folder), budget).report

    def source(self, folder: str | os.PathLike | None = None) -> Source:
        """The labelled images that `evaluate` measures the model on; UserError as there.

        Where it answers among some classes only, images of others are left out.
        """
        data = self.config.data
        if folder is not None:
            data = dataclasses.replace(data, name="folder", dir=os.fspath(folder))
        part = self.classes != self.meta.classes
        return open_source(data, training=False, classes=self.classes, leave_out=part)

    def measure(self, source: Source, budget: float | None = None) -> Evaluation:
        """`evaluate` on an open source, with all that was found of each image."""
        budget = self.budget if budget is None else budget
        self.costs.check_budget(budget)
        check_source(source, self.config.data, self.resolutions[0])
        share = range(jax.process_index(), len(source), jax.process_count())
        found = evaluate(
            self.engine, host_batches(self.engine, source, self.config.data, self.square),
            len(share), budget, self.config,
        )
        classes = by_class(found.table, found.routed, self.costs, self.classes)
        header = {
            "checkpoint": self.meta.step, "stage": self.meta.stage, "seed": self.config.seed,
            "predictor_trained": self.predictor_trained, "answers_among": len(self.classes),
            "first_image": source.key(0),
        }
        footer = {"classes": classes, "notes": list(source.notes)}
        return dataclasses.replace(found, report=header | found.report | footer)

    @property
    def predictor_trained(self) -> bool:
        """Whether the checkpoint is of a stage that trains the predictor."""
        return self.meta.stage == STAGES[-1] or self.costs.classifies

    @property
    def square(self) -> Square:
        """What images are squashed to before the base size is cropped."""
        return Square.of(self.meta.preprocessing)

    @property
    def price(self) -> float | None:
        """At which options are charged for `budget`; None if no validation has found it.

        Where the predictor tells how sure it is of the classes, prices are of all the classes.
        """
        return self._price(self.budget)

    def _price(self, budget: float) -> float | None:
        if not budget or len(self.costs.options) == 1:
            return 0.0
        part = len(self.classes) < len(self.meta.classes)
        if self._priced is None or (part and self.costs.classifies):
            return None
        if math.isclose(budget, self._priced.config.budget * GIGA):
            return self._priced.metrics["price"]
        return float(np.interp(budget, *np.array(self._priced.prices).T))

    def _checked_price(self, budget: float | None) -> float:
        budget = self.budget if budget is None else budget
        self.costs.check_budget(budget)
        price = self._price(budget)
        if price is None:
            reason = (
                f"neither it nor one before it in stage {self.meta.stage} was validated with its "
                "config.router.objective" if self._priced is None else
                f"its predictor was validated among all {len(self.meta.classes)} classes"
            )
            raise UserError(
                f"budget: expected 0, for none, received {budget:g}; for this checkpoint (step "
                f"{self.meta.step}) no price of a budget is known, as {reason}"
            )
        return price


def load(
    path: str | os.PathLike, checkpoint: str = "last", config: Config | None = None,
    classes: Sequence[str] | None = None,
) -> Model:
    """Opens a trained model, with nothing but its checkpoint.

    Args:
        path: the workdir of a run, or a checkpoint's directory in it (workdir/checkpoints/STEP).
        checkpoint: "last" or "best" of the workdir.
        config: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.
        classes: those of the checkpoint's among which to answer; None: all.

    Raises:
        UserError: if there is no checkpoint, or it does not know the classes.
    """
    path, mesh = os.path.expanduser(path), data_mesh()
    checkpoints, step = find_checkpoint(path, checkpoint)
    try:
        meta = checkpoints.meta(step)
        variables = checkpoints.restore_model(step, mesh)
        priced = checkpoints.priced(step)
    finally:
        checkpoints.close()
    if classes is not None:
        classes = tuple(classes)
        rows = _rows(classes, meta.classes)
        axes = transfer.class_axes(meta.config, len(meta.classes))
        pick = functools.partial(
            transfer.pick_classes, axes=axes, classes=len(meta.classes), kept=rows
        )
        variables = jax.jit(pick, out_shardings=replicated(mesh))(variables)
    return Model(meta, config or meta.config, variables, priced, classes)


def _rows(classes: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...]:
    """The labels of classes to answer among; UserError if these will not do."""
    rows = transfer.rows_of(classes, known)
    if rows is None:
        unknown = [name for name in classes if name not in known]
        raise UserError(
            f"classes: expected some of the model's {len(known)} ({', '.join(known[:3])}, ...), "
            f"received {len(unknown)} that it does not know, such as {unknown[0]!r}"
        )
    if len(set(rows)) < max(2, len(rows)):
        raise UserError(
            f"classes: expected two or more, each once, received {', '.join(classes) or 'none'}"
        )
    return rows
