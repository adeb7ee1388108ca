"""Latency: milliseconds an image of trained models, one image at a time and in batches (Figure 3).

Time is that of uploading, choosing, resizing and classifying, until the answer is back; reading and
decoding are not in it. All are measured in turns, so that all see the same machine.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.api import Model, load
from drnet_jax.benchmark import timing
from drnet_jax.devices import data_mesh, environment
from drnet_jax.evaluation import runs
from drnet_jax.evaluation.table import Sample, host_batches
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import route

ALONE = 64  # images that are answered one at a time
BATCHES = 4  # that are answered at once
REPEATS = 5  # turns


@dataclasses.dataclass(frozen=True)
class Point:
    """A trained model, tried in one way."""

    run: str  # its name
    size: int | None = None  # pixels at which all images are classified; None: where they are sent


def measure(runs_folder: Path, points: Sequence[Point]) -> dict[str, Any]:
    """Measures all points, on validation images taken evenly over the data set.

    Returns:
        {"points"; "batch_sizes": [1, B]; "milliseconds" of an image: a list a batch size, of
        {"median", "fastest", "slowest"} a point; "environment"}. B is what the models are evaluated
        with.
    """
    models = {point.run: load(runs_folder / point.run) for point in points}
    batch = max(model.config.evaluation.batch_size for model in models.values())
    images = {name: _images(model, BATCHES * batch) for name, model in models.items()}
    return {
        "points": [dataclasses.asdict(point) for point in points],
        "batch_sizes": [1, batch],
        "milliseconds": [
            _in_turns(points, models, {name: each[:shown] for name, each in images.items()}, size)
            for size, shown in ((1, ALONE), (batch, None))
        ],
        "environment": environment(data_mesh()),
    }


def _images(model: Model, count: int) -> np.ndarray:
    """So many validation images at most, uint8 [N, H, W, 3]."""
    source = model.source()
    sample = Sample(len(source), count)
    batches = host_batches(model.engine, source, model.config.data, model.square)
    for _ in sample.watch(batches):
        pass
    return np.concatenate([images for images, _ in sample.batches(count)])


def _in_turns(
    points: Sequence[Point], models: dict[str, Model], images: dict[str, np.ndarray], size: int
) -> list[dict[str, float]]:
    """Milliseconds of every point, in batches of a size."""
    engines = {name: model.engine_for(size) for name, model in models.items()}
    cases = []
    for point in points:
        shown = images[point.run]
        call = _call(engines[point.run], point.size, shown, size)
        cases.append(timing.Case(str(point), len(shown), call))
    return [
        {
            "median": 1e3 / found.median,
            "fastest": 1e3 / max(found.rates),
            "slowest": 1e3 / min(found.rates),
        }
        for found in timing.measure(cases, REPEATS, lambda: 0.0)
    ]


def _call(
    engine: Engine, fixed: int | None, images: np.ndarray, size: int
) -> Callable[[], list[Any]]:
    """What answers all images: batch by batch if they come alone, else through the queues."""
    starts = range(0, len(images), size)
    batches = [(images[at : at + size], np.arange(len(images))[at : at + size]) for at in starts]
    streams = [[batch] for batch in batches] if size == 1 else [batches]
    if fixed is None:
        return lambda: [list(route(engine, stream, 0.0)) for stream in streams]
    choice = np.full(len(images), engine.drnet.resolutions.index(fixed))
    return lambda: [list(runs.given(engine, stream, choice)) for stream in streams]
