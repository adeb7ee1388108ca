"""What becomes of every image of a data set under a router: really run, each seen exactly once."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.data.loader import Batch, eval_batches
from drnet_jax.data.sources import Source
from drnet_jax.evaluation import policies
from drnet_jax.evaluation.policies import Cascade
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import Answers, CascadeQueues, Queues

COLUMNS = {"index": np.int64, "label": np.int64, "needed_scale": np.float64}  # of the batches

Batches = Callable[[], Iterable[Batch]]  # opens this host's share of the images, from the first on
Router = Callable[[Batch], np.ndarray]  # a batch -> the resolution index of each row, int [N]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to each of N images, in the order of their index in the data set."""

    index: np.ndarray  # int64 [N]
    label: np.ndarray  # int64 [N]
    choice: np.ndarray  # int64 [N], index of the resolution whose answer counts (the last)
    log_p: np.ndarray  # float32 [N, C], log-probabilities of the classes
    needed_scale: np.ndarray  # float64 [N], of the data set (see `data.sources`); 0 if unknown
    images_per_second: float  # of routing and classifying, over all hosts; waiting for data is not

    @functools.cached_property
    def _rank(self) -> np.ndarray:
        return policies.rank(self.log_p, self.label)

    def hits(self, k: int) -> np.ndarray:
        """bool [N]: whether the label is among the k best classes."""
        return self._rank < k

    def mix(self, resolutions: int) -> np.ndarray:
        """float64 [R]: the share of the images at each resolution."""
        return np.bincount(self.choice, minlength=resolutions) / len(self.choice)


def fixed(index: int) -> Router:
    """Every image at one resolution."""
    return lambda batch: np.full(len(batch["label"]), index)


def routed(engine: Engine, price: float) -> Router:
    """Each image where the predictor sends it at a price (see `routing.charge`)."""
    return lambda batch: engine.choose(batch["image"], price)


def given(choice: np.ndarray) -> Router:
    """Each image where a table [images of the data set] sends it."""
    return lambda batch: choice[batch["index"]]


def run(engine: Engine, batches: Iterable[Batch], router: Router) -> Outcome:
    """Routes and classifies all images, in buckets, and gathers what came of it from all hosts."""
    queues = Queues(engine)
    return _run(
        engine, batches, queues.drain,
        lambda batch, tickets: queues.put(batch["image"], router(batch), tickets),
    )


def run_cascades(
    engine: Engine, batches: Iterable[Batch], cascades: tuple[Cascade, Cascade]
) -> Outcome:
    """Sends the images of even index through the first cascade, those of odd through the second."""
    queues = CascadeQueues(engine, cascades)
    return _run(
        engine, batches, queues.drain,
        lambda batch, tickets: queues.put(batch["image"], batch["index"] % 2, tickets),
    )


def _run(
    engine: Engine, batches: Iterable[Batch], drain: Callable[[], Iterable[Answers]],
    put: Callable[[Batch, np.ndarray], Iterable[Answers]],
) -> Outcome:
    """Puts all batches, with tickets, drains, and gathers the answers."""
    columns = {name: [np.zeros(0, kind)] for name, kind in COLUMNS.items()}
    answers, seen, seconds = [], 0, 0.0
    for batch in map(_real, batches):
        count = len(batch["label"])
        began = time.perf_counter()
        answers += put(batch, np.arange(seen, seen + count))
        seconds += time.perf_counter() - began
        seen += count
        for name, kind in COLUMNS.items():
            columns[name].append(batch.get(name, np.zeros(count, kind)))
    began = time.perf_counter()
    answers += drain()
    seconds += time.perf_counter() - began

    table = {name: np.concatenate(values) for name, values in columns.items()}
    answers = answers or [_no_answer(engine)]
    order = np.argsort(np.concatenate([tickets for tickets, _, _ in answers]))
    table["choice"] = np.concatenate(
        [np.full(len(tickets), index) for tickets, index, _ in answers]
    )[order]
    table["log_p"] = np.concatenate([log_p for _, _, log_p in answers])[order]
    rate = np.sum(multihost_utils.process_allgather(np.array(seen / seconds if seen else 0.0)))
    return Outcome(**_from_all_hosts(table), images_per_second=float(rate))


def all_scores(engine: Engine, batches: Iterable[Batch]) -> np.ndarray:
    """The predictor's scores of the images of all hosts, by index: float32 [N, R]."""
    found = [(batch["index"], engine.scores(batch["image"])) for batch in map(_real, batches)]
    found = found or [(np.zeros(0, np.int32), engine.scores(_no_images(engine)))]
    index, scores = map(np.concatenate, zip(*found, strict=True))
    table = {"index": index, "scores": scores}
    return _from_all_hosts(table)["scores"]


def find_price(engine: Engine, open_batches: Batches, costs: Costs, target: float) -> float:
    """The price at which routing these images costs `target`, see `policies.find_price`."""
    if not target:
        return 0.0
    return policies.price_for(all_scores(engine, open_batches()), costs, target)


def _real(batch: Batch) -> Batch:
    """A batch without its padding."""
    return {name: values[batch["mask"]] for name, values in batch.items()}


def _no_images(engine: Engine) -> np.ndarray:
    base = engine.drnet.resolutions[0]
    return np.zeros((0, base, base, 3), np.uint8)


def _no_answer(engine: Engine) -> Answers:
    """For a host without images, whose columns must be of the shape of the others'."""
    return np.zeros(0, np.int64), 0, engine.classify(0, _no_images(engine))


def _from_all_hosts(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all hosts, by "index", of columns [n, ...]; n may differ, and may be 0."""
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(np.array(len(table["index"])))
        most = counts.max()
        padded = {
            name: np.concatenate([
                values, np.zeros((most - len(values), *values.shape[1:]), values.dtype)
            ])
            for name, values in table.items()
        }
        real = np.arange(most) < counts[:, None]
        gathered = multihost_utils.process_allgather(padded)
        table = {name: values[real] for name, values in gathered.items()}
    order = np.argsort(table["index"])
    return {name: values[order] for name, values in table.items()}


def at_every_resolution(engine: Engine, open_batches: Batches) -> list[Outcome]:
    """All images at each resolution: [R] outcomes."""
    return [
        run(engine, open_batches(), fixed(index)) for index in range(len(engine.drnet.resolutions))
    ]


def validation_batches(config: Config, source: Source) -> Iterable[Batch]:
    """This host's share of the validation images, each once."""
    return eval_batches(
        source, config.data, size=config.resolutions[0],
        batch_size=config.evaluation.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
