"""Torch cases: what is timed of PyTorch, which is imported only when it is asked for."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from drnet_jax.benchmark.cases import Contestant
from drnet_jax.config import Config
from drnet_jax.cost import TRAINING_PASSES, Costs
from drnet_jax.devices import cores
from drnet_jax.errors import UserError


def _torch(config: Config) -> tuple[Any, Callable[[], Any]]:
    """The module `torch`, and what makes the classifier in it; raises UserError as `pytorch` does.
    """
    classifier = config.classifier
    try:
        import torch

        from drnet_jax.benchmark.torch_baseline import NETWORKS
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    if classifier.name not in NETWORKS:
        raise UserError(
            f"--torch: expected config.classifier.name to be one of {', '.join(NETWORKS)}, "
            f"received {classifier.name!r}; leave --torch out"
        )
    if jax.default_backend() != "cpu":
        raise UserError(
            f"--torch compares on the CPU, but JAX computes on {jax.default_backend()!r}; set "
            "JAX_PLATFORMS=cpu or leave --torch out"
        )

    def network() -> Any:
        try:
            net = NETWORKS[classifier.name](classifier.name, classifier.classes, classifier.width)
        except ModuleNotFoundError as error:  # torchvision or timm
            raise _missing(error) from error
        return net.to(memory_format=torch.channels_last)

    torch.set_num_threads(cores())
    return torch, network


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(
        f"--torch: expected PyTorch, but {error}; install it (pip install torch torchvision timm) "
        "or leave --torch out"
    )


def pytorch(
    config: Config, costs: Costs, batch: dict[str, np.ndarray], images: np.ndarray
) -> Iterator[Contestant]:
    """The classifier in PyTorch at the base size: a training step, and inference.

    Its images are float and normalised beforehand; ours are normalised within what is timed.

    Raises:
        UserError: if PyTorch is missing, computes elsewhere than JAX, or has no such network.
    """
    torch, network = _torch(config)
    precision, trained_on = _autocast(torch, config), _floats(torch, batch["image"])
    labels = torch.from_numpy(batch["label"]).long()

    trained = network()
    optimizer = torch.optim.SGD(
        trained.parameters(), config.pretrain.learning_rate, config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )

    def train() -> float:
        optimizer.zero_grad()
        with precision():
            loss = torch.nn.functional.cross_entropy(trained(trained_on), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    cost, infer = costs.classifier[0], pytorch_inference(config, images)
    yield Contestant("pytorch", len(labels), train, "training", TRAINING_PASSES * cost)
    yield Contestant("pytorch", len(images), infer, "inference", cost)


def pytorch_inference(config: Config, images: np.ndarray) -> Callable[[], np.ndarray]:
    """What classifies images at the base size in PyTorch; raises as `pytorch` does."""
    torch, network = _torch(config)
    precision, served_to = _autocast(torch, config), _floats(torch, images)
    served = network().eval()

    def infer() -> np.ndarray:
        with torch.inference_mode(), precision():
            return served(served_to).argmax(1).numpy()

    return infer


def _autocast(torch: Any, config: Config) -> Callable[[], Any]:
    dtype = getattr(torch, config.dtype)
    return functools.partial(torch.autocast, "cpu", dtype, dtype != torch.float32)


def _floats(torch: Any, images: np.ndarray) -> Any:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(128).sub(1)
