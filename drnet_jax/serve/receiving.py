"""Receiving: the images of a request, within limits."""

import io
import math
from collections.abc import AsyncIterator

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

FILES = 100  # of a form at most


async def images_of(request: Request, megabytes: float) -> tuple[bool, list[tuple[str, bytes]]]:
    """Whether a request is a form, and its images with their names.

    Raises:
        HTTPException: 413 if it is longer than so many MB, 400 if it is a form without files.
    """
    limit = int(megabytes * 1e6)
    too_long = HTTPException(413, f"expected at most {megabytes:g} MB")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_long
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return False, [("image", bytes(body))]
    return True, await _files(request, bytes(body))


async def _files(request: Request, body: bytes) -> list[tuple[str, bytes]]:
    async def once() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=FILES, max_fields=FILES)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # KeyError: of a form without a boundary
        raise HTTPException(400, f"expected a whole form ({error})") from error
    files = [
        (value.filename or name, await value.read())
        for name, value in form.multi_items() if not isinstance(value, str)
    ]
    await form.close()
    if not files:
        raise HTTPException(400, "expected files in the form, received none")
    return files


def check_pixels(data: bytes, megapixels: float) -> None:
    """Raises HTTPException 413 for an image that says that it has more pixels than that."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.width * image.height / 1e6
    except Image.DecompressionBombError:  # which does not say how many it has
        found = math.inf
    except Exception:  # of whatever Pillow knows no image in
        return
    if found > megapixels:
        more = "far more" if found == math.inf else f"an image of {found:.1f}"
        raise HTTPException(413, f"expected at most {megapixels:g} megapixels, received {more}")
