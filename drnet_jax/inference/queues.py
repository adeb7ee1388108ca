"""Queues: an image waits for the bucket of its resolution, which runs when full.

Queues fill across batches, so that buckets are full ones whatever the mix; what is left at the end
is run padded.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from drnet_jax import routing
from drnet_jax.inference.engine import Engine

# The tickets of some images, the resolution index that answers for them, and its log-probabilities,
# float32 [images, C]. A ticket is any number by which the caller knows an image again.
Answers = tuple[np.ndarray, int, np.ndarray]


@dataclasses.dataclass
class Queues:
    """Images waiting for the bucket of their resolution to fill."""

    engine: Engine

    def __post_init__(self):
        size, base = self.engine.batch_size, self.engine.drnet.resolutions[0]
        resolutions = len(self.engine.drnet.resolutions)
        self._images = [np.empty((size, base, base, 3), np.uint8) for _ in range(resolutions)]
        self._tickets = [np.empty(size, np.int64) for _ in range(resolutions)]
        self._waiting = [0] * resolutions

    def put(
        self, images: np.ndarray, choice: np.ndarray, tickets: np.ndarray
    ) -> Iterable[Answers]:
        """Queues images [N, ...] with tickets [N] by choice [N]; yields what full buckets give."""
        for index in np.unique(choice):
            rows = np.flatnonzero(choice == index)
            while len(rows):
                start = self._waiting[index]
                taken, rows = np.split(rows, [self.engine.batch_size - start])
                end = start + len(taken)
                self._images[index][start:end] = images[taken]
                self._tickets[index][start:end] = tickets[taken]
                self._waiting[index] = end
                if end == self.engine.batch_size:
                    yield self._flush(index)

    def drain(self) -> Iterable[Answers]:
        """Yields what is left, run in padded buckets."""
        for index, waiting in enumerate(self._waiting):
            if waiting:
                yield self._flush(index)

    def _flush(self, index: int) -> Answers:
        count, self._waiting[index] = self._waiting[index], 0
        log_p = self.engine.classify(index, self._images[index][:count])
        return self._tickets[index][:count].copy(), index, log_p


class CascadeQueues:
    """Every image is classified small as it comes, and queued for a larger pass if in doubt."""

    def __init__(self, engine: Engine, cascades: Sequence[routing.Cascade]):
        self._server, self._queues = engine, Queues(engine)
        self._low = np.array([cascade.low for cascade in cascades])
        self._high = np.array([cascade.high for cascade in cascades])
        self._fused = np.array([cascade.fused for cascade in cascades])
        self._threshold = np.array([cascade.threshold for cascade in cascades])
        # By ticket, of the images in the queues: which cascade, and the first pass's answer.
        self._first: dict[int, tuple[int, np.ndarray]] = {}

    def put(self, images: np.ndarray, which: np.ndarray, tickets: np.ndarray) -> Iterable[Answers]:
        """Sends images [N, ...] with tickets [N] through cascades number which [N].

        N is at most the engine's batch size. Yields the answers that are final.
        """
        for index in np.unique(self._low[which]):
            rows = np.flatnonzero(self._low[which] == index)
            first = self._server.classify(index, images[rows])
            sure = routing.confidence(first) >= self._threshold[which[rows]]
            yield tickets[rows[sure]], index, first[sure]
            again = rows[~sure]
            for row, log_p in zip(again, first[~sure], strict=True):
                self._first[int(tickets[row])] = (which[row], log_p)
            choice = self._high[which[again]]
            yield from map(self._merge, self._queues.put(images[again], choice, tickets[again]))

    def drain(self) -> Iterable[Answers]:
        """Yields what is left."""
        yield from map(self._merge, self._queues.drain())

    def _merge(self, answers: Answers) -> Answers:
        tickets, index, second = answers
        which, first = zip(*map(self._first.pop, tickets.tolist()), strict=True)
        fused = self._fused[list(which)][:, None]
        return tickets, index, np.where(fused, routing.fuse(np.stack(first), second), second)
