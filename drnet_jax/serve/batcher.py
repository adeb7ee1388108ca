"""Batcher: requests of many clients, gathered into buckets by the option that each needs.

One thread runs the networks. While it does, requests gather; what has gathered is seen by the
predictor at once, and waits for its bucket to fill no longer than it may.
"""

import concurrent.futures
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Iterator

import numpy as np

from drnet_jax import routing
from drnet_jax.dial import Policy
from drnet_jax.errors import first_line
from drnet_jax.inference.predict import Answer, Wording
from drnet_jax.inference.queues import Answers, Queues
from drnet_jax.routing import DONE, Cascade


class Full(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """No more requests are taken."""


@dataclasses.dataclass
class Request:
    """An image that waits for its answer."""

    image: np.ndarray  # uint8 [base, base, 3]
    name: str | int
    policy: Policy
    answer: concurrent.futures.Future  # of an Answer
    scores: np.ndarray | None = None  # [O], once the predictor has seen it


class Batcher:
    """Answers images that come one by one, from any thread."""

    def __init__(self, wording: Wording, limit: int, max_wait: float):
        """Starts the thread.

        Args:
            wording: of the answers, and the engine that finds them.
            limit: how many images may wait, or be worked on, at once.
            max_wait: seconds for which one may wait for its bucket to fill; 0: it does not, but
                for what has come in the meantime.
        """
        self._wording, self._engine = wording, wording.engine
        self._limit, self._max_wait = limit, max_wait
        self._requests: dict[int, Request] = {}  # by ticket, all that are not answered
        self._tickets = itertools.count()
        self._coming: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        self._queues = Queues(self._engine, self._onward)
        self._thread = threading.Thread(target=self._work, name="networks", daemon=True)
        self._thread.start()

    def submit(
        self, image: np.ndarray, name: str | int, policy: Policy
    ) -> concurrent.futures.Future:
        """An Answer to come; raises Full or Closed if the image is not taken."""
        request = Request(image, name, policy, concurrent.futures.Future())
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._requests) >= self._limit:
                raise Full
            ticket = next(self._tickets)
            self._requests[ticket] = request
        self._coming.put(ticket)
        return request.answer

    @property
    def waiting(self) -> int:
        """How many images are not answered yet."""
        return len(self._requests)

    def close(self) -> None:
        """Takes no more, answers all that was taken, and ends the thread."""
        with self._lock:
            self._closed = True
        self._coming.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_ or self._requests:
            began, tickets = time.monotonic(), self._gathered()
            if None in tickets:
                open_, tickets = False, [ticket for ticket in tickets if ticket is not None]
            try:
                if tickets:
                    self._answer(self._seen(np.array(tickets)))
                # While more is coming, what came just now may share its bucket.
                now = began if self._coming.qsize() else time.monotonic()
                self._answer(self._queues.flush(now - (self._max_wait if open_ else 0.0)))
            except Exception as error:  # a defect: whoever waits is told, and the rest goes on
                self._fail(error)

    def _gathered(self) -> list[int | None]:
        """The tickets that have come, a batch at most; waits for one while nothing is due."""
        oldest = self._queues.oldest()
        wait = None if oldest is None else max(0.0, oldest + self._max_wait - time.monotonic())
        found: list[int | None] = []
        try:
            found.append(self._coming.get(timeout=wait))
            while len(found) < self._engine.batch_size:
                found.append(self._coming.get_nowait())
        except queue.Empty:
            pass
        return found

    def _seen(self, tickets: np.ndarray) -> Iterator[Answers]:
        """Sends images where they go first."""
        requests = [self._requests[ticket] for ticket in tickets.tolist()]
        batch = self._engine.upload(np.stack([request.image for request in requests]))
        first = np.array([
            request.policy.options[0] if isinstance(request.policy, Cascade) else DONE
            for request in requests
        ])
        if not (routed := first == DONE).any():
            return self._queues.put(batch, first, tickets)
        scores, own = self._engine.predict(batch)
        scores = np.asarray(scores)[: len(requests)]
        for at in np.flatnonzero(routed):
            request = requests[at]
            request.scores = scores[at]
            charged = self._engine.costs.charged
            first[at] = routing.choose_at(scores[at : at + 1], charged, request.policy)[0]
        # Of a cascade the predictor's answer may not be the last.
        return self._queues.put(batch, first, tickets, own if routed.all() else None)

    def _onward(self, answers: Answers) -> np.ndarray:
        """Where images go on to: those of cascades, where there is doubt."""
        found = np.full(len(answers.tickets), DONE)
        for row, ticket in enumerate(answers.tickets.tolist()):
            policy = self._requests[ticket].policy
            if isinstance(policy, Cascade) and policy.doubts(answers.log_p[row : row + 1])[0]:
                found[row] = policy.after(answers.option)
        return found

    def _answer(self, found: Iterator[Answers]) -> None:
        for tickets, option, log_p in found:
            for ticket, row in zip(tickets.tolist(), log_p, strict=True):
                request = self._taken(ticket)
                answer = self._wording.answer(
                    request.name, option, row, request.scores, request.policy
                )
                if request.answer.set_running_or_notify_cancel():
                    request.answer.set_result(answer)

    def _taken(self, ticket: int) -> Request:
        with self._lock:
            return self._requests.pop(ticket)

    def _fail(self, error: Exception) -> None:
        self._queues = Queues(self._engine, self._onward)
        with self._lock:
            failed, self._requests = self._requests, {}
        for request in failed.values():
            answer = Answer.failed(request.name, f"the networks failed: {first_line(error)}")
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_result(answer)
