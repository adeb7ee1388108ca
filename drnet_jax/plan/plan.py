"""Plan: what a run will take on given devices, before any of them is rented.

    drnet plan --config configs/imagenet_resnet50.py --devices tpu:v5e:4x4

Where a compiler for the devices is installed (extra `tpu` for TPUs, `cuda` for GPUs; the host
needs neither a TPU nor a GPU), every program of both stages and of inference is compiled for them,
and its FLOPs, bytes and memory are the compiler's. Elsewhere the plan has exact counts alone, and
says so. Neither knows seconds: those of the roofline are bounds, from what the maker publishes, and
device-hours follow from a utilisation that is assumed.

`--reference` compiles, in place of all that, the largest bucket, and three blocks of it alone,
beside the same network of flax's own layers.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from drnet_jax import buckets
from drnet_jax.config import STAGES, Config
from drnet_jax.cost import TRAINING_PASSES, Costs, model_costs
from drnet_jax.data import transforms
from drnet_jax.devices import check_batch, cores
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.formatting import by_option
from drnet_jax.plan.programs import bytes_of, compiled, exchanged, state_of
from drnet_jax.plan.target import Target
from drnet_jax.train.objectives import make_objective
from drnet_jax.train.state import TrainState

DECODE_SECONDS = 2.0  # that decoding is timed for


def plan(
    config: Config, target: Target, mix: Sequence[float] | None, utilisation: float,
    images: int | None,
) -> dict[str, Any]:
    """What training and inference take.

    Args:
        config: with `classifier.classes` set; `batch_size` is the global batch.
        target: the devices.
        mix: [O], the share of the images of each option in stage 2; None is the same for all.
        utilisation: the share of the devices' published FLOP/s that is assumed to be reached.
        images: in an epoch; None: not known.

    Returns:
        What `--json` prints: "devices", "config", "mix", "parameters", "multiply_adds",
        "checkpoint_bytes", "exchanged_bytes" and "schedule" by stage, "utilisation", "decoding",
        "most_programs", "programs" (None where there is no compiler, "missing" saying why) and
        "largest_batch".

    Raises:
        UserError: if the mix, the budget, the batch size or the number of images will not do.
    """
    costs = model_costs(config, config.classifier.classes)
    if mix is None:
        mix = [1 / len(costs.options)] * len(costs.options)
    costs.mean(mix, with_predictor=True)  # checks it
    check_batch(config.batch_size, target.devices)
    make_objective(config, costs)  # checks the budget
    if images is not None and images < config.batch_size:
        raise UserError(
            f"--images: expected at least the batch of {config.batch_size}, received {images}"
        )
    drnet = DRNet.from_config(config, config.classifier.classes)
    states = {stage: state_of(config, drnet, stage) for stage in STAGES}
    report = {
        "devices": {
            "name": target.name, "count": target.devices, "hosts": target.hosts,
            "memory": target.chip and target.chip.memory,
        },
        "config": dataclasses.asdict(config),
        "mix": by_option(costs.options, mix),
        **_counts(costs, states),
        "schedule": {
            stage: _schedule(config, target, costs, mix, utilisation, images, stage)
            for stage in STAGES
        },
        "utilisation": utilisation,
        "decoding": {"images_per_second": _decoding_rate(config), "cores": cores()},
        "most_programs": _most_programs(config, target, costs),
        "programs": None,
        "missing": target.missing,
        "largest_batch": None,
    }
    if target.mesh is not None:
        report |= compiled(config, target, drnet, costs, mix, states)
    return report


def _counts(costs: Costs, states: dict[str, TrainState]) -> dict[str, Any]:
    """What is exact on any device: parameters, multiply-adds, and bytes by stage."""
    return {
        "parameters": dataclasses.asdict(costs.parameters) | {"total": costs.parameters.total},
        "multiply_adds": {
            **{str(size): count
               for size, count in zip(costs.resolutions, costs.classifier, strict=True)},
            "predictor": costs.predictor,
        },
        "checkpoint_bytes": {stage: bytes_of(state) for stage, state in states.items()},
        "exchanged_bytes": {
            stage: bytes_of(exchanged(state, stage, costs.classifies))
            for stage, state in states.items()
        },
    }


def _schedule(
    config: Config, target: Target, costs: Costs, mix: Sequence[float], utilisation: float,
    images: int | None, stage: str,
) -> dict[str, float | None]:
    """Multiply-adds of a training step, steps, and device-hours at the assumed utilisation."""
    dense = config.router.gumbel.estimator == "dense"
    forward = sum(costs.classifier)
    if stage == "finetune" and not dense:
        forward = costs.mean(mix, with_predictor=True)
    elif stage == "finetune" or costs.classifies:
        forward += costs.predictor
    step = TRAINING_PASSES * forward * config.batch_size
    steps = None
    if images is not None:
        steps = config.steps(stage, images)
    peak = target.chip and target.chip.flops[config.dtype]
    seconds = peak and 2 * step / (peak * utilisation * target.devices)
    return {
        "multiply_adds_of_a_step": step,
        "steps": steps,
        "seconds_of_a_step": seconds,
        "images_per_second_of_a_host": seconds and config.batch_size / target.hosts / seconds,
        "device_hours": seconds and steps and seconds * steps * target.devices / 3600,
    }


def _decoding_rate(config: Config) -> float:
    """Training images of 500 x 375 pixels that this machine decodes in a second, on all cores."""
    rows, columns = np.mgrid[0:375, 0:500]
    photo = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    photo ^= np.random.default_rng(0).integers(0, 32, photo.shape, np.uint8)
    encoded = cv2.imencode(".jpg", photo)[1].tobytes()
    data, size = config.data, config.resolutions[0]

    def decode(seed: int) -> int:
        random, count, began = np.random.default_rng(seed), 0, time.perf_counter()
        while time.perf_counter() - began < DECODE_SECONDS:
            image = transforms.decode(encoded)
            transforms.random_resized_crop(image, random, size, data.crop_area, data.crop_ratio)
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        return sum(pool.map(decode, range(cores()))) / DECODE_SECONDS


def _most_programs(config: Config, target: Target, costs: Costs) -> dict[str, int]:
    """How many programs a run can come to compile."""
    resolutions = len(costs.resolutions)
    sizes = len(buckets.sizes(config.batch_size // target.devices, config.bucket_multiple))
    bucketed = sizes * resolutions
    return {
        "pretrain": 2 + resolutions,
        "finetune": 3 + (1 if config.router.gumbel.estimator == "dense" else bucketed),
        "inference": 3 + resolutions,
    }
