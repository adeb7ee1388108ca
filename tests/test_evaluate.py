"""Evaluation by hand-made tables: an engine that reads its answers off them."""

import types

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.evaluation import policies
from drnet_jax.evaluation.evaluate import evaluate
from drnet_jax.evaluation.files import by_class, write_confusion, write_predictions
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


class TableEngine:
    """Knows the image from its pixels, and what becomes of it from the tables above."""

    batch_size = 4
    drnet = types.SimpleNamespace(resolutions=COSTS.resolutions)
    costs = COSTS

    def __init__(self):
        self.classified = []  # (number of an image, resolution index)

    def warm_up(self):
        pass

    def upload(self, images):
        # Padding has the number -1.
        numbers = images[:, 0, 0, 0].astype(int)
        return np.pad(numbers, (0, self.batch_size - len(numbers)), constant_values=-1)

    def empty(self):
        return np.full(self.batch_size, -1)

    def append(self, queue, batch, slots):
        queue = queue.copy()
        queue[slots[slots < len(queue)]] = batch[slots < len(queue)]
        return queue

    def score(self, batch):
        return SCORES[batch, : len(self.costs.resolutions)]

    def choose(self, batch, price):
        return routing.choose_at(self.score(batch), self.costs.array, price)

    def classify(self, index, batch):
        self.classified += [(number, index) for number in batch.tolist() if number >= 0]
        return ANSWERS[batch, index]


def batches(with_scale=False):
    """All images once, in no order; the last batch is filled up with copies of its first row."""
    for rows, real in (([4, 1, 5, 0], 4), ([3, 2, 3, 3], 2)):
        rows = np.array(rows)
        pixels = np.broadcast_to(rows.astype(np.uint8).reshape(-1, 1, 1, 1), (4, 16, 16, 3))
        batch = {"image": pixels, "label": LABEL[rows].astype(np.int32),
                 "index": rows.astype(np.int32), "mask": np.arange(4) < real}
        yield batch | ({"needed_scale": SCALE[rows]} if with_scale else {})


def evaluated(budget=0.0, seed=0, engine=None, with_scale=False):
    return evaluate(engine or TableEngine(), batches(with_scale), 6, budget, seed, speed_images=6)


def test_report_by_hand():
    engine = TableEngine()
    found = evaluated(seed=3, engine=engine)
    report, table = found.report, found.table
    np.testing.assert_array_equal(found.routed.choice, ROUTED)
    np.testing.assert_array_equal(table.scores, SCORES)
    np.testing.assert_array_equal(table.right, RANK == 0)
    np.testing.assert_array_equal(table.rank < 5, RANK < 5)
    # The one pass; then three fixed, random, oracle and routed are all really run.
    everywhere = [(number, index) for number in range(6) for index in range(3)]
    assert sorted(engine.classified[:18]) == everywhere
    really_run = set(engine.classified[18:])
    assert really_run == set(everywhere)
    assert report["speed"] == {"images": 6, "differing": 0}
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
        assert list(policy["mix"]) == ["16", "12", "8"]
        values = (policy["top1"], policy["top5"], *policy["mix"].values(), policy["multiply_adds"])
        assert values == pytest.approx((top1 / 6, top5 / 6, *np.array(mix) / 6, cost)), name
        assert policy["images_per_second"] > 0

    random = rows["random"]
    ranks = np.array([RANK[range(6), routing.shuffled(ROUTED, 3 + draw)] for draw in range(5)])
    for key, hits in (("top1", ranks < 1), ("top5", ranks < 5)):
        assert random[key] == pytest.approx(hits.mean())
        assert random[f"{key}_deviation"] == pytest.approx(hits.mean(1).std())
    assert random["top1_deviation"] > 0
    # The routed mix, at the routed cost but for the predictor.
    assert random["mix"] == pytest.approx({"16": 1 / 3, "12": 1 / 3, "8": 1 / 3})
    assert random["multiply_adds"] == pytest.approx(60)


    assert report["budget"] == {"target": 0.0, "price": 0.0, "multiply_adds": pytest.approx(65)}
    router = report["router"]
    assert router["gains"]["top1"]["value"] == pytest.approx(1 / 2)
    assert router["entropy"] == pytest.approx(np.log(3))
    # The first three images need the second or the first resolution, or the smallest.
    assert router["agreement"] == [[0, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_the_cascade_row_is_what_the_table_says():
    found = evaluated()
    row, table, target = found.report["policies"][-1], found.table, 65.0
    fitted = [policies.with_threshold(each, table, COSTS, target)
              for each in policies.cascades(COSTS)]
    results = [policies.cascaded(table, COSTS, cascade) for cascade in fitted]
    picked, expected = policies.cross_fit(results)
    assert row["cascades"] == " / ".join(dict.fromkeys(
        fitted[which].name(COSTS.resolutions) for which in picked))
    assert row["top1"] == pytest.approx(expected.top(1))
    assert row["multiply_adds"] == pytest.approx(expected.mean_cost())
    assert row["multiply_adds"] <= target
    assert row["images_per_second"] > 0


@pytest.mark.parametrize(("target", "price", "cost", "missed"), [
    (60, 0.5, 320 / 6 + 5, "-2.8%"),
    (45.5, 0.75, 45, None),
    (105, -5, 105, None),
])
def test_a_target_by_hand(target, price, cost, missed):
    found = evaluated(target)
    report, budget = found.report, found.report["budget"]
    assert (budget["target"], budget["multiply_adds"]) == (target, pytest.approx(cost))
    if target < 105:
        assert budget["price"] == pytest.approx(price, abs=1e-4)
    else:  # all that is dear enough will do
        assert budget["price"] < 0
    assert (missed in budget["missed"]) if missed else ("missed" not in budget)
    routed, = (policy for policy in report["policies"] if policy["name"] == "routed")
    assert routed["multiply_adds"] == budget["multiply_adds"]
    np.testing.assert_array_equal(
        found.routed.choice, routing.choose_at(SCORES, COSTS.array, budget["price"]))


def test_a_single_resolution_has_no_cascade():
    class Single(TableEngine):
        drnet = types.SimpleNamespace(resolutions=(16,))
        costs = Costs((16,), (100,), 5, Parameters(0, 0, 0))

    report = evaluated(engine=Single()).report
    names = [policy["name"] for policy in report["policies"]]
    assert names == ["fixed 16", "routed", "random", "oracle"]
    assert report["router"]["gains"]["of_oracle"]["value"] == 0


def test_share_sent_at_or_above_the_needed_scale_by_hand():
    found = evaluated(with_scale=True)
    np.testing.assert_array_equal(found.table.needed_scale, SCALE)
    assert found.report["at_or_above_needed_scale"] == pytest.approx(4 / 6)


# Two classes: 0 to 3, and the rest; the last has a name that no file should be called.
NAMES = [f"class {number}" for number in range(21)] + ["$x^2$\udcff"]
SOURCE = types.SimpleNamespace(key=lambda index: f"folder/{index}.png")


def test_predictions_image_by_image(tmp_path):
    found = evaluated()
    write_predictions(tmp_path / "p.csv", found.table, found.routed, COSTS, SOURCE, NAMES)
    lines = (tmp_path / "p.csv").read_text(errors="surrogateescape").splitlines()
    assert lines[0] == "filename,label,prediction,prob,resolution,multiply_adds"
    assert len(lines) == 7
    # The fourth image: sent to 12 px, where its label, 7, comes second to 17.
    name, label, prediction, prob, resolution, cost = lines[4].split(",")
    assert (name, label, prediction) == ("folder/3.png", "class 7", "class 17")
    assert float(prob) == pytest.approx(np.exp(ANSWERS[3, 1].max()), rel=1e-5)
    assert (resolution, cost) == ("12", "65")


def test_confusion_and_figures_by_class(tmp_path):
    found = evaluated()
    write_confusion(tmp_path / "c.csv", found.table, found.routed, NAMES)
    rows = [line.split(",") for line in
            (tmp_path / "c.csv").read_text(errors="surrogateescape").splitlines()]
    assert rows[0][-1] == NAMES[-1] == rows[-1][0]
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert counts.sum() == 6
    assert (counts[7, 7], counts[7, 17], counts[3, 3]) == (1, 1, 1)
    classes = by_class(found.table, found.routed, COSTS, NAMES)
    assert list(classes) == ["class 0", "class 1", "class 3", "class 5", "class 7"]
    assert classes["class 7"] == {
        "images": 2, "top1": 0.5, "multiply_adds": 65.0, "mix": {"16": 0.0, "12": 1.0, "8": 0.0}}
