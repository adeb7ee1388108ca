"""Networks in PyTorch: the yardstick of the tests and of `benchmark --torch`.

Nothing else imports this module, so that PyTorch stays an optional dependency, and torchvision and
timm too, which only mobile networks need. ResNets are plain ones of any width, whose modules carry
the names of their counterparts in `drnet_jax.models.resnet`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from drnet_jax.errors import UserError
from drnet_jax.models.layers import scaled
from drnet_jax.models.resnet import CHANNELS

# Blocks in each stage, and whether these are bottlenecks.
LAYOUTS: dict[str, tuple[tuple[int, ...], bool]] = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, bias=False)


class Block(nn.Module):
    """A basic block or a bottleneck, with its shortcut."""

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool):
        super().__init__()
        self.outputs = outputs = features * 4 if bottleneck else features
        if bottleneck:
            self.conv1, self.norm1 = conv(inputs, features, 1, 1), nn.BatchNorm2d(features)
            self.conv2, self.norm2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
            self.conv3, self.norm3 = conv(features, outputs, 1, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.norm1 = conv(inputs, features, 3, stride), nn.BatchNorm2d(features)
            self.conv2, self.norm2 = conv(features, outputs, 3, 1), nn.BatchNorm2d(outputs)
        self.bottleneck, self.projects = bottleneck, stride > 1 or inputs != outputs
        if self.projects:
            self.shortcut_conv = conv(inputs, outputs, 1, stride)
            self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.bottleneck:
            y = self.norm3(self.conv3(functional.relu(y)))
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """Images [B, 3, H, W] -> logits [B, C]; `name` is a key of LAYOUTS.

    Its first stage has so many `channels`, 64 as published. For channels-last kernels:
    `ResNet(...).to(memory_format=torch.channels_last)`, and the images likewise.
    """

    def __init__(self, name: str, classes: int, channels: int = 64):
        super().__init__()
        blocks, bottleneck = LAYOUTS[name]
        self.stem_conv, self.stem_norm = conv(3, channels, 7, 2), nn.BatchNorm2d(channels)
        self.stages = []
        inputs = channels
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Block(inputs, channels * 2**stage, stride, bottleneck)
                self.add_module(f"stage{stage + 1}_block{index + 1}", block)
                self.stages.append(block)
                inputs = block.outputs
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem_norm(self.stem_conv(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.stages:
            x = block(x)
        return self.head(x.mean((2, 3)))


def _resnet(name: str, classes: int, width: float) -> nn.Module:
    return ResNet(name, classes, scaled(CHANNELS, width))


def _mobilenetv2(name: str, classes: int, width: float) -> nn.Module:
    return torchvision().models.mobilenet_v2(num_classes=classes, width_mult=width)


def _efficientnet(name: str, classes: int, width: float) -> nn.Module:
    if width != 1:
        raise UserError(
            f"--torch: expected a config.classifier.width of 1, as timm has for {name!r}, received "
            f"{width:g}; leave --torch out"
        )
    torchvision()  # which timm imports
    import timm

    return timm.create_model(name, num_classes=classes, drop_rate=0.2)


# By the names of `drnet_jax.models`, called with the name, the number of classes and the width.
NETWORKS: dict[str, Callable[[str, int, float], nn.Module]] = {
    **dict.fromkeys(LAYOUTS, _resnet),
    "mobilenetv2": _mobilenetv2,
    **dict.fromkeys((
        "efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_lite0",
    ), _efficientnet),
}


@functools.cache
def _operators() -> Any:
    """Declares the operators of torchvision that it wants to see when it is imported.

    PyPI's wheel is built for CUDA: beside a PyTorch for CPUs they are missing, and no classifier
    needs them. To be kept for as long as torchvision is.
    """
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return operators


def torchvision() -> Any:
    """The module; raises ModuleNotFoundError if it is not installed."""
    try:
        import torchvision
    except RuntimeError:
        _operators()
        import torchvision
    return torchvision
