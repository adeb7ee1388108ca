"""Speed: how much of the saved arithmetic is saved time, in images/s of training and inference.

    python -m drnet_jax.benchmark --config configs/quickstart.py --mix 0.2,0.3,0.5 --torch

Everything runs in one process on the same drawn images, in turns, after a warm-up that compiles;
figures are medians over the turns. The choices are not the predictor's: `--mix` deals them out in
exact proportions, at random over the batch. But the predictor runs, and so does the padding that
the mix needs (a router's own draws need half of config.bucket_multiple per bucket on average).
Timed are

    training   static     a step of the plain classifier at the base size: no predictor, no routing
               stage 1    a step that runs all resolutions, and a predictor that learns there
               dense      a step of stage 2 that runs all resolutions for all samples
               bucketed   a step of stage 2 that runs each sample by its option
    inference  static     the plain classifier at the base size
               predictor  the predictor alone
               routed     a stream of batches through the queues of `drnet_jax.inference`
    both       pytorch    the plain classifier at the base size in PyTorch (`--torch`)

and by itself, from encoded images to training batches, the input pipeline of the config's data.

Multiply-adds are an image's (`drnet_jax.products`). A training step counts three times the forward
pass, of the classifier and of the predictor alike; wherever the predictor runs it is counted, and
padding never is. The realised fraction is

    (images/s over static's) / (static's multiply-adds over this one's):

1 where time falls as arithmetic does, less where something else takes time.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from drnet_jax.benchmark import cases, timing, torch_cases
from drnet_jax.config import Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.data.loader import train_batches
from drnet_jax.data.sources import open_source
from drnet_jax.devices import Compilation, Programs, check_batch, data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.environment import environment
from drnet_jax.errors import UserError
from drnet_jax.formatting import by_option
from drnet_jax.train.step import Setup

INPUT_BATCHES = 4  # of the input pipeline's turn; more than it reads ahead


def benchmark(
    config: Config, mix: Sequence[float] | None, with_torch: bool, repeats: int
) -> dict[str, Any]:
    """Measures everything.

    Args:
        config: with `classifier.classes` set; training is timed at its `batch_size`, over all
            devices, and inference at its `evaluation.batch_size`.
        mix: [O], the share of the images of each option; None is the same for all.
        with_torch: whether to time PyTorch too.
        repeats: turns of each case.

    Returns:
        What `--json` prints: "environment", "config", "mix", "repeats", "cases" (see `_row`),
        "bucketed_over_dense" and "input": {"images_per_second", "slowest", "fastest"} or
        {"skipped": why}.

    Raises:
        UserError: if the mix, the batch size or PyTorch will not do, before anything is compiled.
    """
    mesh, costs = data_mesh(), model_costs(config, config.classifier.classes)
    if mix is None:
        mix = [1 / len(costs.options)] * len(costs.options)
    costs.mean(mix, with_predictor=True)  # checks it
    for size in (config.batch_size, config.evaluation.batch_size):
        check_batch(size, mesh.size)
    compiled: list[float] = []

    def announce(compilation: Compilation) -> None:
        compiled.append(compilation.seconds)
        print(compilation, file=sys.stderr)

    contestants = _contestants(config, costs, mesh, np.array(mix), with_torch, announce)
    timings = timing.measure(contestants, repeats, lambda: sum(compiled))
    found = {
        (case.group, case.name): (case, timed)
        for case, timed in zip(contestants, timings, strict=True)
    }
    rates = {key: timed.median for key, (_, timed) in found.items()}
    return {
        "environment": environment(mesh),
        "config": dataclasses.asdict(config),
        "mix": by_option(costs.options, mix),
        "repeats": repeats,
        "cases": [_row(key, found) for key in found],
        "bucketed_over_dense": rates["training", "bucketed"] / rates["training", "dense"],
        "input": _input(config, repeats),
    }


def _contestants(
    config: Config, costs: Costs, mesh: Mesh, mix: np.ndarray, with_torch: bool,
    announce: Callable[[Compilation], None],
) -> list[cases.Contestant]:
    """All that is timed, on the same drawn images, whose choices are dealt out in the mix [O]."""
    batch = cases.draw(config, config.batch_size)
    images = cases.draw(config, config.evaluation.batch_size)["image"]
    # First, as it may refuse.
    torch = list(torch_cases.pytorch(config, costs, batch, images)) if with_torch else []
    drnet = DRNet.from_config(config, config.classifier.classes)
    choice = cases.deal(mix, config.batch_size, config.seed)
    return [
        *cases.training(Setup(config, drnet, costs, mesh, Programs(announce)), batch, choice),
        *cases.inference(drnet, costs, mesh, images, mix, config.seed, announce),
        *torch,
    ]


def _row(
    key: tuple[str, str], found: dict[tuple[str, str], tuple[cases.Contestant, timing.Timing]]
) -> dict[str, Any]:
    """A line of the report, `found` holding all cases by (group, name).

    Returns:
        "images_per_second", "slowest" and "fastest" of the turns; "multiply_adds" of an image;
        "over_static", "over_pytorch" (if it was timed), ratios of images/s; "realised"; "padded", a
        share of the rows; "compile_seconds"; and where the mix was forced "chosen", the images of
        one call that each option [O] answered, as the call itself reports them.
    """
    (group, name), (case, timed) = key, found[key]
    static, static_timed = found[group, "static"]
    over_static = timed.median / static_timed.median
    row = {
        "group": group,
        "name": name,
        "images_per_second": timed.median,
        "slowest": min(timed.rates),
        "fastest": max(timed.rates),
        "multiply_adds": case.multiply_adds,
        "over_static": over_static,
        "realised": over_static / (static.multiply_adds / case.multiply_adds),
        "padded": case.padded,
        "compile_seconds": timed.compile_seconds,
    }
    if isinstance(timed.result, dict) and "chosen" in timed.result:
        row["chosen"] = np.asarray(timed.result["chosen"]).astype(int).tolist()
    if (group, "pytorch") in found:
        row["over_pytorch"] = timed.median / found[group, "pytorch"][1].median
    return row


def _input(config: Config, repeats: int) -> dict[str, Any]:
    """The rate at which training batches come, while nothing else runs; or why not."""
    try:
        source = open_source(config.data, training=True)
        batches = train_batches(
            source, config.data, size=config.resolutions[0],
            batch_size=config.batch_size,
            seed=config.seed,
        )
        try:
            # What is read ahead must be used up before the rate is that of decoding.
            for _ in range(INPUT_BATCHES):
                next(batches)
            rates = []
            for _ in range(repeats):
                began = time.perf_counter()
                for _ in range(INPUT_BATCHES):
                    next(batches)
                rates.append(INPUT_BATCHES * config.batch_size / (time.perf_counter() - began))
        finally:
            batches.close()
    except UserError as error:
        return {"skipped": str(error)}
    return {
        "images_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
    }
