"""Latency: milliseconds an image of trained models, one at a time and in batches (Figure 3)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drnet_jax.api import Model, load
from drnet_jax.benchmark.trained import (
    ALONE,
    BATCHES,
    Way,
    answering,
    images_of,
    milliseconds,
)
from drnet_jax.devices import data_mesh
from drnet_jax.environment import environment

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
    models = {point.run: load(runs_folder / point.run, runtime="jax") for point in points}
    batch = max(model.config.evaluation.batch_size for model in models.values())
    images = {
        name: images_of(model, model.source(), BATCHES * batch) for name, model in models.items()
    }
    times = []
    for size, count in ((1, ALONE), (batch, BATCHES * batch)):
        engines = {name: model.engine_for(size) for name, model in models.items()}
        calls = [
            answering(
                engines[point.run], _way(models[point.run], point), images[point.run][:count], size
            ) for point in points
        ]
        times.append(milliseconds(calls, min(count, *map(len, images.values())), REPEATS))
    return {
        "points": [dataclasses.asdict(point) for point in points],
        "batch_sizes": [1, batch], "milliseconds": times, "environment": environment(data_mesh()),
    }


def _way(model: Model, point: Point) -> Way:
    return Way() if point.size is None else Way(fixed=model.resolutions.index(point.size))
