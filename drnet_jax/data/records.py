"""Records: encoded images in ArrayRecord files, with an index of labels and names beside each.

docs/data.md says what the files hold; `drnet_jax.data.parquet` writes them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from drnet_jax.data.index import Index, Names, fingerprint_of, joined
from drnet_jax.errors import UserError, first_line

RECORDS = "records"  # the name of such data sets in a config
VERSION = 1


def summary_file(directory: Path) -> Path:
    """Where the classes are, and the shards of each split; it is written last."""
    return directory / "records.json"


def record_file(directory: Path, shard: str) -> Path:
    """Where the images of a shard are, each a record."""
    return directory / f"{shard}.array_record"


def index_file(directory: Path, shard: str) -> Path:
    """Where the labels and names of a shard are, in the order of its records."""
    return directory / f"{shard}.json"


class RecordsSource:
    """A split of what `drnet prepare --parquet` has written."""

    def __init__(self, directory: str, split: str):
        """Opens the indices; no image is looked at.

        Raises:
            UserError: if there is no such split, or files of it are missing, cut short or damaged.
        """
        root = Path(directory).expanduser()
        summary = _summary(root, directory)
        if split not in summary["splits"]:
            raise UserError(
                f"{root}: expected a split {split!r}, found {', '.join(summary['splits'])}; see "
                "config.data.train_split and config.data.val_split"
            )
        shards = summary["splits"][split]
        indices = [_index(root, shard) for shard in shards]
        self.classes = tuple(summary["classes"])
        self.notes = ()
        self._split = split
        self._labels = np.concatenate([np.array(each["labels"], np.int32) for each in indices])
        self._names = Names(os.fsencode(name) for each in indices for name in each["names"])
        counts = [len(each["labels"]) for each in indices]
        self._files, self._ends = [record_file(root, shard) for shard in shards], np.cumsum(counts)
        self._rows = ArrayRecordDataSource([
            f"{file}[0:{count}]" for file, count in zip(self._files, counts, strict=True)
        ])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            return {"image": self._rows[index], "label": int(self._labels[index])}
        except RuntimeError as error:  # so ArrayRecord says that a check sum is wrong
            file = self._files[np.searchsorted(self._ends, index, side="right")]
            raise UserError(f"{file} is damaged ({first_line(error)}); copy it again") from error

    def key(self, index: int) -> str:
        return f"{self._split}/{self._names[index]}"

    def index(self) -> Index:
        return Index(self._labels, [os.path.basename(name) for name in self._names])

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(
            joined(self.classes), self._labels.astype("<i4").tobytes(),
            self._names.ends.astype("<i8").tobytes(), self._names.joined,
        )


def _summary(root: Path, given: str) -> dict[str, Any]:
    path = summary_file(root)
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        what = (
            f"there is none in {given!r}" if isinstance(error, FileNotFoundError)
            else f"it cannot be read ({first_line(error)})"
        )
        raise UserError(
            f"config.data.dir: expected {path.name}, which ends a conversion, but {what}; "
            "drnet prepare --parquet PARQUET --dir DIR makes one, or goes on with one"
        ) from error
    if summary.get("version") != VERSION:
        raise UserError(
            f"{path}: expected version {VERSION}, received {summary.get('version')}; convert the "
            "Parquet files into another directory, or use the version that wrote this one"
        )
    return summary


def _index(root: Path, shard: str) -> dict[str, Sequence[Any]]:
    path, records = index_file(root, shard), record_file(root, shard)
    try:
        index = json.loads(path.read_text())
        size = os.path.getsize(records)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{records}: this shard, or {path.name}, cannot be read ({first_line(error)}); copy "
            "both again, or run drnet prepare --parquet again, which makes what is missing"
        ) from error
    if size != index["bytes"]:
        raise UserError(
            f"{records}: expected {index['bytes']} bytes, found {size}; copy it again, or run "
            "drnet prepare --parquet again, which makes what is missing"
        )
    return index
