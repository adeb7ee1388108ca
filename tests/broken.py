"""Images that are none, or hardly: a thousand files to be refused or answered, and nothing else."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photograph(width: int = 90, height: int = 60) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    noise = RANDOM.integers(0, 60, (height, width, 3))
    pixels = np.stack([rows, columns, rows + columns], -1) % 196 + noise
    return Image.fromarray(pixels.astype(np.uint8))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG whose header may promise more than there is."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + (
        chunk(b"IEND", b""))


def odd() -> Iterator[tuple[str, bytes]]:
    """Real images of unusual kinds, which may be answered."""
    picture = photograph()
    frames = [photograph() for _ in range(3)]
    yield "1x1.png", encoded(photograph(1, 1), "PNG")
    yield "1x1.jpg", encoded(photograph(1, 1), "JPEG")
    yield "wide.png", encoded(photograph(20_000, 2), "PNG")
    yield "tall.jpg", encoded(photograph(2, 20_000), "JPEG")
    yield "16 bits.png", encoded(Image.fromarray(
        RANDOM.integers(0, 65_536, (30, 40), dtype=np.uint16)), "PNG")
    yield "16 bits.tiff", encoded(Image.fromarray(
        RANDOM.integers(0, 65_536, (30, 40), dtype=np.uint16)), "TIFF")
    yield "float.tiff", encoded(Image.fromarray(
        RANDOM.normal(size=(30, 40)).astype(np.float32)), "TIFF")
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        yield f"animated.{form.lower()}", encoded(
            frames[0], form, save_all=True, append_images=frames[1:])
    yield "cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG")
    yield "cmyk.tiff", encoded(picture.convert("CMYK"), "TIFF")
    yield "palette.png", encoded(picture.convert("P"), "PNG")
    yield "palette.gif", encoded(picture.convert("P"), "GIF")
    yield "bits.png", encoded(picture.convert("1"), "PNG")
    yield "bits.bmp", encoded(picture.convert("1"), "BMP")
    yield "alpha.png", encoded(picture.convert("RGBA"), "PNG")
    yield "alpha.webp", encoded(picture.convert("RGBA"), "WEBP")
    yield "grey and alpha.png", encoded(picture.convert("LA"), "PNG")
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    yield "turned.jpg", encoded(picture, "JPEG", exif=turned)
    yield "progressive.jpg", encoded(picture, "JPEG", progressive=True)
    yield "lossless.jp2", encoded(picture, "JPEG2000")
    yield "portable.ppm", encoded(picture, "PPM")


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that say that they hold enormous images."""
    for size in (30_000, 65_535, 100_000, 2**31 - 1):
        yield f"{size}.png", png(size, size, b"\0" * 100_000)
    yield "120 megapixels.png", png(11_000, 11_000, b"\0" * (1 + 3 * 11_000) * 20)
    yield "65535.gif", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + (
        b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\x02\x4c\x01\0;")
    yield "60000.bmp", b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(146)
    jpeg = bytearray(encoded(photograph(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    yield "65500.jpg", bytes(jpeg)


def thousand() -> list[tuple[str, bytes]]:
    """Names, each of another file, and bytes."""
    found = [*odd(), *bombs(), ("empty.jpg", b""), ("zeros.png", bytes(500)), ("one.gif", b"G")]
    whole = [
        (form, encoded(photograph(), form))
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")]
    signatures = [data[:12] for _, data in whole]
    while len(found) < 1000:
        number = len(found)
        form, data = whole[number % len(whole)]
        kind = ("cut", "flipped", "signature", "random", "joined")[number // len(whole) % 5]
        changed = bytearray(data)
        if kind == "cut":
            del changed[int(RANDOM.integers(1, len(data))):]
        elif kind == "flipped":
            for place in RANDOM.integers(0, len(data), 8):
                changed[place] ^= 1 << int(RANDOM.integers(8))
        elif kind == "signature":
            changed[:12] = signatures[int(RANDOM.integers(len(signatures)))]
        elif kind == "random":
            changed[12:] = RANDOM.bytes(len(data))
        else:
            half = len(data) // 2
            changed[half:] = whole[(number + 1) % len(whole)][1][half:]
        found.append((f"{number} {kind}.{form.lower()}", bytes(changed)))
    return found
