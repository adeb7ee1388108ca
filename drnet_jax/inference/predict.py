"""Prediction: images of any size and number, sent where they need to go, answered in order."""

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as pillow

from drnet_jax import routing
from drnet_jax.data import transforms
from drnet_jax.data.imagenet import class_words
from drnet_jax.data.transforms import Square
from drnet_jax.devices import cores
from drnet_jax.dial import Policy
from drnet_jax.errors import UserError, first_line
from drnet_jax.inference.engine import Engine
from drnet_jax.inference.graph_engine import GraphEngine
from drnet_jax.inference.holding import Holding
from drnet_jax.inference.queues import Answers, Batches, Watch, cascade, route
from drnet_jax.routing import Cascade

LAG = 8  # batches after which an image that waits for its bucket to fill is classified anyway


class Named(NamedTuple):
    """An image's bytes, and what it is to be called."""

    name: str
    data: bytes


# A file, its bytes, an image of Pillow's, or uint8 [H, W, 3] in RGB.
Image = str | os.PathLike | bytes | Named | pillow.Image | np.ndarray
Name = str | int


class Guess(NamedTuple):
    """A class, and how probable it is."""

    label: str
    name: str  # in words, if it is an ImageNet synset; else as `label`
    probability: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of an image; all but its name is None with an `error`."""

    image: Name  # the file, or else the image's position among those given
    label: str | None  # the most probable class
    name: str | None  # that class in words, if it is an ImageNet synset; else as `label`
    probability: float | None  # of that class
    network: str | None  # that answered: "classifier" or "predictor"
    resolution: int | None  # at which that saw the image, in pixels
    multiply_adds: int | None  # that were spent on the image, the predictor's included
    # What the predictor thinks of each option: how probably it answers right (or, of a predictor
    # that was trained as the paper's, is the one to take). None of a cascade, which does not ask.
    options: Mapping[str, float] | None = None
    top: tuple[Guess, ...] | None = None  # the most probable classes, the first as above
    error: str | None = None  # why the image could not be read

    @classmethod
    def failed(cls, image: Name, error: str) -> "Answer":
        """Of an image that could not be read."""
        return cls(image, *[None] * 6, error=error)


@dataclasses.dataclass(frozen=True)
class Wording:
    """What turns numbers into an Answer."""

    engine: Engine | GraphEngine
    classes: tuple[str, ...]  # [C]
    top: int = 1  # how many of the most probable classes an Answer has

    def answer(
        self, image: Name, option: int, log_p: np.ndarray, scores: np.ndarray | None,
        policy: Policy,
    ) -> Answer:
        """The Answer to an image.

        Args:
            image: its name.
            option: that answered.
            log_p: float32 [C].
            scores: float32 [O], by the predictor; None if that was not asked.
            policy: that chose the option.
        """
        best = np.argsort(-log_p, kind="stable")[: self.top].tolist()
        words = class_words([self.classes[label] for label in best])
        top = tuple(
            Guess(self.classes[label], name, math.exp(log_p[label]))
            for label, name in zip(best, words, strict=True)
        )
        network, resolution = self.engine.drnet.answering(option)
        return Answer(
            image, *top[0], network, resolution, self._spent(option, policy),
            None if scores is None else self._options(scores), top,
        )

    def _spent(self, option: int, policy: Policy) -> int:
        """Multiply-adds of an image that an option answers."""
        costs = self.engine.costs
        if not isinstance(policy, Cascade):
            return int(costs.routed[option])
        tried = policy.options[: policy.options.index(option) + 1]
        return int(costs.passes[list(tried)].sum())

    def _options(self, scores: np.ndarray) -> dict[str, float]:
        if self.engine.drnet.scores is routing.choice_scores:
            scores = np.exp(scores)
        return dict(zip(self.engine.costs.options, scores.tolist(), strict=True))


class Predictor:
    """Answers images by a policy; see `answers`."""

    def __init__(
        self, wording: Wording, square: Square, policy: Policy, holding: Holding | None = None
    ):
        """What does not change from image to image, but for the price that is held to a budget.

        Args:
            wording: of the answers, and the engine that finds them.
            square: what images are squashed to before the base size is cropped.
            policy: price at which options are charged, or a cascade.
            holding: in place of that price, one that follows the images.
        """
        self._engine, self._wording = wording.engine, wording
        self._square, self._policy, self._holding = square, policy, holding

    def answers(self, images: Iterable[Image], skip_errors: bool) -> Iterator[Answer]:
        """Yields an Answer for each image, in the order given, as soon as that allows.

        Args:
            images: any number.
            skip_errors: whether an image that cannot be read becomes an Answer with an `error`.

        Raises:
            UserError: if an image cannot be read, unless `skip_errors`.
        """
        names: dict[int, Name] = {}
        said: dict[int, np.ndarray] = {}
        ready: dict[int, Answer] = {}
        following = 0

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            coming = enumerate(self._read(images))
            while taken := list(itertools.islice(coming, self._engine.batch_size)):
                rows, tickets = [], []
                for ticket, (name, image) in taken:
                    if isinstance(image, UserError):
                        if not skip_errors:
                            raise image
                        ready[ticket] = Answer.failed(name, str(image))
                        continue
                    names[ticket] = name
                    rows.append(image)
                    tickets.append(ticket)
                if rows:
                    yield np.stack(rows), np.array(tickets)

        def in_order() -> Iterator[Answer]:
            nonlocal following
            while following in ready:
                yield ready.pop(following)
                following += 1

        def watch(tickets: np.ndarray, scores: np.ndarray) -> None:
            said.update(zip(tickets.tolist(), scores, strict=True))

        for tickets, option, log_p in self._sent(batches(), watch):
            for ticket, row in zip(tickets.tolist(), log_p, strict=True):
                ready[ticket] = self._wording.answer(
                    names.pop(ticket), option, row, said.pop(ticket, None), self._policy
                )
            yield from in_order()
        yield from in_order()

    def _sent(self, batches: Batches, watch: Watch) -> Iterator[Answers]:
        """Batches answered by the policy."""
        first = list(itertools.islice(batches, 1))
        # Few images wait in queues of their own number, and not of a whole batch.
        capacity = self._engine.size_for(len(first[0][0])) if first else None
        batches = itertools.chain(first, batches)
        if isinstance(self._policy, Cascade):
            one = [self._policy]
            return cascade(self._engine, batches, one, np.zeros_like, LAG, capacity)
        return route(
            self._engine, batches, self._policy, LAG, capacity, watch, self._holding
        )

    def _read(self, images: Iterable[Image]) -> Iterator[tuple[Name, np.ndarray | UserError]]:
        """Each image's name, and uint8 [base, base, 3] or why it cannot be read; threads decode."""
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            coming: deque[concurrent.futures.Future] = deque()
            try:
                for position, image in enumerate(images):
                    coming.append(pool.submit(self._prepare, position, image))
                    if len(coming) > 2 * self._engine.batch_size:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _prepare(self, position: int, image: Image) -> tuple[Name, np.ndarray | UserError]:
        name = name_of(image, position)
        try:
            return name, prepared(image, self._square, self._engine.drnet.resolutions[0])
        except UserError as error:
            return name, UserError(f"{name}: {error}")


def prepared(image: Image, square: Square, base: int) -> np.ndarray:
    """uint8 [base, base, 3] of an image; raises UserError if it cannot be read."""
    return transforms.resize_and_centre_crop(decoded(image), square, base)


def check_images(images: Any) -> None:
    """Raises UserError for one image, which would be iterated by its letters or rows, or none."""
    one = isinstance(images, (str, os.PathLike, bytes, bytearray, Named))
    # An array of any library: one of [N, H, W, 3] is iterated by its images, one of [N] by paths.
    one = one or getattr(images, "ndim", None) in (2, 3)
    try:
        iter(images)
    except TypeError:  # as of Pillow's images
        one = True
    if one:
        raise UserError(
            f"images: expected an iterable of images, received {type(images).__name__}; put a "
            "single image in a list"
        )


def name_of(image: Image, position: int) -> Name:
    """What an image is called: the file, or its position among those given."""
    if isinstance(image, Named):
        return image.name
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else position


def decoded(image: Image) -> np.ndarray:
    """uint8 [H, W, 3] of an image; raises UserError if that cannot be had."""
    if isinstance(image, pillow.Image):
        try:
            image = np.asarray(image.convert("RGB"))
        except Exception as error:  # its file may be read only now, and be damaged in any way
            raise UserError(f"cannot read the image: {first_line(error)}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"expected an array uint8 [H, W, 3], received {image.dtype} {list(image.shape)}"
            )
        return image
    if isinstance(image, Named):
        image = image.data
    if not isinstance(image, (str, os.PathLike, bytes)):
        raise UserError(
            "expected a file, its bytes, a Pillow image or an array uint8 [H, W, 3], received "
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
