"""drnet_shapes keeps its word: the class can be told at `needed_scale`, and not below."""

import cv2
import numpy as np
import pytest
from PIL import Image

from drnet_jax.data import drnet_shapes

BASE = 64
SCALES = (1.0, 0.75, 0.5)
SOLID, HORIZONTAL, VERTICAL = range(3)


def drawn(seed, count=1920):
    images, labels, scales = zip(*drnet_shapes.draw(seed, count), strict=True)
    return np.stack(images), np.array(labels), np.array(scales)


@pytest.fixture(scope="module")
def train():
    return drawn(100)


@pytest.fixture(scope="module")
def test():
    return drawn(101)


def views(images, scale):
    """What a network sees at `scale`: float [N, S, S, 3], by an antialiased bilinear resize."""
    size = round(BASE * scale)
    start = (drnet_shapes.SIZE - BASE) // 2
    crops = images[:, start : start + BASE, start : start + BASE]
    resized = [Image.fromarray(crop).resize((size, size), Image.BILINEAR) for crop in crops]
    return np.stack([np.asarray(image, float) for image in resized])


def test_the_same_seed_draws_the_same():
    first, again, other = drawn(5, 24), drawn(5, 24), drawn(6, 24)
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any(axis=(1, 2, 3)).all()


def test_classes_and_levels_are_balanced():
    _, labels, scales = drawn(0, 48)
    assert (np.bincount(labels) == 4).all()
    levels, counts = np.unique(scales, return_counts=True)
    np.testing.assert_array_equal(levels, [0.5, 0.75, 1.0])
    np.testing.assert_array_equal(counts, 16)
    np.testing.assert_array_equal(scales == 0.5, labels % 3 == SOLID)
    assert all(count % 24 == 0 for count in drnet_shapes._SPLITS.values())  # the period of both


def test_objects_lie_in_every_crop():
    rng = np.random.default_rng(0)
    count = 400
    silhouette = np.arange(count) % 4
    half = np.full((count, 1, 1), 20.0)
    y, x = np.mgrid[-30:31, -30:31].astype(float)[:, None]
    angle = np.radians(rng.uniform(-10, 10, count))
    inside = drnet_shapes._depth(y, x, half, silhouette, angle) > 0
    assert not inside[(np.abs(y) > half) | (np.abs(x) > half)].any()
    assert (inside.sum(axis=(1, 2)) > 0.3 * 40**2).all()
    # Crops of the base size start at 0 to 9, so 9 to 63 is what all of them show.
    assert drnet_shapes._INSIDE == (drnet_shapes.SIZE - BASE, BASE - 1)
    assert drnet_shapes._LARGE[1] <= drnet_shapes._INSIDE[1] - drnet_shapes._INSIDE[0]


def test_striped_objects_are_not_clipped(train):
    images, labels, _ = train
    striped = images[labels % 3 != SOLID]
    assert ((striped == 0) | (striped == 255)).mean() < 1e-4


def direction_features(images):
    """Log energy of gratings along x minus along y, per frequency: [N, S // 2 + 1]."""
    grey = images.mean(axis=-1)
    energy = np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))) ** 2
    near_zero, half = [0, 1, 2, -2, -1], grey.shape[1] // 2 + 1
    along_x = energy[:, near_zero, :half].sum(axis=1)
    along_y = energy[:, :half, near_zero].sum(axis=2)
    return np.log(along_x + 1) - np.log(along_y + 1)


def logistic_regression(features, targets, penalty=10.0):
    """Fits by Newton's method; returns the weights of the (odd, hence unbiased) features."""
    weights = np.zeros(features.shape[1])
    for _ in range(15):
        probability = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (probability - targets) + penalty * weights
        curvature = (features.T * (probability * (1 - probability))) @ features
        weights -= np.linalg.solve(curvature + penalty * np.eye(len(weights)), gradient)
    return weights


@pytest.mark.parametrize("level", [0.75, 1.0])
@pytest.mark.parametrize("scale", SCALES)
def test_direction_of_stripes_can_be_told_at_its_scale_only(train, test, level, scale):
    features, targets = [], []
    for images, labels, scales in (train, test):
        chosen = scales == level
        features.append(direction_features(views(images[chosen], scale)))
        targets.append(labels[chosen] % 3 == VERTICAL)
    right = (features[1] @ logistic_regression(features[0], targets[0]) > 0) == targets[1]
    if scale >= level:
        assert right.mean() > 0.95
    else:
        assert right.mean() < 0.65


def silhouette_images(images, scale):
    """Masks of bright or dark objects, brought to one size: float [N, 24 * 24]."""
    masks = []
    for image in views(images, scale):
        grey = cv2.medianBlur(image.mean(axis=-1).astype(np.uint8), 3).astype(float)
        _, labelled, stats, _ = max(
            (
                cv2.connectedComponentsWithStats(mask.astype(np.uint8))
                for mask in (grey > 195, grey < 61)
            ),
            key=lambda found: max(found[2][1:, cv2.CC_STAT_AREA], default=0),
        )
        biggest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
        left, top, width, height, _ = stats[biggest]
        mask = (labelled == biggest)[top : top + height, left : left + width]
        masks.append(cv2.resize(mask.astype(np.float32), (24, 24)).ravel())
    return np.stack(masks)


def test_class_of_solid_objects_can_be_told_at_half_size(train, test):
    masks, silhouettes = [], []
    for images, labels, _ in (train, test):
        solid = labels % 3 == SOLID
        masks.append(silhouette_images(images[solid], 0.5))
        silhouettes.append(labels[solid] // 3)
    means = np.stack([masks[0][silhouettes[0] == kind].mean(axis=0) for kind in range(4)])
    distances = ((masks[1][:, None] - means) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=1) == silhouettes[1]).mean() > 0.95


def extent_features(images):
    """How much of a half-size view is bright or dark, and how its finest contrasts spread."""
    grey = views(images, 0.5).mean(axis=-1)
    extreme = ((grey > 195) | (grey < 61)).mean(axis=(1, 2))
    contrast = np.abs(grey - np.stack([cv2.blur(image, (3, 3)) for image in grey]))
    spread = np.quantile(contrast, (0.5, 0.7, 0.8, 0.9, 0.95), axis=(1, 2))
    return np.stack([extreme, *spread], axis=1)


def test_what_is_needed_can_be_predicted_at_half_size(train, test):
    known, asked = extent_features(train[0]), extent_features(test[0])
    differences = (asked[:, None] - known) / known.std(axis=0)
    nearest = (differences**2).sum(axis=-1).argmin(axis=1)
    assert (train[2][nearest] == test[2]).mean() > 0.8
