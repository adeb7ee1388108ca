"""Drift: a run whose mix drifts, its programs, what waits for them, and the padding.

    drnet drift --config configs/quickstart.py --batch 128 --steps 2000

Every resolution in turn is the one that most images go to. The choices are drawn, not the
predictor's, but the predictor runs, and so does all else of a finetuning step, on drawn images.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from drnet_jax.benchmark.cases import STEPS_PER_EPOCH, ForcedStep, draw, initial_state
from drnet_jax.config import Config
from drnet_jax.cost import model_costs
from drnet_jax.devices import Compilation, Programs, check_batch, data_mesh, put_batch, replicated
from drnet_jax.drnet import DRNet
from drnet_jax.environment import environment
from drnet_jax.formatting import table
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.step import Setup, make_step

QUARTERS = 4  # parts of the run that the report tells apart


def drifting(resolutions: int, images: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Choices int32 [images] of each step; the mix goes once round all resolutions."""
    random = np.random.default_rng(seed)
    for step in range(steps):
        turn = 2 * np.pi * (step / steps - np.arange(resolutions) / resolutions)
        share = np.exp(2 * np.cos(turn))  # of the favourite about 80 % where there are three
        yield random.choice(resolutions, images, p=share / share.sum()).astype(np.int32)


def drift(config: Config, steps: int) -> dict[str, Any]:
    """Runs the steps.

    Args:
        config: with `classifier.classes` set.
        steps: of stage 2.

    Returns:
        What `--json` prints: "environment", "config", "steps", "programs" (their "name", "seconds",
        "waited" and the "step" that ran them first, from 0), "first_step_seconds",
        "waited_after_the_first_step" in seconds, and "padding" and "images_per_second" of each
        quarter of the run.

    Raises:
        UserError: if the batch does not divide among the devices.
    """
    mesh, costs = data_mesh(), model_costs(config, config.classifier.classes)
    check_batch(config.batch_size, mesh.size)
    programs: list[dict[str, Any]] = []
    number = 0

    def announce(compilation: Compilation) -> None:
        programs.append(dataclasses.asdict(compilation) | {"step": number})

    drnet, size = DRNet.from_config(config, config.classifier.classes), config.batch_size
    step = make_step(
        Setup(config, drnet, costs, mesh, Programs(announce)), "finetune",
        make_optimizer(config, "finetune", STEPS_PER_EPOCH),
    )
    step = ForcedStep.of(
        dataclasses.replace(step, dense=False),
        drifting(len(costs.resolutions), size, steps, config.seed),
    )
    key = jax.device_put(jax.random.key(config.seed), replicated(mesh))
    state = initial_state(step, key)
    batch = put_batch(mesh, draw(config, size))
    slots, seconds = np.zeros(steps), np.zeros(steps)
    try:
        for number in tqdm(range(steps), unit=" steps", disable=None):  # on a terminal
            began = time.perf_counter()
            state, metrics = step(state, batch, key)
            jax.block_until_ready(metrics["loss"])
            seconds[number], slots[number] = time.perf_counter() - began, metrics["slots"].sum()
    finally:
        step.programs.close()
    parts = np.array_split(np.arange(steps), QUARTERS)
    return {
        "environment": environment(mesh),
        "config": dataclasses.asdict(config),
        "steps": steps,
        "programs": programs,
        "first_step_seconds": float(seconds[0]),
        "waited_after_the_first_step": sum(each["waited"] for each in programs if each["step"]),
        "padding": [float(1 - size * len(part) / slots[part].sum()) for part in parts],
        "images_per_second": [float(size * len(part) / seconds[part].sum()) for part in parts],
    }


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    config, environment, programs = report["config"], report["environment"], report["programs"]
    first = [each for each in programs if each["step"] == 0]
    return "\n\n".join([
        f"{config['classifier']['name']} of width {config['classifier']['width']:g}, batch "
        f"{config['batch_size']} on {environment['devices']} x {environment['device']}, "
        f"{environment['cores']} cores, jax {environment['jax']}; {report['steps']} steps, sizes "
        f"multiples of {config['bucket_multiple']}, used {config['bucket_lead']} steps after they "
        f"were first wanted; seed {config['seed']}",
        table([("program", "step", "compile s", "waited s"), *(
            (each["name"], str(each["step"]), f"{each['seconds']:.1f}", f"{each['waited']:.1f}")
            for each in programs
        )]),
        f"{len(programs)} programs, {len(first)} of them of the first step, which took "
        f"{report['first_step_seconds']:.1f} s; after it "
        f"{report['waited_after_the_first_step']:.1f} s were waited for the compiler",
        table([("quarter of the run", "padding %", "images/s"), *(
            (str(index + 1), f"{100 * padding:.1f}", f"{rate:.0f}")
            for index, (padding, rate) in enumerate(
                zip(report["padding"], report["images_per_second"], strict=True))
        )]),
    ])
