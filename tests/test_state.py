import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnet_jax.config import Stage
from drnet_jax.train import loop
from drnet_jax.train.optimizer import learning_rate, make_optimizer
from drnet_jax.train.state import TrainState, create_state, moved_average
from tests.tiny import (
    assert_close,
    assert_equal,
    mesh_of,
    random_variables,
    tiny_config,
    tiny_drnet,
)

STAGE = Stage(
    epochs=8, learning_rate=0.8, warmup_epochs=2, schedule="steps", decay_epochs=3,
    decay_factor=0.1, label_smoothing=0.0,
)
KEY = jax.eval_shape(lambda: jax.random.key(0))
COSINE = dataclasses.replace(STAGE, schedule="cosine")


def rates(stage, steps_per_epoch, steps):
    return np.asarray(jax.jit(jax.vmap(learning_rate(stage, steps_per_epoch)))(np.arange(steps)))


def test_learning_rate_by_hand():
    # Two steps an epoch: four of warm-up, then a tenth from epochs 3 and 6, that is steps 6 and 12.
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8] + [0.08] * 6 + [0.008] * 4
    np.testing.assert_allclose(rates(STAGE, 2, 16), expected, rtol=1e-5)


def test_learning_rate_of_the_paper():
    # Section 4.1: 0.1, warmed up for 3 epochs, times 0.1 every 20.
    stage = dataclasses.replace(STAGE, learning_rate=0.1, warmup_epochs=3, decay_epochs=20)
    steps = 100
    found = rates(stage, steps, 70 * steps)
    np.testing.assert_allclose(found[:300], 0.1 * np.arange(1, 301) / 300, rtol=1e-5)
    for epoch, rate in [(3, 0.1), (19, 0.1), (20, 1e-2), (39, 1e-2), (40, 1e-3), (60, 1e-4)]:
        np.testing.assert_allclose(found[epoch * steps : (epoch + 1) * steps], rate, rtol=1e-5)


def test_learning_rate_without_warm_up_or_by_parts_of_an_epoch():
    stage = dataclasses.replace(STAGE, warmup_epochs=0, decay_epochs=0.5)
    expected = [0.8, 0.8, 0.08, 0.08, 0.008]
    np.testing.assert_allclose(rates(stage, 4, 5), expected, rtol=1e-5)


def test_cosine_by_hand():
    # Sixteen steps: four of warm-up, then from cos(0) down; after the last it would be 0.
    halves = 0.4 * (1 + np.cos(np.pi * np.arange(13) / 12))
    assert halves[6] == pytest.approx(0.4) and halves[12] == 0
    expected = [0.2, 0.4, 0.6, 0.8, *halves, 0, 0]
    np.testing.assert_allclose(rates(COSINE, 2, 19), expected, rtol=1e-5, atol=1e-7)


def test_cosine_without_warm_up_and_of_a_stage_that_only_warms_up():
    stage = dataclasses.replace(COSINE, warmup_epochs=0, epochs=1)
    # A warm-up of 0 is one of a step, the first, at the full rate.
    np.testing.assert_allclose(rates(stage, 4, 4), [0.8, 0.8, 0.6, 0.2], rtol=1e-5)
    stage = dataclasses.replace(COSINE, warmup_epochs=4, epochs=2)
    np.testing.assert_allclose(rates(stage, 1, 2), [0.2, 0.4], rtol=1e-5)


def test_the_schedule_of_mobilenetv2():
    stage = dataclasses.replace(
        STAGE, learning_rate=0.045, warmup_epochs=0, decay_epochs=1, decay_factor=0.98)
    np.testing.assert_allclose(
        rates(stage, 3, 30), 0.045 * 0.98 ** np.repeat(np.arange(10), 3), rtol=1e-5)


@pytest.mark.parametrize("stage", [STAGE, COSINE], ids=["steps", "cosine"])
@pytest.mark.parametrize("ahead", [-4, 5])
def test_learning_rate_of_a_stage_whose_epochs_are_ahead_of_its_steps(stage, ahead):
    schedule = jax.jit(jax.vmap(learning_rate(stage, 2, ahead)))
    np.testing.assert_array_equal(
        schedule(np.arange(6, 12)), rates(stage, 2, 20)[6 + ahead : 12 + ahead])


# Of each group one leaf that decay_norms_and_biases exempts and, of two, one that it does not.
SHAPES = {
    "shared": {"conv": {"kernel": (3, 3, 2, 4)}, "head": {"kernel": (4, 5), "bias": (5,)}},
    "norms": {"16": {"norm": {"scale": (4,), "bias": (4,)}}},
    "predictor": {"head": {"kernel": (4, 3), "bias": (3,)}},
}
STEPS = 6


def is_shape(value):
    return isinstance(value, tuple)


def draws(count):
    """Trees of normal numbers in SHAPES: the parameters, then gradients."""
    random = np.random.default_rng(0)
    return [
        jax.tree.map(lambda shape: random.normal(size=shape).astype(np.float32), SHAPES,
                     is_leaf=is_shape)
        for _ in range(count)
    ]


def moved(overrides=None, stage="finetune", count=STEPS):
    """Parameters before and after `count` steps of the optimiser, at two steps an epoch."""
    config = tiny_config({
        "optimizer.weight_decay": 0.1, f"{stage}.warmup_epochs": 2, f"{stage}.decay_epochs": 2,
        **(overrides or {}),
    })
    optimizer = make_optimizer(config, stage, steps_per_epoch=2)
    before, *grads = draws(1 + count)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = before, optimizer.init(before)
    for each in grads:
        params, state = step(params, state, each)
    return before, params


@pytest.mark.parametrize("decay_all", [True, False])
def test_sgd_is_pytorchs(decay_all):
    torch = pytest.importorskip("torch")
    _, found = moved({"optimizer.decay_norms_and_biases": decay_all,
                      "optimizer.predictor_rate": 0.5})
    start, *grads = draws(1 + STEPS)

    paths = jax.tree_util.tree_leaves_with_path(start)
    leaves = [torch.nn.Parameter(torch.tensor(leaf)) for _, leaf in paths]
    reference = torch.optim.SGD(
        [
            {"params": [parameter],
             "share": 0.5 if path[0].key == "predictor" else 1.0,
             "weight_decay": 0.1 if decay_all or parameter.ndim > 1 else 0.0}
            for (path, _), parameter in zip(paths, leaves, strict=True)
        ],
        lr=0.1, momentum=0.9,
    )
    # Warm-up over four steps, a tenth from step 4 on.
    for each, rate in zip(grads, [0.025, 0.05, 0.075, 0.1, 0.01, 0.01], strict=True):
        for parameter, grad in zip(leaves, jax.tree.leaves(each), strict=True):
            parameter.grad = torch.tensor(grad)
        for group in reference.param_groups:
            group["lr"] = rate * group["share"]
        reference.step()
    expected = jax.tree.unflatten(
        jax.tree.structure(start), [leaf.detach().numpy() for leaf in leaves])
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay_all", [True, False])
def test_rmsprop_is_tensorflows(decay_all):
    _, found = moved({
        "optimizer.name": "rmsprop", "optimizer.decay_norms_and_biases": decay_all,
        "optimizer.predictor_rate": 0.5})
    start, *grads = draws(1 + STEPS)

    def by_hand(path, value, *grads):
        share = 0.5 if path[0].key == "predictor" else 1.0
        decay = 0.1 if decay_all or value.ndim > 1 else 0.0
        square, moved = np.ones(value.shape), np.zeros(value.shape)
        for grad, rate in zip(grads, [0.025, 0.05, 0.075, 0.1, 0.01, 0.01], strict=True):
            grad = grad + decay * value
            square = 0.9 * square + 0.1 * grad**2
            moved = 0.9 * moved + share * rate * grad / np.sqrt(square + 1.0)
            value = value - moved
        return value

    assert_close(found, jax.tree_util.tree_map_with_path(by_hand, start, *grads), rtol=1e-5)


def test_one_step_by_hand():
    before, after = moved({"finetune.learning_rate": 0.4, "optimizer.predictor_rate": 0.5,
                           "optimizer.decay_norms_and_biases": False}, count=1)
    _, grads = draws(2)
    # A first rate of 0.4 / 4, half of it for the predictor; decay 0.1 for matrices only.
    shared, norm = before["shared"], before["norms"]["16"]["norm"]
    expected = {
        "shared": {
            "conv": {"kernel": shared["conv"]["kernel"] - 0.1 * (
                grads["shared"]["conv"]["kernel"] + 0.1 * shared["conv"]["kernel"])},
            "head": {"kernel": shared["head"]["kernel"] - 0.1 * (
                         grads["shared"]["head"]["kernel"] + 0.1 * shared["head"]["kernel"]),
                     "bias": shared["head"]["bias"] - 0.1 * grads["shared"]["head"]["bias"]},
        },
        "norms": {"16": {"norm": {
            name: norm[name] - 0.1 * grads["norms"]["16"]["norm"][name] for name in norm}}},
        "predictor": {"head": {
            "kernel": before["predictor"]["head"]["kernel"] - 0.05 * (
                grads["predictor"]["head"]["kernel"]
                + 0.1 * before["predictor"]["head"]["kernel"]),
            "bias": before["predictor"]["head"]["bias"]
            - 0.05 * grads["predictor"]["head"]["bias"],
        }},
    }
    assert_close(after, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e3])
def test_clipping_scales_classifier_and_predictor_each_by_its_own_norm(clip):
    before, after = moved({
        "finetune.learning_rate": 4.0, "optimizer.predictor_rate": 1.0,  # a first rate of 1
        "optimizer.weight_decay": 0.0, "optimizer.clip_norm": clip,
    }, count=1)
    _, grads = draws(2)
    for groups in (("shared", "norms"), ("predictor",)):
        group = {name: grads[name] for name in groups}
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(group)))
        assert 0.5 < norm < 1e3
        factor = clip / norm if clip == 0.5 else 1
        moved_by = {
            name: jax.tree.map(np.subtract, before[name], after[name]) for name in groups}
        expected = jax.tree.map(lambda leaf, factor=factor: factor * leaf, group)
        assert_close(moved_by, expected, rtol=1e-5, atol=1e-5)


def test_the_predictor_stands_still_in_pretrain():
    before, after = moved(stage="pretrain")
    assert_equal(after["predictor"], before["predictor"])
    for leaf, old in zip(jax.tree.leaves([after["shared"], after["norms"]]),
                         jax.tree.leaves([before["shared"], before["norms"]]), strict=True):
        assert (np.asarray(leaf) != old).all()


def test_a_predictor_that_knows_the_classes_learns_in_pretrain_at_its_own_rate():
    overrides = {
        "predictor.classifies": True, "optimizer.predictor_rate": 0.5,
        "optimizer.weight_decay": 0.0, "pretrain.learning_rate": 0.4,
    }
    before, after = moved(overrides, "pretrain", count=1)
    _, grads = draws(2)
    # A first rate of 0.4 / 4, half of it for the predictor.
    for name, rate in (("predictor", 0.05), ("shared", 0.1), ("norms", 0.1)):
        expected = jax.tree.map(
            lambda old, grad, rate=rate: old - rate * grad, before[name], grads[name])
        assert_close(after[name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("classifies", [False, True])
def test_stage_2_begins_with_the_predictor_of_stage_1_if_that_has_learnt(classifies, ema):
    config = tiny_config({"predictor.classifies": classifies, "resolutions": (8,)})
    drnet = tiny_drnet({"predictor.classifies": classifies, "resolutions": (8,)})
    run = types.SimpleNamespace(config=config, drnet=drnet, mesh=mesh_of(1))
    step = types.SimpleNamespace(optimizer=make_optimizer(config, "finetune", 1), ema=ema)
    params, batch_stats = random_variables(drnet)
    first = TrainState(None, params, batch_stats, None)
    if ema:  # what the average has learnt, not what the last step has left
        first = TrainState(None, *random_variables(drnet, seed=1), None, first.weights)
    state = loop._fresh(run, step, first)
    assert int(state.step) == 0
    for found, trained in ((state.params, params), (state.batch_stats, batch_stats)):
        for name in trained.keys() - {"predictor"}:
            assert_equal(found[name], trained[name])
        same = [
            np.array_equal(new, old) for new, old in zip(
                jax.tree.leaves(found["predictor"]), jax.tree.leaves(trained["predictor"]),
                strict=True)]
        assert all(same) if classifies else not any(same)
    if ema:
        assert_equal(state.average, state.weights)


def test_a_fresh_state():
    drnet, config = tiny_drnet(), tiny_config()
    optimizer = make_optimizer(config, "finetune", 1)
    state = jax.eval_shape(functools.partial(create_state, drnet, optimizer, 0.0), KEY)
    assert state.step.dtype == jnp.int32 and state.step.shape == ()
    # One momentum buffer for each parameter.
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    buffers = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.float32]
    assert sorted(leaf.shape for leaf in buffers) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {
        jnp.dtype("float32")}
    # An average is one more of everything, and what is judged; without one nothing is kept twice.
    assert state.average is None and state.model == state.weights
    assert state.training.keys() == {"step", "opt_state"}
    averaging = jax.eval_shape(functools.partial(create_state, drnet, optimizer, 0.9), KEY)
    assert averaging.average == state.weights and averaging.model is averaging.average
    assert averaging.training == state.training | state.weights


@pytest.mark.parametrize("average", [None, {"params": 3, "batch_stats": 4}])
def test_a_state_is_restored_from_what_is_saved_of_it(average):
    state = TrainState(0, 1, 2, (), average)
    assert TrainState.restored(state.model, state.training) == state


def test_the_average_moves_less_and_less():
    """Decays of 1/10, 2/11, 3/12 and so on, until that of the config is less."""
    average, values = jnp.float32(0), [4.0, -2.0, 1.0]
    by_hand = 0.0
    for step, (value, decay) in enumerate(zip(values, [0.1, 2 / 11, 0.2], strict=True)):
        average = moved_average(average, value, 0.2, jnp.int32(step))
        by_hand = decay * by_hand + (1 - decay) * value
        np.testing.assert_allclose(average, by_hand, rtol=1e-6)


def test_residual_branches_begin_at_0_if_the_config_says_so():
    """Only the scale of the norm that ends one, and only in the classifier."""
    ones = []
    for zero_init in (False, True):
        drnet = tiny_drnet({
            "classifier.name": "tests.tiny:TinyResNet", "predictor.name": "tests.tiny:TinyResNet",
            "classifier.width": 0.0625, "predictor.width": 0.0625,
            "classifier.zero_init": zero_init, "resolutions": (32, 16)})
        params, _ = jax.jit(drnet.init)(jax.random.key(0))
        scales = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale"
        }
        ones.append({path for path, leaf in scales.items() if np.all(leaf == 1)})
        assert all(np.all(leaf == (path in ones[-1])) for path, leaf in scales.items())
    assert ones[0] - ones[1] == {
        f"['norms']['{size}']['stage{stage}_block1']['norm3']['scale']"
        for size in (32, 16) for stage in (1, 2)}
