"""The table of answers, from one pass over images that are numbered by their pixels."""

import types

import jax
import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.evaluation import table as tables
from drnet_jax.evaluation.table import Sample, Table, rank, tabulate
from tests.tiny import COSTS, numbered


def table_of(scores, rank, confidence, fused_rank):
    """A table of images 0, 1, ... whose labels and answers do not matter."""
    count = len(scores)
    return Table(
        index=np.arange(count), label=np.zeros(count, int), needed_scale=np.zeros(count),
        scores=scores, answer=np.zeros(scores.shape, np.int32), rank=rank, confidence=confidence,
        fused_rank=fused_rank,
    )


def log_p(*rows):
    return np.log(np.array(rows, np.float32))


def test_ranks_confidences_and_fusing_by_hand():
    first = log_p([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    second = log_p([0.2, 0.7, 0.1], [0.4, 0.4, 0.2])
    np.testing.assert_array_equal(rank(first, np.array([1, 2])), [1, 0])
    # A tie counts against the label, and nothing is right among what is no number.
    np.testing.assert_array_equal(rank(second, np.array([1, 0])), [0, 1])
    np.testing.assert_array_equal(rank(np.full((1, 3), np.nan), np.array([0])), [2])
    np.testing.assert_allclose(np.exp(routing.confidence(first)), [0.5, 0.8], rtol=1e-6)
    product = np.sqrt([[0.1, 0.21, 0.02], [0.04, 0.04, 0.16]])
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(routing.fuse(first, second)), expected, rtol=1e-5)


def test_rows_by_hand():
    at = [log_p([0.2, 0.7, 0.1], [0.4, 0.4, 0.2]), log_p([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])]
    batch = {"index": np.array([7, 3]), "label": np.array([1, 2])}
    found = tables.rows(np.zeros((2, 2), np.float32), at, batch)
    np.testing.assert_array_equal(found["answer"], [[1, 0], [0, 2]])
    np.testing.assert_array_equal(found["rank"], [[0, 1], [2, 0]])
    np.testing.assert_allclose(np.exp(found["confidence"]), [[0.7, 0.5], [0.4, 0.8]], rtol=1e-6)
    # Only the larger after the smaller: both labels win, fused.
    np.testing.assert_array_equal(found["fused_rank"], [[[-1, -1], [0, -1]], [[-1, -1], [0, -1]]])
    assert not found["needed_scale"].any()


class Counting:
    """An engine of two classes, surer of the first the higher an image's number."""

    batch_size, costs = 3, COSTS

    drnet = types.SimpleNamespace(resolutions=COSTS.resolutions)

    def __init__(self):
        self.uploaded = []

    def upload(self, images):
        self.uploaded += images[:, 0, 0, 0].tolist()
        return np.pad(images, ((0, self.batch_size - len(images)), *[(0, 0)] * 3))

    def empty(self):
        return self.upload(numbered())

    def score(self, batch):
        return batch[:, 0, 0, :3].astype(np.float32)

    def classify(self, index, batch):
        logits = np.stack([batch[:, 0, 0, 0] + index, np.full(self.batch_size, 4.5)], axis=1)
        return np.asarray(jax.nn.log_softmax(logits))


def test_every_image_is_uploaded_once_and_padding_never_counts():
    engine = Counting()
    batches = [
        {"image": numbered(4, 1, 5), "label": np.zeros(3, int), "index": np.array([4, 1, 5]),
         "mask": np.array([True, True, True])},
        {"image": numbered(2, 2, 2), "label": np.zeros(3, int), "index": np.array([2, 2, 2]),
         "mask": np.array([True, False, False]), "needed_scale": np.full(3, 0.5)},
    ]
    table = tabulate(engine, batches)
    assert engine.uploaded == [4, 1, 5, 2]
    np.testing.assert_array_equal(table.index, [1, 2, 4, 5])
    np.testing.assert_array_equal(table.scores[:, 0], [1, 2, 4, 5])
    np.testing.assert_array_equal(table.needed_scale, [0, 0.5, 0, 0])
    # Right where number + index of the resolution > 4.5.
    np.testing.assert_array_equal(table.right, [
        [False, False, False], [False, False, False], [False, True, True], [True, True, True]])


def test_a_host_without_images_has_columns_of_the_right_shape():
    table = tabulate(Counting(), [])
    assert table.scores.shape == (0, 3) and table.fused_rank.shape == (0, 3, 3)


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


@pytest.mark.parametrize("lengths", [(4, 2), (0, 3)])
def test_rows_of_all_hosts_by_index(monkeypatch, lengths):
    """The hosts' rows, of ragged lengths, through a stand-in for the collective."""
    index = np.random.default_rng(0).permutation(sum(lengths))
    hosts = [
        {"index": rows, "values": np.stack([rows, 10 * rows], axis=1).astype(np.float32)}
        for rows in np.split(index, [lengths[0]])
    ]
    most = max(lengths)

    def allgather(given):
        if isinstance(given, np.ndarray):
            return np.array(lengths)
        assert all(len(values) == most for values in given.values())
        return {name: np.stack([np.resize(host[name], (most, *host[name].shape[1:]))
                                if len(host[name]) else given[name] * 0
                                for host in hosts]) for name in given}

    monkeypatch.setattr(tables.jax, "process_count", lambda: 2)
    monkeypatch.setattr(tables.multihost_utils, "process_allgather", allgather)
    for host in hosts:
        table = tables.from_all_hosts(host)
        np.testing.assert_array_equal(table["index"], np.arange(sum(lengths)))
        np.testing.assert_array_equal(table["values"][:, 1], 10 * np.arange(sum(lengths)))
