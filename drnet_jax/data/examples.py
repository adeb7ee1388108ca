"""Examples: one image at a time, read, decoded and cropped, and what becomes of those that cannot.

They are made in threads, or in worker processes, which end with the process that started them.
"""

import dataclasses
import functools
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import connection
from typing import Any

import numpy as np

from drnet_jax.data import transforms
from drnet_jax.data.protocol import Source
from drnet_jax.errors import UserError

NONE = -1  # in place of an index
PATIENCE = (1, 2, 4, 8, 16)  # seconds to wait, again and again, for a data set that has gone

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """Reads, decodes and augments the example at an index of the source.

    Where that cannot be read, and may be passed over, the next one that can takes its place, and
    `bad` is its index, else NONE.
    """

    source: Source
    size: int
    crop_area: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    pass_over: bool

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        _end_with_parent()
        taken, image, example = self._next(index)
        image = transforms.random_resized_crop(
            image, rng, self.size, self.crop_area, self.crop_ratio
        )
        return {
            "image": transforms.random_flip(image, rng),
            "label": np.int32(example["label"]),
            "index": np.int32(taken),
            "bad": np.int32(NONE if taken == index else index),
        }

    def _next(self, index: int) -> tuple[int, np.ndarray, Any]:
        """The first example from an index on that can be read, and that index."""
        for taken in range(index, index + len(self.source)):
            taken %= len(self.source)
            try:
                return taken, *read(self.source, taken)
            except UserError:
                if not self.pass_over:
                    raise
        raise UserError("config.data: expected images, found none that can be read")


@dataclasses.dataclass(frozen=True)
class EvalExample:
    """Reads, decodes and crops one example of this host's share, or makes a row of padding.

    A row of an image that cannot be read, and may be passed over, is padding whose `bad` is its
    index, else NONE.
    """

    source: Source
    size: int
    square: transforms.Square
    share: range
    pass_over: bool

    def __call__(self, position: int) -> Example:
        _end_with_parent()
        index, bad = 0, NONE
        image, example = np.zeros((self.size, self.size, 3), np.uint8), None
        if position < len(self.share):
            index = self.share[position]
            try:
                image, example = read(self.source, index)
                image = transforms.resize_and_centre_crop(image, self.square, self.size)
            except UserError:
                if not self.pass_over:
                    raise
                bad = index
        known = example or {"label": 0}
        return {
            "mask": np.bool_(example is not None), "bad": np.int32(bad), "image": image,
            "label": np.int32(known["label"]), "index": np.int32(index),
            "needed_scale": np.float32(known.get("needed_scale", 0)),
        }


def read(source: Source, index: int) -> tuple[np.ndarray, Any]:
    """The decoded image, uint8 [H, W, 3], and the example.

    Raises:
        UserError: if it cannot be read, decoded, or has a label that is no class; it names it.
    """
    try:
        example = _patiently(source, index)
        if not 0 <= example["label"] < len(source.classes):
            raise UserError(
                f"expected a label from 0 to {len(source.classes) - 1}, "
                f"received {example['label']} (is this split labelled?)"
            )
        return transforms.decode(example["image"]), example
    except UserError as error:
        raise UserError(f"{source.key(index)}: {error}") from error


def _patiently(source: Source, index: int) -> Any:
    """An example; where the whole data set has gone, as when a mount is lost, it is waited for."""
    for seconds in PATIENCE:
        try:
            return source[index]
        except UserError as error:
            gone = not os.path.isdir(os.path.dirname(source.key(index)) or ".")
            if not (gone and isinstance(error.__cause__, OSError)):
                raise
        time.sleep(seconds)
    return source[index]


class Bad:
    """The images of a source that could not be read, as many as may be passed over."""

    def __init__(self, source: Source, most: float):
        """`most` of them: from 1 on a number, below 1 a share of the source."""
        self._source, self._found = source, set()
        self._most = int(most if most >= 1 else math.ceil(most * len(source)))

    def add(self, indexes: Iterable[int]) -> Iterator[tuple[str, str]]:
        """Of those that are new the name, and why it cannot be read.

        Raises:
            UserError: if they are more than may be.
        """
        for index in {int(each) for each in indexes} - self._found - {NONE}:
            self._found.add(index)
            try:
                read(self._source, index)
                why = "it can be read now"
            except UserError as error:
                why = str(error).removeprefix(f"{self._source.key(index)}: ")
            yield self._source.key(index), why
            if len(self._found) > self._most:
                raise UserError(
                    f"config.data.max_bad: expected at most {self._most} images that cannot be "
                    f"read, found {len(self._found)}, the last of which is "
                    f"{self._source.key(index)}: {why}"
                )


@functools.cache
def _end_with_parent() -> None:
    """Ends this process, if it is a worker's, with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
