"""Optimiser: SGD as PyTorch's, a schedule for each stage, and a rate of the predictor's own."""

import jax
import optax

from drnet_jax.config import Config, Stage


def learning_rate(stage: Stage, steps_per_epoch: int, ahead: int = 0) -> optax.Schedule:
    """Linear warm-up from 0, times a factor every `decay_epochs` (section 4.1).

    It is `ahead` steps ahead of those that are counted (see `drnet_jax.checkpoint.Progress`).
    """
    warmup = optax.linear_schedule(0, 1, max(1, round(stage.warmup_epochs * steps_per_epoch)))
    decay = optax.exponential_decay(
        stage.learning_rate, max(1, round(stage.decay_epochs * steps_per_epoch)),
        stage.decay_factor, staircase=True,
    )
    # Counted from 1: a first step at rate 0 would be a step lost.
    return lambda step: warmup(step + ahead + 1) * decay(step + ahead)


def make_optimizer(
    config: Config, stage: str, steps_per_epoch: int, ahead: int = 0
) -> optax.GradientTransformation:
    """SGD as PyTorch's: decay is added to the gradient, then momentum, then the rate.

    The predictor learns at `optimizer.predictor_rate` times the classifier's rate; in `pretrain` it
    stands still unless it knows the classes. Each of the two has its gradient clipped on its own.
    """
    schedule = learning_rate(config.stage(stage), steps_per_epoch, ahead)

    def sgd(share: float) -> optax.GradientTransformation:
        decay_all = config.optimizer.decay_norms_and_biases
        mask = None if decay_all else lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        clip = config.optimizer.clip_norm
        return optax.chain(
            optax.clip_by_global_norm(clip) if clip else optax.identity(),
            optax.add_decayed_weights(config.optimizer.weight_decay, mask),
            optax.sgd(lambda step: share * schedule(step), config.optimizer.momentum),
        )

    learns = stage == "finetune" or config.predictor.classifies
    predictor = sgd(config.optimizer.predictor_rate) if learns else optax.set_to_zero()
    return optax.partition(
        {"classifier": sgd(1.0), "predictor": predictor},
        {"shared": "classifier", "norms": "classifier", "predictor": "predictor"},
    )
