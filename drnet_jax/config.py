"""Configuration: what the rest of the package sees of a config, frozen.

`configs/default.py` documents each key; `drnet_jax.config_check.parse` makes a Config.
"""

import dataclasses
import functools
import json
from typing import Any

GIGA = 1e9  # the unit of config.budget and config.router.gumbel.alpha
STAGES = ("pretrain", "finetune")
AXIS = "data"  # of the mesh of devices


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    dir: str
    train_split: str
    val_split: str
    classes: str
    images_per_class: int
    crop_area: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    max_bad: float
    timeout: float
    workers: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    interpolation: str
    val_crop: float


@dataclasses.dataclass(frozen=True)
class Classifier:
    name: str
    width: float
    classes: int
    resolution_aware_norm: bool
    zero_init: bool
    fixed_statistics: bool


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
    name: str
    momentum: float
    weight_decay: float
    decay_norms_and_biases: bool
    clip_norm: float
    predictor_rate: float
    ema: float


@dataclasses.dataclass(frozen=True)
class Stage:
    epochs: float
    learning_rate: float
    warmup_epochs: float
    schedule: str
    decay_epochs: float
    decay_factor: float
    label_smoothing: float

    def steps(self, per_epoch: int) -> int:
        """Of the whole stage; epochs may be parts of one."""
        return max(1, round(self.epochs * per_epoch)) if self.epochs else 0


@dataclasses.dataclass(frozen=True)
class Pretrain(Stage):
    distillation: float
    teacher: str
    mixup: float
    cutmix: float


@dataclasses.dataclass(frozen=True)
class Finetune(Stage):
    pass


@dataclasses.dataclass(frozen=True)
class Evaluation:
    batch_size: int
    every_epochs: float
    speed_images: int
    rule: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: int
    every_minutes: float
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
    sync_norm: bool
    init_from: str
    data: Data
    preprocessing: Preprocessing
    classifier: Classifier
    predictor: Predictor
    router: Router
    optimizer: Optimizer
    pretrain: Pretrain
    finetune: Finetune
    evaluation: Evaluation
    checkpoint: Checkpoint

    def to_json(self) -> str:
        """The effective config as text; `config_check.parse(json.loads(text))` gives it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def get(self, key: str) -> Any:
        """The value of a dotted key, such as "router.gumbel.alpha"."""
        return functools.reduce(getattr, key.split("."), self)

    def stage(self, name: str) -> Stage:
        """The group of a stage, one of STAGES."""
        return getattr(self, name)

    def steps(self, stage: str, images: int) -> int:
        """Steps of a stage with so many training images."""
        return self.stage(stage).steps(images // self.batch_size)
