"""Queues: an image waits for the bucket of its option, which runs when full.

Nothing is simulated: an image is resized to, and classified at, its own resolution only, and one
that the predictor answers by itself meets no classifier. Queues fill across batches, so that
buckets are full ones whatever the mix; what is left at the end, or has waited for long, is run in
the smallest size that holds it. The images wait on the devices.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from drnet_jax.inference.engine import Engine
from drnet_jax.inference.holding import Holding
from drnet_jax.routing import DONE, Cascade

IN_FLIGHT = 2  # batches, and buckets, that are computed while the host prepares others


class Answers(NamedTuple):
    """Some images, known again by their tickets, and what an option says of them."""

    tickets: np.ndarray  # int64 [N]
    option: int  # index
    log_p: np.ndarray  # float32 [N, C], log-probabilities of the classes


Onward = Callable[[Answers], np.ndarray]  # of each, int [N], the option to go on to, or DONE


class Queues:
    """One queue an option."""

    def __init__(
        self, engine: Engine, onward: Onward | None = None, capacity: int | None = None
    ):
        """Empty queues.

        Args:
            onward: says which images go on to another option; by default an answer is the last.
            capacity: images of a bucket, one of the engine's sizes; None for the largest.
        """
        options = engine.drnet.options
        self._engine, self._onward = engine, onward
        self._capacity = capacity or engine.batch_size
        self._predictor = len(engine.drnet.resolutions)  # as an option
        self._images: list[jax.Array | None] = [None] * options
        self._tickets: list[list[int]] = [[] for _ in range(options)]
        self._since = [0.0] * options  # by `time.monotonic`, when the first of those came
        # Buckets not yet answered: (images that may go on, tickets, option, log-probabilities).
        self._running: list[tuple[jax.Array | None, np.ndarray, int, jax.Array]] = []

    def put(
        self, batch: jax.Array, choice: np.ndarray, tickets: np.ndarray,
        own: jax.Array | None = None,
    ) -> Iterator[Answers]:
        """Takes the first N rows of a batch, by choice, int [N], under tickets, int [N].

        Args:
            choice: options; DONE takes nothing.
            own: log-probabilities of the predictor, float32 [B, C], where it has seen the batch:
                what chose it is answered at once. Else it waits for the predictor, too.

        Yields what is answered by then; N may be less than the batch size, and 0.
        """
        size, predictor = self._capacity, self._predictor
        if own is not None and (mine := choice == predictor).any():
            yield Answers(tickets[mine], predictor, np.asarray(own)[: len(choice)][mine])
            choice = np.where(mine, DONE, choice)
        for option in np.unique(choice[choice != DONE]):
            rows, waiting = np.flatnonzero(choice == option), self._tickets[option]
            if len(rows) == size and not waiting:  # it is a full bucket as it is
                yield from self._launch(option, batch, tickets)
                continue
            while len(rows):
                waiting = self._tickets[option]
                taken, rows = np.split(rows, [size - len(waiting)])
                slots = np.full(len(batch), size, np.int32)
                slots[taken] = np.arange(len(waiting), len(waiting) + len(taken))
                queue = self._images[option]
                queue = self._engine.empty(size) if queue is None else queue
                if not waiting:
                    self._since[option] = time.monotonic()
                self._images[option] = self._engine.append(queue, batch, slots)
                waiting += tickets[taken].tolist()
                if len(waiting) == size:
                    yield from self._run(option)

    def oldest(self) -> float | None:
        """When, by `time.monotonic`, the image came that waits longest; None if none waits."""
        since = [self._since[option] for option, tickets in enumerate(self._tickets) if tickets]
        return min(since, default=None)

    def flush(self, before: float) -> Iterator[Answers]:
        """Runs what waits with an image that came before a time; yields all that is running."""
        for option, tickets in enumerate(self._tickets):
            if tickets and self._since[option] <= before:
                yield from self._run(option)
        while self._running:
            yield from self._answer()

    def drain(self) -> Iterator[Answers]:
        """Yields all that is left, run in buckets that are not full."""
        passes = self._engine.costs.passes
        while self._running or any(self._tickets):
            waiting = [option for option, tickets in enumerate(self._tickets) if tickets]
            if self._onward:  # who goes on from the cheapest joins those who wait for dearer ones
                waiting = sorted(waiting, key=lambda option: passes[option])[:1]
            for option in waiting:
                yield from self._run(option)
            while self._running:
                yield from self._answer()

    def _run(self, option: int) -> Iterator[Answers]:
        images, tickets = self._images[option], np.array(self._tickets[option])
        self._tickets[option] = []
        if self._onward:  # some of these images may be needed again: no others are put over them
            self._images[option] = None
        images = self._engine.cut(images, len(tickets))
        yield from self._launch(option, images, tickets)

    def _launch(self, option: int, images: jax.Array, tickets: np.ndarray) -> Iterator[Answers]:
        by_predictor = option == self._predictor
        log_p = (
            self._engine.predict(images)[1] if by_predictor
            else self._engine.classify(option, images)
        )
        self._running.append((images if self._onward else None, tickets, option, log_p))
        if len(self._running) > IN_FLIGHT:
            yield from self._answer()

    def _answer(self) -> Iterator[Answers]:
        images, tickets, option, log_p = self._running.pop(0)
        answers = Answers(tickets, option, np.asarray(log_p)[: len(tickets)])
        if not self._onward:
            yield answers
            return
        onward = self._onward(answers)
        last = onward == DONE
        if last.any():
            yield Answers(tickets[last], option, answers.log_p[last])
        yield from self.put(images, onward, tickets)


Batches = Iterable[tuple[np.ndarray, np.ndarray]]
Watch = Callable[[np.ndarray, np.ndarray], None]  # is told tickets [N] and their scores [N, O]


def cascade(
    engine: Engine, batches: Batches, cascades: Sequence[Cascade],
    which: Callable[[np.ndarray], np.ndarray], lag: int | None = None, capacity: int | None = None,
) -> Iterator[Answers]:
    """Sends images through cascades: every pass is run, the next only for who is in doubt.

    Args:
        batches, lag, capacity: as of `route`.
        which: tickets int [N] -> the number of each one's cascade, int [N].

    Yields:
        The last answer to each image, in the order in which buckets fill.
    """
    after = np.array([
        [each.after(option) for option in range(engine.drnet.options)] for each in cascades
    ])

    def onward(answers: Answers) -> np.ndarray:
        mine = which(answers.tickets)
        doubt = np.stack([each.doubts(answers.log_p) for each in cascades])
        return np.where(doubt[mine, np.arange(len(mine))], after[mine, answers.option], DONE)

    queues = Queues(engine, onward, capacity)
    first = np.array([each.options[0] for each in cascades])
    for number, (images, tickets) in enumerate(batches, 1):
        yield from queues.put(engine.upload(images), first[which(tickets)], tickets)
        if lag and number % lag == 0:
            yield from queues.drain()
    yield from queues.drain()


def route(
    engine: Engine, batches: Batches, price: float, lag: int | None = None,
    capacity: int | None = None, watch: Watch | None = None, holding: Holding | None = None,
) -> Iterator[Answers]:
    """Routes and answers images at a price.

    Args:
        batches: (images uint8 [N, H, W, 3] at the base size, their tickets int [N]), N at most the
            engine's batch size.
        lag: after every so many batches whatever waits is run, so that no answer is long in coming.
        capacity: of the queues, see `Queues`.
        watch: is told what the predictor says.
        holding: in place of `price`, one that follows the images.

    Yields:
        Answers, in the order in which buckets fill.
    """
    queues = Queues(engine, capacity=capacity)
    chosen: list[tuple[jax.Array, np.ndarray, tuple[jax.Array | None, ...]]] = []

    def put() -> Iterator[Answers]:
        batch, tickets, (choice, scores, own) = chosen.pop(0)
        choice = np.asarray(choice)[: len(tickets)]
        if watch:
            watch(tickets, np.asarray(scores)[: len(tickets)])
        if holding:
            holding.saw(np.asarray(scores)[: len(tickets)], choice)
        yield from queues.put(batch, choice, tickets, own)

    for number, (images, tickets) in enumerate(batches, 1):
        batch = engine.upload(images)
        at = holding.price if holding else price
        chosen.append((batch, tickets, engine.choose(batch, at)))
        if len(chosen) == IN_FLIGHT:
            yield from put()
        if lag and number % lag == 0:
            while chosen:
                yield from put()
            yield from queues.drain()
    while chosen:
        yield from put()
    yield from queues.drain()
