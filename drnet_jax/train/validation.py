"""Validation: what a run learns of its state on the validation images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from drnet_jax.config import GIGA, STAGES, Config
from drnet_jax.cost import Costs
from drnet_jax.data.sources import Source
from drnet_jax.data.transforms import square_for
from drnet_jax.devices import Compilation
from drnet_jax.dial import Dials
from drnet_jax.drnet import DRNet
from drnet_jax.evaluation import intervals, policies
from drnet_jax.evaluation.table import host_batches, tabulate
from drnet_jax.formatting import by_option
from drnet_jax.inference.engine import Engine
from drnet_jax.train.state import TrainState


class Validation:
    """Validates as a stage trains: by every option, and routed at the budget once the predictor is
    trained.
    """

    def __init__(
        self, config: Config, drnet: DRNet, costs: Costs, source: Source,
        announce: Callable[[Compilation], None],
    ):
        """`announce` is told of every program that is compiled."""
        self._config, self._costs, self._source = config, costs, source
        self._engine = Engine(drnet, costs, config.evaluation.batch_size, announce)
        self.dials: Dials = {}  # found last, see `policies.dials`

    def __call__(self, stage: str, state: TrainState) -> dict[str, Any]:
        """What metrics.jsonl records, and checkpoints keep; "top1" ranks these."""
        self._engine.load(**state.model)
        costs, expected = self._costs, self._config.preprocessing
        square = square_for(costs.resolutions[0], expected.val_crop, expected.interpolation)
        table = tabulate(self._engine, host_batches(
            self._engine, self._source, self._config.data, square
        ))
        fixed = table.right.mean(axis=0)
        found = {"top1_by_option": by_option(costs.options, fixed)}
        budget, trained = self._config.budget * GIGA, stage == STAGES[1] or costs.classifies
        self.dials = policies.dials(
            table, costs, budget if trained else None, self._config.evaluation.rule
        )
        if not trained:
            return {"top1": float(np.mean(fixed))} | found
        if len(costs.resolutions) > 1:
            found["foretold"] = intervals.foretold(table, costs)
        price = policies.price_for(table.scores, costs, budget)
        routed = policies.routed(table, costs, price)
        missed = policies.missed(budget, routed.mean_cost())
        return {
            "top1": routed.top(1),
            "multiply_adds": routed.mean_cost(),
            "price": price,
            "mix": by_option(costs.options, routed.mix(len(costs.options))),
            **({"missed": missed} if missed else {}),
        } | found
