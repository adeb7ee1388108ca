"""Table: what every option says of every image, from one pass over the data.

All policies are read off it (`policies`). Of an answer over C classes it keeps what they need, not
the C log-probabilities: with a thousand classes those would be hundreds of MB.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax import routing
from drnet_jax.config import Data
from drnet_jax.data.loader import Batch, eval_batches
from drnet_jax.data.sources import Source
from drnet_jax.data.transforms import Square
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of N images, in the order of their index in the data set."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]
    needed_scale: np.ndarray  # float64 [N], of the data set (see `data.sources`); 0 if unknown
    scores: np.ndarray  # float32 [N, O], see `routing.SCORES`
    answer: np.ndarray  # int32 [N, O], the class that each option finds most probable
    rank: np.ndarray  # int32 [N, O], of the label in the answer of each option, 0 the best
    probability: np.ndarray  # float64 [N, O], of the answer, by the option itself
    margin: np.ndarray  # float64 [N, O], see `routing.margin`
    trust: np.ndarray  # float64 [N, O], probability of the answer by the base

    @property
    def right(self) -> np.ndarray:
        """bool [N, O]: whether the best class of each option is the label."""
        return self.rank == 0

    def sureness(self, rule: str) -> np.ndarray:
        """How sure each option is of its answer by a rule of `routing.RULES`, float64 [N, O]."""
        return getattr(self, rule)


def rank(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many classes of log_p [N, C] are at least as likely as the label, int [N]: 0 is right.

    A tie counts against the label, and so do answers that are not numbers.
    """
    own = log_p[np.arange(len(label)), label]
    return (~(log_p < own[:, None])).sum(axis=1) - 1


def rows(
    scores: np.ndarray, log_p: list[np.ndarray], batch: Batch
) -> dict[str, np.ndarray]:
    """The columns of a Table for N images.

    Args:
        scores: float32 [N, O].
        log_p: float32 [N, C] of each option, the base first.
        batch: "index", "label" and, where it is known, "needed_scale", each [N].
    """
    label, every = batch["label"], np.arange(len(batch["label"]))
    answer = np.stack([each.argmax(axis=1) for each in log_p], axis=1).astype(np.int32)
    return {
        "index": batch["index"].astype(np.int64),
        "label": label.astype(np.int64),
        "needed_scale": batch.get("needed_scale", np.zeros(len(label))).astype(float),
        "scores": scores,
        "answer": answer,
        "rank": np.stack([rank(each, label) for each in log_p], axis=1).astype(np.int32),
        "probability": np.stack([routing.probability(each) for each in log_p], axis=1),
        "margin": np.stack([routing.margin(each) for each in log_p], axis=1),
        "trust": np.exp(log_p[0][every[:, None], answer].astype(float)),
    }


def host_batches(
    engine: Engine | GraphEngine, source: Source, data: Data, square: Square
) -> Iterator[Batch]:
    """This host's share of a data set, each image once, in batches of the engine's size.

    `square` is what images are squashed to before the base size is cropped.
    """
    return eval_batches(
        source, data, size=engine.drnet.resolutions[0], square=square,
        batch_size=engine.batch_size, process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def tabulate(engine: Engine | GraphEngine, batches: Iterable[Batch]) -> Table:
    """Every image by every option: this host's share of them run here, and all gathered."""
    found, running = [], None
    # One batch behind, so that the devices work while the host reads answers and decodes.
    for batch in map(real_rows, batches):
        launched = batch, *_everything(engine, engine.upload(batch["image"]))
        if running is not None:
            found.append(_read(*running))
        running = launched
    # A host without images has columns of the same shapes.
    none = {"index": np.zeros(0, np.int64), "label": np.zeros(0, np.int64)}
    found.append(_read(*running or (none, *_everything(engine, engine.empty()))))
    columns = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return Table(**from_all_hosts(columns))


def _everything(
    engine: Engine | GraphEngine, images: jax.Array | np.ndarray
) -> tuple[jax.Array, list[jax.Array]]:
    """Scores [B, O], and log-probabilities [B, C] of each option; not waited for."""
    scores, own = engine.predict(images)
    log_p = [engine.classify(index, images) for index in range(len(engine.drnet.resolutions))]
    return scores, log_p if own is None else [*log_p, own]


def _read(batch: Batch, scores: jax.Array, log_p: list[jax.Array]) -> dict[str, np.ndarray]:
    count = len(batch["label"])
    return rows(np.asarray(scores)[:count], [np.asarray(each)[:count] for each in log_p], batch)


def real_rows(batch: Batch) -> Batch:
    """A batch without its padding."""
    return {name: values[batch["mask"]] for name, values in batch.items()}


def from_all_hosts(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all hosts, by "index", of columns [n, ...]; n may differ, and may be 0."""
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(np.array(len(columns["index"])))
        real = np.arange(counts.max()) < counts[:, None]
        columns = {name: _gathered(values, real) for name, values in columns.items()}
    order = np.argsort(columns["index"])
    return {name: values[order] for name, values in columns.items()}


def _gathered(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """A column [n, ...] of all hosts, whose rows are `real` [hosts, most]."""
    # As bytes: of 64-bit numbers JAX would keep 32.
    width = math.prod(values.shape[1:])
    own = np.ascontiguousarray(values.reshape(len(values), width)).view(np.uint8)
    padded = np.zeros((real.shape[1], own.shape[1]), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)[real]
    return rows.view(values.dtype).reshape(-1, *values.shape[1:])


class Sample:
    """Images of a data set, evenly over it, held in memory: what images/s are measured with."""

    def __init__(self, images: int, limit: int):
        """`limit` at most of this host's `images`."""
        self._every = max(1, -(-images // limit))
        self._seen = 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on, and keeps every so many of their images."""
        for batch in batches:
            real = real_rows(batch)
            kept = (self._seen + np.arange(len(real["index"]))) % self._every == 0
            self._seen += len(kept)
            self._parts.append((real["image"][kept], real["index"][kept]))
            yield batch

    def batches(self, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(images uint8 [N, H, W, 3], index int [N]) with N = size, the last one's less."""
        if not any(len(index) for _, index in self._parts):
            return []
        images, index = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        ends = range(size, len(index), size)
        return list(zip(np.split(images, ends), np.split(index, ends), strict=True))
