"""Validation: what a run learns of its state on the validation images."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from drnet_jax.config import GIGA, Config
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch
from drnet_jax.data.sources import Source
from drnet_jax.devices import Compilation, Programs
from drnet_jax.drnet import DRNet
from drnet_jax.evaluation import outcomes
from drnet_jax.inference.engine import Engine
from drnet_jax.train.state import TrainState


class Validation:
    """Validates as a stage trains: at every resolution, or routed at the budget."""

    def __init__(
        self, config: Config, drnet: DRNet, costs: Costs, source: Source,
        announce: Callable[[Compilation], None],
    ):
        """`announce` is told of every program that is compiled."""
        self._config, self._costs, self._source = config, costs, source
        self._engine = Engine(drnet, costs, config.evaluation.batch_size, Programs(announce))

    def __call__(self, stage: str, state: TrainState) -> dict[str, Any]:
        """What metrics.jsonl records, and checkpoints keep; "top1" ranks these."""
        self._engine.load(state.params, state.batch_stats)
        resolutions = list(map(str, self._costs.resolutions))
        if stage == "pretrain":
            runs = outcomes.at_every_resolution(self._engine, self._batches)
            at = [float(outcome.hits(1).mean()) for outcome in runs]
            return {
                "top1": float(np.mean(at)),
                "top1_by_resolution": dict(zip(resolutions, at, strict=True)),
            }
        budget = self._config.budget * GIGA
        price = outcomes.find_price(self._engine, self._batches, self._costs, budget)
        result = outcomes.run(
            self._engine, self._batches(), outcomes.routed(self._engine, price)
        )
        mix = result.mix(len(resolutions)).tolist()
        return {
            "top1": float(result.hits(1).mean()),
            "multiply_adds": self._costs.mean(mix, with_predictor=True),
            "price": price,
            "mix": dict(zip(resolutions, mix, strict=True)),
        }

    def _batches(self) -> Iterable[Batch]:
        return outcomes.validation_batches(self._config, self._source)
