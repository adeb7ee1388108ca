"""Folders of images, `split/<class>/**/*.jpg`: listed once, cheaply, and read by random access."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drnet_jax.data.index import Index, Names, composed, fingerprint_of, joined
from drnet_jax.data.listing import (
    PassedOver,
    Reason,
    entries,
    image_names,
    kind_of,
    printable,
    read,
    some,
)
from drnet_jax.data.transforms import SUFFIXES
from drnet_jax.errors import UserError


class FolderSource:
    """The images of `directory/split`, or of `directory` itself, in folders named by their classes.

    They are sorted by class, then by path within the class folder, whose sub-folders count. The
    classes, and so the labels, are those given, or else the class folders of `class_split`, the
    training split, each of which must hold an image. Names of class folders are compared in
    Unicode's composed form (NFC), as copies from macOS have another; that form names the classes.
    What is passed over is in `notes`.
    """

    def __init__(
        self, directory: str, split: str, class_split: str, classes: Sequence[str] | None = None,
        kept: Sequence[str] | None = None,
    ):
        """Lists the folder; `directory` itself is used where `classes` are given and no `split` is.

        Args:
            kept: the classes to keep, by default all, in the order of their labels.

        Raises:
            UserError: if folders are missing, cannot be read, hold no images, are of no known
                class, or are two of the same name but for Unicode composition.
        """
        if not directory:
            raise UserError(
                "config.data.dir: expected the folder that holds "
                f"{class_split}/<class>/*.jpg, received ''"
            )
        directory = os.path.expanduser(directory)  # shells leave the ~ of --config.data.dir=~/x
        passed_over = PassedOver()
        self._root = _split_folder(directory, split, classes)
        folders = _class_folders(self._root, passed_over)
        needs_all, origin = classes is None and kept is None and split == class_split, "the model"
        if needs_all:
            classes = tuple(folders)
        elif kept is not None:
            classes, origin = kept, "config.data.classes"
        elif classes is None:
            origin = os.path.join(directory, class_split)
            classes = tuple(_class_folders(origin, PassedOver()))
        self.classes = tuple(classes)
        known = set(map(composed, self.classes))
        others = [folder for name, folder in folders.items() if name not in known]
        if others and (kept is None or len(others) == len(folders)):
            beside = f"; nor is there a folder {split!r} of class folders beside it"
            raise UserError(
                f"{os.path.join(self._root, others[0])}: {others[0]!r} is none of the "
                f"{len(classes)} classes of {origin}: {some(classes)}"
                + beside * (self._root == directory)
            )

        self._folders = [folders.get(composed(name), "") for name in self.classes]
        files = [
            image_names(self._root, folder, passed_over) if folder else []
            for folder in self._folders
        ]
        without = [name for name, of_class in zip(self.classes, files, strict=True) if not of_class]
        if needs_all and without:
            raise _no_images(os.path.join(self._root, folders[without[0]]))
        if len(without) == len(files):
            raise _no_images(self._root)
        self._names = Names(itertools.chain.from_iterable(files))
        self._class_ends = np.cumsum([len(of_class) for of_class in files])
        told = (
            (f"left out {_count(others, 'folder')} of other classes", others),
            (f"no images of {len(without)} of the {len(self.classes)} classes", without),
        )
        self.notes = passed_over.notes(self._root) + tuple(
            printable(f"{self._root}: {what}: {some(names)}") for what, names in told if names
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": read(self.key(index)), "label": self._label(index)}

    def key(self, index: int) -> str:
        return os.path.join(self._root, self._folders[self._label(index)], self._names[index])

    def index(self) -> Index:
        counts = np.diff(self._class_ends, prepend=0)
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return Index(labels, [os.path.basename(name) for name in self._names])

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(
            joined(self.classes), self._class_ends.astype("<i8").tobytes(),
            self._names.ends.astype("<i8").tobytes(), self._names.joined,
        )

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._class_ends, index, side="right"))


def _split_folder(directory: str, split: str, classes: Sequence[str] | None) -> str:
    """Where the class folders are: in the folder of the split, or in `directory`."""
    path = os.path.join(directory, split)
    exists = os.path.isdir(path)
    # A folder of that name without folders in it may itself be a class.
    of_classes = exists and (
        split not in (classes or ()) or any(kind_of(entry) == "folder" for entry in entries(path))
    )
    if classes is not None and not of_classes and os.path.isdir(directory):
        return directory
    if not exists:
        missing = path if os.path.isdir(directory) else directory
        raise UserError(
            f"config.data: expected images in {os.path.join(path, '<class>')}, but there is no "
            f"folder {missing}"
        )
    return path


def _class_folders(path: str, passed_over: PassedOver) -> dict[str, str]:
    """Names of class folders, composed -> as they are in `path`, sorted."""
    if not os.path.isdir(path):
        raise UserError(f"config.data: expected class folders in it, but there is no folder {path}")
    folders: dict[str, str] = {}
    loose = []  # images in no class folder
    for entry in entries(path):
        kind = kind_of(entry)
        if kind != "folder":
            if kind == "file" and entry.name.lower().endswith(SUFFIXES):
                loose.append(entry.name)
            passed_over.add(Reason.OUTSIDE if kind == "file" else kind, entry.name)
            continue
        other = folders.setdefault(composed(entry.name), entry.name)
        if other != entry.name:
            raise UserError(
                f"{path}: expected one folder per class, received two whose names differ only in "
                f"their Unicode composition, {_code_points(min(other, entry.name))} and "
                f"{_code_points(max(other, entry.name))}; merge them or rename one"
            )
    if not folders:
        raise UserError(f"{path}: expected one folder per class, found {_found(sorted(loose))}")
    return dict(sorted(folders.items()))


def _found(loose: list[str]) -> str:
    """What is found, and to be done, where there are no class folders, but maybe images."""
    if not loose:
        return "no folder"
    if all(re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", name) for name in loose):
        return (
            f"{_count(loose, 'image')} of ImageNet's validation set as it is unpacked, without "
            'folders; move each into the folder of its class, as docs/data.md shows ("The folder")'
        )
    return f"{_count(loose, 'image')} and no folder ({some(loose)}); put each into one of its class"


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) > 1)}"


def _no_images(path: str) -> UserError:
    return UserError(f"{path}: expected images ({', '.join(SUFFIXES)}), found none")


def _code_points(name: str) -> str:
    return f"{name!r} ({' '.join(f'U+{ord(letter):04X}' for letter in name)})"
