"""Listing of folders: the images below them, and what is passed over and why."""

import bisect
import contextlib
import enum
import os
from collections.abc import Iterator, Sequence

from drnet_jax.data.transforms import SUFFIXES
from drnet_jax.errors import UserError

SHOWN = 3  # names in a note or message that stand for all


def images_below(directory: str) -> tuple[list[str], tuple[str, ...]]:
    """Paths of the images anywhere below a folder, sorted, and notes of what is passed over.

    That may be folders that cannot be read; raises UserError if the folder itself cannot be.
    """
    passed_over = PassedOver()
    names = image_names(directory, "", passed_over, strict=False)
    paths = [os.path.join(directory, os.fsdecode(name)) for name in names]
    return paths, passed_over.notes(directory)


class Reason(enum.Enum):
    """Why something in a folder is passed over: words for one, and for several."""

    NO_IMAGE = "file that is no image", "files that are no image"
    OUTSIDE = "file outside the class folders", "files outside the class folders"
    HIDDEN = "hidden file or folder", "hidden files or folders"
    BROKEN = "broken link", "broken links"
    SPECIAL = "FIFO, socket or device file", "FIFOs, sockets or device files"
    LOOP = "link to a folder that it lies in", "links to folders that they lie in"
    UNREADABLE = "folder that cannot be read", "folders that cannot be read"


class PassedOver:
    """Counts what is passed over, and keeps the first few names for each reason."""

    def __init__(self):
        self._counts = dict.fromkeys(Reason, 0)
        self._names: dict[Reason, list[str]] = {reason: [] for reason in Reason}
        self._suffixes: set[str] = set()

    def add(self, reason: Reason, name: str) -> None:
        self._counts[reason] += 1
        bisect.insort(self._names[reason], name)  # folders are listed in any order
        del self._names[reason][SHOWN:]
        if reason is Reason.NO_IMAGE:
            self._suffixes.add(os.path.splitext(name)[1] or "no suffix")

    def notes(self, root: str) -> tuple[str, ...]:
        """One line a reason."""
        lines = []
        for reason, count in self._counts.items():
            if count:
                what = reason.value[count > 1]
                if reason is Reason.NO_IMAGE:
                    what += f" ({some(sorted(self._suffixes))})"
                names = some(self._names[reason], count)
                lines.append(printable(f"{root}: passed over {count} {what}: {names}"))
        return tuple(lines)


def image_names(
    root: str, folder: str, passed_over: PassedOver, strict: bool = True
) -> list[bytes]:
    """Paths of the images below `root/folder`, relative to it, sorted.

    If not `strict`, sub-folders that cannot be read are passed over.
    """
    top = os.path.join(root, folder)
    names, left = [], [("", frozenset())]  # sub-folders left to list, and the folders above them
    while left:
        below, above = left.pop()
        path = os.path.join(top, below)
        try:
            with _reading(path):
                status = os.stat(path)
            here = status.st_dev, status.st_ino
            if here in above:
                passed_over.add(Reason.LOOP, os.path.join(folder, below[:-1]))
                continue
            for entry in entries(path):
                kind, name = kind_of(entry), below + entry.name
                if kind == "file" and os.path.splitext(name)[1].lower() in SUFFIXES:
                    names.append(os.fsencode(name))
                elif kind == "folder":
                    left.append((name + os.sep, above | {here}))
                else:
                    reason = Reason.NO_IMAGE if kind == "file" else kind
                    passed_over.add(reason, os.path.join(folder, name))
        except UserError:
            if strict or not below:
                raise
            passed_over.add(Reason.UNREADABLE, os.path.join(folder, below[:-1]))
    return sorted(names)


def read(path: str) -> bytes:
    """A file's content; UserError if it cannot be read, whose message leaves its name to others."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the image: {error.strerror}") from error


def entries(path: str) -> Iterator[os.DirEntry]:
    with _reading(path), os.scandir(path) as listed:
        yield from listed


def kind_of(entry: os.DirEntry) -> str | Reason:
    """"file" or "folder", which a link can lead to, or why the entry is passed over.

    Only links cost a stat, the others were listed with their kind: on a network drive a stat would
    be one round trip per image. Nothing is opened, as opening a FIFO would wait for a writer.
    """
    if entry.name.startswith("."):
        return Reason.HIDDEN
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # a link to itself, or to where one may not look
        return Reason.BROKEN
    broken = entry.is_symlink() and not os.path.exists(entry.path)
    return Reason.BROKEN if broken else Reason.SPECIAL


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read the folder: {error.strerror}") from error


def some(names: Sequence[str], count: int | None = None) -> str:
    """The first few names of `count`, or of all."""
    left = (len(names) if count is None else count) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def printable(text: str) -> str:
    """On one line, and on any terminal that knows Unicode; file names may hold anything."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
