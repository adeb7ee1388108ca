"""Scales: the paper's experiments as runs, of its own size or small enough for a laptop."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drnet_jax.reproduce.paper import NETWORKS, Experiment, Single

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER_BASE = 4.1  # 1e9 multiply-adds, of which the paper's alphas are shares


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of one stage, known by its name."""

    name: str
    config: str  # FILE:ARGUMENT, within configs/
    label: str  # as people read it
    origin: str = ""  # the run with whose stage 1 it begins


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large experiments are run."""

    name: str
    files: dict[str, str]  # by network of the paper, FILE: or FILE:ARGUMENT, within configs/
    sizes: dict[int, int]  # in pixels, by the paper's
    widths: dict[str, float]  # of the networks' configs, where that is not 1
    alpha: float  # by which the paper's is multiplied
    eta: float  # by which the paper's is multiplied
    alone: tuple[str, ...]  # words of a config's argument, of networks of one size
    images: dict[str, tuple[str, ...]]  # of the paper's data sets, words of a config's argument
    train_images: dict[int, int]  # how many there are, by classes, where that is known beforehand
    photographs: dict[str, Any]  # keys of the config that a folder of images needs
    comparable: bool  # whether networks and images are the paper's


# An alpha is the same share of the base's cost, 11.06 M at 64 px, as the paper's of 4.1 G. Losses
# differ more between the resolutions of drawn shapes than of photographs, and eta is to match them.
SMALL = Scale(
    name="small",
    files={"resnet50": "small.py:"} | {
        network: f"small.py:{network}" for network in ("resnet101", "mobilenetv2")
    },
    sizes={224: 64, 192: 55},
    widths={"resnet50": 0.125, "resnet101": 0.1875, "mobilenetv2": 0.5},
    alpha=0.003366 / PAPER_BASE,
    eta=10.0,
    # As many epochs as both stages of a DRNet together.
    alone=("pretrain.epochs=18", "pretrain.decay_epochs=14"),
    images={"imagenet": (), "imagenet100": ()},
    train_images={},
    photographs={"data.crop_area": (0.5, 1.0), "data.crop_ratio": (0.75, 4 / 3)},
    comparable=False,
)
PAPER = Scale(
    name="paper",
    files={network: f"imagenet_{network}.py:" for network in NETWORKS},
    sizes={224: 224, 192: 192},
    widths={},
    alpha=1.0,
    eta=1.0,
    alone=(),
    images={"imagenet": (), "imagenet100": ("imagenet100",)},
    train_images={1000: 1_281_167, 100: 50_000},
    photographs={},
    comparable=True,
)
SCALES = {scale.name: scale for scale in (SMALL, PAPER)}


def runs_of(scale: Scale, experiment: Experiment) -> tuple[Run, ...]:
    """The runs that an experiment takes, in order; the last is what its rows are read from."""
    words, name = list(scale.images[experiment.images]), experiment.network
    if any(scale.images.values()):  # else the data sets of the paper are the same here
        name = f"{experiment.images}-{name}"
    label = NETWORKS[experiment.network] + " on ImageNet-100" * bool(words)
    if isinstance(experiment, Single):
        return (_single(scale, experiment, words, name, label),)
    if experiment.shared_norm:
        words.append("shared_norm")
        name, label = f"{name}-shared-norm", f"{label}, shared BN"
    first = Run(
        f"{name}-stage1", _argument(scale, experiment, [*words, "finetune.epochs=0"]),
        f"{label}, stage 1",
    )
    words += ["pretrain.epochs=0", f"eta={experiment.eta * scale.eta:g}"]
    name, label = f"{name}-eta{experiment.eta:g}", f"{label}, eta {experiment.eta:g}"
    if experiment.alpha:
        words.append(f"alpha={experiment.alpha * scale.alpha:.4g}")
        name, label = f"{name}-alpha{experiment.alpha:g}", f"{label}, alpha {experiment.alpha:g}"
    return first, Run(name, _argument(scale, experiment, words), f"{label}, stage 2", first.name)


def _single(
    scale: Scale, experiment: Single, words: list[str], name: str, label: str
) -> Run:
    size = scale.sizes[experiment.size]
    words = [*words, "single", *scale.alone]
    if experiment.size != 224:
        words.append(f"resolutions=({size},)")
    if experiment.width != 1:
        width = experiment.width * scale.widths.get(experiment.network, 1)
        words.append(f"classifier.width={width:g}")
        name, label = f"{name}-width{experiment.width:g}", f"{label} x {experiment.width:g}"
    return Run(f"{name}-{size}px", _argument(scale, experiment, words), f"{label}, {size} px alone")


def _argument(scale: Scale, experiment: Experiment, words: Iterable[str]) -> str:
    file, _, first = scale.files[experiment.network].partition(":")
    return f"{file}:{','.join([first] * bool(first) + list(words))}"
