"""Steps: what the training of a stage launches for one batch, made of a config.

They are in `drnet_jax.train.pretrain_step` and `finetune_step`, what they share in `base_step`.
"""

import dataclasses

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from drnet_jax.config import STAGES, Config
from drnet_jax.cost import Costs
from drnet_jax.devices import Programs
from drnet_jax.drnet import DRNet
from drnet_jax.train.base_step import Step
from drnet_jax.train.finetune_step import FinetuneStep
from drnet_jax.train.objectives import make_objective
from drnet_jax.train.pretrain_step import PretrainStep
from drnet_jax.train.sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the steps of both stages are made of."""

    config: Config
    drnet: DRNet
    costs: Costs
    mesh: Mesh
    programs: Programs


def make_step(
    setup: Setup, stage: str, optimizer: optax.GradientTransformation, sizes: Sizes | None = None
) -> Step:
    """The step of a stage; `sizes` those of a run's buckets so far, None at its beginning."""
    config = setup.config
    shared = setup.drnet, optimizer, config.optimizer.ema, setup.mesh, setup.programs
    if stage == STAGES[0]:
        return PretrainStep(*shared, config.pretrain)
    return FinetuneStep(
        *shared, make_objective(config, setup.costs),
        sizes or Sizes(config.bucket_multiple, config.bucket_lead),
        dense=config.router.gumbel.estimator == "dense",
    )


def batch_shapes(config: Config, size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, of `config.batch_size` images or of `size`."""
    size, base = size or config.batch_size, config.resolutions[0]
    return {
        "image": jax.ShapeDtypeStruct((size, base, base, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }
