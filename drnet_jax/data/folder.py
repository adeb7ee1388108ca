"""Folders of images, `split/<class>/**/*.jpg`: listed once, cheaply, and read by random access."""

import bisect
import contextlib
import enum
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from drnet_jax.data.transforms import SUFFIXES
from drnet_jax.errors import UserError

SHOWN = 3  # names in a note or message that stand for all


class FolderSource:
    """The images of `directory/split`, or of `directory` itself, in folders named by their classes.

    They are sorted by class, then by path within the class folder, whose sub-folders count. The
    classes, and so the labels, are those given, or else the class folders of `class_split`, the
    training split, each of which must hold an image. Names of class folders are compared in
    Unicode's composed form (NFC), as copies from macOS have another; that form names the classes.
    What is passed over is in `notes`.

    Names are kept as one string of bytes: over a million of them open, and pickle, in little time.
    """

    def __init__(
        self, directory: str, split: str, class_split: str, classes: Sequence[str] | None = None
    ):
        """Lists the folder; `directory` itself is used where `classes` are given and no `split` is.

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
        passed_over = _PassedOver()
        self._root = _split_folder(directory, split, classes)
        folders = _class_folders(self._root, passed_over)
        needs_all, origin = classes is None and split == class_split, "the model"
        if needs_all:
            classes = tuple(folders)
        elif classes is None:
            origin = os.path.join(directory, class_split)
            classes = tuple(_class_folders(origin, _PassedOver()))
        self.classes = tuple(classes)
        labels = {_composed(name): label for label, name in enumerate(self.classes)}
        if unknown := [folder for name, folder in folders.items() if name not in labels]:
            raise UserError(
                f"{os.path.join(self._root, unknown[0])}: {unknown[0]!r} is none of the "
                f"{len(self.classes)} classes of {origin}: {_some(self.classes)}"
                + (f"; nor is there a folder {split!r} of class folders beside it"
                   if self._root == directory else "")
            )

        files: list[list[bytes]] = [[] for _ in self.classes]
        self._folders = [""] * len(self.classes)
        for name, folder in folders.items():
            self._folders[labels[name]] = folder
            files[labels[name]] = _image_names(self._root, folder, passed_over)
            if needs_all and not files[labels[name]]:
                raise _no_images(os.path.join(self._root, folder))
        names = list(itertools.chain.from_iterable(files))
        if not names:
            raise _no_images(self._root)
        self._class_ends = np.cumsum([len(of_class) for of_class in files])
        self._names = b"".join(names)
        self._name_ends = np.cumsum([len(name) for name in names])
        without = [name for name, of_class in zip(self.classes, files, strict=True) if not of_class]
        self.notes = passed_over.notes(self._root) + ((_printable(
            f"{self._root}: no images of {len(without)} of the {len(self.classes)} classes: "
            f"{_some(without)}"
        ),) if without else ())

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
        return os.path.join(self._root, self._folders[self._label(index)], name)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (
            "\0".join(self.classes).encode("utf-8", "surrogatepass"),
            self._class_ends.astype("<i8").tobytes(),
            self._name_ends.astype("<i8").tobytes(),
            self._names,
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:16]

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._class_ends, index, side="right"))


def images_below(directory: str) -> tuple[list[str], tuple[str, ...]]:
    """Paths of the images anywhere below a folder, sorted, and notes of what is passed over.

    That may be folders that cannot be read; raises UserError if the folder itself cannot be.
    """
    passed_over = _PassedOver()
    names = _image_names(directory, "", passed_over, strict=False)
    paths = [os.path.join(directory, os.fsdecode(name)) for name in names]
    return paths, passed_over.notes(directory)


class _Reason(enum.Enum):
    """Why something in a folder is passed over: words for one, and for several."""

    NO_IMAGE = "file that is no image", "files that are no image"
    OUTSIDE = "file outside the class folders", "files outside the class folders"
    HIDDEN = "hidden file or folder", "hidden files or folders"
    BROKEN = "broken link", "broken links"
    SPECIAL = "FIFO, socket or device file", "FIFOs, sockets or device files"
    LOOP = "link to a folder that it lies in", "links to folders that they lie in"
    UNREADABLE = "folder that cannot be read", "folders that cannot be read"


class _PassedOver:
    """Counts what is passed over, and keeps the first few names for each reason."""

    def __init__(self):
        self._counts = dict.fromkeys(_Reason, 0)
        self._names: dict[_Reason, list[str]] = {reason: [] for reason in _Reason}
        self._suffixes: set[str] = set()

    def add(self, reason: _Reason, name: str) -> None:
        self._counts[reason] += 1
        bisect.insort(self._names[reason], name)  # folders are listed in any order
        del self._names[reason][SHOWN:]
        if reason is _Reason.NO_IMAGE:
            self._suffixes.add(os.path.splitext(name)[1] or "no suffix")

    def notes(self, root: str) -> tuple[str, ...]:
        """One line a reason."""
        lines = []
        for reason, count in self._counts.items():
            if count:
                what = reason.value[count > 1]
                if reason is _Reason.NO_IMAGE:
                    what += f" ({_some(sorted(self._suffixes))})"
                names = _some(self._names[reason], count)
                lines.append(_printable(f"{root}: passed over {count} {what}: {names}"))
        return tuple(lines)


def _split_folder(directory: str, split: str, classes: Sequence[str] | None) -> str:
    """Where the class folders are: in the folder of the split, or in `directory`."""
    path = os.path.join(directory, split)
    exists = os.path.isdir(path)
    # A folder of that name without folders in it may itself be a class.
    of_classes = exists and (
        classes is None or any(_kind(entry) == "folder" for entry in _list(path))
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


def _class_folders(path: str, passed_over: _PassedOver) -> dict[str, str]:
    """Names of class folders, composed -> as they are in `path`, sorted."""
    if not os.path.isdir(path):
        raise UserError(f"config.data: expected class folders in it, but there is no folder {path}")
    folders: dict[str, str] = {}
    for entry in _list(path):
        kind = _kind(entry)
        if kind != "folder":
            passed_over.add(_Reason.OUTSIDE if kind == "file" else kind, entry.name)
            continue
        other = folders.setdefault(_composed(entry.name), entry.name)
        if other != entry.name:
            raise UserError(
                f"{path}: expected one folder per class, received two whose names differ only in "
                f"their Unicode composition, {_code_points(min(other, entry.name))} and "
                f"{_code_points(max(other, entry.name))}; merge them or rename one"
            )
    if not folders:
        raise UserError(f"{path}: expected one folder per class, found no folder")
    return dict(sorted(folders.items()))


def _image_names(
    root: str, folder: str, passed_over: _PassedOver, strict: bool = True
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
                passed_over.add(_Reason.LOOP, os.path.join(folder, below[:-1]))
                continue
            for entry in _list(path):
                kind, name = _kind(entry), below + entry.name
                if kind == "file" and os.path.splitext(name)[1].lower() in SUFFIXES:
                    names.append(os.fsencode(name))
                elif kind == "folder":
                    left.append((name + os.sep, above | {here}))
                else:
                    reason = _Reason.NO_IMAGE if kind == "file" else kind
                    passed_over.add(reason, os.path.join(folder, name))
        except UserError:
            if strict or not below:
                raise
            passed_over.add(_Reason.UNREADABLE, os.path.join(folder, below[:-1]))
    return sorted(names)


def _list(path: str) -> Iterator[os.DirEntry]:
    with _reading(path), os.scandir(path) as entries:
        yield from entries


def _kind(entry: os.DirEntry) -> str | _Reason:
    """"file" or "folder", which a link can lead to, or why the entry is passed over.

    Only links cost a stat, the others were listed with their kind: on a network drive a stat would
    be one round trip per image. Nothing is opened, as opening a FIFO would wait for a writer.
    """
    if entry.name.startswith("."):
        return _Reason.HIDDEN
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # a link to itself, or to where one may not look
        return _Reason.BROKEN
    broken = entry.is_symlink() and not os.path.exists(entry.path)
    return _Reason.BROKEN if broken else _Reason.SPECIAL


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read the folder: {error.strerror}") from error


def _no_images(path: str) -> UserError:
    return UserError(f"{path}: expected images ({', '.join(SUFFIXES)}), found none")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _code_points(name: str) -> str:
    return f"{name!r} ({' '.join(f'U+{ord(letter):04X}' for letter in name)})"


def _some(names: Sequence[str], count: int | None = None) -> str:
    """The first few names of `count`, or of all."""
    left = (len(names) if count is None else count) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def _printable(text: str) -> str:
    """On one line, and on any terminal that knows Unicode; file names may hold anything."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
