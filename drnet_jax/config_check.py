"""Checking of configs: from the ConfigDict of a config file to a Config.

A misspelt or impossible value never travels further than `parse`.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from drnet_jax.config import STAGES, Config
from drnet_jax.errors import UserError

POSITIVE = 1e-12  # the least that is more than 0

# The ends are included. A rate or weight has none above but must be finite, as every number must.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 2),
    "batch_size": (1, 2**20),
    "bucket_multiple": (1, 2**20),
    "bucket_lead": (0, 10**6),
    "log_every": (1, 10**6),
    "budget": (0, 10**6),
    "data.images_per_class": (0, 10**6),
    "data.max_bad": (0, 10**9),
    "data.timeout": (0, 10**6),
    "data.workers": (0, 256),
    "data.threads": (1, 1024),
    "preprocessing.val_crop": (POSITIVE, 1),
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
    "optimizer.ema": (0, 1 - POSITIVE),
    **{
        f"{stage}.{key}": ends for stage in STAGES for key, ends in {
            "epochs": (0, 10**5),
            "learning_rate": (POSITIVE, math.inf),
            "warmup_epochs": (0, 10**5),
            "decay_epochs": (POSITIVE, 10**6),
            "decay_factor": (POSITIVE, 1),
            "label_smoothing": (0, 1 - POSITIVE),
        }.items()
    },
    "pretrain.distillation": (0, 1),
    "pretrain.mixup": (0, 100),
    "pretrain.cutmix": (0, 100),
    "evaluation.batch_size": (1, 2**16),
    "evaluation.every_epochs": (POSITIVE, 10**5),
    "evaluation.speed_images": (1, 2**14),
    "checkpoint.every_steps": (1, 10**9),
    "checkpoint.every_minutes": (0, 10**6),
    "checkpoint.keep": (1, 10**6),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "preprocessing.interpolation": ("bilinear", "bicubic"),
    "router.objective": ("gumbel", "outcome"),
    "router.gumbel.estimator": ("selected", "dense"),
    "optimizer.name": ("sgd", "rmsprop"),
    **{f"{stage}.schedule": ("steps", "cosine") for stage in STAGES},
    "pretrain.teacher": ("base", "ensemble"),
    "evaluation.rule": ("margin", "probability"),
}

# Key, what is expected of it, and whether that is so.
RULES: tuple[tuple[str, str, Callable[[Config], bool]], ...] = (
    ("data.name", "a tfds name or 'folder'", lambda c: bool(c.data.name)),
    ("data.crop_area", "(low, high) within (0, 1]", lambda c: _is_range(c.data.crop_area, 1)),
    ("data.crop_ratio", "(low, high), both positive", lambda c: _is_range(c.data.crop_ratio, 1e3)),
    ("preprocessing.mean", "3 numbers, of red, green and blue from 0 to 255",
     lambda c: len(c.preprocessing.mean) == 3),
    ("preprocessing.deviation", "3 numbers of more than 0, of red, green and blue",
     lambda c: len(c.preprocessing.deviation) == 3 and min(c.preprocessing.deviation) > 0),
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
