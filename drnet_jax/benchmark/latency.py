"""Latency: milliseconds of one image, of small batches and of a stream, by every runtime there is.

    drnet benchmark --latency --config configs/imagenet_resnet50.py --config.classifier.classes=1000

All runtimes and, with `--torch`, PyTorch are timed in one process on the same drawn images, in
turns. Weights are random; where images go is not the predictor's choice, but dealt out by `--mix`:
it runs all the same. Timed are, from pixels in memory to answers in memory,

    static     the classifier at the base size
    fixed      the classifier at each other resolution
    predictor  the predictor alone
    routed     predictor, queues, and the classifier where the mix sends each image
    cascade    the smallest resolution, and the base again for half of the images

in batches of 1, 8 and 32 (each call by itself: nothing waits for a later call), and as a stream of
32 at a time, whose buckets fill across batches. The realised fraction is that of
`drnet_jax.benchmark.speed`, against static in the same runtime.
"""

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from drnet_jax.benchmark import cases, torch_cases
from drnet_jax.config import Config
from drnet_jax.cost import Costs, model_costs
from drnet_jax.devices import data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.environment import environment
from drnet_jax.formatting import by_option, short, table
from drnet_jax.inference import runtimes
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine
from drnet_jax.inference.queues import Answers, Queues
from drnet_jax.inference.runtimes import Runtime
from drnet_jax.routing import DONE

SIZES = (1, 8, 32)
STREAM = 6  # batches of the largest size
CALLS = 36  # of one image, in a turn of a case; fewer of more
UNTIMED = 12  # before these
AnyEngine = Engine | GraphEngine


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time."""

    runtime: str
    size: int  # images of a call; 0: of a stream
    name: str
    images: int  # that a call works through
    multiply_adds: float  # an image
    call: Callable[[], Any]


def latency(
    config: Config, mix: Sequence[float] | None, with_torch: bool, repeats: int,
    precision: str = "float32",
) -> dict[str, Any]:
    """Measures every runtime.

    Args:
        config: with `classifier.classes` set; its `dtype` does not matter.
        mix: [O], the share of the images of each option; None is the same for all.
        with_torch: whether to time PyTorch too.
        repeats: turns of each case.
        precision: of all runtimes that know it.

    Returns:
        "environment", "classifier", "mix", "precision", "repeats", and "rows": of each case
        "runtime", "batch" (0: a stream), "name", "p50" and "p95" in milliseconds of a call,
        "images_per_second", "multiply_adds", and over static in the same runtime and batch
        "over_static" and "realised".

    Raises:
        UserError: if the mix or PyTorch will not do.
    """
    config = dataclasses.replace(config, dtype=precision)
    costs = model_costs(config, config.classifier.classes)
    if mix is None:
        mix = [1 / len(costs.options)] * len(costs.options)
    costs.mean(mix, with_predictor=True)  # checks it
    found = list(_cases(config, costs, np.array(mix), with_torch, precision))
    times = _in_turns(found, repeats)
    rows = [_row(case, each) for case, each in zip(found, times, strict=True)]
    return {
        "environment": environment(data_mesh()), "mix": by_option(costs.options, mix),
        "classifier": f"{config.classifier.name} of width {config.classifier.width:g}",
        "precision": precision, "repeats": repeats, "rows": [_compared(row, rows) for row in rows],
    }


def _cases(
    config: Config, costs: Costs, mix: np.ndarray, with_torch: bool, precision: str
) -> Iterator[Case]:
    images = cases.draw(config, max(SIZES))["image"]
    drnet = DRNet.from_config(config, config.classifier.classes)
    variables = jax.jit(drnet.init)(jax.random.key(config.seed))
    for name in runtimes.installed(precision):
        runtime = Runtime(name, precision)
        networks = DRNet.from_config(runtime.config(config), config.classifier.classes)
        engine = runtime.engine(networks, costs, variables, max(SIZES))
        print(f"{name}: preparing", file=sys.stderr)
        engine.warm_up()
        for size in SIZES:
            yield from _of(engine, name, size, images[:size], mix, config.seed)
        yield _stream(engine, name, "static", images, np.zeros(STREAM * max(SIZES), int))
        choice = cases.deal(mix, STREAM * max(SIZES), config.seed)
        yield _stream(engine, name, "routed", images, choice)
    if with_torch:
        for size in SIZES:
            call = torch_cases.pytorch_inference(config, images[:size])
            yield Case("pytorch", size, "static", size, costs.classifier[0], call)


def _of(
    engine: AnyEngine, name: str, size: int, images: np.ndarray, mix: np.ndarray, seed: int
) -> Iterator[Case]:
    """All that is timed in batches of a size."""
    costs, resolutions = engine.costs, engine.drnet.resolutions
    for index, resolution in enumerate(resolutions):
        label = f"fixed {resolution}" if index else "static"
        call = _fixed(engine, index, images)
        yield Case(name, size, label, size, costs.classifier[index], call)
    yield Case(name, size, "predictor", size, costs.predictor,
               lambda: np.asarray(engine.choose(engine.upload(images), 0.0)[0]))
    # A turn goes once through the choices, so that their proportions are exact in it.
    calls = _calls(CALLS, size)
    choices = cases.deal(mix, calls * size, seed).reshape(-1, size)
    turns = itertools.cycle(choices)
    yield Case(name, size, "routed", size, float(costs.routed[choices].mean()),
               lambda: _routed(engine, images, next(turns)))
    halves = cases.deal(np.array([0.5, 0.5]), calls * size, seed)
    again = itertools.cycle(halves.reshape(-1, size))
    spent = costs.classifier[-1] + costs.classifier[0] / 2
    yield Case(name, size, "cascade", size, spent, lambda: _cascade(engine, images, next(again)))


def _fixed(engine: AnyEngine, index: int, images: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(engine.classify(index, engine.upload(images)))


def _routed(engine: AnyEngine, images: np.ndarray, choice: np.ndarray) -> list[Answers]:
    batch = engine.upload(images)
    decided, _, own = engine.choose(batch, 0.0)
    np.asarray(decided)  # as if it told where to go
    queues = Queues(engine, capacity=engine.size_for(len(images)))
    tickets = np.arange(len(images))
    return [*queues.put(batch, choice, tickets, own), *queues.drain()]


def _cascade(engine: AnyEngine, images: np.ndarray, again: np.ndarray) -> list[Answers]:
    smallest = len(engine.drnet.resolutions) - 1

    def onward(answers: Answers) -> np.ndarray:
        goes = (answers.option == smallest) & (again[answers.tickets] > 0)
        return np.where(goes, 0, DONE)

    queues = Queues(engine, onward, engine.size_for(len(images)))
    tickets = np.arange(len(images))
    first = np.full(len(images), smallest)
    return [*queues.put(engine.upload(images), first, tickets), *queues.drain()]


def _stream(
    engine: AnyEngine, name: str, label: str, images: np.ndarray, choice: np.ndarray
) -> Case:
    """Batches one after the other; `static` is the base for all, without a predictor."""
    parts = np.split(np.arange(len(choice)), STREAM)

    def call() -> list[Answers]:
        queues, found = Queues(engine), []
        for tickets in parts:
            batch, own = engine.upload(images), None
            if label == "routed":
                decided, _, own = engine.choose(batch, 0.0)
                np.asarray(decided)
            found += queues.put(batch, choice[tickets], tickets, own)
        return found + list(queues.drain())

    costs = engine.costs
    spent = (costs.routed if label == "routed" else costs.passes)[choice].mean()
    return Case(name, 0, label, len(choice), float(spent), call)


def _calls(of_one: int, size: int) -> int:
    """As many calls of a size (0: a stream) as `of_one` of one image."""
    return max(1, of_one // size) if size else 1


def _in_turns(found: Sequence[Case], repeats: int) -> list[list[float]]:
    """Seconds of each call of each case, without the first of a turn, which find in caches what
    another case has left there: routed, several networks' worth."""
    seconds: list[list[float]] = [[] for _ in found]
    for _ in range(repeats):
        for case, times in zip(found, seconds, strict=True):
            for _ in range(_calls(UNTIMED, case.size)):
                case.call()
            for _ in range(_calls(CALLS, case.size)):
                began = time.perf_counter()
                jax.block_until_ready(case.call())
                times.append(time.perf_counter() - began)
    return seconds


def _row(case: Case, seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "runtime": case.runtime, "batch": case.size, "name": case.name,
        "p50": 1e3 * statistics.median(seconds), "p95": 1e3 * float(np.quantile(seconds, 0.95)),
        "images_per_second": case.images / statistics.mean(seconds),
        "multiply_adds": case.multiply_adds,
    }


def _compared(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    same = "runtime", "batch"
    static = next(
        each for each in rows
        if each["name"] == "static" and all(each[name] == row[name] for name in same)
    )
    over = row["images_per_second"] / static["images_per_second"]
    return row | {
        "over_static": over, "realised": over * row["multiply_adds"] / static["multiply_adds"],
    }


def text(report: dict[str, Any]) -> str:
    """The report as tables, one a batch size."""
    environment = report["environment"]
    mix = ", ".join(f"{100 * share:.0f} % {name}" for name, share in report["mix"].items())
    sections = [
        f"{report['classifier']}, {report['precision']}; {mix}; {report['repeats']} turns; jax "
        f"{environment['jax']}, {environment['cores']} cores"
    ]
    for size in (*SIZES, 0):
        title = f"batches of {size}" if size else f"a stream, {max(SIZES)} at a time"
        rows = [row for row in report["rows"] if row["batch"] == size]
        sections.append(table([
            (title, "p50 ms", "p95 ms", "images/s", "multiply-adds", "over static", "realised"),
            *((f"{row['runtime']} {row['name']}", f"{row['p50']:.1f}", f"{row['p95']:.1f}",
               f"{row['images_per_second']:.4g}", short(row["multiply_adds"]),
               f"{row['over_static']:.2f}", f"{row['realised']:.2f}") for row in rows),
        ]))
    return "\n\n".join(sections)
