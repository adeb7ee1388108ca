"""Mixup and cutmix: pixels and labels by hand, what is drawn, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from drnet_jax.devices import AXIS, per_device
from drnet_jax.train.mixing import mix, mixes
from tests.tiny import assert_equal, mesh_of, random_batch, tiny_config

KEY = jax.random.key(3)


def settings(mixup, cutmix):
    return tiny_config({"pretrain.mixup": mixup, "pretrain.cutmix": cutmix}).pretrain


@functools.cache
def program(mixup, cutmix, devices=1):
    mapped = per_device(
        mesh_of(devices), functools.partial(mix, settings(mixup, cutmix)),
        (P(AXIS), P(), P()), P(AXIS))
    return jax.jit(mapped)


def mixed(mixup, cutmix, batch, step=0, devices=1):
    found = program(mixup, cutmix, devices)(batch, KEY, jnp.int32(step))
    return jax.tree.map(np.asarray, found)


def swapped(array):
    """Neighbours in each other's places; the last stays where it has none."""
    order = [index + 1 if index % 2 == 0 else index - 1 for index in range(len(array) // 2 * 2)]
    return array[order + [len(array) - 1] * (len(array) % 2)]


def test_a_config_says_whether_images_are_mixed():
    assert [mixes(settings(*each)) for each in ((0, 0), (0.2, 0), (0, 1.0))] == [False, True, True]


@pytest.mark.parametrize("step", range(4))
def test_mixup_by_hand(step):
    batch = random_batch(7)
    found = mixed(0.5, 0.0, batch, step)
    (share,) = set(found["share"].tolist())
    assert 0.5 <= share <= 1
    # The heavier label may be that of the neighbour, and then most of the pixels are.
    own = share if (found["label"] == batch["label"]).all() else 1 - share
    image = batch["image"].astype(float)
    expected = own * image + (1 - own) * swapped(image)
    assert found["image"].dtype == np.uint8
    assert np.abs(found["image"] - expected).max() <= 0.5001
    labels = [batch["label"], swapped(batch["label"])]
    assert_equal([found["label"], found["other"]], labels if own >= 0.5 else labels[::-1])
    # The last has no neighbour.
    assert_equal(found["image"][-1], batch["image"][-1])


@pytest.mark.parametrize("step", range(4))
def test_cutmix_by_hand(step):
    batch = random_batch(4, base=32)
    batch["image"] = np.arange(1, 5, dtype=np.uint8).repeat(32 * 32 * 3).reshape(4, 32, 32, 3)
    found = mixed(0.0, 1.0, batch, step)
    foreign = found["image"][..., 0] != np.arange(1, 5)[:, None, None]
    assert (foreign == foreign[0]).all()
    # A box: its rows and columns are in one piece each.
    rows, columns = (np.flatnonzero(foreign[0].any(axis)) for axis in (1, 0))
    assert foreign[0].sum() == len(rows) * len(columns)
    assert all((np.diff(at) == 1).all() for at in (rows, columns))
    assert_equal(found["image"][foreign], swapped(batch["image"])[foreign])
    own = 1 - foreign[0].mean()
    np.testing.assert_allclose(found["share"], max(own, 1 - own), rtol=1e-6)
    assert_equal(found["label"], batch["label"] if own >= 0.5 else swapped(batch["label"]))


def shares(mixup, cutmix, count=400):
    """The shares that the images keep of themselves, in so many steps, before any are swapped."""
    batch = {"image": np.array([0, 100], np.uint8).repeat(64 * 64 * 3).reshape(2, 64, 64, 3),
             "label": np.array([0, 1], np.int32)}
    run = jax.jit(jax.vmap(functools.partial(mix, settings(mixup, cutmix)), (None, None, 0)))
    found = jax.tree.map(np.asarray, run(batch, KEY, np.arange(count)))
    return np.where(found["label"][:, 0] == 0, found["share"][:, 0], 1 - found["share"][:, 0]), (
        np.array([len(np.unique(image)) for image in found["image"][:, 0]]))


def test_mixups_shares_are_of_the_beta_distribution():
    found, _ = shares(0.4, 0.0)
    assert stats.kstest(found, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_boxes_are_of_every_size_and_some_are_cut_off():
    found, _ = shares(0.0, 1.0)
    assert found.min() < 0.2 and found.max() > 0.95
    # Were none cut off, the shares would be even, and their mean a half.
    assert 0.6 < found.mean() < 0.8


def test_of_mixup_and_cutmix_either_is_drawn():
    _, tones = shares(1.0, 1.0)
    # Mixup leaves one tone, a box two, unless it lies without.
    assert 150 < np.sum(tones == 1) < 250


def test_a_step_mixes_in_the_same_way_again_and_the_next_in_another():
    batch = random_batch(4)
    first, again, after = (mixed(1.0, 1.0, batch, step) for step in (5, 5, 6))
    assert_equal(first, again)
    assert (first["share"] != after["share"]).all()


@pytest.mark.parametrize("sizes", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_four_devices_mix_as_one(sizes):
    batch = random_batch(16)
    for step in range(3):
        assert_equal(mixed(*sizes, batch, step, devices=4), mixed(*sizes, batch, step))
