"""Prediction: images of any size and number, read, routed and answered in the order given."""

import concurrent.futures
import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.data import transforms
from drnet_jax.data.imagenet import class_words
from drnet_jax.data.transforms import Square
from drnet_jax.devices import cores
from drnet_jax.errors import UserError
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.queues import Answers, route

LAG = 8  # batches after which an image that waits for its bucket to fill is classified anyway

Image = str | os.PathLike | bytes | np.ndarray  # a file, its bytes, or uint8 [H, W, 3] in RGB
Name = str | int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of an image."""

    image: Name  # the file, or else the image's position among those given
    label: str | None  # the most probable class; None with an `error`
    name: str | None  # that class in words, if it is an ImageNet synset; else as `label`
    probability: float | None  # of that class
    network: str | None  # that answered: "classifier" or "predictor"
    resolution: int | None  # at which that saw the image, in pixels
    multiply_adds: int | None  # that were spent on the image, the predictor's included
    error: str | None = None  # why the image could not be read


def predict(
    engine: Engine, classes: Sequence[str], square: Square, images: Iterable[Image], price: float,
    skip_errors: bool,
) -> Iterator[Answer]:
    """Yields an Answer for each image, in the order given, as soon as that allows.

    Args:
        engine: of the model.
        classes: names, [C].
        square: what images are squashed to before the base size is cropped.
        images: any number.
        price: at which options are charged.
        skip_errors: whether an image that cannot be read becomes an Answer with an `error`.

    Raises:
        UserError: if an image cannot be read, unless `skip_errors`.
    """
    names: dict[int, Name] = {}
    ready: dict[int, Answer] = {}
    following = 0

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows: list[np.ndarray] = []
        tickets: list[int] = []
        for ticket, (name, image) in enumerate(_read(engine, square, images)):
            if isinstance(image, UserError):
                if not skip_errors:
                    raise image
                ready[ticket] = Answer(name, *[None] * 6, str(image))
                continue
            names[ticket] = name
            rows.append(image)
            tickets.append(ticket)
            if len(rows) == engine.batch_size:
                yield np.stack(rows), np.array(tickets)
                rows, tickets = [], []
        if rows:
            yield np.stack(rows), np.array(tickets)

    def in_order() -> Iterator[Answer]:
        nonlocal following
        while following in ready:
            yield ready.pop(following)
            following += 1

    for answers in route(engine, batches(), price, LAG):
        ready |= _answered(engine, classes, names, answers)
        yield from in_order()
    yield from in_order()


def check_images(images: Any) -> None:
    """Raises UserError for one image, which would be iterated by its letters or rows, or none."""
    one = isinstance(images, (str, os.PathLike, bytes, bytearray))
    # An array of any library: one of [N, H, W, 3] is iterated by its images, one of [N] by paths.
    one = one or getattr(images, "ndim", None) in (2, 3)
    try:
        iter(images)
    except TypeError:  # as of PIL's images
        one = True
    if one:
        raise UserError(
            f"images: expected an iterable of images, received {type(images).__name__}; put a "
            "single image in a list"
        )


def _answered(
    engine: Engine, classes: Sequence[str], names: dict[int, Name], answers: Answers
) -> dict[int, Answer]:
    """Answers by ticket; their names are taken out of `names`."""
    best, probability = answers.log_p.argmax(axis=1), np.exp(answers.log_p.max(axis=1))
    network, resolution = engine.drnet.answering(answers.option)
    multiply_adds, words = int(engine.costs.routed[answers.option]), class_words(classes)
    return {
        ticket: Answer(
            names.pop(ticket), classes[label], words[label], share, network, resolution,
            multiply_adds,
        )
        for ticket, label, share in zip(
            answers.tickets.tolist(), best.tolist(), probability.tolist(), strict=True
        )
    }


def _read(
    engine: Engine, square: Square, images: Iterable[Image]
) -> Iterator[tuple[Name, np.ndarray | UserError]]:
    """Each image's name, and uint8 [base, base, 3] or why it cannot be read; threads decode."""
    base = engine.drnet.resolutions[0]
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        coming: deque[concurrent.futures.Future] = deque()
        try:
            for position, image in enumerate(images):
                coming.append(pool.submit(_prepare, position, image, square, base))
                if len(coming) > 2 * engine.batch_size:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(
    position: int, image: Image, square: Square, base: int
) -> tuple[Name, np.ndarray | UserError]:
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else position
    try:
        return name, transforms.resize_and_centre_crop(_decoded(image), square, base)
    except UserError as error:
        return name, UserError(f"{name}: {error}")


def _decoded(image: Image) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"expected an array uint8 [H, W, 3], received {image.dtype} {list(image.shape)}"
            )
        return image
    if not isinstance(image, (str, os.PathLike, bytes)):
        raise UserError(
            "expected a file, its bytes or an array uint8 [H, W, 3], received "
            f"{type(image).__name__}"
        )
    if not isinstance(image, bytes):
        if not os.path.isfile(image):  # a FIFO would be waited for
            raise UserError("expected an image file, found none of that name")
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the image: {error.strerror}") from error
    return transforms.decode(image)
