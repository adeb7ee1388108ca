import types

import jax
import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.devices import replicated
from drnet_jax.evaluation import policies, runs
from drnet_jax.evaluation import table as tables
from drnet_jax.evaluation.table import Table, rank, tabulate
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import CascadeQueues, Queues, route
from tests.tiny import (
    RESOLUTIONS,
    mesh_of,
    numbered,
    random_batch,
    random_variables,
    tiny_drnet,
)

COUNT = 29
BATCH = random_batch(COUNT)
COSTS = Costs(RESOLUTIONS, (100, 60, 20), 5, Parameters(0, 0, 0))


class Simulated:
    """Every image alone, at every resolution: what routing must give, without any routing."""

    def __init__(self, drnet, variables):
        route = jax.jit(lambda image: drnet.score(*variables, image)[0])
        classify = jax.jit(lambda image: [
            drnet.classify(index, *variables, image)[0] for index in range(len(RESOLUTIONS))])
        images = BATCH["image"][:, None]
        logits = np.concatenate([route(image) for image in images])
        self.scores = np.asarray(routing.SCORES["outcome"](logits))  # [N, R]
        self.choice = np.argmax(logits, axis=1)
        logits = np.array([classify(image) for image in images])[:, :, 0]
        self.log_p = np.asarray(jax.nn.log_softmax(logits))  # [N, R, C]
        self.table = Table(**tables.rows(
            self.scores, list(self.log_p.swapaxes(0, 1)),
            {"index": np.arange(COUNT), "label": BATCH["label"]},
        ))

    @property
    def routed(self):
        return self.log_p[np.arange(COUNT), self.choice]


@pytest.fixture(scope="module")
def drnet():
    return tiny_drnet()


@pytest.fixture(scope="module")
def variables(drnet):
    """Random ones, with a predictor that sends images everywhere."""
    params, batch_stats = random_variables(drnet)
    logits, _ = jax.jit(drnet.score)(params, batch_stats, BATCH["image"])
    params["predictor"]["head"]["bias"] -= np.mean(logits, 0)
    return params, batch_stats


@pytest.fixture(scope="module")
def simulated(drnet, variables):
    found = Simulated(drnet, variables)
    # Else the comparisons below would compare little.
    assert (np.bincount(found.choice, minlength=3) > 4).all()
    predicted = found.log_p.argmax(axis=2)
    assert (predicted[:, 0] != predicted[:, 2]).any()
    return found


def make_engine(drnet, variables, devices, batch_size, announce=lambda compilation: None):
    """An engine on the first devices, given a state that is replicated over all."""
    state = jax.device_put(variables, replicated(mesh_of(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        engine = Engine(drnet, COSTS, batch_size, announce)
        engine.load(*state)
        return engine


@pytest.fixture(scope="module", params=[1, 8], ids=["1 device", "8 devices"])
def devices(request):
    return request.param


@pytest.fixture(scope="module")
def announced(devices):
    return []


@pytest.fixture(scope="module")
def engine(drnet, variables, devices, announced):
    engine = make_engine(drnet, variables, devices, 8, lambda each: announced.append(each.name))
    assert engine.mesh.size == devices
    engine.warm_up()
    return engine


def assert_answers(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_choices_and_answers_are_those_of_each_image_alone(engine, simulated):
    # Full, padded, a single image, none.
    for rows in (slice(0, 8), slice(8, 11), slice(11, 12), slice(12, 12)):
        batch, count = engine.upload(BATCH["image"][rows]), rows.stop - rows.start
        assert_answers(np.asarray(engine.score(batch))[:count], simulated.scores[rows])
        np.testing.assert_array_equal(engine.choose(batch, 0.0)[:count], simulated.choice[rows])
        for index in range(len(RESOLUTIONS)):
            log_p = np.asarray(engine.classify(index, batch))[:count]
            assert_answers(log_p, simulated.log_p[rows, index])


def test_a_price_changes_the_choice_and_compiles_nothing(engine, simulated, announced):
    compiled = list(announced)
    parts = [engine.upload(rows) for rows in np.split(BATCH["image"], [8, 16, 24])]
    mixes = []
    for price in (-1e3, -0.1, 0.1, 1e3):
        choice = np.concatenate([engine.choose(part, price) for part in parts])[:COUNT]
        expected = routing.choose_at(simulated.scores, COSTS.array, price)
        np.testing.assert_array_equal(choice, expected)
        mixes.append(np.bincount(choice, minlength=3).tolist())
    assert mixes[0] == [COUNT, 0, 0] and mixes[-1] == [0, 0, COUNT]
    assert mixes[1] != mixes[2]
    assert announced == compiled


def test_rows_are_appended_to_a_queue_where_they_are_sent(engine):
    queue = engine.upload(BATCH["image"][:8])
    batch = engine.upload(BATCH["image"][8:16])
    nowhere = engine.batch_size
    slots = np.array([nowhere, 3, nowhere, 0, *[nowhere] * 4], np.int32)
    found = engine.append(queue, batch, slots)
    expected = BATCH["image"][:8].copy()
    expected[[3, 0]] = BATCH["image"][[9, 11]]
    np.testing.assert_array_equal(found, expected)


def test_other_parameters_give_other_answers_and_compile_nothing(engine, variables, announced):
    compiled, batch = list(announced), engine.upload(BATCH["image"][:8])
    before = np.asarray(engine.classify(0, batch))
    params, batch_stats = variables
    put = jax.device_put((jax.tree.map(lambda leaf: 2 * leaf, params), batch_stats),
                         replicated(mesh_of(8)))
    engine.load(*put)
    assert (before != np.asarray(engine.classify(0, batch))).any()
    engine.load(*jax.device_put(variables, replicated(mesh_of(8))))
    np.testing.assert_array_equal(before, engine.classify(0, batch))
    assert announced == compiled


@pytest.mark.parametrize("lag", [None, 2])
def test_routed_is_simulated_over_ragged_batches(engine, simulated, lag):
    tickets = np.random.default_rng(0).permutation(1000)[:COUNT]
    done, sizes = {}, []

    def batches():
        for rows in np.split(np.arange(COUNT), [5, 6, 13, 14, 22]):
            images = BATCH["image"][rows]
            yield images, tickets[rows]
            images[:] = 0  # the caller may use the memory again

    for names, index, answers in route(engine, batches(), 0.0, lag):
        sizes.append(len(names))
        for name, log_p in zip(names.tolist(), answers, strict=True):
            assert name not in done  # each ticket once
            done[name] = (index, log_p)
    assert sorted(done) == sorted(tickets.tolist())
    indices, answers = zip(*(done[ticket] for ticket in tickets.tolist()), strict=True)
    np.testing.assert_array_equal(indices, simulated.choice)
    assert_answers(np.stack(answers), simulated.routed)
    # With a lag nobody waits for a bucket of 8 to fill.
    assert (8 in sizes) == (lag is None)


def test_no_batches_give_no_answers(engine):
    assert list(route(engine, [], 0.0)) == []


def batches():
    for rows in np.split(np.arange(COUNT), [8, 16, 24]):
        padded = np.pad(rows, (0, 8 - len(rows)), mode="edge")
        yield {name: values[padded] for name, values in BATCH.items()} | {
            "index": padded, "mask": np.arange(8) < len(rows)}


HELD = [(BATCH["image"][rows], rows) for rows in np.split(np.arange(COUNT), [8, 16, 24])]


def test_the_table_is_what_is_simulated(engine, simulated):
    table = tabulate(engine, batches())
    np.testing.assert_array_equal(table.index, np.arange(COUNT))
    np.testing.assert_array_equal(table.label, BATCH["label"])
    assert_answers(table.scores, simulated.scores)
    np.testing.assert_array_equal(table.answer, simulated.log_p.argmax(axis=2))
    np.testing.assert_array_equal(table.rank, simulated.table.rank)
    np.testing.assert_allclose(table.confidence, simulated.table.confidence, atol=1e-5)
    np.testing.assert_array_equal(table.fused_rank, simulated.table.fused_rank)


def test_the_budget_is_met_where_it_is_run(engine, simulated):
    budget = 62.0  # the predictor's 5 included
    price = policies.price_for(simulated.scores, COSTS, budget)
    found = runs.run(route(engine, HELD, price))
    cost = np.take(COSTS.classifier, found.choice).mean() + COSTS.predictor
    assert budget - 80 / COUNT < cost <= budget  # 80: one image from the smallest to the largest
    np.testing.assert_array_equal(found.index, np.arange(COUNT))
    assert found.images_per_second > 0
    assert runs.differing(found, simulated.table, policies.routed(
        simulated.table, COSTS, price)) == 0
    assert runs.differing(found, simulated.table, policies.fixed(simulated.table, COSTS, 0)) == (
        np.count_nonzero(found.choice != 0))


@pytest.mark.parametrize("pair", [
    (routing.Cascade(2, 0, True), routing.Cascade(2, 0, True)),
    (routing.Cascade(2, 1, False), routing.Cascade(2, 0, True)),
    (routing.Cascade(1, 0, False), routing.Cascade(2, 1, True)),
], ids=["one", "two that start alike", "two"])
def test_cascades_run_as_the_table_says_image_by_image(engine, simulated, pair):
    table = simulated.table
    cost = COSTS.classifier
    pair = [  # 0.4 of the images go again
        policies.with_threshold(each, table, COSTS, cost[each.low] + 0.4 * cost[each.high])
        for each in pair
    ]
    answers = list(runs.cascaded(engine, HELD, pair))
    tickets = np.concatenate([each.tickets for each in answers])
    order = np.argsort(tickets)
    np.testing.assert_array_equal(tickets[order], np.arange(COUNT))
    choice = np.concatenate([[each.resolution] * len(each.tickets) for each in answers]).astype(int)
    choice, found = choice[order], np.concatenate([each.log_p for each in answers])[order]
    for half, cascade in enumerate(pair):
        low, high = cascade.low, cascade.high
        log_p, rows = simulated.log_p, np.arange(half, COUNT, 2)
        again = table.confidence[rows, low] < cascade.threshold
        assert 0 < again.sum() < len(rows)
        np.testing.assert_array_equal(choice[rows], np.where(again, high, low))
        second = log_p[:, high]
        if cascade.fused:
            second = np.asarray(jax.nn.log_softmax((log_p[:, low] + log_p[:, high]) / 2))
        assert_answers(found[rows], np.where(again[:, None], second[rows], log_p[rows, low]))
        expected = policies.cascaded(table, COSTS, cascade)
        np.testing.assert_array_equal(rank(found, BATCH["label"])[rows], expected.rank[rows])


def test_the_warm_up_compiles_all_that_batches_of_any_size_need(engine, announced):
    names = ["append x8", "choose x8", "classify 12px x8", "classify 16px x8", "classify 8px x8",
             "score x8"]
    assert sorted(announced) == names


@pytest.mark.parametrize(
    ("devices", "asked", "size"), [(1, 5, 5), (8, 5, 8), (8, 8, 8), (8, 9, 16), (4, 6, 8)])
def test_batch_size_is_rounded_up_to_the_devices(drnet, variables, devices, asked, size):
    assert make_engine(drnet, variables, devices, asked).batch_size == size


class Recorder:
    """An engine that notes what is run: real rows show their number, padding 0."""

    drnet = types.SimpleNamespace(resolutions=(4, 2))

    def __init__(self, batch_size):
        self.batch_size, self.calls = batch_size, []

    def upload(self, images):
        return np.pad(images, ((0, self.batch_size - len(images)), *[(0, 0)] * 3))

    def empty(self):
        return self.upload(numbered())

    def append(self, queue, batch, slots):
        queue = queue.copy()
        queue[slots[slots < len(queue)]] = batch[slots < len(queue)]
        return queue

    def classify(self, index, batch):
        self.calls.append((index, batch[:, 0, 0, 0].tolist()))
        return batch[:, 0, 0, :1].astype(np.int32)


def as_lists(answers):
    return [(tickets.tolist(), index, log_p[:, 0].tolist()) for tickets, index, log_p in answers]


def test_queues_by_hand():
    engine = Recorder(batch_size=3)
    queues = Queues(engine)

    def put(numbers, choice):
        batch = engine.upload(numbered(*numbers))
        return as_lists(queues.put(batch, np.array(choice, int), 100 + np.array(numbers, int)))

    assert put([1, 2, 3], [0, 1, 0]) == []
    # A batch may fill a queue and begin the next; two buckets stay in flight.
    assert put([4, 5, 6], [0, 0, 0]) == []
    assert engine.calls == [(0, [1, 3, 4])]
    assert put([7, 8, 9], [1, 1, -1]) == []  # below 0: not queued
    assert put([], []) == []
    assert put([10], [0]) == [([101, 103, 104], 0, [1, 3, 4])]
    assert as_lists(queues.drain()) == [
        ([102, 107, 108], 1, [2, 7, 8]), ([105, 106, 110], 0, [5, 6, 10])]
    assert engine.calls[1:] == [(1, [2, 7, 8]), (0, [5, 6, 10])]
    assert put([11], [1]) == []
    assert as_lists(queues.drain()) == [([111], 1, [11])]
    assert list(queues.drain()) == []


class Doubtful(Recorder):
    """Is the surer the greater the number on the image: log-probabilities [-1/n, -n]."""

    def classify(self, index, batch):
        numbers = super().classify(index, batch).astype(np.float32) + index + 1e-3
        return np.concatenate([-1 / numbers, -numbers], axis=1)


def test_cascade_queues_by_hand():
    engine = Doubtful(batch_size=2)
    queues = CascadeQueues(engine, [routing.Cascade(1, 0, False, threshold=-0.25)])

    def put(*numbers, tickets=100):
        batch, which = engine.upload(numbered(*numbers)), np.zeros(len(numbers), int)
        answers = queues.put(batch, which, tickets + np.array(numbers))
        return [(tickets.tolist(), index) for tickets, index, _ in answers]

    # Image n is classified small, as n + 1: sure from 3 on. A batch later that is looked at.
    assert put(1, 3) == []
    assert put(5, 2) == [([103], 1)]
    assert engine.calls == [(1, [1, 3]), (1, [5, 2])]
    assert put(2, tickets=200) == [([105], 1)]  # the second queue is full
    assert engine.calls[2:] == [(1, [2, 0]), (0, [1, 2])]
    drained = [(tickets.tolist(), index) for tickets, index, _ in queues.drain()]
    assert drained == [([], 1), ([101, 102], 0), ([202], 0)]
    assert list(queues.drain()) == []
