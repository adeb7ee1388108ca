"""Configuration: from the ConfigDict of a config file to frozen, checked dataclasses.

`configs/default.py` documents each key. The rest of the package sees only the dataclasses, so a
misspelt or impossible value never travels further than `parse`.
"""

import dataclasses
import functools
import itertools
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from drnet_jax.errors import UserError

GIGA = 1e9  # the unit of config.budget and config.router.gumbel.alpha
STAGES = ("pretrain", "finetune")


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    dir: str
    train_split: str
    val_split: str
    crop_area: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    workers: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Classifier:
    name: str
    width: float
    classes: int
    resolution_aware_norm: bool


@dataclasses.dataclass(frozen=True)
class Predictor:
    name: str
    width: float
    resolution: int
    classifies: bool


@dataclasses.dataclass(frozen=True)
class GumbelRouter:
    alpha: float
    eta: float
    temperature: float
    estimator: str


@dataclasses.dataclass(frozen=True)
class OutcomeRouter:
    exploration: float


@dataclasses.dataclass(frozen=True)
class Router:
    objective: str
    gumbel: GumbelRouter
    outcome: OutcomeRouter


@dataclasses.dataclass(frozen=True)
class Optimizer:
    momentum: float
    weight_decay: float
    decay_norms_and_biases: bool
    clip_norm: float
    predictor_rate: float


@dataclasses.dataclass(frozen=True)
class Stage:
    epochs: float
    learning_rate: float
    warmup_epochs: float
    decay_epochs: float
    decay_factor: float


@dataclasses.dataclass(frozen=True)
class Pretrain(Stage):
    distillation: float


@dataclasses.dataclass(frozen=True)
class Finetune(Stage):
    init_from: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    batch_size: int
    every_epochs: float
    speed_images: int
    rule: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: int
    keep: int


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    batch_size: int
    bucket_multiple: int
    bucket_lead: int
    log_every: int
    resolutions: tuple[int, ...]
    budget: float
    dtype: str
    data: Data
    classifier: Classifier
    predictor: Predictor
    router: Router
    optimizer: Optimizer
    pretrain: Pretrain
    finetune: Finetune
    evaluation: Evaluation
    checkpoint: Checkpoint

    def to_json(self) -> str:
        """The effective config as text; `parse(json.loads(text))` gives it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def get(self, key: str) -> Any:
        """The value of a dotted key, such as "router.gumbel.alpha"."""
        return functools.reduce(getattr, key.split("."), self)

    def stage(self, name: str) -> Stage:
        """The group of a stage, one of STAGES."""
        return getattr(self, name)

    def steps(self, stage: str, images: int) -> int:
        """Steps of a stage with so many training images; epochs may be parts of one."""
        epochs, per_epoch = self.stage(stage).epochs, images // self.batch_size
        return max(1, round(epochs * per_epoch)) if epochs else 0


POSITIVE = 1e-12  # the least that is more than 0

# The ends are included. A rate or weight has none above but must be finite, as every number must.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 2),
    "batch_size": (1, 2**20),
    "bucket_multiple": (1, 2**20),
    "bucket_lead": (0, 10**6),
    "log_every": (1, 10**6),
    "budget": (0, 10**6),
    "data.workers": (0, 256),
    "data.threads": (1, 1024),
    "classifier.width": (POSITIVE, 64),
    "classifier.classes": (0, 10**6),
    "predictor.width": (POSITIVE, 64),
    "router.gumbel.alpha": (POSITIVE, 10**6),
    "router.gumbel.eta": (0, math.inf),
    "router.gumbel.temperature": (POSITIVE, math.inf),
    "router.outcome.exploration": (0, math.inf),
    "optimizer.momentum": (0, 1 - POSITIVE),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "optimizer.predictor_rate": (POSITIVE, math.inf),
    **{
        f"{stage}.{key}": ends for stage in STAGES for key, ends in {
            "epochs": (0, 10**5),
            "learning_rate": (POSITIVE, math.inf),
            "warmup_epochs": (0, 10**5),
            "decay_epochs": (POSITIVE, 10**6),
            "decay_factor": (POSITIVE, 1),
        }.items()
    },
    "pretrain.distillation": (0, 1),
    "evaluation.batch_size": (1, 2**16),
    "evaluation.every_epochs": (POSITIVE, 10**5),
    "evaluation.speed_images": (1, 2**14),
    "checkpoint.every_steps": (1, 10**9),
    "checkpoint.keep": (1, 10**6),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "router.objective": ("gumbel", "outcome"),
    "router.gumbel.estimator": ("selected", "dense"),
    "evaluation.rule": ("margin", "probability"),
}

# Key, what is expected of it, and whether that is so.
RULES: tuple[tuple[str, str, Callable[[Config], bool]], ...] = (
    ("data.name", "a tfds name or 'folder'", lambda c: bool(c.data.name)),
    ("data.crop_area", "(low, high) within (0, 1]", lambda c: _is_range(c.data.crop_area, 1)),
    ("data.crop_ratio", "(low, high), both positive", lambda c: _is_range(c.data.crop_ratio, 1e3)),
    ("resolutions", "1 to 8 sizes", lambda c: 1 <= len(c.resolutions) <= 8),
    ("resolutions", "sizes that fall, largest first, without repeats",
     lambda c: all(a > b for a, b in itertools.pairwise(c.resolutions))),
    ("resolutions", "sizes of 8 to 4096 pixels",
     lambda c: all(8 <= size <= 4096 for size in c.resolutions)),
    ("bucket_multiple", "at most config.batch_size", lambda c: c.bucket_multiple <= c.batch_size),
    ("classifier.classes", "0 or at least 2", lambda c: c.classifier.classes != 1),
    ("predictor.resolution", "8 to the base size, the first of config.resolutions",
     lambda c: 8 <= c.predictor.resolution <= c.resolutions[0]),
    ("predictor.classifies", "False with config.router.objective='gumbel', whose predictor is the "
     "paper's", lambda c: c.router.objective == "outcome" or not c.predictor.classifies),
    ("router.gumbel.estimator", "'selected' with config.router.objective='outcome'",
     lambda c: c.router.objective == "gumbel" or c.router.gumbel.estimator == "selected"),
    ("budget", "more than 0 (in 1e9 multiply-adds) with config.router.objective='outcome'",
     lambda c: c.router.objective == "gumbel" or c.budget > 0),
    ("pretrain.epochs", "at least one stage of more than 0 epochs",
     lambda c: c.pretrain.epochs + c.finetune.epochs > 0),
    ("finetune.init_from", "'' unless config.pretrain.epochs is 0 (stage 1 comes from there or "
     "from here)", lambda c: not c.finetune.init_from or c.pretrain.epochs == 0),
)


def _is_range(ends: tuple[float, ...], upper: float) -> bool:
    return len(ends) == 2 and 0 < ends[0] <= ends[1] <= upper


def parse(values: Mapping[str, Any]) -> Config:
    """Turns a ConfigDict, or the mapping `to_json` wrote, into a checked Config.

    Raises:
        UserError: for an unknown or missing key, a value of the wrong type, or an impossible
            value; the message names the key, what was expected and what was received.
    """
    config = _build(Config, values, "config")
    for key, (low, high) in RANGES.items():
        _require(config, key, _between(low, high), low <= config.get(key) <= high)
    for key, names in CHOICES.items():
        _require(config, key, " or ".join(map(repr, names)), config.get(key) in names)
    for key, expected, holds in RULES:
        _require(config, key, expected, holds(config))
    return config


def _between(low: float, high: float) -> str:
    least = "more than 0" if low == POSITIVE else f"at least {low:g}"
    if math.isinf(high):
        return least
    return f"{least} and {'less than 1' if high == 1 - POSITIVE else f'at most {high:.10g}'}"


def _require(config: Config, key: str, expected: str, holds: bool) -> None:
    if not holds:
        raise UserError(f"config.{key}: expected {expected}, received {config.get(key)!r}")


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        # A ConfigDict is not a Mapping, but its items are one.
        if not hasattr(values, "items"):
            raise UserError(f"{path}: expected a group of keys, received {values!r}")
        values = dict(values.items())
    types = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(types)):
        raise UserError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(types)}")
    if missing := [name for name in types if name not in values]:
        raise UserError(f"{path}: key {missing[0]!r} is missing; see configs/default.py")
    return cls(**{
        name: _build(kind, values[name], f"{path}.{name}")
        if dataclasses.is_dataclass(kind)
        else _typed(kind, values[name], f"{path}.{name}")
        for name, kind in types.items()
    })


def _typed(kind: Any, value: Any, path: str) -> Any:
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path}: expected a tuple, received {value!r}")
        return tuple(_typed(typing.get_args(kind)[0], item, path) for item in value)
    # bool is an int to Python, and an int will do for a float.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{path}: expected {kind.__name__}, received {value!r} ({type(value).__name__})"
        )
    if kind is float and not math.isfinite(value):
        raise UserError(f"{path}: expected a finite number, received {value!r}")
    return value
