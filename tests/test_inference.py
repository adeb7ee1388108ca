"""The engine, against each image alone, and queues, against tables of what networks answer."""

import dataclasses
import itertools
from types import SimpleNamespace

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
from drnet_jax.inference.graph_engine import GraphEngine
from drnet_jax.inference.predict import Wording
from drnet_jax.inference.queues import Queues, cascade, route
from drnet_jax.routing import DONE, Cascade
from tests.test_table import drnet_of, table_of
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
COSTS = Costs(RESOLUTIONS, (100, 60, 20), 5, Parameters(0, 0, 0), classifies=True)
OPTIONS = len(COSTS.options)


class Simulated:
    """Every image alone, by every option: what routing must give, without any routing."""

    def __init__(self, drnet, variables):
        predict = jax.jit(lambda image: drnet.predict(*variables, image)[0])
        classify = jax.jit(lambda image: [
            drnet.classify(index, *variables, image)[0] for index in range(len(RESOLUTIONS))])
        images = BATCH["image"][:, None]
        logits, own = map(np.concatenate, zip(*map(predict, images), strict=True))
        self.scores = np.asarray(routing.SCORES["outcome"](logits))  # [N, O]
        self.choice = np.argmax(logits, axis=1)
        logits = np.array([[*classify(image), own[None, at]] for at, image in enumerate(images)])
        self.log_p = np.asarray(jax.nn.log_softmax(logits[:, :, 0]))  # [N, O, C]
        turned = np.concatenate([classify(image[:, :, ::-1])[0] for image in images])
        self.mirrored = np.asarray(jax.nn.log_softmax(turned))  # [N, C], by the base
        self.table = Table(**tables.rows(
            self.scores, list(self.log_p.swapaxes(0, 1)),
            {"index": np.arange(COUNT), "label": BATCH["label"]},
        ))

    @property
    def routed(self):
        return self.log_p[np.arange(COUNT), self.choice]


@pytest.fixture(scope="module")
def drnet():
    return tiny_drnet({"predictor.classifies": True})


@pytest.fixture(scope="module")
def variables(drnet):
    """Random ones, with a predictor that sends images everywhere."""
    params, batch_stats = random_variables(drnet)
    prediction, _ = jax.jit(drnet.predict)(params, batch_stats, BATCH["image"])
    bias = params["predictor"]["network"]["head"]["bias"]
    bias[-OPTIONS:] -= np.mean(prediction.options, 0)
    return params, batch_stats


@pytest.fixture(scope="module")
def simulated(drnet, variables):
    found = Simulated(drnet, variables)
    # Else the comparisons below would compare little.
    assert (np.bincount(found.choice, minlength=OPTIONS) > 2).all()
    predicted = found.log_p.argmax(axis=2)
    assert all((predicted[:, 0] != predicted[:, other]).any() for other in (2, 3))
    assert (found.mirrored.argmax(axis=1) != predicted[:, 0]).any()
    return found


def make_engine(
    drnet, variables, devices, batch_size, announce=lambda compilation: None, costs=COSTS
):
    """An engine on the first devices, given a state that is replicated over all."""
    state = jax.device_put(variables, replicated(mesh_of(8)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        engine = Engine(drnet, costs, batch_size, announce)
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
        scores, own = engine.predict(batch)
        assert_answers(np.asarray(scores)[:count], simulated.scores[rows])
        assert_answers(np.asarray(own)[:count], simulated.log_p[rows, -1])
        choice, told, again = engine.choose(batch, 0.0)
        np.testing.assert_array_equal(choice[:count], simulated.choice[rows])
        assert_answers(told[:count], scores[:count])
        assert_answers(again[:count], own[:count])
        for index in range(len(RESOLUTIONS)):
            log_p = np.asarray(engine.classify(index, batch))[:count]
            assert_answers(log_p, simulated.log_p[rows, index])


def test_a_price_changes_the_choice_and_compiles_nothing(engine, simulated, announced):
    compiled = list(announced)
    parts = [engine.upload(rows) for rows in np.split(BATCH["image"], [8, 16, 24])]
    mixes = []
    for price in (-1e3, -0.1, 0.1, 1e3):
        choice = np.concatenate([engine.choose(part, price)[0] for part in parts])[:COUNT]
        expected = routing.choose_at(simulated.scores, COSTS.charged, price)
        np.testing.assert_array_equal(choice, expected)
        mixes.append(np.bincount(choice, minlength=OPTIONS).tolist())
    assert mixes[0] == [COUNT, 0, 0, 0] and mixes[-1] == [0, 0, 0, COUNT]
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

    for names, option, answers in route(engine, batches(), 0.0, lag):
        if option < len(RESOLUTIONS):
            sizes.append(len(names))
        for name, log_p in zip(names.tolist(), answers, strict=True):
            assert name not in done  # each ticket once
            done[name] = (option, log_p)
    assert sorted(done) == sorted(tickets.tolist())
    options, answers = zip(*(done[ticket] for ticket in tickets.tolist()), strict=True)
    np.testing.assert_array_equal(options, simulated.choice)
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
    table, expected = tabulate(engine, batches()), simulated.table
    for name, values in vars(table).items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, vars(expected)[name], 1e-4, 1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(values, vars(expected)[name], err_msg=name)
    np.testing.assert_array_equal(table.answer, simulated.log_p.argmax(axis=2))


def test_mirror_images_are_answered_by_the_base(engine, simulated):
    found = list(runs.mirrored(engine, HELD))
    tickets, log_p = (np.concatenate(each) for each in (
        [each.tickets for each in found], [each.log_p for each in found]))
    assert sorted(tickets.tolist()) == list(range(COUNT)) and {each.option for each in found} == {0}
    assert_answers(log_p, simulated.mirrored[tickets])
    assert list(runs.mirrored(engine, [])) == []  # as on a host without images


def test_the_budget_is_met_where_it_is_run(engine, simulated):
    budget = 40.0  # the predictor's 5 included
    price = policies.price_for(simulated.scores, COSTS, budget)
    found = runs.run(route(engine, HELD, price))
    cost = COSTS.routed[found.choice].mean()
    assert budget - 80 / COUNT < cost <= budget  # 80: one image's largest move but one
    np.testing.assert_array_equal(found.index, np.arange(COUNT))
    assert found.images_per_second > 0
    expected = policies.routed(simulated.table, COSTS, price)
    assert (expected.mix(OPTIONS) > 0).sum() > 2 and expected.mix(OPTIONS)[-1] > 0
    assert runs.differing(found, simulated.table, expected) == 0
    assert runs.differing(found, simulated.table, policies.fixed(simulated.table, COSTS, 0)) == (
        np.count_nonzero(found.choice != 0))


@pytest.mark.parametrize("chains", [
    ((2, 0), (2, 0)),
    ((2, 1), (2, 0)),
    ((3, 2, 0), (1, 0)),
    ((3, 2, 1, 0), (2, 3, 1)),
], ids=str)
@pytest.mark.parametrize("rule", ["margin", "probability"])
def test_cascades_run_as_the_table_says_image_by_image(engine, simulated, chains, rule):
    table, passes = simulated.table, COSTS.passes
    pair = tuple(  # 0.4 of the images go on from the first pass, about
        policies.with_threshold(
            Cascade(options, rule), table, COSTS,
            passes[options[0]] + 0.4 * passes[list(options[1:])].sum(),
        )
        for options in chains
    )
    answers = list(runs.cascaded(engine, HELD, pair))
    tickets = np.concatenate([each.tickets for each in answers])
    order = np.argsort(tickets)
    np.testing.assert_array_equal(tickets[order], np.arange(COUNT))
    choice = np.concatenate([np.full(len(each.tickets), each.option) for each in answers])[order]
    found = np.concatenate([each.log_p for each in answers])[order]
    for half, each in enumerate(pair):
        rows, expected = np.arange(half, COUNT, 2), policies.cascaded(table, COSTS, each)
        assert set(expected.choice[rows]) >= {each.options[0], each.options[-1]}
        np.testing.assert_array_equal(choice[rows], expected.choice[rows])
        assert_answers(found[rows], simulated.log_p[rows, choice[rows]])
        np.testing.assert_array_equal(rank(found, BATCH["label"])[rows], expected.rank[rows])


def test_a_predictor_without_classes_has_no_answer(simulated):
    drnet = tiny_drnet({"predictor.classifies": False})
    params, batch_stats = random_variables(drnet)
    costs = dataclasses.replace(COSTS, classifies=False)
    engine = make_engine(drnet, (params, batch_stats), 1, 8, costs=costs)
    batch = engine.upload(BATCH["image"][:8])
    scores, own = engine.predict(batch)
    choice, _, again = engine.choose(batch, 0.0)
    assert (scores.shape, own, again) == ((8, 3), None, None)
    np.testing.assert_array_equal(choice, np.argmax(scores, axis=1))
    table = tabulate(engine, batches())
    assert table.answer.shape == (COUNT, 3)
    found = runs.run(route(engine, HELD, 0.3))
    assert runs.differing(found, table, policies.routed(table, costs, 0.3)) == 0


def test_the_warm_up_compiles_all_that_batches_of_any_size_need(engine, announced):
    names = ["append x8 to x8", "choose x8",
             *(f"classify {size}px x8" for size in (12, 16, 8)), "predict x8"]
    assert sorted(announced) == names


def test_a_graph_is_built_once_however_its_option_is_counted(drnet, variables):
    built = []

    def build(graph):
        built.append(len(graph))
        return lambda images: {"scores": np.zeros((len(images), 4)), "log_p": images}

    engine = GraphEngine(drnet, COSTS, variables, 8, build)
    engine.warm_up()
    assert len(built) == 4  # three sizes, and the predictor
    for index in np.unique([0, 1, 2]):  # as queues count them
        engine.classify(index, engine.empty())
    assert len(built) == 4


@pytest.mark.parametrize(
    ("devices", "asked", "size"), [(1, 5, 5), (8, 5, 8), (8, 8, 8), (8, 9, 16), (4, 6, 8)])
def test_batch_size_is_rounded_up_to_the_devices(drnet, variables, devices, asked, size):
    assert make_engine(drnet, variables, devices, asked).batch_size == size


# --- Queues, by an engine whose networks answer what tables say -----------------------------------

class Recorder:
    """An engine that notes what is run: images show their number, and empty rows 0.

    Image n is answered with the log-probabilities [n, option] by each option.
    """

    def __init__(self, batch_size, resolutions=(4, 2), choice=None, predictor=1):
        """`choice`, int [256]: the option that the predictor sends each number to."""
        self.costs = Costs(
            resolutions, resolutions, predictor, Parameters(0, 0, 0), classifies=True)
        self.drnet = drnet_of(self.costs)
        self.batch_size, self.calls, self.queued, self.appends = batch_size, [], [], 0
        self._choice = choice

    def upload(self, images):
        return np.pad(images, ((0, self.batch_size - len(images)), *[(0, 0)] * 3))

    def empty(self, size):
        assert size == self.batch_size
        return self.upload(numbered())

    def cut(self, batch, images):
        assert 0 < images <= len(batch)
        return batch

    def append(self, queue, batch, slots):
        assert len(slots) == len(queue) == len(batch) == self.batch_size
        self.appends += 1
        queue, taken = queue.copy(), batch[slots < len(queue)]
        queue[slots[slots < len(queue)]] = taken
        self.queued += taken[:, 0, 0, 0].tolist()
        return queue

    def classify(self, index, batch):
        self.calls.append((int(index), batch[:, 0, 0, 0].tolist()))
        return self.log_p(index, batch[:, 0, 0, 0].astype(int))

    def predict(self, batch):
        predictor = len(self.drnet.resolutions)
        return None, self.classify(predictor, batch)

    def choose(self, batch, price):
        predictor = len(self.drnet.resolutions)
        numbers = batch[:, 0, 0, 0].astype(int)
        return self._choice[numbers], numbers[:, None], self.log_p(predictor, numbers)

    def log_p(self, option, numbers):
        return np.stack([numbers, np.full(len(numbers), option)], axis=1)

    @property
    def ran(self):
        """(option, number) of all rows that a network was run on, sorted, but for empty ones.

        A bucket that is not full may hold the images of an earlier one besides, but in a cascade.
        """
        return sorted((option, n) for option, numbers in self.calls for n in numbers if n)


def as_lists(answers):
    """What is answered by which option, and with what; the answer knows option and image."""
    found = []
    for tickets, option, log_p in answers:
        assert set(log_p[:, 1].tolist()) == {option}
        found.append((tickets.tolist(), option, log_p[:, 0].tolist()))
    return found


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
    assert put([7, 8, 9], [1, 1, DONE]) == []  # the last is not queued
    assert put([], []) == []
    assert put([10], [0]) == [([101, 103, 104], 0, [1, 3, 4])]
    assert as_lists(queues.drain()) == [
        ([102, 107, 108], 1, [2, 7, 8]), ([105, 106, 110], 0, [5, 6, 10])]
    assert engine.calls[1:] == [(1, [2, 7, 8]), (0, [5, 6, 10])]
    assert put([11], [1]) == []
    assert as_lists(queues.drain()) == [([111], 1, [11])]
    assert list(queues.drain()) == []


def test_a_whole_batch_for_an_empty_queue_is_a_full_bucket_as_it_is():
    engine = Recorder(batch_size=3)
    queues = Queues(engine)

    def put(numbers, choice):
        batch = engine.upload(numbered(*numbers))
        list(queues.put(batch, np.array(choice, int), 100 + np.array(numbers, int)))
        return engine.appends, engine.calls[-1]

    assert put([1, 2, 3], [0, 0, 0]) == (0, (0, [1, 2, 3]))
    assert put([4, 5, 6], [2, 2, 2]) == (0, (2, [4, 5, 6]))  # by the predictor's network
    # Neither a part of a batch, nor one that is dealt out, nor one whose queue is not empty.
    assert put([7, 8], [0, 0]) == (1, (2, [4, 5, 6]))
    assert put([9, 10, 11], [1, 1, DONE]) == (2, (2, [4, 5, 6]))
    assert put([12, 13, 14], [0, 0, 0]) == (4, (0, [7, 8, 12]))
    # Queues of other options do not matter.
    assert put([15, 16, 17], [2, 2, 2]) == (4, (2, [15, 16, 17]))
    assert as_lists(queues.drain())[-2:] == [([113, 114], 0, [13, 14]), ([109, 110], 1, [9, 10])]
    assert put([18, 19, 20], [0, 0, 0]) == (4, (0, [18, 19, 20]))


def test_a_whole_bucket_in_doubt_goes_on_as_it_is():
    engine = Doubtful(2, np.zeros((256, 3)), (4, 2))
    chain = [Cascade((1, 0), "margin", threshold=0.5)]
    found = list(cascade(engine, batches_of((2, 2, 2)), chain, lambda tickets: tickets * 0))
    assert [(each.tickets.tolist(), each.option) for each in found] == [
        ([1001, 1002], 0), ([1003, 1004], 0), ([1005, 1006], 0)]
    assert engine.appends == 0 and len(engine.calls) == 6


def test_what_the_predictor_has_answered_is_not_run_again():
    engine = Recorder(batch_size=3)
    queues = Queues(engine)
    batch = engine.upload(numbered(1, 2, 3))
    choice, tickets, own = np.array([2, 0, 2]), np.array([11, 12, 13]), engine.log_p(2, [1, 2, 3])
    assert as_lists(queues.put(batch, choice, tickets, own)) == [([11, 13], 2, [1, 3])]
    assert engine.calls == []
    # Unless its answers are not at hand: then it has a queue of its own.
    assert list(queues.put(batch, choice, 10 + tickets)) == []
    assert as_lists(queues.drain()) == [
        ([12, 22], 0, [2, 2]), ([21, 23], 2, [1, 3])]
    assert engine.calls == [(0, [2, 2, 0]), (2, [1, 3, 0])]


def batches_of(lengths, first=1):
    """Images numbered from `first` on, in batches of such lengths, under tickets 1000 higher."""
    ends = first + np.cumsum(lengths)
    for length, end in zip(lengths, ends, strict=True):
        numbers = np.arange(end - length, end)
        yield numbered(*numbers), 1000 + numbers


# Of images: into batches of 4 that are full, ragged or empty.
LENGTHS = [(4, 4, 4, 4), (4, 1, 0, 4, 3, 2), (3,), (0,), (1,) * 9]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("lag", [None, 1, 3])
@pytest.mark.parametrize("to", [
    "everywhere", 0, 2, "predictor in every other batch"], ids=str)
def test_routing_runs_only_what_is_chosen(lengths, lag, to):
    """Whatever the mix: also if the predictor answers all of a batch or none."""
    choice = np.full(256, to) if isinstance(to, int) else np.arange(256) * 7 % 3
    if to == "predictor in every other batch":
        choice = np.where(np.arange(256) % 8 < 4, 2, choice % 2)
    engine, count = Recorder(4, choice=choice), sum(lengths)
    numbers = np.arange(1, count + 1)
    found = list(route(engine, batches_of(lengths), 0.0, lag))
    answered = [(ticket, option, n) for tickets, option, log_p in as_lists(found)
                for ticket, n in zip(tickets, log_p, strict=True)]
    assert sorted(answered) == [(1000 + n, choice[n], n) for n in numbers.tolist()]
    # No classifier's bucket is for what the predictor answers, nor any for an image twice; what did
    # not wait in a queue are whole batches.
    at_once = {n for _, bucket in engine.calls for n in bucket if n} - set(engine.queued)
    assert sorted([*engine.queued, *at_once]) == [n for n in numbers.tolist() if choice[n] < 2]
    assert len(at_once) % 4 == 0 and (bool(at_once) == (to == 0 and 4 in lengths))
    assert {option for option, _ in engine.calls} == set(choice[numbers].tolist()) - {2}
    if lag is None:  # and buckets are full but for the last
        assert len(engine.calls) == sum(-(-np.sum(choice[numbers] == each) // 4) for each in (0, 1))


@pytest.mark.parametrize(("lag", "seen"), [(None, 28), (2, 8), (3, 12)])
def test_with_a_lag_no_answer_is_long_in_coming(lag, seen):
    """However rare the option of an image is: here it is the only one at the second resolution."""
    engine, put = Recorder(4, choice=np.eye(256, dtype=int)[1]), []

    def watched():
        for images, tickets in batches_of((4,) * 7):
            put.extend(tickets.tolist())
            yield images, tickets

    at = {ticket: len(put) for each in route(engine, watched(), 0.0, lag)
          for ticket in each.tickets.tolist()}
    assert len(at) == 28 and at[1001] == seen


class Doubtful(Recorder):
    """Knows how sure each option is of each image; the classes are two, the answer either."""

    def __init__(self, batch_size, sure, resolutions, predictor=1):
        """`sure`, float [256, O] within (0, 1): the margins."""
        super().__init__(batch_size, resolutions, predictor=predictor)
        self._sure = sure

    def log_p(self, option, numbers):
        return answers_of(self._sure, numbers)[:, option]


def answers_of(sure, numbers):
    """log-probabilities [N, O, 2] of these margins; the likelier class changes with the number."""
    likely = np.stack([1 + sure[numbers], 1 - sure[numbers]], axis=-1) / 2
    odd = (numbers[:, None] + np.arange(sure.shape[1])) % 2 == 1
    return np.log(np.where(odd[..., None], likely, likely[..., ::-1])).astype(np.float32)


def test_a_cascade_by_hand():
    sure = np.zeros((256, 3))
    sure[1:8, 1] = [0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.1]  # the second, and small, resolution
    engine = Doubtful(2, sure, (4, 2))
    chain = [Cascade((1, 0), "margin", threshold=0.5)]
    found = cascade(engine, batches_of((2, 2, 2, 1)), chain, lambda tickets: tickets * 0)
    # Two buckets stay in flight; the doubtful images wait for one another.
    assert [(tickets.tolist(), option) for tickets, option, _ in found] == [
        ([1002], 1), ([1003], 1), ([1005, 1006], 1), ([1001, 1004], 0), ([1007], 0)]
    assert engine.calls == [(1, [1, 2]), (1, [3, 4]), (1, [5, 6]), (1, [7, 0]),
                            (0, [1, 4]), (0, [7, 0])]


def test_what_is_left_of_a_cascade_runs_from_the_cheapest_pass_on():
    """So that it joins what waits for the dearer ones already."""
    sure = np.zeros((256, 4))
    engine = Doubtful(8, sure, (16, 12, 8))
    chains = [Cascade((3, 2, 1, 0), "margin", 0.5), Cascade((1, 0), "margin", 0.5)]
    found = list(cascade(engine, batches_of((4,)), chains, lambda tickets: tickets % 2))
    assert engine.calls == [
        (3, [2, 4, *[0] * 6]), (2, [2, 4, *[0] * 6]), (1, [1, 3, 2, 4, *[0] * 4]),
        (0, [1, 3, 2, 4, *[0] * 4])]
    assert [(sorted(each.tickets.tolist()), each.option) for each in found] == [
        ([1001, 1002, 1003, 1004], 0)]


def test_the_cheapest_pass_is_that_by_cost_and_not_by_position():
    """A predictor that costs more than the smallest resolution waits for what that doubts."""
    engine = Doubtful(8, np.zeros((256, 3)), (16, 8), predictor=10)
    chains = [Cascade((1, 2, 0), "margin", 0.5), Cascade((2, 0), "margin", 0.5)]
    list(cascade(engine, batches_of((4,)), chains, lambda tickets: tickets % 2))
    assert engine.calls == [(1, [2, 4, *[0] * 6]), (2, [1, 3, 2, 4, *[0] * 4]),
                            (0, [1, 3, 2, 4, *[0] * 4])]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("chains", [
    ((3, 2, 0), (3, 2, 0)),
    ((3, 2, 1, 0), (2, 0)),
    ((2, 3, 0), (3, 0)),  # with a predictor that costs more than the smallest resolution
    ((2, 1, 3), (0, 1)),
], ids=str)
def test_cascades_of_any_chain_are_what_the_table_says(lengths, chains):
    random, count = np.random.default_rng(0), sum(lengths)
    numbers = np.arange(1, count + 1)
    sure = random.uniform(0.01, 0.99, (256, 4))
    log_p = answers_of(sure, numbers)
    table = dataclasses.replace(
        table_of(np.zeros((count, 4), np.float32), (log_p.argmax(axis=2) == 0).astype(int),
                 np.stack([routing.margin(each) for each in log_p.swapaxes(0, 1)], axis=1)),
        index=numbers, answer=log_p.argmax(axis=2),
    )
    engine = Doubtful(4, sure, (16, 12, 8))
    pair = tuple(Cascade(options, "margin", threshold=0.6) for options in chains)
    found = runs.run(cascade(
        engine, ((images, tickets - 1000) for images, tickets in batches_of(lengths)), pair,
        lambda index: index % 2))
    np.testing.assert_array_equal(found.index, numbers)
    outcomes = [policies.cascaded(table, COSTS, each) for each in pair]
    choice = np.where(numbers % 2 == 0, outcomes[0].choice, outcomes[1].choice)
    np.testing.assert_array_equal(found.choice, choice)
    np.testing.assert_array_equal(found.answer, table.answer[np.arange(count), choice])
    # What was run is what is paid for.
    spent = np.where(numbers % 2 == 0, outcomes[0].cost, outcomes[1].cost)
    assert sum(COSTS.passes[option] for option, _ in engine.ran) == spent.sum()
    ran = [
        (option, n) for n, last in zip(numbers.tolist(), choice, strict=True)
        for option in chains[n % 2][: chains[n % 2].index(last) + 1]
    ]
    assert engine.ran == sorted(ran)


def test_a_mix_of_options_runs_each_image_once():
    choice = np.array([9, *itertools.islice(itertools.cycle([2, 0, 1, 2, 2]), 18)])
    engine = Recorder(4)
    held = [(images, tickets - 1000) for images, tickets in batches_of((4, 4, 4, 4, 2))]
    found = runs.run(runs.given(engine, held, choice))
    np.testing.assert_array_equal(found.choice, choice[1:])
    assert sorted(engine.queued) == list(range(1, 19))
    # The predictor's buckets are as full as the others'.
    assert sorted(option for option, _ in engine.calls) == [0, 1, 2, 2, 2]


@pytest.fixture
def wording(drnet):
    return Wording(SimpleNamespace(drnet=drnet, costs=COSTS), ("n01440764", "mine", "other"), top=2)


LOG_P = np.log(np.array([0.1, 0.7, 0.2], np.float32))


def test_answers_name_synsets_in_words_and_the_next_best_classes(wording):
    found = wording.answer("a.jpg", 1, LOG_P[[1, 0, 2]], None, 0.0)
    assert (found.image, found.label, found.name) == ("a.jpg", "n01440764", "tench")
    assert [(guess.label, guess.name) for guess in found.top] == [
        ("n01440764", "tench"), ("other", "other")]
    np.testing.assert_allclose([guess.probability for guess in found.top], [0.7, 0.2], rtol=1e-6)
    assert found.probability == found.top[0].probability


@pytest.mark.parametrize(("policy", "option", "spent"), [
    (0.0, 1, 65), (0.0, 3, 5),  # 5 are the predictor's
    (Cascade((2, 1, 0), "margin", 0.5), 2, 20), (Cascade((2, 1, 0), "margin", 0.5), 0, 180),
    (Cascade((3, 0), "margin", 0.5), 3, 5), (Cascade((3, 0), "margin", 0.5), 0, 105),
], ids=str)
def test_an_answer_costs_all_that_was_run_for_it(wording, policy, option, spent):
    network = "predictor" if option == 3 else "classifier"
    found = wording.answer(0, option, LOG_P, None, policy)
    assert (found.multiply_adds, found.network) == (spent, network)


@pytest.mark.parametrize(("objective", "shares"), [
    ("outcome", [0.5, 0.25, 0.125, 0.75]), ("gumbel", [0.5, 0.25, 0.125, 0.125])])
def test_what_the_predictor_says_of_options_is_told_as_probabilities(wording, objective, shares):
    drnet = dataclasses.replace(wording.engine.drnet, scores=routing.SCORES[objective])
    wording = dataclasses.replace(wording, engine=SimpleNamespace(drnet=drnet, costs=COSTS))
    scores = np.array(shares, np.float32) if objective == "outcome" else np.log(shares)
    found = wording.answer(0, 0, LOG_P, scores, 0.0)
    assert list(found.options) == list(COSTS.options)
    np.testing.assert_allclose(list(found.options.values()), shares, rtol=1e-6)
