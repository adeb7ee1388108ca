"""Finiteness: a run whose numbers are no longer finite stops, and never saves them.

A predictor that turns NaN would train on in silence, as the largest of NaNs is the first: the base.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.data.sources import Source
from drnet_jax.drnet import Tree
from drnet_jax.errors import UserError
from drnet_jax.train.state import TrainState

WORDS = {
    "loss": "the loss", "router_loss": "the router's loss",
    "logits": "the sum of the predictor's logits",
}


def check_step(
    sums: dict[str, np.ndarray], step: int, source: Source, index: np.ndarray, good: Checkpoints
) -> None:
    """Raises UserError unless the metrics of a step (see `drnet_jax.train.device`) are finite.

    Args:
        index: the images of its batch, by their places in the source.
        good: the checkpoints, of which the message names the last.
    """
    for name, value in sums.items():
        if not np.isfinite(value).all():
            keys = [source.key(int(i)) for i in index]
            raise UserError(
                f"{WORDS.get(name, name)} of step {step} is {value}. {_last(good)}; try a lower "
                "learning rate, or look at the images of this batch: " + ", ".join(keys)
            )


def check_validation(values: dict[str, Any], step: int, good: Checkpoints) -> None:
    """Raises UserError unless all numbers of a validation, the price among them, are finite."""
    for name, value in _floats(values):
        if not math.isfinite(value):
            raise UserError(
                f"{name} of the validation at step {step} is {value}. {_last(good)}; try a lower "
                "learning rate"
            )


def check_state(state: TrainState, step: int, good: Checkpoints) -> None:
    """Raises UserError unless all that a checkpoint would hold of a state is finite."""
    parts = {
        "parameters": state.params, "BatchNorm statistics": state.batch_stats,
        "optimiser state": state.opt_state, "moving average": state.average,
    }
    bad = [name for name, finite in _finite(parts).items() if not finite]
    if bad:
        raise UserError(
            f"after step {step} the {' and the '.join(bad)} of the run hold numbers that are not "
            f"finite, so that no checkpoint is made of them. {_last(good)}; try a lower learning "
            "rate"
        )


@jax.jit
def _finite(parts: dict[str, Tree]) -> dict[str, jax.Array]:
    """Whether each of some trees is finite throughout."""
    return {
        name: jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
        for name, tree in parts.items()
    }


def _floats(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name} {key}", item) for key, item in _floats(value))
        elif isinstance(value, float):
            yield name, value


def _last(good: Checkpoints) -> str:
    good.wait()
    step = good.latest()
    return (
        "There is no checkpoint yet" if step is None
        else f"The last good checkpoint is that of step {step}"
    )
