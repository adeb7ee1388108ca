"""Subsets of any source: some classes, and some images of each, by an index and without a copy."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.data.imagenet import IMAGENET_100, imagenet_100, plain_name
from drnet_jax.data.index import composed, digest_of, fingerprint_of, joined
from drnet_jax.data.listing import some
from drnet_jax.data.protocol import Indexed
from drnet_jax.errors import UserError, first_line


class Subset:
    """The images of some classes of a source, whose labels are the places of these classes.

    They are in the order of labels and then of names, so that all copies of a data set, in
    whichever form, give the same images in the same order, with the same fingerprint.
    """

    def __init__(self, source: Indexed, classes: Sequence[str], per_class: int = 0):
        """Chooses the images.

        Args:
            classes: names of classes; the source may not know all, see `without`.
            per_class: how many images to keep of each class, those whose names have the smallest
                SHA-256; 0 keeps all.

        Raises:
            UserError: if images of the source have no label, or none is of these classes.
        """
        index = source.index()
        labels = _renumbered(source, index.labels, classes)
        rows, names, counts = [], [], []
        # Rows of no class come first; what follows is split by class.
        order = np.argsort(labels, kind="stable")
        ends = np.searchsorted(labels[order], np.arange(len(classes) + 1))
        for start, end in itertools.pairwise(ends):
            named = [(plain_name(index.names[row]), row) for row in order[start:end].tolist()]
            if per_class:
                named.sort(key=lambda pair: (digest_of(pair[0]), pair[1]))
                del named[per_class:]
            named.sort()
            names += [name for name, _ in named]
            rows += [row for _, row in named]
            counts.append(len(named))
        if not rows:
            raise UserError(
                f"config.data.classes: no image of {some(classes)} among the {len(source)} images "
                f"of the classes {some(source.classes)}"
            )
        self._source = source
        self._rows = np.array(rows)
        self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.classes = tuple(classes)
        self.without = tuple(
            name for name, count in zip(classes, counts, strict=True) if not count
        )
        self.notes = source.notes
        self.fingerprint = fingerprint_of(
            joined(self.classes), np.array(counts, "<i8").tobytes(), joined(names)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {**self._source[int(self._rows[index])], "label": int(self._labels[index])}

    def key(self, index: int) -> str:
        return self._source.key(int(self._rows[index]))


def _renumbered(source: Indexed, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Labels as places in `classes`, -1 for none of them."""
    known = len(source.classes)
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= known))):
        raise UserError(
            f"{source.key(int(wrong[0]))}: expected a label from 0 to {known - 1}, received "
            f"{labels[wrong[0]]} (is this split labelled?)"
        )
    places = {composed(name): place for place, name in enumerate(classes)}
    return np.array([places.get(composed(name), -1) for name in source.classes])[labels]


def classes_named(text: str, where: str = "config.data.classes") -> tuple[str, ...]:
    """The classes that a text names: "imagenet100", or a file that holds one name a line.

    Raises:
        UserError: if there is no such file, or it names fewer than two classes, or one twice; the
            message begins with `where` the text stands.
    """
    if text == IMAGENET_100:
        return imagenet_100()
    try:
        lines = Path(text).expanduser().read_text("utf-8", "surrogateescape").splitlines()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{where}: expected {IMAGENET_100!r} or a file of class names, one a line, received "
            f"{text!r} ({first_line(error)})"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or len(names) < 2:
        found = f"{twice[0]!r} twice" if twice else repr(*names) if names else "none"
        raise UserError(
            f"{where}: expected two or more different class names, one a line; {text!r} holds "
            f"{found}"
        )
    return names


def write_classes(path: Path, classes: Sequence[str]) -> None:
    """Writes a file that `classes_named` reads."""
    path.write_text("".join(f"{name}\n" for name in classes), "utf-8", "surrogateescape")
