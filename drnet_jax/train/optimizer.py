"""Optimiser: SGD or RMSProp, a schedule for each stage, and a rate of the predictor's own."""

import jax
import jax.numpy as jnp
import optax

from drnet_jax.config import Config, Stage

# With which MobileNetV2 was trained: the decay of section 6.1 of its paper (Sandler et al., CVPR
# 2018), and the epsilon of its code, tensorflow/models' research/slim; TensorFlow's own is 1e-10.
RMSPROP = {"decay": 0.9, "eps": 1.0, "eps_in_sqrt": True, "initial_scale": 1.0}


def learning_rate(stage: Stage, steps_per_epoch: int, ahead: int = 0) -> optax.Schedule:
    """Linear warm-up from 0, times what `stage.schedule` says.

    "steps" is a factor every `decay_epochs` (section 4.1); "cosine" falls from the end of the
    warm-up to 0 at the end of the stage. It is `ahead` steps ahead of those that are counted (see
    `drnet_jax.checkpoints.meta.Progress`).
    """
    rate, warm = stage.learning_rate, max(1, round(stage.warmup_epochs * steps_per_epoch))
    warmup = optax.linear_schedule(0, 1, warm)
    if stage.schedule == "cosine":
        half = optax.cosine_decay_schedule(rate, max(1, stage.steps(steps_per_epoch) - warm))

        def decay(step: jax.Array) -> jax.Array:
            return half(jnp.maximum(step - warm, 0))
    else:
        decay = optax.exponential_decay(
            rate, max(1, round(stage.decay_epochs * steps_per_epoch)), stage.decay_factor,
            staircase=True,
        )
    # Counted from 1: a first step at rate 0 would be a step lost.
    return lambda step: warmup(step + ahead + 1) * decay(step + ahead)


def make_optimizer(
    config: Config, stage: str, steps_per_epoch: int, ahead: int = 0
) -> optax.GradientTransformation:
    """The optimiser of a stage: the decay of weights is added to the gradient, as PyTorch does.

    "sgd" is PyTorch's: momentum of gradients, then the rate. "rmsprop" is TensorFlow's: momentum of
    what the rate has been applied to, and epsilon within the root.

    The predictor learns at `optimizer.predictor_rate` times the classifier's rate; in `pretrain` it
    stands still unless it knows the classes. Each of the two has its gradient clipped on its own.
    """
    chosen = config.optimizer
    schedule = learning_rate(config.stage(stage), steps_per_epoch, ahead)

    def moving(share: float) -> optax.GradientTransformation:
        mask = None if chosen.decay_norms_and_biases else (
            lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        )
        clip, momentum = chosen.clip_norm, chosen.momentum

        def rate(step: jax.Array) -> jax.Array:
            return share * schedule(step)

        return optax.chain(
            optax.clip_by_global_norm(clip) if clip else optax.identity(),
            optax.add_decayed_weights(chosen.weight_decay, mask),
            optax.sgd(rate, momentum) if chosen.name == "sgd"
            else optax.rmsprop(rate, momentum=momentum, **RMSPROP),
        )

    learns = stage == "finetune" or config.predictor.classifies
    predictor = moving(chosen.predictor_rate) if learns else optax.set_to_zero()
    return optax.partition(
        {"classifier": moving(1.0), "predictor": predictor},
        {"shared": "classifier", "norms": "classifier", "predictor": "predictor"},
    )
