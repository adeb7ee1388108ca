"""Evaluation by hand-made tables: a engine that reads its answers off them."""

import types

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.evaluation import evaluate, outcomes, policies
from tests.tiny import COSTS

# Where the label of image i comes among the predictions at each resolution; 9: behind the five.
#                16 12  8
RANK = np.array([[0, 0, 0],
                 [0, 0, 3],
                 [0, 9, 0],
                 [0, 1, 9],
                 [4, 9, 9],
                 [9, 9, 9]])
LABEL = np.array([3, 7, 0, 7, 1, 5])
ROUTED = np.array([0, 1, 2, 1, 0, 2])  # ranks 0, 0, 0, 1, 4, 9
# At a price of 0.5 the fourth image moves to the smallest resolution, at 0.75 the fifth.
SCORES = np.array([[0.9, 0.2, 0.1],
                   [0.5, 0.6, 0.1],
                   [0.1, 0.2, 0.9],
                   [0.5, 0.7, 0.5],
                   [0.8, 0.1, 0.2],
                   [0.0, 0.0, 0.3]], np.float32)
# The more, the surer is the answer of a resolution.
SURE = np.array([[1, 2, 3, 4, 5, 6], [3, 1, 2, 6, 4, 5], [6, 2, 5, 1, 3, 4]]).T
SCALE = np.array([0.5, 0.75, 0.5, 1.0, 1.0, 1.0])  # ROUTED sends the fourth and the last below it


def log_probabilities(label, rank, sure):
    """Of 22 classes, five before the others, and the label at its rank."""
    best = [label + 10 + i for i in range(5)]
    best.insert(rank, label)
    logits = np.zeros(22)
    logits[best[:5]] = 0.1 * sure + np.arange(5, 0, -1)
    return logits - np.log(np.exp(logits).sum())


ANSWERS = np.array([
    [log_probabilities(*each) for each in zip([LABEL[i]] * 3, RANK[i], SURE[i], strict=True)]
    for i in range(6)
], np.float32)


class TableServer:
    """Knows the image from its pixels, and what becomes of it from the tables above."""

    batch_size = 4
    drnet = types.SimpleNamespace(resolutions=COSTS.resolutions)

    def __init__(self):
        self.seen = []

    def warm_up(self):
        pass

    def scores(self, images):
        return SCORES[images[:, 0, 0, 0]]

    def choose(self, images, price):
        return routing.choose_at(self.scores(images), COSTS.array, price)

    def classify(self, index, images):
        numbers = images[:, 0, 0, 0].tolist()
        self.seen += [(number, index) for number in numbers]
        return np.array([ANSWERS[n, index] for n in numbers]).reshape(-1, 22)


def batches(with_scale=False):
    """All images once, in no order; the last batch is filled up with copies of its first row."""
    for rows, real in (([4, 1, 5, 0], 4), ([3, 2, 3, 3], 2)):
        rows = np.array(rows)
        pixels = np.broadcast_to(rows.astype(np.uint8).reshape(-1, 1, 1, 1), (4, 16, 16, 3))
        batch = {"image": pixels, "label": LABEL[rows].astype(np.int32),
                 "index": rows.astype(np.int32), "mask": np.arange(4) < real}
        yield batch | ({"needed_scale": SCALE[rows]} if with_scale else {})


@pytest.mark.parametrize(
    ("router", "choice"),
    [
        (outcomes.fixed(1), np.ones(6, int)),
        (outcomes.routed(TableServer(), 0.0), ROUTED),
        (outcomes.given(np.array([2, 2, 1, 1, 0, 0])), np.array([2, 2, 1, 1, 0, 0])),
    ],
    ids=["fixed", "routed", "given"],
)
def test_each_image_is_run_exactly_once_where_it_is_sent(router, choice):
    engine = TableServer()
    outcome = outcomes.run(engine, batches(), router)
    assert sorted(engine.seen) == list(enumerate(choice))
    np.testing.assert_array_equal(outcome.index, range(6))
    np.testing.assert_array_equal(outcome.label, LABEL)
    np.testing.assert_array_equal(outcome.choice, choice)
    np.testing.assert_array_equal(outcome.log_p, ANSWERS[range(6), choice])
    assert not outcome.needed_scale.any()
    assert outcome.images_per_second > 0


def outcome_of(choice):
    return outcomes.run(TableServer(), batches(), outcomes.given(np.asarray(choice)))


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


def test_report_by_hand():
    engine = TableServer()
    report, by_predictor, table = evaluate.evaluate(engine, batches, COSTS, target=0.0, seed=3)
    np.testing.assert_array_equal(by_predictor.choice, ROUTED)
    np.testing.assert_array_equal(table.scores, SCORES)
    np.testing.assert_array_equal(table.right, RANK == 0)
    # Three fixed, routed, random and oracle are all really run, and so are a cascade's passes.
    assert np.bincount([number for number, _ in engine.seen[:36]]).tolist() == [6] * 6
    assert 6 < len(engine.seen[36:]) < 12
    assert report["images"] == 6 and report["batch_size"] == 4
    assert report["resolutions"] == [16, 12, 8]
    assert "at_or_above_needed_scale" not in report

    rows = {policy["name"]: policy for policy in report["policies"]}
    expected = {  # of six: top-1, top-5, and the mix; multiply-adds of one image
        "fixed 16": (4, 5, [6, 0, 0], 100),
        "fixed 12": (2, 3, [0, 6, 0], 60),
        "fixed 8": (2, 3, [0, 0, 6], 20),
        "routed": (3, 5, [2, 2, 2], 60 + 5),  # and the predictor
        "oracle": (4, 4, [1, 1, 4], 40),
    }
    assert list(rows) == [
        "fixed 16", "fixed 12", "fixed 8", "routed", "random", "oracle", "cascade"]
    for name, (top1, top5, mix, cost) in expected.items():
        policy = rows[name]
        found = (policy["top1"], policy["top5"], *policy["mix"], policy["multiply_adds"])
        assert found == pytest.approx((top1 / 6, top5 / 6, *np.array(mix) / 6, cost)), name
        assert policy["images_per_second"] > 0

    random = rows["random"]
    ranks = np.array([RANK[range(6), routing.shuffled(ROUTED, 3 + draw)] for draw in range(5)])
    for key, hits in (("top1", ranks < 1), ("top5", ranks < 5)):
        assert random[key] == pytest.approx(hits.mean())
        assert random[f"{key}_deviation"] == pytest.approx(hits.mean(1).std())
    assert random["top1_deviation"] > 0
    # The routed mix, at the routed cost but for the predictor.
    assert random["mix"] == pytest.approx([1 / 3] * 3)
    assert random["multiply_adds"] == pytest.approx(60)


    assert report["budget"] == {"target": 0.0, "price": 0.0, "multiply_adds": pytest.approx(65)}
    router = report["router"]
    assert router["gains"]["top1"]["value"] == pytest.approx(1 / 2)
    assert router["entropy"] == pytest.approx(np.log(3))
    # The first three images need the second or the first resolution, or the smallest.
    assert router["agreement"] == [[0, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert np.array(router["choices_by_class"])[[0, 1, 3, 5, 7]].tolist() == [
        [0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 2, 0]]


def test_the_cascade_row_is_what_the_table_says():
    report, _, table = evaluate.evaluate(TableServer(), batches, COSTS, target=0.0, seed=0)
    row, target = report["policies"][-1], 65.0
    fitted = [policies.with_threshold(each, table, COSTS, target)
              for each in policies.cascades(COSTS)]
    results = [policies.cascaded(table, COSTS, cascade) for cascade in fitted]
    picked, expected = policies.cross_fit(results)
    assert row["cascades"] == " / ".join(dict.fromkeys(
        fitted[which].name(COSTS.resolutions) for which in picked))
    assert row["top1"] == pytest.approx(expected.top1())
    assert row["multiply_adds"] == pytest.approx(expected.mean_cost())
    assert row["multiply_adds"] <= target
    assert row["images_per_second"] > 0


@pytest.mark.parametrize(("target", "price", "cost", "missed"), [
    (60, 0.5, 320 / 6 + 5, "-2.8%"),
    (45.5, 0.75, 45, None),
    (105, -5, 105, None),
])
def test_a_target_by_hand(target, price, cost, missed):
    report, by_predictor, _ = evaluate.evaluate(TableServer(), batches, COSTS, target, seed=0)
    budget = report["budget"]
    assert (budget["target"], budget["multiply_adds"]) == (target, pytest.approx(cost))
    if target < 105:
        assert budget["price"] == pytest.approx(price, abs=1e-4)
    else:  # all that is dear enough will do
        assert budget["price"] < 0
    assert (missed in budget["missed"]) if missed else ("missed" not in budget)
    routed, = (policy for policy in report["policies"] if policy["name"] == "routed")
    assert routed["multiply_adds"] == budget["multiply_adds"]
    np.testing.assert_array_equal(
        by_predictor.choice, routing.choose_at(SCORES, COSTS.array, budget["price"]))


def test_a_single_resolution_has_no_cascade():
    class Single(TableServer):
        drnet = types.SimpleNamespace(resolutions=(16,))

        def scores(self, images):
            return super().scores(images)[:, :1]

        def choose(self, images, price):
            return routing.choose_at(self.scores(images), costs.array, price)

    costs = Costs((16,), (100,), 5, Parameters(0, 0, 0))
    report, _, _ = evaluate.evaluate(Single(), batches, costs, target=0.0, seed=0)
    names = [policy["name"] for policy in report["policies"]]
    assert names == ["fixed 16", "routed", "random", "oracle"]
    assert report["router"]["gains"]["of_oracle"]["value"] == 0


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

    monkeypatch.setattr(outcomes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(outcomes.multihost_utils, "process_allgather", allgather)
    for host in hosts:
        table = outcomes._from_all_hosts(host)
        np.testing.assert_array_equal(table["index"], np.arange(sum(lengths)))
        np.testing.assert_array_equal(table["values"][:, 1], 10 * np.arange(sum(lengths)))


def test_share_sent_at_or_above_the_needed_scale_by_hand():
    report, by_predictor, _ = evaluate.evaluate(
        TableServer(), lambda: batches(with_scale=True), COSTS, target=0.0, seed=0)
    np.testing.assert_array_equal(by_predictor.needed_scale, SCALE)
    assert report["at_or_above_needed_scale"] == pytest.approx(4 / 6)
