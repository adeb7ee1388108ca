"""tfds data sets, read by random access, and the index of their labels and names."""

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from drnet_jax.data import drnet_shapes
from drnet_jax.data.index import Index, fingerprint_of, name_of_bytes, write_json
from drnet_jax.data.prepare import build, prepare
from drnet_jax.errors import UserError

READERS, CHUNK = 16, 64  # threads that index, and the images that each reads at a time


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
        self._has_file_name = "file_name" in kinds
        self._path = str(builder.data_path)
        self._written = builder.info.as_json  # with the sizes of all shards
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

    def index(self) -> Index:
        """The first call reads all images, with a progress bar, and leaves the index in a file: of
        the data set's own directory or, where that cannot be written, of the user's cache."""
        key = self.fingerprint.encode(), self._written.encode()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "drnet_jax"
        files = (
            Path(self._path) / f"drnet_index_{fingerprint_of(*key)}.json",
            cache / f"drnet_index_{fingerprint_of(*key, self._path.encode())}.json",
        )
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(file.read_text())
                return Index(np.array(found["labels"], np.int32), found["names"])
        labels, names = self._read_index()
        for file in files:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"labels": labels, "names": names})
                break
        return Index(np.array(labels, np.int32), names)

    def _read_index(self) -> tuple[list[int], list[str]]:
        def read(start: int) -> list[tuple[int, str]]:
            rows = [self._rows[row] for row in range(start, min(start + CHUNK, len(self)))]
            return [(int(row["label"]), self._file_name(row)) for row in rows]

        found = []
        with ThreadPoolExecutor(READERS) as pool, tqdm(
            total=len(self), desc=f"indexing {self._name}, once", unit=" images", disable=None,
            dynamic_ncols=True,
        ) as bar:
            for part in pool.map(read, range(0, len(self), CHUNK)):
                found += part
                bar.update(len(part))
        return [label for label, _ in found], [name for _, name in found]

    def _file_name(self, row: Mapping[str, Any]) -> str:
        if not self._has_file_name:
            return name_of_bytes(row["image"])
        return os.path.basename(os.fsdecode(row["file_name"]))

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
