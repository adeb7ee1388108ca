import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.train import objectives

COSTS = jnp.array([100.0, 60.0, 20.0])  # C_max - C_min is 80

value_and_slope = jax.jit(jax.value_and_grad(objectives.cost_regulariser))


def test_cross_entropy_of_four_samples_by_hand():
    # Odds 1:1, 3:1, 3:1 and 1:7 for the first class.
    logits = jnp.log(jnp.array([[1.0, 1], [3, 1], [3, 1], [1, 7]]))
    labels = jnp.array([0, 0, 1, 1], jnp.int32)
    found = jax.jit(objectives.cross_entropy)(logits, labels)
    assert found.shape == (4,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, -np.log([1 / 2, 3 / 4, 1 / 4, 7 / 8]), rtol=1e-6)


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
    np.testing.assert_allclose(objectives.mean_cost(jnp.array(mix), COSTS), mean, rtol=1e-6)


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
    found = value_and_slope(jnp.float32(mean), COSTS, alpha)
    if slope == 0:
        assert tuple(map(float, found)) == (0, 0)
    np.testing.assert_allclose(found, (value, slope), rtol=1e-6)


def test_gradient_of_the_regulariser_with_respect_to_the_mix():
    def penalty(mix):
        return objectives.cost_regulariser(objectives.mean_cost(mix, COSTS), COSTS, 30)

    grads = jax.jit(jax.grad(penalty))(jnp.array([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(grads, np.array([100, 60, 20]) / 80, rtol=1e-6)


def test_a_single_candidate_is_not_regularised():
    found = value_and_slope(jnp.float32(100), jnp.array([100.0]), 1.0)
    assert tuple(map(float, found)) == (0, 0)
