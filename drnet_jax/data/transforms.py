"""Transforms: from encoded bytes to the uint8 pixels that travel to the device.

Pure functions on one image, uint8 [H, W, 3] RGB. Cropping happens here; normalising and resizing to
the candidate resolutions happen on the device.
"""
# ruff: noqa: E402 (the limit below must be set before OpenCV is imported)

import io
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

# What says that it has more is no photograph, and would take 400 MB to hold. OpenCV reads this when
# it is imported.
MOST_PIXELS = 1 << 27
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))

import cv2
import numpy as np
from PIL import Image, ImageOps

from drnet_jax.config import Config
from drnet_jax.errors import UserError

# Images are decoded in parallel, one per thread; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)
# What cannot be decoded is an error with a name; OpenCV would also print a line for every odd tag.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# What `decode` reads, by family: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, portable bit-,
# grey- and pixmaps, Sun raster. OpenCV's floating-point formats are none of photographs.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm", ".ras", ".sr",
)


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image of any format in `SUFFIXES` to uint8 [H, W, 3] RGB.

    It is upright (its EXIF orientation is applied). Grey and palette images are spread to three
    channels, CMYK is converted, 16 bits are cut to 8, and an alpha channel is dropped: the colours
    stored under transparent pixels are kept as they are, not blended with any background (except in
    TIFF, whose library darkens them by their alpha). Of an animation or of several pages the first
    is taken.

    Raises:
        UserError: if the bytes are not an image, are cut short, or have more than `MOST_PIXELS`
            (unless the variable OPENCV_IO_MAX_IMAGE_PIXELS allows more). Damage in the middle of a
            JPEG can pass unnoticed, as can the loss of the palette at the end of a TIFF; a PNG has
            check sums.
    """
    try:
        if encoded[4:8] == b"ftyp":
            image = _decode_avif(encoded)
        else:
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # nothing to decode, or more pixels than OpenCV allows
        image = None
    if image is None or image.ndim != 3:  # floating-point grey stays [H, W]
        raise UserError(
            f"expected a whole image (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ...), "
            f"received {len(encoded)} bytes that cannot be decoded (they begin with "
            f"{encoded[:8]!r})"
        )
    return image


def _decode_avif(encoded: bytes) -> np.ndarray | None:
    # Pillow, as OpenCV swaps red and blue where there is alpha, and leaves rotated images lying.
    try:
        with Image.open(io.BytesIO(encoded), formats=("AVIF",)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # Pillow raises SyntaxError, OSError, ValueError, ... for damaged files
        return None


def resize(
    image: np.ndarray, height: int, width: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to [height, width, 3], antialiased; "bilinear" or "bicubic".

    An image that has the size already is returned as it is, without resampling.
    """
    if image.shape[:2] == (height, width):
        return image
    # Pillow and not OpenCV, because the filter must be the one that reference networks were trained
    # with and that the device uses below the base size: cv2.INTER_LINEAR does not antialias
    # (37 dB from this when photographs are shrunk to 256 x 256), cv2.INTER_AREA is a box (43 dB).
    method = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def random_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, ...],
    ratio: tuple[float, ...],
) -> tuple[int, int, int, int]:
    """Draws the (top, left, height, width) of a random-resized crop, as torchvision does.

    `area` is the range of the crop's share of the image, `ratio` that of its width / height (drawn
    uniformly in the logarithm). When ten draws do not fit into the image, it is the largest central
    crop whose ratio is within the range.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(low, high))
        crop_width = round(math.sqrt(pixels * aspect))
        crop_height = round(math.sqrt(pixels / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    area: tuple[float, ...],
    ratio: tuple[float, ...],
) -> np.ndarray:
    """Cuts a random box (see `random_crop_box`) out of uint8 [H, W, 3]; returns [size, size, 3].

    A box that measures size x size is copied pixel by pixel.
    """
    top, left, height, width = random_crop_box(*image.shape[:2], rng, area, ratio)
    return resize(image[top : top + height, left : left + width], size, size)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors uint8 [H, W, 3] left to right, one time in two."""
    return image[:, ::-1] if rng.random() < 0.5 else image


class Square(NamedTuple):
    """What an image is squashed to before its centre is cropped."""

    side: int  # in pixels
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> "Square":
        """That of a checkpoint's `preprocessing`."""
        return cls(preprocessing["resize"], preprocessing["interpolation"])


def square_for(size: int, crop: float, interpolation: str = "bilinear") -> Square:
    """The square of which the central `size` is cropped; `crop` is the share of a side that is
    kept: 224 of 256 is 0.875."""
    return Square(round(size / crop), interpolation)


def resize_and_centre_crop(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """Squashes uint8 [H, W, 3] to a square; returns its centre [size, size, 3].

    An image that measures that square already is only cropped.
    """
    start, (side, interpolation) = (square.side - size) // 2, square
    return resize(image, side, side, interpolation)[start : start + size, start : start + size]


def preprocessing(config: Config) -> dict[str, Any]:
    """How an image becomes an input: squashed to "resize" pixels, cropped to "crop", normalised."""
    base, expected = config.resolutions[0], config.preprocessing
    return {
        "resize": square_for(base, expected.val_crop).side, "crop": base,
        "interpolation": expected.interpolation,
        "mean": list(expected.mean), "deviation": list(expected.deviation),
    }
