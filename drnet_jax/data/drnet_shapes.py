"""`drnet_shapes`: drawn images that say how much resolution they need, so routing can be checked.

Twelve classes: four silhouettes, each solid, striped horizontally or striped vertically. With the
base size B = 64, `needed_scale` is the smallest fraction of B at which the class can be told:

    0.5   solid: any size, clearly brighter or darker than the background
    0.75  striped and large: stripes with a period of 3 pixels
    1.0   striped and small: stripes with a period of 2 pixels

What is needed can be predicted at half the size, from the object's size and its being solid or
not; the direction of the stripes, and so the class, cannot be told below `needed_scale`. For an
antialiased (triangle filter) reduction by s scales a grating of frequency f by sinc(f s)^2, and
what survives beyond the new Nyquist frequency is folded back. At 3/4, period 2 keeps a third and
appears as period 4; at 1/2 it cancels exactly; period 3 keeps a half at 3/4, and an eighth at 1/2,
where it appears as period 6. So every object with stripes of period P also carries gratings of
about period 2P in *both* directions, whose amplitudes vary more than such a remainder adds.

The images measure 73 x 73: what validation resizes to before it crops 64, and an area of which 64 x
64 is the share 0.77. With crop_area (0.77, 0.77) and crop_ratio (1, 1) pixels are thus never
resampled, and every such crop contains the whole object.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

NAME = "drnet_shapes"
SIZE = 73  # height and width of an image, round(64 * 256 / 224)
SILHOUETTES = ("disk", "square", "triangle", "cross")
FILLS = ("solid", "horizontal", "vertical")
CLASSES = tuple(f"{silhouette}_{fill}" for silhouette in SILHOUETTES for fill in FILLS)

_SPLITS = {"train": 6000, "validation": 1512}  # multiples of 24: classes and sizes are balanced
_INSIDE = (9, 63)  # first and last pixel that every 64 x 64 crop contains
_SMALL, _LARGE = (26, 34), (42, 52)  # ranges of an object's width in pixels
_STRIPES = {2: (18, 22), 3: (26, 30)}  # by period: range of the amplitude, of 255
_DISTRACTORS = ((30, 0.9), (15, 0.67))  # largest amplitude; shortest period, as a share of 2P
_TAPER = 7  # pixels over which gratings fade in from the edge, which would betray their direction
_NOISE = 3.0  # standard deviation


class DrnetShapes(tfds.core.GeneratorBasedBuilder):
    """Shapes whose class needs a known resolution; drawn on the spot, nothing is downloaded."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "needed_scale": tfds.features.Scalar(np.float32),
            }),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(seed, count)
            for seed, (split, count) in enumerate(_SPLITS.items())
        }

    def _generate_examples(self, seed: int, count: int):
        for index, (image, label, scale) in enumerate(draw(seed, count)):
            _, png = cv2.imencode(".png", image[..., ::-1])
            yield index, {"image": png.tobytes(), "label": label, "needed_scale": scale}


def draw(seed: int, count: int) -> Iterator[tuple[np.ndarray, int, float]]:
    """Yields `count` times (image uint8 [73, 73, 3] RGB, label, needed_scale)."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, 240):
        index = np.arange(start, min(start + 240, count))
        labels = index % len(CLASSES)
        fill = labels % len(FILLS)
        large = index // len(CLASSES) % 2 == 1
        scales = np.where(fill == 0, 0.5, np.where(large, 0.75, 1.0))
        images = _backgrounds(len(index), rng)
        images = _draw_objects(images, labels // len(FILLS), fill, large, rng)
        images += rng.normal(0, _NOISE, images.shape)
        images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
        yield from zip(images, labels.tolist(), scales.tolist(), strict=True)


def _backgrounds(count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth colour fields with a few strokes and blobs on them, float32 [N, 73, 73, 3]."""
    fields = np.clip(rng.normal(128, 28, (count, 5, 5, 3)), 70, 186).astype(np.float32)
    images = np.empty((count, SIZE, SIZE, 3), np.float32)
    for image, field in zip(images, fields, strict=True):
        image[:] = cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for _ in range(rng.integers(2, 6)):
            (x0, y0, x1, y1), colour = rng.integers(0, SIZE, 4).tolist(), rng.uniform(50, 205, 3)
            thickness = int(rng.integers(1, 4))
            cv2.line(image, (x0, y0), (x1, y1), colour.tolist(), thickness, cv2.LINE_AA)
        for _ in range(rng.integers(0, 4)):
            (x, y), colour = rng.integers(0, SIZE, 2).tolist(), rng.uniform(50, 205, 3)
            cv2.circle(image, (x, y), int(rng.integers(2, 6)), colour.tolist(), -1, cv2.LINE_AA)
    return images


def _draw_objects(images, silhouette, fill, large, rng: np.random.Generator) -> np.ndarray:
    """Draws one object on each of float32 [N, 73, 73, 3]; the other arguments are [N]."""
    count = len(images)

    def column(values) -> np.ndarray:  # [N] -> [N, 1, 1], to broadcast over pixels
        return np.asarray(values, np.float32)[:, None, None]

    solid = fill == 0
    low = np.where(large & ~solid, _LARGE[0], _SMALL[0])
    high = np.where(large | solid, _LARGE[1], _SMALL[1])
    half = rng.uniform(low, high) / 2
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    centre_y, centre_x = rng.uniform(_INSIDE[0] + half, _INSIDE[1] - half, (2, count))
    depth = _depth(
        y - column(centre_y), x - column(centre_x), column(half),
        silhouette, np.radians(rng.uniform(-10, 10, count)),
    )
    inside = np.clip(depth + 0.5, 0, 1)[..., None]

    # Solid: bright or dark. Striped: as bright as the background on average, in another hue.
    bright = np.where(rng.random(count) < 0.5, 222, 34)
    tint = np.where(solid, bright, 128)[:, None] + rng.uniform(-12, 12, (count, 3))
    period = np.where(large, 3, 2)
    amplitude = np.where(large, rng.uniform(*_STRIPES[3], count), rng.uniform(*_STRIPES[2], count))
    stripes = _grating(fill == 1, period, amplitude, rng)
    for horizontal in (True, False):
        for largest, shortest in _DISTRACTORS:
            distractor_period = 2 * period * rng.uniform(shortest, 1, count)
            amplitude = largest * rng.uniform(0.1, 1, count)
            stripes += _grating(np.full(count, horizontal), distractor_period, amplitude, rng)
    fade = np.clip(depth / _TAPER, 0, 1)
    stripes *= column(~solid) * fade**2 * (3 - 2 * fade)
    objects = tint[:, None, None].astype(np.float32) + stripes[..., None]
    return images + inside * (objects - images)


def _grating(horizontal, period, amplitude, rng: np.random.Generator) -> np.ndarray:
    """Sinusoids float32 [N, 73, 73] of random phase; period (pixels) and amplitude are [N]."""
    phase = rng.uniform(0, 2 * np.pi, len(period))
    # With period 2, sampled at whole pixels, other phases would only lower the amplitude.
    phase = np.where(period == 2, np.pi * np.rint(phase / np.pi), phase)
    along = np.arange(SIZE, dtype=np.float32)
    waves = amplitude[:, None] * np.cos(2 * np.pi * along / period[:, None] + phase[:, None])
    waves = np.where(horizontal[:, None, None], waves[:, :, None], waves[:, None, :])
    return np.broadcast_to(waves, (len(period), SIZE, SIZE)).astype(np.float32)


def _depth(y, x, half, silhouette, angle) -> np.ndarray:
    """How deep pixels lie within their silhouette, in pixels, negative outside; float32 [N, H, W].

    `y` and `x` count from the object's centre; rotated by up to 10 degrees, it stays within `half`.
    """
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    v, u = cos * y - sin * x, np.abs(sin * y + cos * x)  # all four are symmetric left to right
    top, arm = 0.86 * half, 0.4 * half
    depths = {
        "disk": half - np.hypot(u, v),
        "square": top - np.maximum(u, np.abs(v)),
        "triangle": np.minimum(top - v, (top + v - 2 * u) / np.sqrt(5)),
        "cross": np.maximum(
            np.minimum(arm - u, 0.92 * half - np.abs(v)),
            np.minimum(0.92 * half - u, arm - np.abs(v)),
        ),
    }
    stacked = np.stack([depths[name] for name in SILHOUETTES])
    return stacked[silhouette, np.arange(len(silhouette))].astype(np.float32)
