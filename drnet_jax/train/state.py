"""State: what a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drnet_jax.drnet import DRNet, Tree


class TrainState(struct.PyTreeNode):
    """Replicated over the devices; `params` and `batch_stats` as in `drnet_jax.resolutions`."""

    step: jax.Array  # int32, within the stage
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    # Moving average of {"params", "batch_stats"}, if the run keeps one (see `moved_average`).
    average: Any = None

    @property
    def weights(self) -> dict[str, Any]:
        """What a step trains."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def model(self) -> dict[str, Any]:
        """What inference needs, and what a run is judged by: the average, if there is one."""
        return self.weights if self.average is None else self.average

    @property
    def training(self) -> dict[str, Any]:
        """What training needs besides `model`."""
        of_average = {} if self.average is None else self.weights
        return {"step": self.step, "opt_state": self.opt_state} | of_average

    @classmethod
    def restored(cls, model: dict[str, Any], training: dict[str, Any]) -> "TrainState":
        """The state whose `model` and `training` these are."""
        if "params" in training:
            return cls(**training, average=model)
        return cls(**model, **training)

    def beginning_with(self, params: Tree, batch_stats: Tree) -> "TrainState":
        """This state with other weights, from which its average, if it has one, begins."""
        state = self.replace(params=params, batch_stats=batch_stats)
        # Arrays of its own: a step donates both.
        return state if self.average is None else state.replace(average=_copy(state.weights))


def create_state(
    drnet: DRNet, optimizer: optax.GradientTransformation, ema: float, key: jax.Array
) -> TrainState:
    """A fresh state; run it under jit with the output sharding it is to live in.

    Args:
        ema: decay of the moving average; 0 for none.
    """
    params, batch_stats = drnet.init(key)
    state = TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))
    return state.replace(average=_copy(state.weights)) if ema else state


def moved_average(average: Tree, weights: Tree, decay: float, step: jax.Array) -> Tree:
    """The average after step number `step`, from 0, of a stage.

    Its decay grows with the steps to `decay`, or else the fresh weights would outlast short runs.
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(weights, average, 1 - decay)


@jax.jit
def _copy(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)
