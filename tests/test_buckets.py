import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax import buckets

plan = jax.jit(buckets.plan, static_argnums=1)

# Four samples; the first and the third want the last of three resolutions.
CHOICE = jnp.array([2, 0, 2, 1], jnp.int32)


def test_plan_by_hand():
    order, counts = plan(CHOICE, 3)
    assert order.dtype == counts.dtype == jnp.int32
    np.testing.assert_array_equal(order, np.transpose([
        [1, 0, 2, 3],  # sample 1, padded with the others in batch order
        [3, 0, 1, 2],
        [0, 2, 1, 3],
    ]))
    np.testing.assert_array_equal(counts, [1, 1, 2])


def test_what_the_predictor_answers_is_in_no_bucket():
    order, counts = plan(jnp.array([2, 0, 2, 1], jnp.int32), 2)
    np.testing.assert_array_equal(counts, [1, 1])
    np.testing.assert_array_equal(order, np.transpose([[1, 0, 2, 3], [3, 0, 1, 2]]))
    order, counts = plan(jnp.array([2, 2], jnp.int32), 2)
    np.testing.assert_array_equal(counts, [0, 0])


def test_plan_with_empty_and_full_buckets():
    order, counts = plan(jnp.array([1, 1, 1], jnp.int32), 3)
    np.testing.assert_array_equal(order, np.transpose([[0, 1, 2]] * 3))
    np.testing.assert_array_equal(counts, [0, 3, 0])


def test_everyone_by_hand():
    order, counts = buckets.everyone(4, 2)
    assert order.dtype == counts.dtype == jnp.int32
    np.testing.assert_array_equal(order, [[0, 0], [1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(counts, [4, 4])


@pytest.mark.parametrize(
    ("count", "multiple", "limit", "size"),
    [
        (0, 8, 32, 0),  # an empty bucket is not run
        (1, 8, 32, 8),
        (8, 8, 32, 8),
        (9, 8, 32, 16),
        (32, 8, 32, 32),
        (5, 1, 32, 7),  # of 1, 2, 4, 7, 12, 20 and 32
        (5, 1, 7, 5),
        (27, 8, 30, 30),  # never more than the batch holds
        (3, 64, 30, 30),
    ],
)
def test_padded_size(count, multiple, limit, size):
    assert buckets.padded_size(count, multiple, limit) == size


def test_gather_mask_and_scatter_by_hand():
    order, counts = plan(CHOICE, 3)
    batch = {"image": jnp.array([[1.0, 10], [2, 20], [3, 30], [4, 40]]),
             "label": jnp.array([5, 6, 7, 8])}
    rows = buckets.gather(batch, order[:, 2], 3)
    np.testing.assert_array_equal(rows["image"], [[1, 10], [3, 30], [2, 20]])
    np.testing.assert_array_equal(rows["label"], [5, 7, 6])
    real = buckets.mask(counts[2], 3)
    np.testing.assert_array_equal(real, [True, True, False])
    back = buckets.scatter(rows["image"], order[:, 2], real, 4)
    np.testing.assert_array_equal(back, [[1, 10], [0, 0], [3, 30], [0, 0]])


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(0, 2, [False, False]), (2, 2, [True, True]), (1, 3, [True, False, False])],
)
def test_mask(count, size, expected):
    np.testing.assert_array_equal(buckets.mask(jnp.int32(count), size), expected)


def test_scatter_lets_no_garbage_through():
    order, counts = plan(CHOICE, 3)
    values = jnp.array([3.0, jnp.nan, jnp.inf])
    back = buckets.scatter(values, order[:, 0], buckets.mask(counts[0], 3), 4)
    np.testing.assert_array_equal(back, [0, 3, 0, 0])


@pytest.mark.parametrize("seed", range(4))
def test_buckets_put_together_again_are_the_batch(seed):
    random = np.random.default_rng(seed)
    batch, multiple, resolutions = 13, 4, 4
    # Some mixes leave buckets empty.
    choice = random.choice(resolutions, batch, p=random.dirichlet(np.full(resolutions, 0.5)))
    values = jnp.asarray(random.normal(size=(batch, 2)))
    order, counts = map(np.asarray, plan(jnp.asarray(choice, jnp.int32), resolutions))
    total = np.zeros_like(values)
    for index, (row, count) in enumerate(zip(order.T, counts, strict=True)):
        np.testing.assert_array_equal(row[:count], np.flatnonzero(choice == index))
        np.testing.assert_array_equal(np.sort(row), np.arange(batch))
        size = buckets.padded_size(int(count), multiple, batch)
        total += there_and_back(values, row, count, size)
    np.testing.assert_array_equal(total, values)


@functools.partial(jax.jit, static_argnums=3)
def there_and_back(values, order, count, size):
    rows = buckets.gather(values, order, size)
    return buckets.scatter(rows, order, buckets.mask(count, size), len(values))


def test_where_the_predictor_answers_all_there_is_no_padding():
    assert (buckets.padding(0, 0), buckets.padding(6, 8)) == (0, 0.25)
