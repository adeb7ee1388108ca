"""Runs: policies really run, on images held in memory, for images/s and as a check of the table.

Time is that of uploading, routing and classifying; reading and decoding are not in it.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
from jax.experimental import multihost_utils

from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Table, from_all_hosts
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import Answers, Queues, cascade
from drnet_jax.routing import Cascade

Batches = Sequence[tuple[np.ndarray, np.ndarray]]  # (images uint8 [N, H, W, 3], index int [N])


@dataclasses.dataclass(frozen=True)
class PolicyRun:
    """What became of the images of a run, over all hosts, by their index in the data set."""

    index: np.ndarray  # int64 [N]
    choice: np.ndarray  # int64 [N], index of the option that answered
    answer: np.ndarray  # int64 [N], the most probable class
    images_per_second: float  # of all hosts together; 0 if there were no images


def run(answers: Iterator[Answers]) -> PolicyRun:
    """Runs a policy to its end."""
    began = time.perf_counter()
    found = list(answers)
    seconds = time.perf_counter() - began
    none = np.zeros(0, np.int64)
    columns = {
        "index": np.concatenate([none, *(each.tickets for each in found)]),
        "choice": np.concatenate(
            [none, *(np.full(len(each.tickets), each.option) for each in found)]
        ),
        "answer": np.concatenate([none, *(each.log_p.argmax(axis=1) for each in found)]),
    }
    rate = np.array(len(columns["index"]) / seconds if found else 0.0)
    return PolicyRun(
        **from_all_hosts(columns),
        images_per_second=float(np.sum(multihost_utils.process_allgather(rate))),
    )


def given(
    engine: Engine, batches: Batches, choice: np.ndarray, capacity: int | None = None
) -> Iterator[Answers]:
    """Each image by the option that a table, int [images of the data set], gives it; `capacity` as
    of `Queues`."""
    queues = Queues(engine, capacity=capacity)
    for images, index in batches:
        yield from queues.put(engine.upload(images), choice[index], index)
    yield from queues.drain()


def cascaded(
    engine: Engine, batches: Batches, cascades: tuple[Cascade, Cascade]
) -> Iterator[Answers]:
    """Images of even index through the first cascade, those of odd through the second."""
    return cascade(engine, batches, cascades, lambda index: index % 2)


def mirrored(engine: Engine, batches: Batches) -> Iterator[Answers]:
    """The mirror image of each image by the base."""
    turned = [(images[:, :, ::-1], index) for images, index in batches]
    everywhere = np.zeros(1 + max((index.max() for _, index in turned), default=0), int)
    return given(engine, turned, everywhere)


def differing(found: PolicyRun, table: Table, outcome: Outcome) -> int:
    """How many images of a run went elsewhere, or were answered otherwise, than the table says."""
    at = np.searchsorted(table.index, found.index)
    choice = outcome.choice[at]
    return int(np.sum((choice != found.choice) | (table.answer[at, choice] != found.answer)))
