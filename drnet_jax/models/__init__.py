"""Networks by name: a literal dict, or "package.module:factory" for one of the user's own."""

import importlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.config import Classifier, Predictor
from drnet_jax.errors import UserError
from drnet_jax.models.convnet import ConvNet
from drnet_jax.models.norm import BatchNorm
from drnet_jax.models.resnet import ResNet10, ResNet18, ResNet50, ResNet101

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet10": ResNet10,
    "convnet": ConvNet,
}


def build_classifier(classifier: Classifier, classes: int, dtype: str) -> nn.Module:
    """The classifier: images [S, H, W, 3] -> float32 logits [S, classes].

    Raises:
        UserError: if `classifier.name` names no network.
    """
    return _build(classifier.name, "classifier.name", classifier.width, classes, dtype)


def build_predictor(predictor: Predictor, resolutions: int, dtype: str) -> nn.Module:
    """The predictor: images [B, H, W, 3] -> float32 logits [B, resolutions] (Eq. 1).

    Raises:
        UserError: if `predictor.name` names no network.
    """
    return _build(predictor.name, "predictor.name", predictor.width, resolutions, dtype)


def _build(name: str, key: str, width: float, classes: int, dtype: str) -> nn.Module:
    factory = NETWORKS.get(name) or _load(name, key)
    return factory(width=width, classes=classes, norm=BatchNorm, dtype=jnp.dtype(dtype))


def _load(name: str, key: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.{key}: expected one of {', '.join(NETWORKS)}, or 'package.module:factory' "
            f"of a network that can be imported from here; received {name!r} ({error})"
        ) from error
