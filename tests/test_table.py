"""The table of answers, from one pass over images that are numbered by their pixels."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from drnet_jax.drnet import DRNet
from drnet_jax.evaluation import table as tables
from drnet_jax.evaluation.table import Sample, Table, rank, tabulate
from tests.tiny import COSTS, numbered


def table_of(scores, rank, margin, **columns):
    """A table of images 0, 1, ... whose other columns do not matter unless they are given."""
    count, some = len(scores), np.zeros(scores.shape)
    return Table(**{
        "index": np.arange(count), "label": np.zeros(count, int), "needed_scale": np.zeros(count),
        "scores": scores, "answer": some.astype(np.int32), "rank": rank, "probability": some,
        "margin": margin, "trust": some,
    } | columns)


def drnet_of(costs):
    """The options of a model, without its networks; the predictor sees 8 pixels."""
    return DRNet(None, None, costs.resolutions, (), 8, costs.classifies, None)


def log_p(*rows):
    return np.log(np.array(rows, np.float32))


def test_ranks_by_hand():
    first = log_p([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    second = log_p([0.2, 0.7, 0.1], [0.4, 0.4, 0.2])
    np.testing.assert_array_equal(rank(first, np.array([1, 2])), [1, 0])
    # A tie counts against the label, and nothing is right among what is no number.
    np.testing.assert_array_equal(rank(second, np.array([1, 0])), [0, 1])
    np.testing.assert_array_equal(rank(np.full((1, 3), np.nan), np.array([0])), [2])


def test_rows_by_hand():
    base, low = log_p([0.2, 0.7, 0.1], [0.4, 0.4, 0.2]), log_p([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    batch = {"index": np.array([7, 3]), "label": np.array([1, 2])}
    found = tables.rows(np.zeros((2, 2), np.float32), [base, low], batch)
    np.testing.assert_array_equal(found["answer"], [[1, 0], [0, 2]])
    np.testing.assert_array_equal(found["rank"], [[0, 1], [2, 0]])
    np.testing.assert_allclose(found["probability"], [[0.7, 0.5], [0.4, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(found["margin"], [[0.5, 0.2], [0, 0.7]], atol=1e-6)
    # What the base thinks of its own answer, and of the other's.
    np.testing.assert_allclose(found["trust"], [[0.7, 0.2], [0.4, 0.2]], rtol=1e-6)
    assert not found["needed_scale"].any()


def test_how_sure_an_answer_is_goes_by_the_rule():
    found = table_of(np.zeros((1, 2)), np.zeros((1, 2)), np.array([[0.1, 0.2]]),
                     probability=np.array([[0.3, 0.4]]))
    assert found.sureness("margin").tolist() == [[0.1, 0.2]]
    assert found.sureness("probability").tolist() == [[0.3, 0.4]]


class Counting:
    """An engine of two classes, surer of the first the higher an image's number.

    The number of an image is that of its first pixel.
    """

    batch_size, costs = 3, COSTS

    def __init__(self, classifies):
        self.uploaded = []
        self.drnet = drnet_of(dataclasses.replace(COSTS, classifies=classifies))

    def upload(self, images):
        self.uploaded += images[:, 0, 0, 0].tolist()
        return np.pad(images, ((0, self.batch_size - len(images)), *[(0, 0)] * 3))

    def empty(self):
        return np.zeros((self.batch_size, *numbered(0).shape[1:]), np.uint8)

    def predict(self, batch):
        scores = np.repeat(batch[:, 0, 0, :1].astype(np.float32), self.drnet.options, axis=1)
        return scores, self.classify(-2, batch) if self.drnet.classifies else None

    def classify(self, index, batch):
        numbers = batch[:, 0, 0, 0].astype(np.float32)
        logits = np.stack([numbers + index, np.full_like(numbers, 4.5)], axis=1)
        return np.asarray(jax.nn.log_softmax(logits))


def counted():
    """Images 4, 1 and 5, and then 2."""
    return [
        {"image": numbered(4, 1, 5), "label": np.zeros(3, int), "index": np.array([4, 1, 5]),
         "mask": np.array([True, True, True])},
        {"image": numbered(2, 2, 2), "label": np.zeros(3, int), "index": np.array([2, 2, 2]),
         "mask": np.array([True, False, False]), "needed_scale": np.full(3, 0.5)},
    ]


@pytest.mark.parametrize("classifies", [False, True])
def test_every_image_is_uploaded_once_and_padding_never_counts(classifies):
    engine = Counting(classifies)
    table = tabulate(engine, counted())
    assert engine.uploaded == [4, 1, 5, 2]
    np.testing.assert_array_equal(table.index, [1, 2, 4, 5])
    assert table.scores.shape == (4, 3 + classifies)
    np.testing.assert_array_equal(table.scores[:, -1], [1, 2, 4, 5])
    np.testing.assert_array_equal(table.needed_scale, [0, 0.5, 0, 0])
    # Right where number + index of the resolution > 4.5, and the predictor where number - 2 is.
    np.testing.assert_array_equal(table.right[:, :3], [
        [False, False, False], [False, False, False], [False, True, True], [True, True, True]])
    assert not table.right[:, 3:].any()


@pytest.mark.parametrize("classifies", [False, True])
def test_a_host_without_images_has_columns_of_the_right_shape(classifies):
    engine, options = Counting(classifies), 3 + classifies
    found = tabulate(engine, [])
    assert engine.uploaded == []  # what has no images sends none
    some = tabulate(engine, counted())
    for name, values in vars(found).items():
        expected = vars(some)[name]
        assert (values.dtype, values.shape) == (expected.dtype, (0, *expected.shape[1:])), name
    assert found.scores.shape == (0, options)


@pytest.mark.parametrize(("images", "limit", "kept"), [
    (7, 100, [0, 1, 2, 3, 4, 5, 6]), (7, 7, [0, 1, 2, 3, 4, 5, 6]), (7, 4, [0, 2, 4, 6]),
    (7, 3, [0, 3, 6]), (7, 1, [0]), (0, 3, []),
])
def test_a_sample_lies_evenly_over_the_images(images, limit, kept):
    sample = Sample(images, limit)
    batches = [
        {"image": numbered(*part), "index": part, "mask": np.ones(len(part), bool)}
        for part in np.split(np.arange(images), [2, 5])
    ]
    assert list(sample.watch(batches)) == batches
    found = sample.batches(2)
    assert [len(index) for _, index in found] == [2] * (len(kept) // 2) + [1] * (len(kept) % 2)
    assert [n for _, index in found for n in index.tolist()] == kept
    assert [n for pixels, _ in found for n in pixels[:, 0, 0, 0].tolist()] == kept


def hosts_of(lengths):
    """The columns of hosts with so many images, of every kind that a table has, and a matrix."""
    index = np.random.default_rng(0).permutation(sum(lengths)).astype(np.int64)
    return [
        {
            "index": rows, "large": 2**40 + rows, "exact": 0.1 + rows * 1e-12,
            "matrix": np.stack([rows, 10 * rows], axis=1).astype(np.float32),
            "rank": rows.astype(np.int32), "scale": rows / 3, "right": rows % 2 == 0,
        }
        for rows in np.split(index, np.cumsum(lengths)[:-1])
    ]


@pytest.mark.parametrize("lengths", [(4, 2), (0, 3), (3, 0), (3, 3)])
def test_rows_of_all_hosts_by_index(monkeypatch, lengths):
    """Of ragged lengths, and to the last bit; two threads are the hosts."""
    count, hosts = np.arange(sum(lengths)), hosts_of(lengths)
    together, sent = threading.Barrier(2, timeout=10), {}

    def allgather(given):
        sent[threading.current_thread().name] = np.asarray(jax.device_put(given))  # 32 bits of 64
        together.wait()
        found = np.stack([sent[name] for name in sorted(sent)])
        together.wait()
        return found

    monkeypatch.setattr(tables.jax, "process_count", lambda: 2)
    monkeypatch.setattr(tables.multihost_utils, "process_allgather", allgather)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(tables.from_all_hosts, hosts))
    # Neither float32 nor int32 hold these.
    assert len(set((0.1 + count * 1e-12).astype(np.float32))) == 1
    for columns in found:
        expected = {
            "index": count, "large": 2**40 + count, "exact": 0.1 + count * 1e-12,
            "matrix": np.stack([count, 10 * count], axis=1).astype(np.float32),
            "rank": count.astype(np.int32), "scale": count / 3, "right": count % 2 == 0,
        }
        assert list(columns) == list(expected)
        for name, values in expected.items():
            assert columns[name].dtype == values.dtype, name
            np.testing.assert_array_equal(columns[name], values, err_msg=name)
