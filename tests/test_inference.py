import types

import jax
import numpy as np
import pytest

from drnet_jax import routing
from drnet_jax.cost import Costs, Parameters
from drnet_jax.devices import Programs, replicated
from drnet_jax.evaluation import outcomes, policies
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import CascadeQueues, Queues
from tests.tiny import RESOLUTIONS, mesh_of, random_batch, random_variables, tiny_drnet

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
        self.table = policies.Table.of(self.scores, list(self.log_p.swapaxes(0, 1)), BATCH["label"])

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
    logits, _ = jax.jit(drnet.route)(params, batch_stats, BATCH["image"])
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


def make_server(drnet, variables, devices, batch_size, programs=None):
    """A engine on the first devices, given a state that is replicated over all."""
    state = jax.device_put(variables, replicated(mesh_of(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        engine = Engine(drnet, COSTS, batch_size, programs or Programs())
        engine.load(*state)
        return engine


@pytest.fixture(scope="module", params=[1, 8], ids=["1 device", "8 devices"])
def devices(request):
    return request.param


@pytest.fixture(scope="module")
def programs(devices):
    return Programs()


@pytest.fixture(scope="module")
def engine(drnet, variables, devices, programs):
    engine = make_server(drnet, variables, devices, 8, programs)
    assert engine.mesh.size == devices
    engine.warm_up()
    return engine


def assert_answers(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_choices_and_answers_are_those_of_each_image_alone(engine, simulated):
    # Full, padded, a single image, none.
    for rows in (slice(0, 8), slice(8, 11), slice(11, 12), slice(12, 12)):
        images = BATCH["image"][rows]
        assert_answers(engine.scores(images), simulated.scores[rows])
        np.testing.assert_array_equal(engine.choose(images), simulated.choice[rows])
        for index in range(len(RESOLUTIONS)):
            assert_answers(engine.classify(index, images), simulated.log_p[rows, index])


def test_a_price_changes_the_choice_and_compiles_nothing(engine, simulated, programs):
    compiled = set(programs.compiled)
    mixes = []
    for price in (-1e3, -0.1, 0.1, 1e3):
        choice = np.concatenate([engine.choose(rows, price) for rows in
                                 np.split(BATCH["image"], [8, 16, 24])])
        np.testing.assert_array_equal(choice, routing.choose_at(simulated.scores, COSTS.array, price))
        mixes.append(np.bincount(choice, minlength=3).tolist())
    assert mixes[0] == [COUNT, 0, 0] and mixes[-1] == [0, 0, COUNT]
    assert mixes[1] != mixes[2]
    assert set(programs.compiled) == compiled


def test_routed_is_simulated_over_ragged_batches(engine, simulated):
    random = np.random.default_rng(0)
    tickets = random.permutation(1000)[:COUNT]
    queues, done, batches = Queues(engine), {}, 0

    def collect(results):
        for names, index, answers in results:
            for name, log_p in zip(names.tolist(), answers, strict=True):
                assert name not in done  # each ticket once
                done[name] = (index, log_p)

    for rows in np.split(np.arange(COUNT), [5, 6, 13, 14, 22]):
        images = BATCH["image"][rows]
        collect(queues.put(images, engine.choose(images), tickets[rows]))
        images[:] = 0  # the caller may use the memory again
        batches += 1
    assert batches == 6
    collect(queues.drain())
    assert sorted(done) == sorted(tickets.tolist())
    indices, answers = zip(*(done[ticket] for ticket in tickets.tolist()), strict=True)
    np.testing.assert_array_equal(indices, simulated.choice)
    assert_answers(np.stack(answers), simulated.routed)
    assert list(queues.drain()) == []


def batches():
    for rows in np.split(np.arange(COUNT), [8, 16, 24]):
        padded = np.pad(rows, (0, 8 - len(rows)), mode="edge")
        yield {name: values[padded] for name, values in BATCH.items()} | {
            "index": padded, "mask": np.arange(8) < len(rows)}


def test_evaluation_runs_the_same_route(engine, simulated):
    outcome = outcomes.run(engine, batches(), outcomes.routed(engine, 0.0))
    np.testing.assert_array_equal(outcome.index, np.arange(COUNT))
    np.testing.assert_array_equal(outcome.label, BATCH["label"])
    np.testing.assert_array_equal(outcome.choice, simulated.choice)
    assert_answers(outcome.log_p, simulated.routed)
    assert_answers(outcomes.all_scores(engine, batches()), simulated.scores)


def test_the_price_meets_the_target_where_it_is_run(engine):
    target = 62.0  # the predictor's 5 included
    price = outcomes.find_price(engine, batches, COSTS, target)
    choice = outcomes.run(engine, batches(), outcomes.routed(engine, price)).choice
    cost = np.take(COSTS.classifier, choice).mean() + COSTS.predictor
    assert target - 80 / COUNT < cost <= target  # 80: one image from the smallest to the largest
    assert outcomes.find_price(engine, batches, COSTS, 0.0) == 0.0


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
    outcome = outcomes.run_cascades(engine, batches(), pair)
    for half, cascade in enumerate(pair):
        low, high = cascade.low, cascade.high
        log_p, rows = simulated.log_p, np.arange(half, COUNT, 2)
        again = table.confidence[rows, low] < cascade.threshold
        assert 0 < again.sum() < len(rows)
        np.testing.assert_array_equal(outcome.choice[rows], np.where(again, high, low))
        second = log_p[:, high]
        if cascade.fused:
            second = np.asarray(jax.nn.log_softmax((log_p[:, low] + log_p[:, high]) / 2))
        assert_answers(
            outcome.log_p[rows], np.where(again[:, None], second[rows], log_p[rows, low])
        )
        result = policies.cascaded(table, COSTS, cascade)
        np.testing.assert_array_equal(outcome.hits(1)[rows], result.right[rows])
    assert outcome.images_per_second > 0


def test_a_host_without_images_has_columns_of_the_right_shape(engine):
    outcome = outcomes.run(engine, [], outcomes.routed(engine, 0.0))
    assert outcome.log_p.shape == (0, 7) and outcome.index.shape == (0,)
    assert outcome.images_per_second == 0
    assert outcomes.all_scores(engine, []).shape == (0, 3)


def test_the_warm_up_compiles_all_that_batches_of_any_size_need(engine, programs):
    names = ["classify 12px x8", "classify 16px x8", "classify 8px x8", "scores x8"]
    assert sorted(programs.compiled) == names
    for count in (1, 3, 8):
        engine.choose(BATCH["image"][:count])
        engine.classify(1, BATCH["image"][:count])
    assert sorted(programs.compiled) == names


@pytest.mark.parametrize(
    ("devices", "asked", "size"), [(1, 5, 5), (8, 5, 8), (8, 8, 8), (8, 9, 16), (4, 6, 8)])
def test_batch_size_is_rounded_up_to_the_devices(drnet, variables, devices, asked, size):
    assert make_server(drnet, variables, devices, asked).batch_size == size


class Recorder:
    """A engine that notes what is run."""

    drnet = types.SimpleNamespace(resolutions=(4, 2))

    def __init__(self, batch_size):
        self.batch_size, self.calls = batch_size, []

    def classify(self, index, images):
        self.calls.append((index, images[:, 0, 0, 0].tolist()))
        return images[:, 0, 0, :1].astype(np.int32)


def numbered(*numbers):
    """Images that show their number."""
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1).repeat(4, 1).repeat(4, 2).repeat(3, 3)


def test_queues_by_hand():
    engine = Recorder(batch_size=2)
    queues = Queues(engine)

    def put(numbers, choice):
        results = queues.put(numbered(*numbers), np.array(choice), 100 + np.array(numbers))
        return as_lists(results)

    def as_lists(results):
        return [(tickets.tolist(), index, log_p[:, 0].tolist())
                for tickets, index, log_p in results]

    assert put([0, 1, 2], [0, 1, 0]) == [([100, 102], 0, [0, 2])]
    assert put([3], [0]) == []
    # One batch may fill a queue more than once.
    assert put([4, 5, 6, 7, 8], [1] * 5) == [([101, 104], 1, [1, 4]), ([105, 106], 1, [5, 6]),
                                             ([107, 108], 1, [7, 8])]
    assert put([], []) == []
    assert as_lists(queues.drain()) == [([103], 0, [3])]
    assert engine.calls == [(0, [0, 2]), (1, [1, 4]), (1, [5, 6]), (1, [7, 8]), (0, [3])]


def test_results_survive_the_next_batch():
    # The queue's memory is used again, the tickets it has handed out must not change.
    queues = Queues(Recorder(batch_size=2))
    (first, *_), = queues.put(numbered(0, 1), np.zeros(2, int), np.array([10, 11]))
    (second, *_), = queues.put(numbered(2, 3), np.zeros(2, int), np.array([12, 13]))
    assert first.tolist() == [10, 11] and second.tolist() == [12, 13]


class Doubtful(Recorder):
    """Is the surer the greater the number on the image: log-probabilities [-1/n, -n]."""

    def classify(self, index, images):
        numbers = super().classify(index, images).astype(np.float32) + index
        return np.concatenate([-1 / numbers, -numbers], axis=1)


def test_cascade_queues_by_hand():
    engine = Doubtful(batch_size=2)
    queues = CascadeQueues(engine, [routing.Cascade(1, 0, False, threshold=-0.25)])

    def as_lists(results):
        return [(tickets.tolist(), index) for tickets, index, _ in results]

    def put(*numbers):
        return as_lists(queues.put(
            numbered(*numbers), np.zeros(len(numbers), int), 100 + np.array(numbers)))

    # Image n is classified small, as n + 1: sure from 3 on.
    assert put(1, 3) == [([103], 1)]
    assert engine.calls == [(1, [1, 3])]
    assert put(5, 2) == [([105], 1), ([101, 102], 0)]  # the second queue is full
    assert put(2) == [([], 1)]
    assert as_lists(queues.drain()) == [([102], 0)]
    assert engine.calls[1:] == [(1, [5, 2]), (0, [1, 2]), (1, [2]), (0, [2])]
