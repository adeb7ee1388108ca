"""Evaluation by hand-made tables: an engine that reads its answers off them."""

import types

import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.evaluation import intervals, policies, runs
from drnet_jax.evaluation.evaluate import evaluate
from drnet_jax.evaluation.files import by_class, write_confusion, write_predictions
from drnet_jax.inference.queues import route
from tests.test_policies import ANSWERING
from tests.test_table import drnet_of
from tests.tiny import COSTS, tiny_config

# Where the label of image i comes among the predictions at each resolution, and of the predictor;
# 9: behind the five.
#                16 12  8  p
RANK = np.array([[0, 0, 0, 1],
                 [0, 0, 3, 9],
                 [0, 9, 0, 0],
                 [0, 1, 9, 9],
                 [4, 9, 9, 0],
                 [9, 9, 9, 9]])
MIRROR_RANK = np.array([0, 2, 0, 0, 0, 9])  # at 16 px, of the mirror images
LABEL = np.array([3, 7, 0, 7, 1, 5])
ROUTED = np.array([0, 1, 2, 1, 0, 2])  # ranks 0, 0, 0, 1, 4, 9
# At a price of 0.5 the fourth image moves to the smallest resolution, at 0.75 the fifth.
SCORES = np.array([[0.9, 0.2, 0.1, 0.0],
                   [0.5, 0.6, 0.1, 0.0],
                   [0.1, 0.2, 0.9, 0.7],  # a predictor that answers takes it from a price of 1 on
                   [0.5, 0.7, 0.5, 0.0],
                   [0.8, 0.1, 0.2, 0.9],  # and this at any
                   [0.0, 0.0, 0.3, 0.0]], np.float32)
# The more, the surer is the answer of an option.
SURE = np.array([[1, 2, 3, 4, 5, 6], [3, 1, 2, 6, 4, 5], [6, 2, 5, 1, 3, 4], [2, 1, 6, 3, 5, 4]]).T
SCALE = np.array([0.5, 0.75, 0.5, 1.0, 1.0, 1.0])  # ROUTED sends the fourth and the last below it


def log_probabilities(label, rank, sure):
    """Of 22 classes, five before the others, and the label at its rank."""
    best = [label + 10 + i for i in range(5)]
    best.insert(rank, label)
    logits = np.zeros(22)
    logits[best[:5]] = 0.1 * sure + np.arange(5, 0, -1)
    return logits - np.log(np.exp(logits).sum())


ANSWERS = np.array([
    [log_probabilities(*each) for each in zip([LABEL[i]] * 4, RANK[i], SURE[i], strict=True)]
    for i in range(6)
], np.float32)
MIRRORED = np.array([log_probabilities(LABEL[i], MIRROR_RANK[i], 1) for i in range(6)])


class TableEngine:
    """Knows the image from its first pixel, and what becomes of it from the tables above.

    Mirror images have numbers from 10 on.
    """

    batch_size = 4

    def __init__(self, costs=COSTS):
        self.costs, self.drnet = costs, drnet_of(costs)
        self.classified = []  # (number of an image, resolution index)

    def warm_up(self):
        pass

    def upload(self, images):
        # Padding has the number -1.
        numbers = images[:, 0, 0, 0].astype(int)
        return np.pad(numbers, (0, self.batch_size - len(numbers)), constant_values=-1)

    def empty(self, size=batch_size):
        return np.full(size, -1)

    def cut(self, batch, images):
        return batch

    def append(self, queue, batch, slots):
        queue = queue.copy()
        queue[slots[slots < len(queue)]] = batch[slots < len(queue)]
        return queue

    def predict(self, batch):
        own = ANSWERS[batch, -1] if self.drnet.classifies else None
        return SCORES[batch, : self.drnet.options], own

    def choose(self, batch, price):
        scores, own = self.predict(batch)
        return routing.choose_at(scores, self.costs.charged, price), scores, own

    def classify(self, index, batch):
        self.classified += [(number, index) for number in batch.tolist() if number >= 0]
        own = batch % 10 % 6
        return np.where(batch[:, None] < 10, ANSWERS[own, index], MIRRORED[own])


def batches(with_scale=False):
    """All images once, in no order; the last batch is filled up with copies of its first row."""
    for rows, real in (([4, 1, 5, 0], 4), ([3, 2, 3, 3], 2)):
        rows = np.array(rows)
        pixels = np.full((4, 16, 16, 3), 99, np.uint8)  # also where an image is turned round
        pixels[:, 0, 0] = rows[:, None]
        pixels[:, 0, -1] = 10 + rows[:, None]
        batch = {"image": pixels, "label": LABEL[rows].astype(np.int32),
                 "index": rows.astype(np.int32), "mask": np.arange(4) < real}
        yield batch | ({"needed_scale": SCALE[rows]} if with_scale else {})


HELD = [(batch["image"][batch["mask"]], batch["index"][batch["mask"]]) for batch in batches()]


def evaluated(budget=0.0, seed=0, engine=None, with_scale=False, rule="margin", held=6):
    config = tiny_config({"seed": seed, "evaluation.speed_images": held, "evaluation.rule": rule})
    return evaluate(engine or TableEngine(), batches(with_scale), 6, budget, config)


def test_report_by_hand():
    engine = TableEngine()
    found = evaluated(seed=3, engine=engine)
    report, table = found.report, found.table
    np.testing.assert_array_equal(found.routed.choice, ROUTED)
    np.testing.assert_array_equal(table.scores, SCORES[:, :3])
    np.testing.assert_array_equal(table.right, RANK[:, :3] == 0)
    np.testing.assert_array_equal(table.rank < 5, RANK[:, :3] < 5)
    # The one pass; then fixed, random, oracle and routed are really run, and the mirror images.
    everywhere = [(number, index) for number in range(6) for index in range(3)]
    assert sorted(engine.classified[:18]) == everywhere
    really_run = engine.classified[18:]
    mirrored = [(10 + number, 0) for number in range(6)]
    assert sorted(each for each in really_run if each[0] >= 10) == mirrored
    assert set(really_run) == {*everywhere, *mirrored}
    assert report["speed"] == {"images": 6, "differing": 0}
    assert report["images"] == 6 and report["batch_size"] == 4
    assert report["resolutions"] == [16, 12, 8] and report["options"] == ["16", "12", "8"]
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
    assert router["foretold"] == intervals.foretold(table, COSTS) != 0


def test_ceilings_by_hand():
    found = evaluated()
    ceilings = found.report["ceilings"]
    # 16 px is right four times; no other resolution but then, and the mirror image once besides.
    assert ceilings["resolutions"] == pytest.approx(4 / 6)
    assert ceilings["mirror"] == pytest.approx(5 / 6)
    foresight = policies.foresight(found.table, COSTS, 65.0)
    assert ceilings["foresight"] == foresight.top(1) and foresight.mean_cost() <= 65
    # Of the resolutions alone: the predictor's one right answer more does not count.
    ceilings = evaluated(engine=TableEngine(ANSWERING)).report["ceilings"]
    assert ceilings["resolutions"] == pytest.approx(4 / 6)


def test_luck_is_measured_on_the_images_in_memory():
    """Of the batches 4 1 5 0 and 3 2 every other image: 4, 5 and 3."""
    found = evaluated(held=3)
    assert [n for _, index in found.sample for n in index.tolist()] == [4, 5, 3]
    ceilings = found.report["ceilings"]
    # Only the fourth image is right at a resolution, and at 16 px; the fifth when turned round.
    assert (ceilings["resolutions"], ceilings["mirror"]) == pytest.approx((1 / 3, 2 / 3))
    assert ceilings["foresight"] == evaluated().report["ceilings"]["foresight"]
    assert found.report["speed"]["images"] == 3


class Looking(TableEngine):
    """Sees whole images, and keeps those that it classifies at 16 px."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def upload(self, images):
        return np.pad(images, ((0, self.batch_size - len(images)), *[(0, 0)] * 3))

    def empty(self, size):
        return self.upload(np.zeros((0, 2, 3, 3), np.uint8))

    def classify(self, index, batch):
        assert index == 0
        self.seen += list(batch)
        return super().classify(index, batch[:, 0, 0, 0].astype(int))


def test_mirror_images_are_turned_from_left_to_right():
    engine = Looking()
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, :, :, 0] = [[0, 1, 2], [3, 4, 5]]
    image[0, :, :, 2] = 9
    found = runs.run(runs.mirrored(engine, [(image, np.array([5]))]))
    np.testing.assert_array_equal(engine.seen[0][:, :, 0], [[2, 1, 0], [5, 4, 3]])
    assert (engine.seen[0][:, :, 1] == 0).all() and (engine.seen[0][:, :, 2] == 9).all()
    assert found.index.tolist() == [5] and found.choice.tolist() == [0]
    # By what was seen: the third image of the table.
    assert found.answer.tolist() == [ANSWERS[2, 0].argmax()]


def test_a_predictor_that_answers_by_hand():
    engine = TableEngine(ANSWERING)
    found = evaluated(seed=3, engine=engine)
    report, table = found.report, found.table
    np.testing.assert_array_equal(found.routed.choice, [0, 1, 2, 1, 3, 2])
    np.testing.assert_array_equal(table.right, RANK == 0)
    assert report["speed"] == {"images": 6, "differing": 0}
    assert report["resolutions"] == [16, 12, 8]
    assert report["options"] == ["16", "12", "8", "predictor"]
    rows = {policy["name"]: policy for policy in report["policies"]}
    expected = {  # of six: top-1, top-5, and the mix; multiply-adds of one image
        "fixed 16": (4, 5, [6, 0, 0, 0], 100),
        "fixed predictor": (2, 3, [0, 0, 0, 6], 5),
        "routed": (4, 5, [1, 2, 2, 1], (100 + 120 + 40 + 0) / 6 + 5),
        # The cheapest that is right: 8, 12 px, the predictor, 16 px, the predictor twice.
        "oracle": (5, 5, [1, 1, 1, 3], (100 + 60 + 20 + 15) / 6),
        # Pays for the predictor only where that answers.
        "random": (None, None, [1, 2, 2, 1], (100 + 120 + 40 + 5) / 6),
    }
    assert list(rows) == ["fixed 16", "fixed 12", "fixed 8", "fixed predictor", "routed", "random",
                          "oracle", "cascade"]
    for name, (top1, top5, mix, cost) in expected.items():
        policy = rows[name]
        assert list(policy["mix"].items()) == [
            (option, pytest.approx(share / 6))
            for option, share in zip(("16", "12", "8", "predictor"), mix, strict=True)], name
        assert policy["multiply_adds"] == pytest.approx(cost), name
        if top1 is not None:
            assert (policy["top1"], policy["top5"]) == pytest.approx((top1 / 6, top5 / 6)), name
    # Images whose cheapest right option is the row's, by where they were sent.
    assert report["router"]["agreement"] == [
        [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert report["router"]["gains"]["over_resolution_mix"]["value"] != (
        report["router"]["gains"]["over_best_mix"]["value"])


def test_what_the_predictor_answers_is_not_classified():
    """Of what is really run: the fifth image, by routing."""
    engine = TableEngine(ANSWERING)
    found = runs.run(route(engine, HELD, 0.0))
    assert (4, 0) not in engine.classified and len(engine.classified) >= 5
    assert not {number for number, _ in engine.classified} & {4}
    np.testing.assert_array_equal(found.choice, [0, 1, 2, 1, 3, 2])


def test_down_to_the_predictor_alone():
    report = evaluated(5.0, engine=TableEngine(ANSWERING), with_scale=True).report
    routed, = (policy for policy in report["policies"] if policy["name"] == "routed")
    assert routed["mix"] == {"16": 0, "12": 0, "8": 0, "predictor": 1}
    assert report["budget"]["multiply_adds"] == routed["multiply_adds"] == 5
    assert report["router"]["entropy"] == 0 and "missed" not in report["budget"]
    assert report["router"]["gains"]["over_best_mix"]["value"] == 0
    # Nothing was sent to any resolution.
    assert "at_or_above_needed_scale" not in report


@pytest.mark.parametrize("costs", [COSTS, ANSWERING], ids=["resolutions", "options"])
@pytest.mark.parametrize("rule", ["margin", "probability"])
def test_the_cascade_row_is_what_the_table_says(costs, rule):
    found = evaluated(engine=TableEngine(costs), rule=rule)
    row, table, target = found.report["policies"][-1], found.table, found.routed.mean_cost()
    fitted = [policies.with_threshold(each, table, costs, target)
              for each in policies.cascades(costs, rule)]
    fitted = [each for each in fitted if each]
    results = [policies.cascaded(table, costs, cascade) for cascade in fitted]
    picked, expected = policies.cross_fit(results)
    assert row["cascades"] == " / ".join(dict.fromkeys(
        fitted[which].name(costs.options) for which in picked))
    assert row["threshold"] == [
        pytest.approx(np.clip(fitted[which].threshold, 0, 1)) for which in picked]
    assert row["top1"] == pytest.approx(expected.top(1))
    assert list(row["mix"].values()) == pytest.approx(expected.mix(len(costs.options)))
    assert row["multiply_adds"] == pytest.approx(expected.mean_cost())
    assert row["images_per_second"] > 0


@pytest.mark.parametrize(("target", "price", "cost", "missed"), [
    (60, 0.5, 320 / 6 + 5, "58 multiply-adds where 60 were"),
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
        found.routed.choice, routing.choose_at(SCORES[:, :3], COSTS.charged, budget["price"]))


def test_a_single_resolution_has_no_cascade():
    single = TableEngine(Costs((16,), (100,), 5, Parameters(0, 0, 0)))
    report = evaluated(engine=single).report
    names = [policy["name"] for policy in report["policies"]]
    assert names == ["fixed 16", "routed", "random", "oracle"]
    assert report["router"]["gains"]["of_oracle"]["value"] == 0


def test_share_sent_at_or_above_the_needed_scale_by_hand():
    found = evaluated(with_scale=True)
    np.testing.assert_array_equal(found.table.needed_scale, SCALE)
    assert found.report["at_or_above_needed_scale"] == pytest.approx(4 / 6)
    # The predictor answers one of those that are sent as high as they need.
    found = evaluated(with_scale=True, engine=TableEngine(ANSWERING))
    assert found.report["at_or_above_needed_scale"] == pytest.approx(3 / 5)


# Two classes: 0 to 3, and the rest; the last has a name that no file should be called.
NAMES = [f"class {number}" for number in range(21)] + ["$x^2$\udcff"]
SOURCE = types.SimpleNamespace(key=lambda index: f"folder/{index}.png")


def test_predictions_image_by_image(tmp_path):
    engine = TableEngine(ANSWERING)
    found = evaluated(engine=engine)
    write_predictions(tmp_path / "p.csv", found.table, found.routed, engine.drnet, SOURCE, NAMES)
    lines = (tmp_path / "p.csv").read_text(errors="surrogateescape").splitlines()
    assert lines[0] == "filename,label,prediction,prob,network,resolution,multiply_adds"
    assert len(lines) == 7
    # The fourth image: sent to 12 px, where its label, 7, comes second to 17.
    name, label, prediction, prob, *rest = lines[4].split(",")
    assert (name, label, prediction) == ("folder/3.png", "class 7", "class 17")
    assert float(prob) == pytest.approx(np.exp(ANSWERS[3, 1].max()), rel=1e-5)
    assert rest == ["classifier", "12", "65"]
    # The fifth: answered by the predictor, which sees 8 pixels.
    name, label, prediction, prob, *rest = lines[5].split(",")
    assert (name, label, prediction) == ("folder/4.png", "class 1", "class 1")
    assert float(prob) == pytest.approx(np.exp(ANSWERS[4, 3].max()), rel=1e-5)
    assert rest == ["predictor", "8", "5"]


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
