"""Which sizes buckets are padded to, step by step: tables worked by hand, and what bounds them."""

import numpy as np
import pytest

from drnet_jax import buckets
from drnet_jax.train.sizes import Sizes


def test_a_size_comes_into_use_after_the_lead_and_the_next_larger_serves_until_then():
    # Sizes of 4, 8, 12 and 16; the second resolution is empty at first.
    sizes = Sizes(4, lead=2)
    assert [sizes.advance(counts, 16) for counts in (
        [5, 0],  # wants 8, from the third step on
        [3, 2],  # wants 4, and 4
        [3, 9],  # 8 is in use; wants 12
        [9, 2],  # wants 12; 4 of both is in use
        [3, 9],
        [9, 9],
    )] == [[16, 0], [16, 16], [8, 16], [16, 4], [4, 12], [12, 12]]


def test_without_a_lead_every_bucket_has_the_size_that_it_wants():
    sizes = Sizes(4, lead=0)
    assert sizes.advance([5, 0, 11], 16) == [8, 0, 12]
    assert sizes.advance([16, 1, 0], 16) == [16, 4, 0]
    assert sizes.ahead() == []


def test_what_is_to_be_compiled_ahead_is_what_is_in_use_or_will_be():
    sizes = Sizes(4, lead=5)
    sizes.advance([5, 0, 11], 16)
    assert set(sizes.ahead()) == {(0, 16), (1, 16), (2, 16), (0, 8), (2, 12)}


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_a_run_that_goes_on_has_the_sizes_that_it_would_have_had(cut):
    counts = np.random.default_rng(0).multinomial(32, [0.5, 0.3, 0.2], size=20).tolist()
    whole, first = Sizes(4, 3), Sizes(4, 3)
    expected = [whole.advance(each, 32) for each in counts]
    found = [first.advance(each, 32) for each in counts[:cut]]
    saved = first.by_resolution((64, 48, 32))
    second = Sizes(4, 3, Sizes.left_of(saved, (64, 48, 32)))
    assert found + [second.advance(each, 32) for each in counts[cut:]] == expected


@pytest.mark.parametrize("resolutions", [1, 3, 5])
def test_sizes_hold_their_buckets_and_are_few_whatever_the_mix_does(resolutions):
    random, sizes, seen = np.random.default_rng(1), Sizes(8, lead=4), set()
    for _ in range(400):
        counts = random.multinomial(128, random.dirichlet(np.full(resolutions, 0.5))).tolist()
        found = sizes.advance(counts, 128)
        assert all(size >= count for size, count in zip(found, counts, strict=True))
        assert [size == 0 for size in found] == [count == 0 for count in counts]
        seen |= {(index, size) for index, size in enumerate(found) if size}
    assert len(seen) <= len(sizes.left) <= buckets.SIZES * resolutions


def test_on_more_devices_the_sizes_of_the_larger_batch_are_forgotten():
    left = {(index, size): 0 for index in range(3) for size in (8, 32, 64, 96, 128, 160, 256)}
    sizes = Sizes(8, lead=2, left=left)
    assert sizes.advance([10, 8, 14], 32) == [32, 8, 32]
    assert {size for _, size in sizes.ahead()} == {8, 16, 32}
    sizes.advance([10, 8, 14], 32)
    assert sizes.advance([10, 8, 14], 32) == [16, 8, 16]


def test_a_resolution_that_nobody_chose_is_compiled_ahead_and_counted():
    random, sizes = np.random.default_rng(0), Sizes(8, lead=1)
    for _ in range(200):
        sizes.advance([*random.multinomial(128, random.dirichlet([1, 1])).tolist(), 0], 128)
        assert (2, 128) in sizes.ahead()
    assert len(sizes.left) <= 2 * buckets.SIZES + 1
    assert sizes.advance([0, 0, 5], 128) == [0, 0, 128]


@pytest.mark.parametrize(("limit", "multiple", "expected"), [
    (128, 8, (8, 16, 24, 40, 56, 88, 128)),  # 4/5 would make ten
    (1024, 8, (8, 24, 56, 120, 248, 504, 1024)),
    (192, 32, (32, 64, 96, 128, 160, 192)),
    (30, 8, (8, 16, 24, 30)),
    (8, 8, (8,)),
    (3, 64, (3,)),
    (9, 4, (4, 8, 9)),
])
def test_the_grid_of_sizes(limit, multiple, expected):
    assert buckets.sizes(limit, multiple) == expected


def test_a_tenth_of_a_bucket_is_padding_on_average_where_few_sizes_suffice():
    counts = np.exp(np.linspace(np.log(16), np.log(64), 10_000)).round().astype(int)
    padded = np.array([buckets.padded_size(int(count), 8, 64) for count in counts])
    assert np.mean(1 - counts / padded) < 1 / 8


@pytest.mark.parametrize("limit", [1, 7, 64, 100, 1000, 4096])
@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_a_grid_is_few_sizes_up_to_the_whole_batch(limit, multiple):
    grid = buckets.sizes(limit, multiple)
    assert list(grid) == sorted(set(grid)) and grid[-1] == limit
    assert len(grid) <= buckets.SIZES
    assert all(size % multiple == 0 for size in grid[:-1])
    assert grid[0] <= multiple or len(grid) == buckets.SIZES
