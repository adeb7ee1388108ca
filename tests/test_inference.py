import dataclasses
import types

import jax
import numpy as np
import pytest

from drnet_jax import evaluate
from drnet_jax.inference import Queues, Server
from drnet_jax.mesh import replicated
from drnet_jax.programs import Programs
from tests.tiny import RESOLUTIONS, mesh_of, random_batch, random_variables, tiny_drnet

COUNT = 29
BATCH = random_batch(COUNT)


class Simulated:
    """Every image alone, at every resolution: what routing must give, without any routing."""

    def __init__(self, drnet, variables):
        route = jax.jit(lambda image: drnet.route(*variables, image)[0])
        classify = jax.jit(lambda image: [
            drnet.classify(index, *variables, image)[0] for index in range(len(RESOLUTIONS))])
        images = BATCH["image"][:, None]
        self.choice = np.array([np.argmax(route(image)) for image in images])
        logits = np.array([classify(image) for image in images])[:, :, 0]  # [N, R, C]
        self.top = np.argsort(-logits, -1)[..., :5]

    @property
    def routed(self):
        return self.top[np.arange(COUNT), self.choice]


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
    assert (found.top[:, 0] != found.top[:, 2]).any()
    return found


def make_server(drnet, variables, devices, batch_size, programs=None):
    """A server on the first devices, given a state that is replicated over all."""
    state = jax.device_put(variables, replicated(mesh_of(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        return Server(drnet, *state, batch_size, programs or Programs())


@pytest.fixture(scope="module", params=[1, 8], ids=["1 device", "8 devices"])
def devices(request):
    return request.param


@pytest.fixture(scope="module")
def programs(devices):
    return Programs()


@pytest.fixture(scope="module")
def server(drnet, variables, devices, programs):
    server = make_server(drnet, variables, devices, 8, programs)
    assert server.mesh.size == devices
    server.warm_up()
    return server


def test_choices_and_classes_are_those_of_each_image_alone(server, simulated):
    for rows in (slice(0, 8), slice(8, 11), slice(11, 12)):  # full, padded, a single image
        images = BATCH["image"][rows]
        np.testing.assert_array_equal(server.choose(images), simulated.choice[rows])
        for index in range(len(RESOLUTIONS)):
            top = server.classify(index, images)
            assert top.dtype == np.int32
            np.testing.assert_array_equal(top, simulated.top[rows, index])


def test_routed_is_simulated_over_ragged_batches(server, simulated):
    random = np.random.default_rng(0)
    tickets = random.permutation(1000)[:COUNT]
    queues, done, batches = Queues(server), {}, 0

    def collect(results):
        for names, tops in results:
            assert len(names) == len(tops)
            for name, top in zip(names.tolist(), tops, strict=True):
                assert name not in done  # each ticket once
                done[name] = top

    for rows in np.split(np.arange(COUNT), [5, 6, 13, 14, 22]):
        images = BATCH["image"][rows]
        collect(queues.put(images, server.choose(images), tickets[rows]))
        images[:] = 0  # the caller may use the memory again
        batches += 1
    assert batches == 6
    collect(queues.drain())
    assert sorted(done) == sorted(tickets.tolist())
    np.testing.assert_array_equal([done[ticket] for ticket in tickets.tolist()], simulated.routed)
    assert list(queues.drain()) == []


def test_evaluation_runs_the_same_route(server, simulated):
    def batches():
        for rows in np.split(np.arange(COUNT), [8, 16, 24]):
            padded = np.pad(rows, (0, 8 - len(rows)), mode="edge")
            yield {name: values[padded] for name, values in BATCH.items()} | {
                "index": padded, "mask": np.arange(8) < len(rows)}

    outcome = evaluate.run(server, batches(), evaluate.routed(server))
    np.testing.assert_array_equal(outcome.index, np.arange(COUNT))
    np.testing.assert_array_equal(outcome.label, BATCH["label"])
    np.testing.assert_array_equal(outcome.choice, simulated.choice)
    np.testing.assert_array_equal(outcome.top, simulated.routed)


def test_the_warm_up_compiles_all_that_batches_of_any_size_need(server, programs):
    names = ["choose x8", "classify 12px x8", "classify 16px x8", "classify 8px x8"]
    assert sorted(programs.compiled) == names
    for count in (1, 3, 8):
        server.choose(BATCH["image"][:count])
        server.classify(1, BATCH["image"][:count])
    assert sorted(programs.compiled) == names


@pytest.mark.parametrize(
    ("devices", "asked", "size"), [(1, 5, 5), (8, 5, 8), (8, 8, 8), (8, 9, 16), (4, 6, 8)])
def test_batch_size_is_rounded_up_to_the_devices(drnet, variables, devices, asked, size):
    assert make_server(drnet, variables, devices, asked).batch_size == size


def test_fewer_classes_than_are_kept_give_them_all(drnet):
    drnet = dataclasses.replace(drnet, classifier=drnet.classifier.clone(classes=3))
    server = make_server(drnet, random_variables(drnet), 1, 4)
    top = server.classify(2, BATCH["image"][:4])
    np.testing.assert_array_equal(np.sort(top), [[0, 1, 2]] * 4)


class Recorder:
    """A server that notes what is run."""

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
    server = Recorder(batch_size=2)
    queues = Queues(server)

    def put(numbers, choice):
        results = queues.put(numbered(*numbers), np.array(choice), 100 + np.array(numbers))
        return [(tickets.tolist(), top[:, 0].tolist()) for tickets, top in results]

    assert put([0, 1, 2], [0, 1, 0]) == [([100, 102], [0, 2])]
    assert put([3], [0]) == []
    # One batch may fill a queue more than once.
    assert put([4, 5, 6, 7, 8], [1] * 5) == [([101, 104], [1, 4]), ([105, 106], [5, 6]),
                                             ([107, 108], [7, 8])]
    assert put([], []) == []
    left = [(tickets.tolist(), top[:, 0].tolist()) for tickets, top in queues.drain()]
    assert left == [([103], [3])]
    assert server.calls == [(0, [0, 2]), (1, [1, 4]), (1, [5, 6]), (1, [7, 8]), (0, [3])]


def test_results_survive_the_next_batch():
    # The queue's memory is used again, the tickets it has handed out must not change.
    queues = Queues(Recorder(batch_size=2))
    (first, _), = queues.put(numbered(0, 1), np.zeros(2, int), np.array([10, 11]))
    (second, _), = queues.put(numbered(2, 3), np.zeros(2, int), np.array([12, 13]))
    assert first.tolist() == [10, 11] and second.tolist() == [12, 13]
