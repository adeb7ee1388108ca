"""Conversion: from Parquet files to records, shard by shard, going on where it was stopped."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from drnet_jax.data.index import name_of_bytes, write_json
from drnet_jax.data.parquet import Shard, open_shards
from drnet_jax.data.records import VERSION, index_file, record_file, summary_file
from drnet_jax.errors import UserError, first_line

# One image a record, so that reading one does not read others; JPEGs do not compress.
OPTIONS = "group_size:1,uncompressed"
GIGABYTE = 1e9

_SYNSET_FIRST = re.compile(r"(n\d{8})_\d+[_.]")


@dataclasses.dataclass(frozen=True)
class Converted:
    images: dict[str, int]  # of each split
    classes: tuple[str, ...]
    notes: tuple[str, ...]  # on what is left out


def convert(parquet: Path, out: Path) -> Converted:
    """Writes the records of all Parquet files below a directory; goes on with what is there.

    Raises:
        UserError: as `open_shards`; and if `out` holds other records, has not the room, or is being
            written by another process.
    """
    shards, classes, notes = open_shards(parquet)
    splits, images = defaultdict(list), Counter()
    for shard in shards:
        splits[shard.split].append(shard.name)
        images[shard.split] += len(shard.labels)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        left = [shard for shard in shards if not _is_done(shard, out)]
        size = sum(shard.size() for shard in left)
        _check_room(out, size)
        done = images.total() - sum(len(shard.labels) for shard in left)
        with tqdm(total=images.total(), initial=done, desc="converting", unit=" images",
                  disable=None, dynamic_ncols=True) as bar:
            written = 0
            for shard in left:
                _convert(shard, out, classes, bar)
                written += shard.size()
                bar.set_postfix_str(f"{written / GIGABYTE:.1f} of {size / GIGABYTE:.1f} GB")
        write_json(summary_file(out), {"version": VERSION, "classes": classes, "splits": splits})
    return Converted(dict(images), classes, notes)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another process is converting into it") from error
        yield
    finally:
        os.close(handle)


def _is_done(shard: Shard, out: Path) -> bool:
    """Whether a shard is there as a whole; raises UserError if it is that of another file."""
    try:
        index = json.loads(index_file(out, shard.name).read_text())
        size = record_file(out, shard.name).stat().st_size
    except (OSError, ValueError):
        return False
    if index["parquet"] != shard.size():
        raise UserError(
            f"{record_file(out, shard.name)}: made from another {shard.path.name}, of "
            f"{index['parquet']} bytes and not {shard.size()}; use another --dir"
        )
    return size == index["bytes"]


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"{out}: expected room for {needed / GIGABYTE:.1f} GB, found {free / GIGABYTE:.1f} GB "
            "free; make room, or use another --dir"
        )


def _convert(shard: Shard, out: Path, classes: tuple[str, ...], bar: tqdm) -> None:
    records = record_file(out, shard.name)
    records.parent.mkdir(parents=True, exist_ok=True)
    partial = records.with_name(f"{records.name}.partial")
    labels, names = shard.labels.tolist(), []
    try:
        writer = ArrayRecordWriter(str(partial), OPTIONS)
        for label, (image, path) in zip(labels, shard.images(), strict=True):
            _check_name(shard, path, label, classes)
            writer.write(image)
            names.append(path or name_of_bytes(image))
            bar.update()
        writer.close()
        size = partial.stat().st_size
        partial.rename(records)
    except RuntimeError as error:  # so the writer says, when it is closed, that the disk is full
        raise UserError(
            f"{partial}: cannot be written ({first_line(error)}); make room, and run the same "
            "command again, which goes on"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    index = {"parquet": shard.size(), "bytes": size, "labels": labels, "names": names}
    write_json(index_file(out, shard.name), index)


def _check_name(shard: Shard, path: str, label: int, classes: tuple[str, ...]) -> None:
    """Raises UserError if an image of ImageNet is named after another class than its label's.

    So labels of another order than that of `classes` would else go unnoticed.
    """
    named = _SYNSET_FIRST.match(os.path.basename(path))
    if named and classes[label] != named[1] in classes:
        raise UserError(
            f"{shard.path}: {path} has label {label}, which is {classes[label]} in the order of "
            "classes at hand; write that of these labels into classes.txt beside the Parquet "
            "files, one class a line"
        )
