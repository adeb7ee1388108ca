"""Inputs: the images that a command line names, as files, folders, patterns, archives and lists."""

import dataclasses
import glob
import itertools
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence

from drnet_jax.data.listing import images_below
from drnet_jax.data.transforms import SUFFIXES
from drnet_jax.errors import UserError, first_line
from drnet_jax.inference.predict import Image, Named

STDIN = "-"


@dataclasses.dataclass(frozen=True)
class Item:
    """An image that is named, not read yet."""

    name: str  # of the record
    archive: str | None = None  # a tar that it is a member of


def items_of(names: Sequence[str]) -> tuple[list[Item], list[str]]:
    """The images of names, in their order, and lines to tell.

    A name is a file; a folder, of which all images below are taken, by name; a pattern such as
    "photos/**/*.jpg"; a tar, compressed or not, of which all members with an image's suffix are
    taken; or "-", for a list of any of these on standard input, one a line.

    Raises:
        UserError: if a folder, pattern or archive holds no image, or an archive cannot be read.
    """
    items: list[Item] = []
    notes: list[str] = []
    for name in names:
        if name == STDIN:
            listed = [line.rstrip("\r\n") for line in sys.stdin]
            found = items_of([line for line in listed if line and line != STDIN])
        else:
            found = _items(name)
        items += found[0]
        notes += found[1]
    return items, notes


def _items(name: str) -> tuple[list[Item], list[str]]:
    if os.path.isdir(name):
        paths, notes = images_below(name)
        return _some([Item(path) for path in paths], name, "this folder"), notes
    if not os.path.exists(name) and glob.has_magic(name):
        paths = sorted(glob.glob(name, recursive=True))
        files = [Item(path) for path in paths if os.path.isfile(path)]
        return _some(files, name, "this pattern"), []
    if os.path.isfile(name) and _is_tar(name):
        members = [f"{name}/{member}" for member in _members(name)]
        return _some([Item(each, name) for each in members], name, "this archive"), []
    return [Item(name)], []


def _some(items: list[Item], name: str, kind: str) -> list[Item]:
    if not items:
        raise UserError(f"{name}: expected images in {kind}, found none")
    return items


def _is_tar(name: str) -> bool:
    # By its name first: to look into every image would cost more than to list them.
    name = os.path.basename(name).lower()
    return ".tar" in name or name.endswith((".tgz", ".tbz2", ".txz"))


def _members(archive: str) -> list[str]:
    try:
        with tarfile.open(archive) as tar:
            return [
                member.name for member in tar
                if member.isfile() and member.name.lower().endswith(SUFFIXES)
            ]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{archive}: expected a whole tar archive, which this is not ({first_line(error)})"
        ) from error


def read(items: Sequence[Item]) -> Iterator[Image]:
    """The images of items, in order: those of archives are read here, each archive once through."""
    for archive, group in itertools.groupby(items, key=lambda item: item.archive):
        if archive is None:
            yield from (item.name for item in group)
            continue
        wanted = [item.name for item in group][::-1]
        while wanted:  # once, unless the archive is named again
            with tarfile.open(archive) as tar:
                for member in tar:
                    if wanted and f"{archive}/{member.name}" == wanted[-1] and member.isfile():
                        yield Named(wanted.pop(), tar.extractfile(member).read())


def share(items: Sequence[Item], which: str) -> Sequence[Item]:
    """The part of the items that "2/8" names; UserError for what names none."""
    number, _, count = which.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(
            f"--shard: expected I/N, such as 2/8, with I from 1 to N, received {which!r}"
        )
    first, last = (len(items) * each // int(count) for each in (int(number) - 1, int(number)))
    return items[first:last]
