"""The batcher, on an engine whose networks answer by the number in an image's first pixel."""

import concurrent.futures
import threading

import numpy as np
import pytest

from drnet_jax.cost import Costs, Parameters
from drnet_jax.inference.predict import Wording
from drnet_jax.routing import Cascade
from drnet_jax.serve.batcher import Batcher, Closed, Full
from tests.test_table import drnet_of

COSTS = Costs((4, 2), (100, 20), 5, Parameters(0, 0, 0), classifies=True)
CLASSES = tuple(map(str, range(8)))


class Engine:
    """Option n % 3 has the highest score of number n; each option answers class n % 8.

    By the smallest resolution an answer is sure if the number is even. Padding is 255.
    """

    batch_size = 4

    def __init__(self):
        self.costs, self.drnet = COSTS, drnet_of(COSTS)
        self.calls, self.held = [], threading.Event()
        self.held.set()

    def upload(self, images):
        return images[:, 0, 0, 0]

    def empty(self, size):
        return np.full(size, 255, np.uint8)

    def append(self, queue, batch, slots):
        taken = slots < len(queue)
        queue[slots[taken]] = batch[taken]
        return queue

    def cut(self, batch, images):
        return batch[:images]

    def predict(self, batch):
        self.calls.append(("predictor", batch.tolist()))
        self.held.wait(10)
        scores = np.eye(3, dtype=np.float32)[batch % 3]
        return scores, self._answers(batch, batch % 2 == 0)

    def classify(self, index, batch):
        self.calls.append((index, batch.tolist()))
        if 99 in batch:
            raise RuntimeError("out of memory")
        return self._answers(batch, (batch % 2 == 0) | (index == 0))

    def _answers(self, batch, sure):
        p = np.full((len(batch), 8), 0.01)
        p[np.arange(len(batch)), batch % 8] = np.where(sure, 0.9, 0.02)
        return np.log(p / p.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def batcher(engine):
    found = Batcher(Wording(engine, CLASSES), limit=64, max_wait=0.0)
    yield found
    engine.held.set()
    found.close()


def image(number):
    return np.full((4, 4, 3), number, np.uint8)


def seen(answer):
    return answer.image, answer.label, "predictor" if answer.network == "predictor" else (
        answer.resolution)


def of_number(number):
    return f"i{number}", str(number % 8), (4, 2, "predictor")[number % 3]


def test_every_image_has_its_own_answer_from_many_threads(batcher):
    def ask(number):
        return seen(batcher.submit(image(number), f"i{number}", 0.0).result(10))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(60)))
    assert found == [of_number(number) for number in range(60)]
    assert batcher.waiting == 0


def test_what_comes_while_the_networks_work_is_one_batch(batcher, engine):
    engine.held.clear()
    first = batcher.submit(image(1), 1, 0.0)
    while not engine.calls:
        pass
    others = [batcher.submit(image(number), number, 0.0) for number in (4, 7, 10, 13)]
    assert batcher.waiting == 5
    engine.held.set()
    concurrent.futures.wait([first, *others], 10)
    sizes = [len(numbers) for network, numbers in engine.calls if network == "predictor"]
    assert sizes == [1, 4]
    # The first shares its bucket with those who came meanwhile.
    assert [call for call in engine.calls if call[0] == 1] == [(1, [1, 4, 7, 10]), (1, [13])]


def test_an_image_waits_for_its_bucket_as_long_as_it_may(engine):
    batcher = Batcher(Wording(engine, CLASSES), limit=64, max_wait=0.05)
    answers = [batcher.submit(image(number), number, 0.0) for number in (0, 3)]
    assert [answer.result(10).resolution for answer in answers] == [4, 4]
    buckets = [numbers for network, numbers in engine.calls if network == 0]
    assert buckets == [[0, 3]]  # that is not full, and was run together
    # A full one does not wait.
    slow = Batcher(Wording(engine, CLASSES), limit=64, max_wait=60.0)
    full = [slow.submit(image(number), number, 0.0) for number in (0, 3, 6, 9)]
    assert all(answer.result(10).resolution == 4 for answer in full)
    left = slow.submit(image(12), 12, 0.0)
    slow.close()  # nobody waits any longer
    batcher.close()
    assert left.result(0).resolution == 4


def test_each_image_by_its_own_policy(batcher):
    cheap, dear = 1e3, -1e3  # prices
    answers = [batcher.submit(image(5), name, policy) for name, policy in (
        ("cheap", cheap), ("dear", dear), ("free", 0.0))]
    assert [seen(answer.result(10))[2] for answer in answers] == ["predictor", 4, "predictor"]
    assert answers[0].result().options == {"4": 0, "2": 0, "predictor": 1}


def test_cascades_go_on_where_there_is_doubt(batcher, engine):
    chain = Cascade((2, 1, 0), "margin", 0.5)
    answers = [batcher.submit(image(number), number, chain).result(10) for number in (2, 3)]
    assert [seen(answer)[2] for answer in answers] == ["predictor", 4]
    assert [answer.multiply_adds for answer in answers] == [5, 125]
    assert [network for network, numbers in engine.calls if 3 in numbers] == ["predictor", 1, 0]
    assert answers[0].options is None


def test_more_than_may_wait_are_refused(engine):
    batcher = Batcher(Wording(engine, CLASSES), limit=2, max_wait=0.0)
    engine.held.clear()
    taken = [batcher.submit(image(number), number, 0.0) for number in (0, 1)]
    with pytest.raises(Full):
        batcher.submit(image(2), 2, 0.0)
    engine.held.set()
    concurrent.futures.wait(taken, 10)
    assert batcher.submit(image(2), 2, 0.0).result(10).label == "2"
    batcher.close()
    with pytest.raises(Closed):
        batcher.submit(image(2), 2, 0.0)


def test_what_was_taken_is_answered_before_the_end(engine):
    batcher = Batcher(Wording(engine, CLASSES), limit=64, max_wait=60.0)
    engine.held.clear()
    taken = [batcher.submit(image(number), f"i{number}", 0.0) for number in range(30)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    engine.held.set()
    closing.join(10)
    assert [seen(answer.result(0)) for answer in taken] == [of_number(n) for n in range(30)]


def test_a_failure_is_told_and_the_next_are_answered(batcher):
    failed = batcher.submit(image(99), "bad", -1e3).result(10)
    assert (failed.label, failed.error) == (None, "the networks failed: out of memory")
    assert seen(batcher.submit(image(6), "i6", 0.0).result(10)) == of_number(6)


def test_an_image_that_nobody_waits_for_any_more_does_no_harm(batcher, engine):
    engine.held.clear()
    gone = batcher.submit(image(1), 1, 0.0)
    gone.cancel()
    engine.held.set()
    assert seen(batcher.submit(image(6), "i6", 0.0).result(10)) == of_number(6)
    batcher.close()  # which waits for the other, whose bucket may be run later
    assert batcher.waiting == 0
