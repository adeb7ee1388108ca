"""Estimates: how long runs take, from their multiply-adds and a rate that is known or measured."""

import dataclasses
from collections.abc import Sequence

from drnet_jax.config import GIGA, STAGES, Config
from drnet_jax.cost import TRAINING_PASSES, Costs

# Multiply-adds a second of training, and seconds that a run takes beside it to start, to compile
# and to be evaluated: of one core of an Intel Xeon.
RATE = 9e9
RATES = {"mobilenetv2": 6e9}
BESIDES = 40.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What a job takes."""

    steps: int
    multiply_adds: float  # of all steps, forward and backward
    training: float  # seconds of these, on that machine
    left: float  # seconds of all that is still to be done

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return BESIDES + self.training


def work(config: Config, costs: Costs, images: int, step: int, done: bool) -> Work:
    """The work of a run of one stage.

    Args:
        config: of the run.
        costs: of its model.
        images: in its training split.
        step: that it has come to.
        done: whether it is evaluated, too.
    """
    stage = next(stage for stage in STAGES if config.stage(stage).epochs)
    steps = config.steps(stage, images)
    an_image = TRAINING_PASSES * _forward(config, costs, stage)
    multiply_adds = an_image * config.batch_size * steps
    training = multiply_adds / RATES.get(config.classifier.name, RATE)
    left = 0.0 if done else BESIDES + training * (1 - step / steps)
    return Work(steps, multiply_adds, training, left)


def _forward(config: Config, costs: Costs, stage: str) -> float:
    """Multiply-adds of an image's forward passes in training."""
    gumbel = config.router.gumbel
    if stage == STAGES[0]:
        return sum(costs.classifier)
    if gumbel.estimator == "dense":
        return sum(costs.classifier) + costs.predictor
    # As many as the regulariser asks for, and at most the base's.
    target = gumbel.alpha * GIGA if gumbel.eta else costs.classifier[0]
    return min(target, costs.classifier[0]) + costs.predictor


def pace(took: Sequence[tuple[float, float]]) -> float:
    """By what factor this machine is slower than the known one; 1 if nothing was run here yet.

    Args:
        took: of each run that is done, the seconds it took and those that were expected.
    """
    if not took:
        return 1.0
    seconds, expected = map(sum, zip(*took, strict=True))
    return seconds / expected


def duration(seconds: float) -> str:
    """"45 s", "1 min 20 s", "22 min", "3 h 5 min" or "12 days"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 72 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / (24 * 60):.0f} days"
