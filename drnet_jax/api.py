"""Model: a trained DRNet, to use from Python.

    model = drnet_jax.load("runs/demo")
    for answer in model.predict(paths_or_arrays):
        print(answer.label, answer.probability, answer.resolution, answer.multiply_adds)
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from drnet_jax import images as pixels
from drnet_jax.checkpoint import Meta, find_checkpoint
from drnet_jax.config import GIGA, Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import check_source, eval_batches
from drnet_jax.data.sources import Source, open_source
from drnet_jax.devices import data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.evaluation.evaluate import Evaluation, evaluate
from drnet_jax.evaluation.files import by_class
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.predict import Answer, Image, predict


class Model:
    """A checkpoint, ready to answer."""

    def __init__(
        self, meta: Meta, config: Config, variables: tuple[Any, Any], price: float,
        prices: list[list[float]],
    ):
        """See `load`, which reads all of this from a checkpoint."""
        self.meta = meta
        self.config = config
        self.classes = meta.classes
        self.resolutions = meta.config.resolutions
        self.costs: Costs = model_costs(meta.config, len(meta.classes))
        self.budget = meta.config.budget * GIGA  # multiply-adds; 0: none
        self.price = price  # found in validation, for that budget
        self._prices = np.array(prices, float).reshape(-1, 2)  # (multiply-adds, price)
        self._variables = variables

    @functools.cached_property
    def engine(self) -> Engine:
        """The compiled networks, for batches of `config.evaluation.batch_size`."""
        drnet = DRNet.from_config(self.meta.config, len(self.classes))
        engine = Engine(drnet, self.costs, self.config.evaluation.batch_size)
        engine.load(*self._variables)
        return engine

    def predict(
        self, images: Iterable[Image], budget: float | None = None, skip_errors: bool = False
    ) -> Iterator[Answer]:
        """Classifies any number of images of any sizes, each at the resolution it needs.

        Args:
            images: files, their bytes, or arrays uint8 [H, W, 3] in RGB.
            budget: mean multiply-adds of an image, the predictor's included, in place of the one
                the model was trained for; met as far as these images are like those of validation.
            skip_errors: whether an image that cannot be read becomes an Answer with an `error`.

        Yields:
            An Answer for each image, in the order given.

        Raises:
            UserError: if an image cannot be read, unless `skip_errors`; at once if no choice of
                resolutions costs the budget, or the checkpoint does not know prices for budgets.
        """
        price = self._price_for(budget)
        return predict(self.engine, self.classes, self.square, images, price, skip_errors)

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
            UserError: if there are no such images, or no choice of resolutions costs the budget.
        """
        data = self.config.data
        if folder is not None:
            data = dataclasses.replace(data, name="folder", dir=os.fspath(folder))
        source = open_source(data, training=False, classes=self.classes)
        return self.measure(source, budget).report

    def measure(self, source: Source, budget: float | None = None) -> Evaluation:
        """`evaluate` on an open source, with all that was found of each image."""
        budget = self.budget if budget is None else budget
        self.costs.check_budget(budget)
        check_source(source, self.config.data, self.resolutions[0])
        share = range(jax.process_index(), len(source), jax.process_count())
        found = evaluate(
            self.engine, self._batches(source), len(share), budget, self.config.seed,
            self.config.evaluation.speed_images,
        )
        classes = by_class(found.table, found.routed, self.costs, self.classes)
        header = {"checkpoint": self.meta.step, "stage": self.meta.stage, "seed": self.config.seed}
        footer = {"classes": classes, "notes": list(source.notes)}
        return dataclasses.replace(found, report=header | found.report | footer)

    def _batches(self, source: Source) -> Iterator[dict[str, np.ndarray]]:
        return eval_batches(
            source, self.config.data, size=self.resolutions[0], square=self.square,
            batch_size=self.engine.batch_size, process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @property
    def square(self) -> int:
        """What images are resized to, before the base size is cropped, in pixels."""
        return self.meta.preprocessing["resize"]

    def _price_for(self, budget: float | None) -> float:
        if budget is None or budget == self.budget:
            return self.price
        self.costs.check_budget(budget)
        if not len(self._prices):
            raise UserError(
                f"budget: expected {self.budget:g}, as the model was trained for, received "
                f"{budget:g}; this checkpoint was not validated in stage 2, so that no prices for "
                "other budgets are known"
            )
        return float(np.interp(budget, *self._prices.T))


def load(
    path: str | os.PathLike, checkpoint: str = "last", config: Config | None = None
) -> Model:
    """Opens a trained model, with nothing but its checkpoint.

    Args:
        path: the workdir of a run, or a checkpoint's directory in it (workdir/checkpoints/STEP).
        checkpoint: "last" or "best" of the workdir.
        config: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.

    Raises:
        UserError: if there is no checkpoint, or it was made for images normalised otherwise.
    """
    checkpoints, step = find_checkpoint(os.fspath(path), checkpoint)
    try:
        meta = checkpoints.meta(step)
        expected = {"mean": list(pixels.MEAN), "deviation": list(pixels.DEVIATION)}
        found = {name: meta.preprocessing[name] for name in expected}
        if found != expected:
            raise UserError(
                f"{path}: expected a checkpoint of images normalised by {expected}, received "
                f"{found}; use the version of drnet_jax that made it"
            )
        variables = checkpoints.restore_model(step, data_mesh())
        price, prices = checkpoints.prices(step)
    finally:
        checkpoints.close()
    return Model(meta, config or meta.config, variables, price, prices)
