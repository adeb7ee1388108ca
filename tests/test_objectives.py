"""Losses by hand, the objective that regresses outcomes, and what a config makes of both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from drnet_jax.cost import Costs, Parameters
from drnet_jax.devices import AXIS, per_device
from drnet_jax.drnet import Prediction
from drnet_jax.errors import UserError
from drnet_jax.train import objectives
from drnet_jax.train.objectives import Feedback, GumbelObjective, OutcomeObjective, make_objective
from tests.tiny import Trainer, gradients, mesh_of, random_batch, tiny_config

COSTS = (100, 60, 20)
OUTCOME = OutcomeObjective(COSTS, target=50.0, exploration=0.1)
LOGITS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).gumbel(size=(64, 3)).astype(np.float32)


def chosen_on(devices, objective, logits, noise):
    mapped = per_device(mesh_of(devices), objective.choose, (P(AXIS), P(AXIS)), P(AXIS))
    return np.asarray(jax.jit(mapped)(logits, noise))


@pytest.mark.parametrize("target", [35.0, 50.0, 70.0])
def test_every_batch_costs_the_target_whatever_the_predictor_believes(target):
    objective = dataclasses.replace(OUTCOME, target=target)
    for logits in (LOGITS, 9 + LOGITS, np.zeros_like(LOGITS), LOGITS - [[9, 0, 0]]):
        choice = chosen_on(1, objective, np.asarray(logits, np.float32), NOISE)
        cost = np.array(COSTS)[choice].mean()
        assert target - 40 / 64 * 2 <= cost <= target  # a choice or two short of it


def test_the_price_is_of_the_global_batch():
    np.testing.assert_array_equal(
        chosen_on(8, OUTCOME, LOGITS, NOISE), chosen_on(1, OUTCOME, LOGITS, NOISE)
    )


def test_outcome_loss_and_gradient_by_numpy():
    choice, entropy = np.array([0, 2, 1, 2]), np.array([0.1, 2.0, 0.7, 0.0], np.float32)
    logits, count = jnp.array(LOGITS[:4]), 8.0  # four more samples are on another device

    feedback = Feedback(
        jnp.zeros(4, jnp.int32), jnp.array(NOISE[:4]), jnp.array(choice), jnp.array(entropy),
        jnp.zeros((4, 3)), mix=jnp.array([0.25, 0.25, 0.5]), count=count,
    )
    (value, told), grads = jax.value_and_grad(
        lambda logits: OUTCOME.loss(Prediction(logits, None), feedback), has_aux=True)(logits)
    p, target = 1 / (1 + np.exp(-LOGITS[np.arange(4), choice])), np.exp(-entropy)
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum()
    np.testing.assert_allclose((value, told), (expected / 8, expected), rtol=1e-5)
    by_hand = np.zeros((4, 3))
    by_hand[np.arange(4), choice] = (p - target) / 8
    np.testing.assert_allclose(grads, by_hand, atol=1e-6)


# --- Of a predictor that knows the classes, and may answer ---------------------------------------

KNOWING = dataclasses.replace(OUTCOME, costs=(100, 60, 20, 0))  # four options
OPTIONS = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
OWN = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)  # of five classes
LABEL = np.array([4, 0, 2, 2])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def binary(p, target):
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


@pytest.mark.parametrize("target", [0.0, 7.0, 20.0, 50.0])
def test_batches_cost_less_than_the_cheapest_resolution_where_the_predictor_answers(target):
    noise = np.random.default_rng(1).gumbel(size=(64, 4)).astype(np.float32)
    logits = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    choice = chosen_on(1, dataclasses.replace(KNOWING, target=target), logits, noise)
    cost = np.array(KNOWING.costs)[choice].mean()
    assert target - 40 / 64 * 2 <= cost <= target
    assert (choice == 3).any()


def test_outcome_loss_and_gradient_of_a_predictor_that_answers_by_numpy():
    # The second sample and the last are answered by the predictor; four more are elsewhere.
    choice, entropy = np.array([0, 3, 2, 3]), np.array([0.1, 0, 0.7, 0], np.float32)
    feedback = Feedback(
        jnp.array(LABEL), jnp.zeros((4, 4)), jnp.array(choice), jnp.array(entropy),
        jnp.zeros((4, 3)), mix=jnp.full(4, 0.25), count=8.0,
    )
    (value, told), grads = jax.value_and_grad(
        lambda prediction: KNOWING.loss(prediction, feedback), has_aux=True
    )(Prediction(jnp.array(OPTIONS), jnp.array(OWN)))

    rows = np.arange(4)
    own = -log_softmax(OWN)[rows, LABEL]
    # The probability that the answering network gave the label.
    target = np.exp(-np.where(choice == 3, own, entropy))
    p = sigmoid(OPTIONS[rows, choice])
    options, classes = binary(p, target).sum(), own.sum()
    np.testing.assert_allclose((value, told), ((options + classes) / 8, options), rtol=1e-5)
    by_hand = np.zeros((4, 4))
    by_hand[rows, choice] = (p - target) / 8
    np.testing.assert_allclose(grads.options, by_hand, atol=1e-6)
    # It learns the classes of every sample, and from nothing but them: a target is no loss.
    by_hand = (np.exp(log_softmax(OWN)) - np.eye(5)[LABEL]) / 8
    np.testing.assert_allclose(grads.classes, by_hand, atol=1e-6)


def test_smoothing_changes_what_is_learnt_of_the_classes_and_no_outcome():
    choice, entropy = np.array([0, 3, 2, 3]), np.array([0.1, 0, 0.7, 0], np.float32)
    feedback = Feedback(
        jnp.array(LABEL), jnp.zeros((4, 4)), jnp.array(choice), jnp.array(entropy),
        jnp.zeros((4, 3)), mix=jnp.full(4, 0.25), count=8.0,
    )
    (smooth, told), (plain, expected) = (
        dataclasses.replace(KNOWING, label_smoothing=smoothing).loss(
            Prediction(jnp.array(OPTIONS), jnp.array(OWN)), feedback)
        for smoothing in (0.1, 0.0))
    assert told == expected
    difference = 0.1 * -(log_softmax(OWN).mean(1) - log_softmax(OWN)[np.arange(4), LABEL]).sum()
    np.testing.assert_allclose(8 * (smooth - plain), difference, rtol=1e-4)


TEACHER = np.exp(log_softmax(np.random.default_rng(4).normal(size=(4, 5)))).astype(np.float32)
TRUST = np.random.default_rng(5).uniform(size=(4, 3)).astype(np.float32)


def pretrain_loss(label, distillation, smoothing=0.0):
    """((loss, options' part), gradient with respect to what the predictor says)."""
    settings = tiny_config({
        "pretrain.distillation": distillation, "pretrain.label_smoothing": smoothing}).pretrain

    def loss(prediction):
        return objectives.pretrain_loss(prediction, {"label": label}, TEACHER, TRUST, settings)

    prediction = Prediction(jnp.array(OPTIONS), jnp.array(OWN))
    return jax.value_and_grad(loss, has_aux=True)(prediction)


@pytest.mark.parametrize(
    ("distillation", "smoothing"), [(0.0, 0.0), (0.25, 0.0), (0.25, 0.1), (1.0, 0.1)])
def test_the_loss_in_stage_1_and_its_gradient_by_numpy(distillation, smoothing):
    (value, told), grads = pretrain_loss(LABEL, distillation, smoothing)
    # What the base thinks of the answer: of each resolution's, and of the predictor's own.
    trust = np.column_stack([TRUST, TEACHER[np.arange(4), OWN.argmax(1)]])
    options = binary(sigmoid(OPTIONS), trust).sum()
    labels = (1 - smoothing) * np.eye(5)[LABEL] + smoothing / 5
    target = (1 - distillation) * labels + distillation * TEACHER
    classes = -(target * log_softmax(OWN)).sum()
    np.testing.assert_allclose((value, told), (options + classes, options), rtol=1e-5)
    np.testing.assert_allclose(grads.options, sigmoid(OPTIONS) - trust, atol=1e-6)
    np.testing.assert_allclose(grads.classes, np.exp(log_softmax(OWN)) - target, atol=1e-6)


def test_no_label_is_in_the_options_part_and_none_where_all_is_distilled():
    other = (LABEL + 1) % 5
    ((_, told), grads), ((_, told_of_other), of_other) = (
        pretrain_loss(label, 0.25) for label in (LABEL, other))
    assert told == told_of_other
    np.testing.assert_array_equal(grads.options, of_other.options)
    assert (grads.classes != of_other.classes).any()
    ((value, _), _), ((value_of_other, _), _) = (
        pretrain_loss(label, 1.0) for label in (LABEL, other))
    assert value == value_of_other


# --- Steps, and what a config makes of the objectives ---------------------------------------------


@pytest.mark.parametrize(("devices", "classifies"), [(1, False), (2, False), (2, True)])
def test_a_step_moves_predictor_and_classifier(devices, classifies):
    objective = KNOWING if classifies else OUTCOME
    trainer = Trainer(
        devices, objective=objective, overrides={"predictor.classifies": classifies})
    state, metrics = trainer.run(trainer.state(), random_batch(8))
    assert metrics["chosen"].shape == (len(objective.costs),) and metrics["chosen"].sum() == 8
    assert metrics["chosen"] @ np.array(objective.costs) / 8 <= 50
    assert metrics["router_loss"] > 0
    for name in ("predictor", "shared"):
        leaves = jax.tree.leaves(gradients(state)[name])
        assert all(np.asarray(leaf).any() for leaf in leaves)


COUNTED = Costs((16, 12, 8), (4_000_000_000, 2_000_000_000, 1_000_000_000), 300_000_000,
                Parameters(0, 0, 0))


def test_the_target_includes_the_predictor_and_alpha_does_not():
    config = tiny_config({"budget": 2.8, "router.outcome.exploration": 0.3})
    assert make_objective(config, COUNTED) == OutcomeObjective(COUNTED.classifier, 2.5e9, 0.3)
    knowing = dataclasses.replace(COUNTED, classifies=True)
    assert make_objective(config, knowing) == OutcomeObjective(
        (*COUNTED.classifier, 0), 2.5e9, 0.3)
    gumbel = {"router.objective": "gumbel", "finetune.label_smoothing": 0.1}
    assert make_objective(tiny_config(gumbel), COUNTED) == GumbelObjective(
        COUNTED.classifier, 2.5e9, 0.2, 1.0, label_smoothing=0.1)
    smooth = tiny_config({"budget": 2.8, "finetune.label_smoothing": 0.1})
    assert make_objective(smooth, COUNTED).label_smoothing == 0.1


@pytest.mark.parametrize("target", [1.2, 4.4])
def test_a_target_that_no_mix_costs_is_an_error(target):
    with pytest.raises(UserError, match=r"budget .*: expected 1\.3 .* to 4\.3 .* received"):
        make_objective(tiny_config({"budget": target}), COUNTED)


# --- Losses -------------------------------------------------------------------------------------

SPREAD = jnp.array([100.0, 60.0, 20.0])  # C_max - C_min is 80
value_and_slope = jax.jit(jax.value_and_grad(objectives.cost_regulariser))


def test_cross_entropy_of_four_samples_by_hand():
    # Odds 1:1, 3:1, 3:1 and 1:7 for the first class.
    logits = jnp.log(jnp.array([[1.0, 1], [3, 1], [3, 1], [1, 7]]))
    labels = jnp.array([0, 0, 1, 1], jnp.int32)
    found = jax.jit(objectives.cross_entropy)(logits, labels)
    assert found.shape == (4,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, -np.log([1 / 2, 3 / 4, 1 / 4, 7 / 8]), rtol=1e-6)


def test_label_loss_of_three_samples_by_hand():
    """Probabilities of 1/2, 1/4 and 1/4, in three orders, so that entropies are whole bits."""
    logits = jnp.log(jnp.array([[2.0, 1, 1], [1, 2, 1], [1, 1, 2]]))
    label = {"label": jnp.zeros(3, jnp.int32)}
    mixed = label | {"other": jnp.array([1, 1, 2]), "share": jnp.array([1.0, 0.75, 0.5])}
    for labels, smoothing, bits in (
        (label, 0.0, [1, 2, 2]),
        # An even label costs 5/3 of a bit; a tenth of it takes the place of a tenth of the label.
        (label, 0.1, [0.9 + 1 / 6, 1.8 + 1 / 6, 1.8 + 1 / 6]),
        (mixed, 0.0, [1, 0.75 * 2 + 0.25 * 1, 1.5]),
        (mixed, 0.1, [0.9 + 1 / 6, 0.9 * 1.75 + 1 / 6, 0.9 * 1.5 + 1 / 6]),
    ):
        found = objectives.label_loss(logits, labels, smoothing)
        np.testing.assert_allclose(found, np.log(2) * np.array(bits), rtol=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    logits = jnp.log(jnp.array([[1.0, 1, 2], [3, 1, 4]]))
    labels = jnp.array([2, 0])
    grads = jax.jit(jax.grad(lambda x: objectives.cross_entropy(x, labels).sum()))(logits)
    expected = [[1 / 4, 1 / 4, 1 / 2 - 1], [3 / 8 - 1, 1 / 8, 4 / 8]]
    np.testing.assert_allclose(grads, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("choices", "mean"),
    [([0, 0, 0, 0], 100), ([2, 2, 2, 2], 20), ([0, 1, 2, 2], 50), ([0, 0, 1, 2], 70)],
)
def test_mean_cost_of_four_samples_by_hand(choices, mean):
    mix = np.bincount(choices, minlength=3) / 4
    np.testing.assert_allclose(objectives.mean_cost(jnp.array(mix), SPREAD), mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("mean", "alpha", "value", "slope"),
    [
        (70, 30, 40 / 80, 1 / 80),
        (100, 20, 1.0, 1 / 80),  # from the dearest mix to the cheapest: 1
        (100, 0, 100 / 80, 1 / 80),
        (50, 50, 0, 0),  # at the target
        (49, 50, 0, 0),
        (20, 99, 0, 0),
    ],
)
def test_cost_regulariser_by_hand(mean, alpha, value, slope):
    found = value_and_slope(jnp.float32(mean), SPREAD, alpha)
    if slope == 0:
        assert tuple(map(float, found)) == (0, 0)
    np.testing.assert_allclose(found, (value, slope), rtol=1e-6)


def test_gradient_of_the_regulariser_with_respect_to_the_mix():
    def penalty(mix):
        return objectives.cost_regulariser(objectives.mean_cost(mix, SPREAD), SPREAD, 30)

    grads = jax.jit(jax.grad(penalty))(jnp.array([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(grads, np.array([100, 60, 20]) / 80, rtol=1e-6)


def test_a_single_candidate_is_not_regularised():
    found = value_and_slope(jnp.float32(100), jnp.array([100.0]), 1.0)
    assert tuple(map(float, found)) == (0, 0)
