"""Parquet files of labelled images, as the Hugging Face hub has them: found, checked and read.

docs/data.md says what is expected. Parquet is no format to train from: a row that is read at random
costs the decoding of all its group.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from drnet_jax.data.imagenet import synsets
from drnet_jax.data.listing import some
from drnet_jax.data.subset import classes_named
from drnet_jax.errors import UserError, first_line

ROWS = 128  # that are in memory at a time

_OF_MANY = re.compile(r"(?P<split>.+)-(?P<at>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?![a-z])")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A Parquet file."""

    name: str  # its path below the directory that was searched, without the suffix
    path: Path
    split: str
    labels: np.ndarray  # int64 [rows]
    class_names: tuple[str, ...]  # as its schema has them; () if it has none

    def size(self) -> int:
        return self.path.stat().st_size

    def images(self) -> Iterator[tuple[bytes, str]]:
        """Encoded image, and path or "", of each row; UserError if the file is damaged."""
        arrow, row = _pyarrow(), 0
        with _reading(arrow, self.path), arrow.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS, columns=["image"]):
                for image in batch.column("image").to_pylist():
                    if not (image and image["bytes"]):
                        raise UserError(
                            f"{self.path}: expected an image in row {row}, found no bytes"
                        )
                    yield image["bytes"], image.get("path") or ""
                    row += 1


def open_shards(parquet: Path) -> tuple[list[Shard], tuple[str, ...], tuple[str, ...]]:
    """All labelled Parquet files below a directory, the names of their classes, and notes on what
    is left out.

    Raises:
        UserError: if pyarrow is not installed; if files are missing, damaged or not of labelled
            images; if classes have no names.
    """
    arrow = _pyarrow()
    shards, notes = _labelled([_opened(arrow, *found) for found in _files(parquet)])
    classes = _class_names(parquet, shards)
    for shard in shards:
        _check_labels(shard, len(classes))
    return shards, classes, notes


def _pyarrow() -> ModuleType:
    """pyarrow, which only conversion needs."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"--parquet: reading Parquet needs pyarrow, which is not installed ({error}); "
            "pip install pyarrow. Training needs it no more"
        ) from error
    return pyarrow


def _files(parquet: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, name and split of each file, sorted."""
    paths = sorted(parquet.rglob("*.parquet"))
    if not paths:
        raise UserError(f"--parquet: expected Parquet files (*.parquet) in {parquet}, found none")
    _check_numbers(paths)
    for path in paths:
        name = path.relative_to(parquet).with_suffix("")
        if found := _OF_MANY.fullmatch(path.stem) or _SPLIT.match(path.stem):
            split = found[1]
        elif path.parent != parquet:
            split = path.parent.name
        else:
            raise UserError(
                f"{path}: expected a name that tells the split, such as "
                "train-00000-of-00294.parquet or train/0000.parquet"
            )
        yield path, name.as_posix(), split


def _check_numbers(paths: list[Path]) -> None:
    """Raises UserError if of the files that are numbered any is missing, or is there twice."""
    numbered = defaultdict(dict)
    for path in paths:
        if many := _OF_MANY.fullmatch(path.stem):
            key = int(many["at"]), int(many["count"])
            other = numbered[many["split"]].setdefault(key, path)
            if other != path:
                raise UserError(f"{path}: expected one file of this number, found {other} too")
    for split, files in numbered.items():
        counts = sorted({count for _, count in files})
        if len(counts) > 1:
            raise UserError(
                f"--parquet: expected files of one download, found {split}-*-of-{counts[0]:05d} "
                f"and {split}-*-of-{counts[1]:05d}; keep one of them"
            )
        missing = [at for at in range(counts[0]) if (at, counts[0]) not in files]
        if missing:
            names = [f"{split}-{at:05d}-of-{counts[0]:05d}" for at in missing]
            raise UserError(
                f"--parquet: expected {counts[0]} files of {split}, found {len(files)}; missing "
                f"are {some(names)}. Download them, or name those that you want otherwise, such "
                f"as {split}/0.parquet"
            )


def _opened(arrow: ModuleType, path: Path, name: str, split: str) -> Shard:
    with _reading(arrow, path), arrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        _check_columns(path, schema)
        labels = file.read(["label"])["label"]
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    if labels.null_count:
        raise UserError(f"{path}: expected a label in every row, {labels.null_count} have none")
    features = metadata.get("info", {}).get("features", {})
    names = tuple(features.get("label", {}).get("names") or ())
    return Shard(name, path, split, labels.to_numpy(), names)


def _check_columns(path: Path, schema: Any) -> None:
    """`schema` is pyarrow's."""
    kinds = {field.name: str(field.type) for field in schema}
    image = kinds.get("image", "")
    if not (re.match(r"struct<.*\bbytes: (large_)?binary\b", image)
            and re.fullmatch(r"u?int\d+", kinds.get("label", ""))):
        columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise UserError(
            f"{path}: expected a column 'image', a struct of bytes and path, and a column 'label' "
            f"of integers; found {columns}"
        )


@contextmanager
def _reading(arrow: ModuleType, path: Path) -> Iterator[None]:
    """Turns pyarrow's errors into ours."""
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: damaged, or no Parquet file ({first_line(error)}); download it again, and "
            "run the same command again, which goes on"
        ) from error


def _labelled(shards: list[Shard]) -> tuple[list[Shard], tuple[str, ...]]:
    """The shards of splits that have labels, and a note of the others, such as a test split."""
    have = {shard.split for shard in shards if (shard.labels >= 0).any()}
    without = sorted({shard.split for shard in shards} - have)
    if not have:
        raise UserError(f"--parquet: expected labels, found none (all are -1) in {some(without)}")
    notes = tuple(f"left out: the split {split}, which has no labels (all are -1)"
                  for split in without)
    return [shard for shard in shards if shard.split in have], notes


def _class_names(parquet: Path, shards: Sequence[Shard]) -> tuple[str, ...]:
    """From classes.txt beside the files, or else their schema, or else ImageNet's if there are
    1,000; ImageNet's are WordNet IDs, by which other copies know them, whatever the schema says."""
    file = parquet / "classes.txt"
    if file.exists():
        return classes_named(str(file), "--parquet")
    names = {shard.class_names for shard in shards}
    if len(names) > 1:
        raise UserError(f"{parquet}: expected files of one data set; their classes differ")
    (found,) = names
    highest = max(int(shard.labels.max(initial=0)) for shard in shards)
    if _are_synsets(found) or (not found and highest == len(synsets()) - 1):
        return tuple(synsets())
    if not found:
        raise UserError(
            f"{parquet}: the files have no names of classes, and labels up to {highest}; write "
            f"{file}, one name a line, in the order of the labels"
        )
    return found


def _are_synsets(names: Sequence[str]) -> bool:
    """Whether these are the words of ImageNet's synsets, as far as their first ones tell; where
    two are the same, copies tell them apart in ways of their own ("crane2")."""
    first = [words.partition(",")[0] for words in synsets().values()]
    same = sum(a.partition(",")[0] == b for a, b in zip(names, first, strict=False))
    return len(names) == len(first) and same >= len(first) - 10


def _check_labels(shard: Shard, classes: int) -> None:
    wrong = np.flatnonzero((shard.labels < 0) | (shard.labels >= classes))
    if len(wrong):
        raise UserError(
            f"{shard.path}: expected labels from 0 to {classes - 1}, received "
            f"{shard.labels[wrong[0]]} in row {wrong[0]}"
        )
