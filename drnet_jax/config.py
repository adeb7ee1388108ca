"""From the ConfigDict of a config file to frozen, checked dataclasses.

`configs/default.py` documents each key. The rest of the package sees only the dataclasses, so a
misspelt or impossible value never travels further than `parse`.
"""

import dataclasses
import itertools
import json
import typing
from collections.abc import Mapping
from typing import Any

from drnet_jax.errors import UserError

GIGA = 1e9  # the unit of config.budget.target and config.router.alpha
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
class Model:
    classifier: str
    width: int
    classes: int
    resolutions: tuple[int, ...]
    resolution_aware_norm: bool
    dtype: str


@dataclasses.dataclass(frozen=True)
class Predictor:
    name: str
    width: int
    resolution: int


@dataclasses.dataclass(frozen=True)
class Router:
    estimator: str
    temperature: float
    alpha: float
    eta: float
    predictor_rate: float
    objective: str = "gumbel"
    exploration: float = 0.1


@dataclasses.dataclass(frozen=True)
class Budget:
    target: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    momentum: float
    weight_decay: float
    decay_norms_and_biases: bool
    clip_norm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stage:
    epochs: int
    learning_rate: float
    warmup_epochs: float
    decay_epochs: float
    decay_factor: float


@dataclasses.dataclass(frozen=True)
class Pretrain(Stage):
    distillation: float = 0.0


@dataclasses.dataclass(frozen=True)
class Finetune(Stage):
    init_from: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    batch_size: int
    every_epochs: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: int
    keep: int


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    batch_size: int
    bucket_multiple: int
    log_every: int
    data: Data
    model: Model
    predictor: Predictor
    router: Router
    optimizer: Optimizer
    pretrain: Pretrain
    finetune: Finetune
    evaluation: Evaluation
    checkpoint: Checkpoint
    budget: Budget = Budget()
    bucket_lead: int = 0

    def to_json(self) -> str:
        """The effective config as text; `parse(json.loads(text))` gives it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def parse(values: Mapping[str, Any]) -> Config:
    """Turns a ConfigDict, or the mapping `to_json` wrote, into a checked Config.

    Raises:
        UserError: for an unknown or missing key, a value of the wrong type, or an impossible
            value; the message names the key, what was expected and what was received.
    """
    config = _build(Config, values, "config")
    _check(config)
    return config


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        # A ConfigDict is not a Mapping, but its items are one.
        if not hasattr(values, "items"):
            raise UserError(f"{path}: expected a group of keys, received {values!r}")
        values = dict(values.items())
    types = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(types)):
        raise UserError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(types)}")
    # Keys younger than some checkpoints have, as defaults, what those were trained with.
    defaults = {
        field.name: dataclasses.asdict(field.default)
        if dataclasses.is_dataclass(field.default) else field.default
        for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING
    }
    values = defaults | values
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
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{path}: expected {kind.__name__}, received {value!r} ({type(value).__name__})"
        )
    return value


def _check(config: Config) -> None:
    def require(holds: bool, key: str, expected: str, received: Any) -> None:
        if not holds:
            raise UserError(f"config.{key}: expected {expected}, received {received!r}")

    def require_range(key: str, value: tuple[float, ...], expected: str, upper: float) -> None:
        holds = len(value) == 2 and 0 < value[0] <= value[1] <= upper
        require(holds, key, expected, value)

    model, router, resolutions = config.model, config.router, config.model.resolutions
    require(0 <= config.seed < 2**32, "seed", "0 <= seed < 2**32", config.seed)
    for key in ("batch_size", "bucket_multiple", "log_every"):
        value = getattr(config, key)
        require(value >= 1, key, "at least 1", value)
    require(config.bucket_lead >= 0, "bucket_lead", "at least 0", config.bucket_lead)

    require(bool(config.data.name), "data.name", "a tfds name or 'folder'", config.data.name)
    require_range("data.crop_area", config.data.crop_area, "(low, high) within (0, 1]", 1.0)
    require_range("data.crop_ratio", config.data.crop_ratio, "(low, high), both positive", 1e3)
    require(config.data.workers >= 0, "data.workers", "at least 0", config.data.workers)
    require(config.data.threads >= 1, "data.threads", "at least 1", config.data.threads)

    require(1 <= len(resolutions) <= 8, "model.resolutions", "1 to 8 sizes", resolutions)
    require(
        all(a > b for a, b in itertools.pairwise(resolutions)),
        "model.resolutions", "sizes that fall, largest first, without repeats", resolutions,
    )
    require(min(resolutions) >= 8, "model.resolutions", "sizes of at least 8 pixels", resolutions)
    require(model.width >= 1, "model.width", "at least 1", model.width)
    require(model.classes == 0 or model.classes >= 2, "model.classes", "0 or at least 2",
            model.classes)
    require(model.dtype in ("float32", "bfloat16"), "model.dtype", "'float32' or 'bfloat16'",
            model.dtype)

    require(config.predictor.width >= 1, "predictor.width", "at least 1", config.predictor.width)
    require(8 <= config.predictor.resolution <= resolutions[0], "predictor.resolution",
            f"8 to the base size {resolutions[0]}", config.predictor.resolution)

    require(router.estimator in ("selected", "dense"), "router.estimator", "'selected' or 'dense'",
            router.estimator)
    require(router.temperature > 0, "router.temperature", "more than 0", router.temperature)
    require(router.alpha > 0, "router.alpha", "more than 0 (in 1e9 multiply-adds)", router.alpha)
    require(router.eta >= 0, "router.eta", "at least 0", router.eta)
    require(router.predictor_rate > 0, "router.predictor_rate", "more than 0",
            router.predictor_rate)
    require(router.objective in ("gumbel", "outcome"), "router.objective", "'gumbel' or 'outcome'",
            router.objective)
    require(router.objective == "gumbel" or router.estimator == "selected", "router.estimator",
            "'selected' with config.router.objective='outcome'", router.estimator)
    require(router.exploration >= 0, "router.exploration", "at least 0", router.exploration)
    require(config.budget.target >= 0, "budget.target",
            "more than 0 (in 1e9 multiply-adds), or 0 for none", config.budget.target)
    require(router.objective == "gumbel" or config.budget.target > 0, "budget.target",
            "more than 0 (in 1e9 multiply-adds) with config.router.objective='outcome'",
            config.budget.target)

    optimizer = config.optimizer
    require(0 <= optimizer.momentum < 1, "optimizer.momentum", "0 <= momentum < 1",
            optimizer.momentum)
    require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "at least 0",
            optimizer.weight_decay)
    require(optimizer.clip_norm >= 0, "optimizer.clip_norm", "at least 0 (0 clips nothing)",
            optimizer.clip_norm)

    for name, stage in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        require(stage.epochs >= 0, f"{name}.epochs", "at least 0", stage.epochs)
        require(stage.learning_rate > 0, f"{name}.learning_rate", "more than 0",
                stage.learning_rate)
        require(stage.warmup_epochs >= 0, f"{name}.warmup_epochs", "at least 0",
                stage.warmup_epochs)
        require(stage.decay_epochs > 0, f"{name}.decay_epochs", "more than 0", stage.decay_epochs)
        require(0 < stage.decay_factor <= 1, f"{name}.decay_factor", "0 < factor <= 1",
                stage.decay_factor)
    require(0 <= config.pretrain.distillation <= 1, "pretrain.distillation", "0 to 1",
            config.pretrain.distillation)
    require(config.pretrain.epochs + config.finetune.epochs > 0, "pretrain.epochs",
            "at least one stage of more than 0 epochs", config.pretrain.epochs)
    require(not config.finetune.init_from or config.pretrain.epochs == 0, "finetune.init_from",
            "'' unless config.pretrain.epochs is 0 (stage 1 comes from there or from here)",
            config.finetune.init_from)

    require(config.evaluation.batch_size >= 1, "evaluation.batch_size", "at least 1",
            config.evaluation.batch_size)
    require(config.evaluation.every_epochs >= 1, "evaluation.every_epochs", "at least 1",
            config.evaluation.every_epochs)
    require(config.checkpoint.every_steps >= 1, "checkpoint.every_steps", "at least 1",
            config.checkpoint.every_steps)
    require(config.checkpoint.keep >= 1, "checkpoint.keep", "at least 1", config.checkpoint.keep)
