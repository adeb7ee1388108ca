"""State: what a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from drnet_jax.drnet import DRNet


class TrainState(struct.PyTreeNode):
    """Replicated over the devices; `params` and `batch_stats` as in `drnet_jax.resolutions`."""

    step: jax.Array  # int32, within the stage
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def model(self) -> dict[str, Any]:
        """What inference needs."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, Any]:
        """What training needs besides."""
        return {"step": self.step, "opt_state": self.opt_state}


def create_state(
    drnet: DRNet, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """A fresh state; run it under jit with the output sharding it is to live in."""
    params, batch_stats = drnet.init(key)
    return TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))
