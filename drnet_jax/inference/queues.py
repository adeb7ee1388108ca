"""Queues: an image waits for the bucket of its resolution, which runs when full.

Nothing is simulated: an image is resized to, and classified at, its own resolution only. Queues
fill across batches, so that buckets are full ones whatever the mix; what is left at the end is run
padded. The images wait on the devices.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from drnet_jax import routing
from drnet_jax.inference.engine import Engine

IN_FLIGHT = 2  # batches, and buckets, that are computed while the host prepares others


class Answers(NamedTuple):
    """Some images, known again by their tickets, and what a resolution says of them."""

    tickets: np.ndarray  # int64 [N]
    resolution: int  # index
    log_p: np.ndarray  # float32 [N, C], log-probabilities of the classes


class Queues:
    """One queue a resolution."""

    def __init__(self, engine: Engine):
        resolutions = len(engine.drnet.resolutions)
        self._engine = engine
        self._images: list[jax.Array | None] = [None] * resolutions
        self._tickets: list[list[int]] = [[] for _ in range(resolutions)]
        self._running: list[tuple[list[int], int, jax.Array]] = []  # buckets not yet answered

    def put(self, batch: jax.Array, choice: np.ndarray, tickets: np.ndarray) -> Iterator[Answers]:
        """Queues the first N rows of a batch, by choice, int [N], under tickets, int [N].

        A choice below 0 queues nothing.

        Yields what is answered by then; N may be less than the batch size, and 0.
        """
        size = self._engine.batch_size
        for index in np.unique(choice[choice >= 0]):
            rows = np.flatnonzero(choice == index)
            while len(rows):
                waiting = self._tickets[index]
                taken, rows = np.split(rows, [size - len(waiting)])
                slots = np.full(size, size, np.int32)
                slots[taken] = np.arange(len(waiting), len(waiting) + len(taken))
                queue = self._images[index]
                queue = self._engine.empty() if queue is None else queue
                self._images[index] = self._engine.append(queue, batch, slots)
                waiting += tickets[taken].tolist()
                if len(waiting) == size:
                    yield from self._run(index)

    def drain(self) -> Iterator[Answers]:
        """Yields all that is left, run in padded buckets."""
        for index, waiting in enumerate(self._tickets):
            if waiting:
                yield from self._run(index)
        while self._running:
            yield self._answer()

    def _run(self, index: int) -> Iterator[Answers]:
        log_p = self._engine.classify(index, self._images[index])
        self._running.append((self._tickets[index], index, log_p))
        self._tickets[index] = []
        if len(self._running) > IN_FLIGHT:
            yield self._answer()

    def _answer(self) -> Answers:
        tickets, index, log_p = self._running.pop(0)
        return Answers(np.array(tickets), index, np.asarray(log_p)[: len(tickets)])


class CascadeQueues:
    """Every image is classified small as it comes, and queued for a larger pass if in doubt."""

    def __init__(self, engine: Engine, cascades: Sequence[routing.Cascade]):
        self._engine, self._queues = engine, Queues(engine)
        self._low = np.array([cascade.low for cascade in cascades])
        self._high = np.array([cascade.high for cascade in cascades])
        self._fused = np.array([cascade.fused for cascade in cascades])
        self._threshold = np.array([cascade.threshold for cascade in cascades])
        # Batches in their first pass: (batch, which, tickets, log-probabilities by resolution).
        self._running: list[tuple[jax.Array, np.ndarray, np.ndarray, dict[int, jax.Array]]] = []
        # By ticket, of the images in the queues: which cascade, and the first pass's answer.
        self._first: dict[int, tuple[int, np.ndarray]] = {}

    def put(self, batch: jax.Array, which: np.ndarray, tickets: np.ndarray) -> Iterator[Answers]:
        """Sends the first N rows of a batch through cascades number which, int [N].

        Yields what is answered by then.
        """
        first = {
            int(index): self._engine.classify(index, batch) for index in set(self._low[which])
        }
        self._running.append((batch, which, tickets, first))
        if len(self._running) == IN_FLIGHT:
            yield from self._again()

    def drain(self) -> Iterator[Answers]:
        """Yields what is left."""
        while self._running:
            yield from self._again()
        yield from map(self._merge, self._queues.drain())

    def _again(self) -> Iterator[Answers]:
        """Yields the sure answers of the oldest first pass, and queues its other images."""
        batch, which, tickets, passes = self._running.pop(0)
        choice = np.full(len(which), -1)  # no second pass
        for index, log_p in passes.items():
            rows = np.flatnonzero(self._low[which] == index)
            first = np.asarray(log_p)[rows]
            sure = routing.confidence(first) >= self._threshold[which[rows]]
            yield Answers(tickets[rows[sure]], index, first[sure])
            again = rows[~sure]
            for row, log_p in zip(again, first[~sure], strict=True):
                self._first[int(tickets[row])] = (which[row], log_p)
            choice[again] = self._high[which[again]]
        yield from map(self._merge, self._queues.put(batch, choice, tickets))

    def _merge(self, answers: Answers) -> Answers:
        which, first = zip(*map(self._first.pop, answers.tickets.tolist()), strict=True)
        fused = self._fused[list(which)][:, None]
        second = answers.log_p
        return answers._replace(
            log_p=np.where(fused, routing.fuse(np.stack(first), second), second)
        )


def route(
    engine: Engine, batches: Iterable[tuple[np.ndarray, np.ndarray]], price: float,
    lag: int | None = None,
) -> Iterator[Answers]:
    """Routes and classifies images at a price.

    Args:
        batches: (images uint8 [N, H, W, 3] at the base size, their tickets int [N]), N at most the
            engine's batch size.
        lag: after every so many batches whatever waits is run, so that no answer is long in coming.

    Yields:
        Answers, in the order in which buckets fill.
    """
    queues = Queues(engine)
    chosen: list[tuple[jax.Array, jax.Array, np.ndarray]] = []

    def put() -> Iterator[Answers]:
        batch, choice, tickets = chosen.pop(0)
        yield from queues.put(batch, np.asarray(choice)[: len(tickets)], tickets)

    for number, (images, tickets) in enumerate(batches, 1):
        batch = engine.upload(images)
        chosen.append((batch, engine.choose(batch, price), tickets))
        if len(chosen) == IN_FLIGHT:
            yield from put()
        if lag and number % lag == 0:
            while chosen:
                yield from put()
            yield from queues.drain()
    while chosen:
        yield from put()
    yield from queues.drain()
