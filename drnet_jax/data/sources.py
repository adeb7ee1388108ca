"""Where examples come from: tfds data sets and folders of images, read by random access."""

import itertools
import os
import shlex
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from drnet_jax import config
from drnet_jax.data import shapes
from drnet_jax.data.prepare import build, prepare
from drnet_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Source(Protocol):
    """Random access to the labelled images of one split; can be pickled for worker processes.

    An example is {"image": encoded bytes, "label": int} and, where the data set knows it,
    "needed_scale": float, the smallest fraction of the base size at which its class can be told.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def key(self, index: int) -> str:
        """Names an example in messages: its file, or data set, split and position."""
        ...


def open_source(
    data: config.Data, training: bool, classes: tuple[str, ...] | None = None
) -> Source:
    """Opens the training split of `data`, or else its validation split.

    Raises:
        UserError: if the data set is unknown, missing, not prepared, prepared in a format without
            random access, without the split, or not one of labelled images.
    """
    split = data.train_split if training else data.val_split
    if data.name == "folder":
        return FolderSource(data.dir, split, class_split=data.train_split)
    return TfdsSource(data.name, data.dir, split)


def resolve_classes(source: Source, configured: int) -> int:
    """Returns the number of classes: what the source has, which `configured` must be, or 0.

    Raises:
        UserError: if config.classifier.classes disagrees with the source.
    """
    found = len(source.classes)
    if configured not in (0, found):
        raise UserError(
            f"config.classifier.classes: expected {found}, as many as the data set has classes, or 0 to "
            f"take that number; received {configured}"
        )
    return found


class TfdsSource:
    """A split of a tfds data set with `image` and `label`, prepared as ArrayRecord files."""

    def __init__(self, name: str, directory: str, split: str):
        builder = build(name, directory)
        features = builder.info.features
        kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
        if not (
            isinstance(kinds.get("image"), tfds.features.Image)
            and isinstance(kinds.get("label"), tfds.features.ClassLabel)
        ):
            raise UserError(
                f"config.data.name: expected a data set with the features 'image' and 'label' "
                f"(one image, one class); {name!r} has {features!r}"
            )
        if builder.name == shapes.NAME:
            builder = prepare(name, directory)
        _check_prepared(builder, name, directory)
        try:
            self._rows = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except ValueError as error:
            raise UserError(
                f"config.data: {name!r} has no split {split!r}, or nothing in it; its splits are "
                f"{', '.join(builder.info.splits)}"
            ) from error
        self._name = f"{name}/{split}"
        self._has_scale = "needed_scale" in kinds
        self.classes = tuple(kinds["label"].names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        example = {"image": row["image"], "label": int(row["label"])}
        if self._has_scale:
            example["needed_scale"] = float(row["needed_scale"])
        return example

    def key(self, index: int) -> str:
        return f"{self._name}[{index}]"


def _check_prepared(builder: tfds.core.DatasetBuilder, name: str, directory: str) -> None:
    command = f"python -m drnet_jax.data.prepare --name {shlex.quote(name)}"
    if not builder.info.splits:
        where = f" --dir {shlex.quote(directory)}" if directory else ""
        raise UserError(
            f"config.data: {name!r} is not prepared in {builder.data_path}; prepare it with\n"
            f"    {command}{where}\n(some data sets need TensorFlow installed to be prepared; none "
            "needs it to be read)"
        )
    if "array_record" not in {kind.value for kind in builder.info.available_file_formats()}:
        raise UserError(
            f"config.data: expected {name!r} in array_record format, which has random access; "
            f"{builder.data_path} holds {builder.info.file_format.value}. Prepare it again in "
            f"another directory:\n    {command} --dir NEW_DIR"
        )


class FolderSource:
    """The images `directory/split/<class>/*.{jpg,jpeg,png}`, sorted by class, then file name.

    The classes, and so the labels, are the class folders of `class_split`, the training split.
    Names are kept as one string of bytes: over a million of them open, and pickle, in little time.
    """

    def __init__(self, directory: str, split: str, class_split: str):
        if not directory:
            raise UserError(
                "config.data.dir: expected the folder that holds "
                f"{class_split}/<class>/*.jpg, received ''"
            )
        directory = os.path.expanduser(directory)  # shells leave the ~ of --config.data.dir=~/x
        self.classes = _class_folders(directory, class_split)
        folders = _class_folders(directory, split)
        if unknown := sorted(set(folders) - set(self.classes)):
            raise UserError(
                f"{os.path.join(directory, split, unknown[0])}: class {unknown[0]!r} is not a "
                f"folder in {os.path.join(directory, class_split)}, so training cannot know it"
            )
        files = [
            _image_names(os.path.join(directory, split, name)) if name in set(folders) else []
            for name in self.classes
        ]
        self._root = os.path.join(directory, split)
        self._class_ends = np.cumsum([len(names) for names in files])
        names = list(itertools.chain.from_iterable(files))
        self._names = b"".join(names)
        self._name_ends = np.cumsum([len(name) for name in names])

    def __len__(self) -> int:
        return len(self._name_ends)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        path = self.key(index)
        try:
            with open(path, "rb") as file:
                return {"image": file.read(), "label": self._label(index)}
        except OSError as error:
            raise UserError(f"cannot read the image: {error.strerror}") from error

    def key(self, index: int) -> str:
        start = self._name_ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._name_ends[index]])
        return os.path.join(self._root, self.classes[self._label(index)], name)

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._class_ends, index, side="right"))


def _class_folders(directory: str, split: str) -> tuple[str, ...]:
    path = os.path.join(directory, split)
    if not os.path.isdir(path):
        missing = path if os.path.isdir(directory) else directory
        raise UserError(
            f"config.data: expected images in {os.path.join(path, '<class>')}, but there is no "
            f"folder {missing}"
        )
    with os.scandir(path) as entries:
        names = sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )
    if not names:
        raise UserError(f"{path}: expected one folder per class, found no folder")
    return tuple(names)


def _image_names(path: str) -> list[bytes]:
    # Neither stat nor is_file: on a network drive that would be one round trip per image.
    with os.scandir(path) as entries:
        names = sorted(
            os.fsencode(entry.name)
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
        )
    if not names:
        raise UserError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    return names
