"""BatchNorm: tables worked by hand, padding, PyTorch's statistics, and sums that cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.norm import MOMENTS, BatchNorm, update_statistics
from drnet_jax.ops import traced_for


def normalise(x, mask=None, train=True, scale=(1.0, 1.0), bias=(0.0, 0.0), mean=(0.0, 0.0),
              var=(1.0, 1.0), epsilon=0.0, **fields):
    variables = {
        "params": {"scale": jnp.array(scale), "bias": jnp.array(bias)},
        "batch_stats": {"mean": jnp.array(mean), "var": jnp.array(var)},
    }
    y, state = BatchNorm(epsilon=epsilon, **fields).apply(
        variables, jnp.asarray(x), train, None if mask is None else jnp.asarray(mask),
        mutable=[MOMENTS])
    return y, state.get(MOMENTS)


#                 real    real      real     padded
TABLE = np.array([[1, 10], [3, 30], [5, 50], [100, -7]], np.float32)
MASK = np.array([True, True, True, False])


def test_masked_table_by_hand():
    # Of the real rows: means 3 and 30, variances 8/3 and 800/3.
    y, moments = normalise(TABLE, MASK, scale=(2.0, 1.0), bias=(0.0, 5.0))
    one = 2 / np.sqrt(8 / 3)
    np.testing.assert_allclose(
        y[:3], [[-2 * one, 5 - one], [0, 5], [2 * one, 5 + one]], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(moments["sum"], [9, 90])
    np.testing.assert_array_equal(moments["sum_of_squares"], [35, 3500])
    assert moments["count"] == 3


def test_pixels_count_like_rows():
    pixels = TABLE.reshape(2, 2, 1, 2)
    y, moments = normalise(pixels)
    expected, _ = normalise(TABLE)
    np.testing.assert_allclose(y.reshape(4, 2), expected, rtol=1e-6)
    assert moments["count"] == 4


def test_garbage_in_padded_rows_changes_nothing():
    x = np.random.default_rng(0).normal(size=(5, 3, 3, 2)).astype(np.float32)
    mask = np.array([True, False, True, True, False])
    weights = np.random.default_rng(1).normal(size=x.shape) * mask[:, None, None, None]

    def loss(scale, bias, x):
        y, moments = normalise(x, mask, scale=scale, bias=bias, epsilon=1e-5)
        return jnp.sum(y * weights), (y[mask], moments)

    def run(garbage):
        x[~mask] = garbage
        return jax.grad(loss, (0, 1, 2), has_aux=True)(jnp.ones(2), jnp.zeros(2), jnp.asarray(x))

    # 1e30 overflows when squared.
    for garbage in (1e4, 1e30):
        jax.tree.map(np.testing.assert_array_equal, run(garbage), run(0.0))
    (_, _, dx), _ = run(1e4)
    assert not dx[~mask].any() and dx[mask].any()


def test_an_empty_bucket_normalises_by_running_statistics():
    def loss(x, scale):
        y, moments = normalise(x, np.zeros(4, bool), scale=scale, mean=(3.0, 30.0),
                               var=(4.0, 100.0))
        return jnp.sum(y), (y, moments)

    grads, (y, moments) = jax.grad(loss, (0, 1), has_aux=True)(jnp.asarray(TABLE), jnp.ones(2))
    np.testing.assert_allclose(y, (TABLE - [3, 30]) / [2, 10], rtol=1e-6)
    assert moments["count"] == 0 and not moments["sum"].any()
    assert all(np.isfinite(grad).all() for grad in grads)


def test_evaluation_uses_running_statistics_and_leaves_no_moments():
    y, moments = normalise(TABLE, MASK, train=False, mean=(3.0, 30.0), var=(4.0, 100.0))
    np.testing.assert_allclose(y, (TABLE - [3, 30]) / [2, 10], rtol=1e-6)
    assert moments is None


def test_fixed_statistics_are_those_of_training_too_and_stay_bit_for_bit():
    stats = {"mean": np.array([3.0, 30.0]), "var": np.array([4.0, 0.1], np.float32)}
    y, moments = normalise(TABLE, MASK, fixed_statistics=True, **stats)
    expected, _ = normalise(TABLE, MASK, train=False, **stats)
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, update_statistics(stats, moments), stats)


def test_update_statistics_moves_as_pytorch_does():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(2, 3, size=(6, 4, 4, 2)).astype(np.float32)
    reference = torch.nn.BatchNorm2d(2).train()
    stats = {"a": {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}}
    for step in range(3):
        batch = x * (step + 1)
        reference(torch.from_numpy(batch).permute(0, 3, 1, 2))
        # Two buckets of unequal size, one of them padded, make up the batch.
        mean = stats["a"]["norm"]["mean"]  # which the moments are taken about
        _, first = normalise(batch[:4], mean=mean)
        _, second = normalise(
            np.concatenate([batch[4:], batch[:1]]), [True, True, False], mean=mean)
        moments = {"a": {"norm": jax.tree.map(jnp.add, first, second)}}
        stats = update_statistics(stats, moments)
    found = stats["a"]["norm"]
    np.testing.assert_allclose(found["mean"], reference.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["var"], reference.running_var.numpy(), rtol=1e-5)


def test_update_statistics_by_hand():
    moments = {"sum": jnp.array([9.0]), "sum_of_squares": jnp.array([35.0]),
               "count": jnp.array(3.0)}
    found = update_statistics({"mean": jnp.array([1.0]), "var": jnp.array([2.0])}, moments, 0.5)
    # About the old mean of 1 the mean is 3; unbiased variance (35 - 27) / 2 = 4.
    np.testing.assert_allclose(found["mean"], [0.5 * 1 + 0.5 * (1 + 3)])
    np.testing.assert_allclose(found["var"], [3.0], rtol=1e-6)


def test_statistics_of_a_resolution_without_samples_stay_bit_for_bit():
    stats = {"mean": jnp.array([0.1, np.nan]), "var": jnp.array([0.7, 1e-30])}
    _, moments = normalise(TABLE, np.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, update_statistics(stats, moments), stats)


@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
@pytest.mark.parametrize(("platform", "running"), [("cpu", 0.0), ("cpu", 0.98), ("tpu", 0.98)])
def test_squares_do_not_cancel_where_the_mean_is_large(platform, running, ratio):
    """Against two passes in float64; running means on accelerators must be near, 2 % off here."""
    random = np.random.default_rng(0)
    x = (ratio + random.normal(size=(8, 14, 14, 2)) * [1, 1]).astype(np.float32)
    mask, mean = np.array([True] * 6 + [False] * 2), np.full(2, running * ratio, np.float32)
    weights = random.normal(size=x.shape) * mask[:, None, None, None]

    def loss(x):
        y, moments = normalise(x, mask, mean=mean)
        return jnp.sum(y * weights), (y, moments)

    with traced_for(platform):
        dx, (y, moments) = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(x))
    real = x[mask].astype(np.float64)
    expected = (real - real.mean((0, 1, 2))) / real.std((0, 1, 2))
    np.testing.assert_allclose(y[mask], expected, atol=1e-3)
    # d(sum of w y)/dx = (w - mean(w) - y mean(w y)) / deviation, channel by channel.
    w = weights[mask]
    gradient = w - w.mean((0, 1, 2)) - expected * (w * expected).mean((0, 1, 2))
    np.testing.assert_allclose(dx[mask], gradient / real.std((0, 1, 2)), atol=5e-3)
    stats = {"mean": jnp.asarray(mean), "var": jnp.ones(2)}
    if running:  # moments are about the running mean in any case
        found = update_statistics(stats, moments, 0.0)
        np.testing.assert_allclose(found["mean"], real.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found["var"], real.var((0, 1, 2), ddof=1), rtol=2e-3)


def test_moments_of_two_buckets_add_up_whatever_each_was_summed_about():
    x = 30 + np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
    mean = (29.0, 31.0)
    whole, first, second = (normalise(rows, mean=mean)[1] for rows in (x, x[:2], x[2:]))
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5), first, second, whole)


@pytest.mark.parametrize("rows", [1, 0])
def test_fewer_than_two_values_have_no_variance_and_keep_the_statistics(rows):
    mask = np.arange(4) < rows
    stats = {"mean": jnp.array([3.0, 30.0]), "var": jnp.array([4.0, 100.0])}
    y, moments = normalise(TABLE, mask, mean=stats["mean"], var=stats["var"])
    np.testing.assert_allclose(y, (TABLE - [3, 30]) / [2, 10], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, update_statistics(stats, moments), stats)


def test_half_precision_input_has_single_precision_moments():
    # Squares summed in bfloat16 would stall at 256.
    x = jnp.ones((1, 32, 32, 2), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, True)
    y, state = norm.apply(variables, x, True, mutable=[MOMENTS])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state[MOMENTS]["sum_of_squares"], [1024, 1024])
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype("float32")}
