"""Sources: tfds data sets and folders of images, whose examples are read by random access."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorflow_datasets as tfds

from drnet_jax import config
from drnet_jax.data import drnet_shapes
from drnet_jax.data.folder import FolderSource
from drnet_jax.data.prepare import build, prepare
from drnet_jax.errors import UserError


class Source(Protocol):
    """Random access to the labelled images of one split; can be pickled for worker processes.

    An example is {"image": encoded bytes, "label": int} and, where the data set knows it,
    "needed_scale": float, the smallest fraction of the base size at which its class can be told.
    """

    classes: tuple[str, ...]

    notes: tuple[str, ...]
    """What was passed over in opening it, and why, one line each, to be shown once."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that the order of the examples depends on: names, labels, number.

        Where the data are does not count; their content, beyond a tfds version, does not either.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def key(self, index: int) -> str:
        """Names an example in messages: its file, or data set, split and position."""
        ...


def open_source(
    data: config.Data, training: bool, classes: Sequence[str] | None = None
) -> Source:
    """Opens the training split of `data`, or else its validation split.

    Args:
        classes: names in the order of their labels, as a checkpoint knows them; by default those of
            the training split. With them a folder needs neither that split nor images of all, and
            its class folders may lie in `data.dir` itself.

    Raises:
        UserError: if the data set is unknown, missing, not prepared, prepared in a format without
            random access, without the split, not one of labelled images, or of other classes.
    """
    split = data.train_split if training else data.val_split
    if data.name == "folder":
        return FolderSource(data.dir, split, data.train_split, classes)
    source = TfdsSource(data.name, data.dir, split)
    if classes is not None and tuple(classes) != source.classes:
        raise UserError(
            f"config.data.name: expected a data set of the {len(classes)} classes "
            f"{', '.join(classes[:3])}, ...; {data.name!r} has {len(source.classes)}, "
            f"{', '.join(source.classes[:3])}, ..."
        )
    return source


def resolve_classes(source: Source, configured: int) -> int:
    """Returns the number of classes: what the source has, which `configured` must be, or 0.

    Raises:
        UserError: if config.classifier.classes disagrees with the source, or it has but one.
    """
    found = len(source.classes)
    if found < 2:
        raise UserError(
            f"config.data: expected at least two classes, found {', '.join(source.classes)} only; "
            "in a folder every class has a folder of its own, <split>/<class>"
        )
    if configured not in (0, found):
        raise UserError(
            f"config.classifier.classes: expected {found}, as many as the data set has classes, or "
            f"0 to take that number; received {configured}"
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
        if builder.name == drnet_shapes.NAME:
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
        self._version = builder.info.full_name  # name, config and version
        self._split = split
        self._has_scale = "needed_scale" in kinds
        self.notes = ()
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

    @property
    def fingerprint(self) -> str:
        identity = f"{self._version}/{self._split}/{len(self)}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


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
