"""Decoding against Pillow, crops against torchvision's rules, and pixels that must not change."""

import io

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from drnet_jax import images
from drnet_jax.data import transforms
from drnet_jax.errors import UserError

ORIENTATION = 0x112  # the EXIF tag


def smooth(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RGB = Image.fromarray(smooth(40, 50))
TURNED = RGB.transpose(Image.Transpose.ROTATE_180)
WHOLE = {
    "rgb jpeg": encode(RGB, "JPEG", quality=95),
    "progressive jpeg": encode(RGB, "JPEG", quality=95, progressive=True),
    "grey jpeg": encode(RGB.convert("L"), "JPEG", quality=95),
    "rgb png": encode(RGB, "PNG"),
    "grey png": encode(RGB.convert("L"), "PNG"),
    "palette png": encode(RGB.convert("P"), "PNG"),
    "one-bit png": encode(RGB.convert("1"), "PNG"),
    "jpeg with trailing bytes": encode(RGB, "JPEG", quality=95) + b"\0" * 100,
    "animated png": encode(RGB, "PNG", save_all=True, append_images=[TURNED]),
    "webp": encode(RGB, "WEBP", lossless=True),
    "animated webp": encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[TURNED]),
    "gif": encode(RGB, "GIF"),
    "animated gif": encode(RGB, "GIF", save_all=True, append_images=[TURNED]),
    "bmp": encode(RGB, "BMP"),
    "palette bmp": encode(RGB.convert("P"), "BMP"),
    "tiff": encode(RGB, "TIFF"),
    "lzw tiff": encode(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff of pages": encode(RGB, "TIFF", save_all=True, append_images=[TURNED]),
    "avif": encode(RGB, "AVIF"),
    "grey avif": encode(RGB.convert("L"), "AVIF"),
    "jp2": encode(RGB, "JPEG2000"),
    "grey jp2": encode(RGB.convert("L"), "JPEG2000"),
    "j2k": encode(RGB, "JPEG2000", no_jp2=True),
    "ppm": encode(RGB, "PPM"),
    "pgm": encode(RGB.convert("L"), "PPM"),
    "pbm": encode(RGB.convert("1"), "PPM"),
    "ras": cv2.imencode(".ras", np.asarray(RGB)[..., ::-1])[1].tobytes(),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_decode_equals_pillow(kind):
    image = transforms.decode(WHOLE[kind])
    expected = np.asarray(Image.open(io.BytesIO(WHOLE[kind])).convert("RGB"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_decode_converts_cmyk():
    encoded = encode(RGB.convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), int)
    np.testing.assert_allclose(transforms.decode(encoded), expected, atol=1)


def test_decode_cuts_16_bits_to_8():
    deep = np.asarray(RGB).astype(np.uint16) * 256 + 7
    for pixels in (deep[..., ::-1], deep[..., 0]):
        encoded = cv2.imencode(".png", pixels)[1].tobytes()
        expected = np.asarray(RGB) if pixels.ndim == 3 else np.asarray(RGB)[..., :1].repeat(3, -1)
        np.testing.assert_allclose(transforms.decode(encoded), expected.astype(int), atol=1)


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0), ("WEBP", {"lossless": True, "exact": True}, 0), ("JPEG2000", {}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3),  # never quite lossless
    ],
)
def test_decode_drops_alpha_and_keeps_the_colours_under_it(form, options, tolerance):
    alpha = np.random.default_rng(1).integers(0, 256, (40, 50, 1), np.uint8)
    encoded = encode(Image.fromarray(np.dstack([np.asarray(RGB), alpha])), form, **options)
    np.testing.assert_allclose(
        transforms.decode(encoded), np.asarray(RGB).astype(int), atol=tolerance
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_images_upright(form, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = encode(RGB, form, exif=exif if form == "TIFF" else exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(transforms.decode(encoded), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize("kind", [
    "rgb jpeg", "progressive jpeg", "grey jpeg", "rgb png", "webp", "animated webp", "gif",
    "animated gif", "bmp", "tiff", "lzw tiff", "avif", "jp2", "j2k", "ppm", "pbm", "ras",
])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, -2])
def test_decode_refuses_images_cut_short(kind, kept):
    encoded = WHOLE[kind]
    end = kept if kept < 0 else int(kept * len(encoded))
    with pytest.raises(UserError, match="cannot be decoded"):
        transforms.decode(encoded[:end])


@pytest.mark.parametrize("encoded", [b"", b"no image", b"<html></html>" * 100])
def test_decode_refuses_what_is_no_image(encoded):
    with pytest.raises(UserError, match=f"received {len(encoded)} bytes"):
        transforms.decode(encoded)


def test_decode_refuses_floating_point_grey():
    encoded = cv2.imencode(".pfm", smooth(4, 5)[..., 0].astype(np.float32))[1].tobytes()
    with pytest.raises(UserError, match="cannot be decoded"):
        transforms.decode(encoded)


def test_every_suffix_is_that_of_an_image_decoded_here():
    written = {
        ".jfif": WHOLE["rgb jpeg"], ".j2k": WHOLE["j2k"], ".apng": WHOLE["animated png"],
    }
    for suffix in transforms.SUFFIXES:
        if suffix not in written:
            assert cv2.haveImageWriter("x" + suffix), suffix
    for encoded in written.values():
        assert transforms.decode(encoded).shape == (40, 50, 3)


def test_odd_images_print_nothing(capfd):
    transforms.decode(cv2.imencode(".tif", np.zeros((4, 5, 4), np.uint8))[1].tobytes())
    with pytest.raises(UserError):
        transforms.decode(WHOLE["gif"][:100])
    assert capfd.readouterr() == ("", "")


def test_decode_refuses_a_damaged_png():
    damaged = bytearray(WHOLE["rgb png"])
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(UserError):
        transforms.decode(bytes(damaged))


@pytest.mark.parametrize("shape", [(300, 400), (90, 500), (50, 60)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_is_the_one_of_the_device(shape, interpolation):
    image = smooth(*shape)
    on_device = images.resize(jnp.asarray(image, jnp.float32)[None], 64, interpolation)[0]
    np.testing.assert_allclose(
        transforms.resize(image, 64, 64, interpolation), on_device, atol=1.2)


def test_crop_boxes_lie_inside_and_keep_area_and_ratio():
    rng = np.random.default_rng(0)
    height, width = 700, 1000
    boxes = np.array([
        transforms.random_crop_box(height, width, rng, (0.1, 0.4), (0.75, 4 / 3))
        for _ in range(4000)
    ])
    tops, lefts, heights, widths = boxes.T
    assert (boxes >= 0).all()
    assert (tops + heights <= height).all()
    assert (lefts + widths <= width).all()
    shares, ratios = heights * widths / (height * width), widths / heights
    assert 0.099 < shares.min() < 0.105 and 0.395 < shares.max() < 0.401
    assert 0.747 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.337
    # Uniform in the area, and in the logarithm of the ratio.
    assert shares.mean() == pytest.approx(0.25, abs=0.005)
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.01)
    # Uniform in the position, both ends included.
    assert (tops / (height - heights)).mean() == pytest.approx(0.5, abs=0.02)
    assert (lefts / (width - widths)).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 1000, (0, 493, 10, 13)),  # too wide: 4/3 of the height, in the middle
        (1000, 12, (492, 0, 16, 12)),  # too high: the width / 0.75, in the middle
        (100, 100, (0, 0, 100, 100)),  # within the range: the whole image
        (100, 120, (0, 0, 100, 120)),
        (1000, 1, (499, 0, 1, 1)),
    ],
)
def test_crop_box_that_never_fits_is_central(height, width, expected):
    # 1.21 times the image's area fits nowhere.
    rng = np.random.default_rng(0)
    box = transforms.random_crop_box(height, width, rng, (1.21, 1.21), (0.75, 4 / 3))
    assert box == expected


def test_crop_of_the_target_size_copies_pixels():
    image = np.random.default_rng(2).integers(0, 256, (73, 73, 3), np.uint8)
    corners = set()
    for seed in range(300):
        crop = transforms.random_resized_crop(
            image, np.random.default_rng(seed), 64, (0.77, 0.77), (1.0, 1.0)
        )
        top, left, *_ = transforms.random_crop_box(
            73, 73, np.random.default_rng(seed), (0.77, 0.77), (1.0, 1.0)
        )
        np.testing.assert_array_equal(crop, image[top : top + 64, left : left + 64])
        corners.add((top, left))
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(10))


def test_crop_is_the_resized_box():
    image = smooth(300, 400)
    crop = transforms.random_resized_crop(
        image, np.random.default_rng(5), 32, (0.08, 1.0), (0.75, 4 / 3)
    )
    top, left, height, width = transforms.random_crop_box(
        300, 400, np.random.default_rng(5), (0.08, 1.0), (0.75, 4 / 3)
    )
    box = Image.fromarray(image).crop((left, top, left + width, top + height))
    np.testing.assert_array_equal(crop, box.resize((32, 32), Image.Resampling.BILINEAR))


def test_flip_mirrors_half_of_the_images():
    image = smooth(5, 6)
    rng = np.random.default_rng(0)
    flipped = 0
    for _ in range(400):
        result = transforms.random_flip(image, rng)
        mirrored = (result == image[:, ::-1]).all()
        assert mirrored or (result == image).all()
        flipped += mirrored
    assert 160 < flipped < 240


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_validation_squashes_to_256_and_crops_224(interpolation):
    image, square = smooth(300, 500), transforms.square_for(224, 0.875, interpolation)
    squashed = Image.fromarray(image).resize((256, 256), Image.Resampling[interpolation.upper()])
    expected = np.asarray(squashed)[16:240, 16:240]
    np.testing.assert_array_equal(transforms.resize_and_centre_crop(image, square, 224), expected)


@pytest.mark.parametrize(("size", "side"), [(224, 256), (64, 73), (32, 37), (112, 128)])
def test_validation_only_crops_what_has_the_size(size, side):
    image = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    square = transforms.square_for(size, 0.875)
    assert square == (side, "bilinear")
    start = (side - size) // 2
    expected = image[start : start + size, start : start + size]
    np.testing.assert_array_equal(transforms.resize_and_centre_crop(image, square, size), expected)
