"""Evaluation by hand-made tables: a server that reads its answers off them."""

import types

import numpy as np
import pytest

from drnet_jax import evaluate, routing
from drnet_jax.cost import Costs, Parameters

# Where the label of image i comes among the predictions at each resolution; 9: not among the five.
#                16 12  8
RANK = np.array([[0, 0, 0],
                 [0, 0, 3],
                 [0, 9, 0],
                 [0, 1, 9],
                 [4, 9, 9],
                 [9, 9, 9]])
LABEL = np.array([3, 7, 0, 7, 1, 5])
ROUTED = np.array([0, 1, 2, 1, 0, 2])  # ranks 0, 0, 0, 1, 4, 9
COSTS = Costs((16, 12, 8), (100, 60, 20), 5, Parameters(0, 0, 0))
SCALE = np.array([0.5, 0.75, 0.5, 1.0, 1.0, 1.0])  # ROUTED sends the fourth and the last below it


def top_five(label, rank):
    wrong = [label + 10 + i for i in range(5)]
    return [*wrong[:rank], label, *wrong[rank:]][:5]


class TableServer:
    """Knows the image from its pixels, and what becomes of it from the tables above."""

    batch_size = 4
    drnet = types.SimpleNamespace(resolutions=COSTS.resolutions)

    def __init__(self):
        self.seen = []

    def warm_up(self):
        pass

    def choose(self, images):
        return ROUTED[images[:, 0, 0, 0]]

    def classify(self, index, images):
        numbers = images[:, 0, 0, 0].tolist()
        self.seen += [(number, index) for number in numbers]
        return np.array([top_five(LABEL[n], RANK[n, index]) for n in numbers], np.int32)


def batches(with_scale=False):
    """All images once, in no order; the last batch is filled up with copies of its first row."""
    for rows, real in (([4, 1, 5, 0], 4), ([3, 2, 3, 3], 2)):
        rows = np.array(rows)
        pixels = np.broadcast_to(rows.astype(np.uint8).reshape(-1, 1, 1, 1), (4, 16, 16, 3))
        batch = {"image": pixels, "label": LABEL[rows].astype(np.int32),
                 "index": rows.astype(np.int32), "mask": np.arange(4) < real}
        yield batch | ({"smallest_scale": SCALE[rows]} if with_scale else {})


@pytest.mark.parametrize(
    ("router", "choice"),
    [
        (evaluate.fixed(1), np.ones(6, int)),
        (evaluate.routed(TableServer()), ROUTED),
        (evaluate.given(np.array([2, 2, 1, 1, 0, 0])), np.array([2, 2, 1, 1, 0, 0])),
    ],
    ids=["fixed", "routed", "given"],
)
def test_each_image_is_run_exactly_once_where_it_is_sent(router, choice):
    server = TableServer()
    outcome = evaluate.run(server, batches(), router)
    assert sorted(server.seen) == list(enumerate(choice))
    np.testing.assert_array_equal(outcome.index, range(6))
    np.testing.assert_array_equal(outcome.label, LABEL)
    np.testing.assert_array_equal(outcome.choice, choice)
    np.testing.assert_array_equal(
        outcome.top, [top_five(LABEL[i], RANK[i, choice[i]]) for i in range(6)])
    assert not outcome.smallest_scale.any()
    assert outcome.images_per_second > 0


def outcome_of(choice):
    return evaluate.run(TableServer(), batches(), evaluate.given(np.asarray(choice)))


@pytest.mark.parametrize(
    ("k", "hits"),
    [(1, [1, 1, 1, 0, 0, 0]), (2, [1, 1, 1, 1, 0, 0]), (4, [1, 1, 1, 1, 0, 0]),
     (5, [1, 1, 1, 1, 1, 0])],
)
def test_hits_by_hand(k, hits):
    np.testing.assert_array_equal(outcome_of(ROUTED).hits(k), np.array(hits, bool))


def test_mix_by_hand():
    np.testing.assert_allclose(outcome_of(ROUTED).mix(3), [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(outcome_of([1, 1, 1, 0, 1, 1]).mix(3), [1 / 6, 5 / 6, 0])


@pytest.mark.parametrize(
    ("costs", "choice"),
    [
        ([100, 60, 20], [2, 1, 2, 0, 2, 2]),
        ([20, 60, 100], [0, 0, 0, 0, 0, 0]),  # by cost, and not by position
        ([60, 20, 100], [1, 1, 0, 0, 1, 1]),
    ],
)
def test_oracle_by_hand(costs, choice):
    at = [outcome_of([index] * 6) for index in range(3)]
    np.testing.assert_array_equal(evaluate.oracle_choice(at, np.array(costs, float)), choice)


def test_report_by_hand():
    server = TableServer()
    report, by_predictor = evaluate.evaluate(server, batches, COSTS, seed=3)
    np.testing.assert_array_equal(by_predictor.choice, ROUTED)
    assert len(server.seen) == 6 * 6  # three fixed, routed, random, oracle: all of them really run
    assert report["images"] == 6 and report["batch_size"] == 4
    assert report["resolutions"] == [16, 12, 8]
    assert "at_or_above_smallest_scale" not in report

    policies = {policy["name"]: policy for policy in report["policies"]}
    expected = {  # of six: top-1, top-5, and the mix; multiply-adds of one image
        "fixed 16": (4, 5, [6, 0, 0], 100),
        "fixed 12": (2, 3, [0, 6, 0], 60),
        "fixed 8": (2, 3, [0, 0, 6], 20),
        "routed": (3, 5, [2, 2, 2], 60 + 5),  # and the predictor
        "oracle": (4, 4, [1, 1, 4], 40),
    }
    assert list(policies) == ["fixed 16", "fixed 12", "fixed 8", "routed", "random", "oracle"]
    for name, (top1, top5, mix, cost) in expected.items():
        policy = policies[name]
        found = (policy["top1"], policy["top5"], *policy["mix"], policy["multiply_adds"])
        assert found == pytest.approx((top1 / 6, top5 / 6, *np.array(mix) / 6, cost)), name
        assert policy["images_per_second"] > 0

    random = policies["random"]
    ranks = np.array([RANK[range(6), routing.shuffled(ROUTED, 3 + draw)] for draw in range(5)])
    for key, hits in (("top1", ranks < 1), ("top5", ranks < 5)):
        assert random[key] == pytest.approx(hits.mean())
        assert random[f"{key}_deviation"] == pytest.approx(hits.mean(1).std())
    assert random["top1_deviation"] > 0
    # The routed mix, at the routed cost but for the predictor.
    assert random["mix"] == pytest.approx([1 / 3] * 3)
    assert random["multiply_adds"] == pytest.approx(60)


def test_share_sent_at_or_above_the_smallest_scale_by_hand():
    report, by_predictor = evaluate.evaluate(
        TableServer(), lambda: batches(with_scale=True), COSTS, seed=0)
    np.testing.assert_array_equal(by_predictor.smallest_scale, SCALE)
    assert report["at_or_above_smallest_scale"] == pytest.approx(4 / 6)
