"""Images: the resize against Pillow's, and normalisation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from drnet_jax import images, ops, resolutions
from tests.tiny import random_variables, tiny_drnet

RANDOM = np.random.default_rng(0)
PHOTO = np.asarray(  # smooth, with some noise on top
    Image.fromarray(RANDOM.integers(0, 256, (7, 7, 3), np.uint8)).resize((224, 224)), np.int16)
PHOTO = np.clip(PHOTO + RANDOM.normal(0, 20, PHOTO.shape), 0, 255).astype(np.uint8)
NOISE = RANDOM.integers(0, 256, (224, 224, 3), np.uint8)  # the hardest case for a resize


def pillow(image, size, method=Image.Resampling.BILINEAR):
    """Antialiased resize by Pillow in float, channel by channel (its RGB rounds to uint8)."""
    channels = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((size, size), method))
        for c in range(3)
    ]
    return np.stack(channels, -1)


PLATFORMS = pytest.mark.parametrize("platform", ["cpu", "tpu", "graph"])


@pytest.mark.parametrize("size", [168, 128, 112, 96])
@PLATFORMS
def test_resize_is_pillows_antialiased_bilinear(size, platform):
    batch = np.stack([PHOTO, NOISE])
    with ops.traced_for(platform):
        found = np.asarray(jax.jit(images.resize, static_argnums=1)(batch, size))
    assert found.shape == (2, size, size, 3)
    for image, resized in zip(batch, found, strict=True):
        np.testing.assert_allclose(resized, pillow(image, size), atol=5e-3)
        # What a user sees of Pillow, which rounds after each of its two passes.
        rounded = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(resized - rounded).max() < 1.05
        assert np.abs(resized - rounded).mean() < 0.4


@pytest.mark.parametrize("size", [168, 112, 96, 300])
@PLATFORMS
def test_bicubic_is_pillows_within_the_range_of_pixels(size, platform):
    edges = np.uint8(255) * (PHOTO > 127)
    with ops.traced_for(platform):
        found = images.resize(jnp.stack([PHOTO, edges]), size, "bicubic")
    expected = [pillow(image, size, Image.Resampling.BICUBIC) for image in (PHOTO, edges)]
    assert np.min(expected) < -1 and np.max(expected) > 256
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=5e-3)


def test_resize_to_the_same_size_changes_no_bit():
    batch = np.stack([PHOTO, NOISE])
    np.testing.assert_array_equal(images.resize(jnp.asarray(batch), 224), batch)
    np.testing.assert_array_equal(images.view(batch, 224), images.normalise(batch))


def test_normalise_by_hand():
    batch = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)
    found = images.normalise(batch)
    assert found.dtype == jnp.float32
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found[0, 0], [-mean / deviation, (1 - mean) / deviation], rtol=1e-5)


@PLATFORMS
def test_view_is_the_normalised_resize(platform):
    with ops.traced_for(platform):
        found = images.view(NOISE[None], 96)[0]
    assert found.dtype == jnp.float32
    expected = (pillow(NOISE, 96) - images.MEAN) / images.DEVIATION
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_network_sees_pixels_as_its_weights_expect_them():
    batch = np.array([[[[127, 255, 0]]]], np.uint8)
    found = images.view(batch, 1, (127.0,) * 3, (128.0,) * 3)
    np.testing.assert_allclose(found[0, 0, 0], [0, 1, -127 / 128])
    found = images.view(NOISE[None], 96, interpolation="bicubic")
    expected = np.clip(pillow(NOISE, 96, Image.Resampling.BICUBIC), 0, 255)
    np.testing.assert_allclose(found[0], images.normalise(expected[None])[0], atol=1e-3)


def test_a_drnet_resizes_as_its_config_says():
    batch = np.stack([PHOTO, NOISE])[:, :16, :16]
    found = {}
    for interpolation in ("bilinear", "bicubic"):
        drnet = tiny_drnet({"preprocessing.interpolation": interpolation})
        params, stats = jax.tree.map(jnp.asarray, random_variables(drnet))
        found[interpolation], _ = drnet.classify(2, params, stats, batch)
        variables = resolutions.plain_variables(params, stats, "8")
        view = images.view(batch, 8, interpolation=interpolation)
        expected = drnet.classifier.apply(variables, view, False)
        np.testing.assert_allclose(found[interpolation], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found["bilinear"] - found["bicubic"]).max() > 1e-3
