"""Networks: by name, a literal dict, or "package.module:factory" for one of the user's own.

Axis letters are those of `drnet_jax.buckets`.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from drnet_jax.config import Classifier, Config, Predictor
from drnet_jax.errors import UserError
from drnet_jax.models.check import call_factory, check_network, gist
from drnet_jax.models.convnet import ConvNet
from drnet_jax.models.mobile import (
    EfficientNetB0,
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV2Tiny,
    TFEfficientNetB0,
    TFEfficientNetLite0,
)
from drnet_jax.models.norm import BatchNorm
from drnet_jax.models.predictor import ClassifyingPredictor
from drnet_jax.models.resnet import (
    ResNet10,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "mobilenetv2": MobileNetV2,
    "efficientnet_b0": EfficientNetB0,
    "tf_efficientnet_b0": TFEfficientNetB0,
    "efficientnet_lite0": EfficientNetLite0,
    "tf_efficientnet_lite0": TFEfficientNetLite0,
    # Small ones, for predictors.
    "resnet10": ResNet10,
    "mobilenetv2_tiny": MobileNetV2Tiny,
    "convnet": ConvNet,
}


@functools.cache  # so that networks compare equal
def _norm(**fields: Any) -> Callable[..., nn.Module]:
    return functools.partial(BatchNorm, **fields)


def build_classifier(
    classifier: Classifier, classes: int, dtype: str, sizes: tuple[int, ...] = (), axis: str = ""
) -> nn.Module:
    """The classifier: images [S, H, W, 3] -> float32 logits [S, C].

    Args:
        classifier: its name, its width, a multiplier of the published numbers of channels, and
            of what kind its norms are.
        classes: C.
        dtype: of its convolutions, "float32" or "bfloat16".
        sizes: H and W of the images that it is to see, for `check_network`; none to leave that out.
        axis: of the mesh, over which norms are synchronised; "" where they are not.

    Raises:
        UserError: if `classifier.name` names no network, or one that will not do.
    """
    norm = {"zero_init": classifier.zero_init, "fixed_statistics": classifier.fixed_statistics,
            "axis": axis}
    return _build(classifier, "classifier.name", classes, dtype, sizes, norm, masked=True)


def build_predictor(
    predictor: Predictor, options: int, classes: int, dtype: str, sizes: tuple[int, ...] = (),
    axis: str = "",
) -> nn.Module:
    """The predictor: images [B, H, W, 3] -> float32 logits [B, O] of the options (Eq. 1).

    If `predictor.classifies` they are [B, C + O], see `ClassifyingPredictor`. The rest is as of
    `build_classifier`.

    Args:
        options: O.
    """
    outputs = classes + options if predictor.classifies else options
    norm = {"axis": axis}
    network = _build(predictor, "predictor.name", outputs, dtype, sizes, norm, masked=False)
    return ClassifyingPredictor(network, classes, options) if predictor.classifies else network


def _build(
    wanted: Classifier | Predictor, key: str, classes: int, dtype: str, sizes: tuple[int, ...],
    norm: dict[str, Any], masked: bool,
) -> nn.Module:
    factory = _factory(wanted.name, key)
    address = f"config.{key}: {wanted.name!r}"
    make = functools.partial(
        call_factory, factory, address, width=wanted.width, classes=classes, dtype=jnp.dtype(dtype)
    )
    if sizes:  # outside of any mesh
        network = make(norm=_norm(**norm | {"axis": ""}))
        check_network(network, address, classes, sizes, masked)
    return make(norm=_norm(**norm))


def check_names(config: Config) -> None:
    """Raises UserError if a network of the config is of no name that is known here."""
    _factory(config.classifier.name, "classifier.name")
    _factory(config.predictor.name, "predictor.name")


def _factory(name: str, key: str) -> Any:
    if name in NETWORKS:
        return NETWORKS[name]
    module, _, attribute = name.partition(":")
    try:
        if (here := os.getcwd()) not in sys.path:  # as it is with python -m, but not with drnet
            sys.path.append(here)
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(
            f"config.{key}: expected one of {', '.join(NETWORKS)}, or 'package.module:factory' "
            f"of a network that can be imported from here; received {name!r} ({gist(error)})"
        ) from error
