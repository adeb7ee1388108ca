"""Index: the labels and file names of all examples of a source, without their images."""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


class Names(Sequence[str]):
    """Names in one string of bytes: over a million of them open, and pickle, in little time."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        self.joined = b"".join(names)
        self.ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.joined[start : self.ends[index]])


@dataclasses.dataclass(frozen=True)
class Index:
    labels: np.ndarray  # int32 [N]
    names: Sequence[str]
    """[N]: the file's name without its folders or, where the data set knows none, the SHA-256 of
    the image's bytes: what tells the same image in two copies of a data set."""


def digest_of(name: str) -> bytes:
    """SHA-256 of a name, by which names are drawn: at random, but the same on every machine."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def name_of_bytes(image: bytes) -> str:
    """What stands for the name of an image that has none."""
    return hashlib.sha256(image).hexdigest()


def composed(name: str) -> str:
    """A name in the form of Unicode in which names are compared."""
    return unicodedata.normalize("NFC", name)


def fingerprint_of(*parts: bytes) -> str:
    """16 hex digits of all parts, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def joined(names: Iterable[str]) -> bytes:
    """Names as one of the parts of a fingerprint."""
    return "\0".join(names).encode("utf-8", "surrogatepass")


def write_json(path: Path, value: object) -> None:
    """Writes a file that is there as a whole, or not at all, whenever the process is killed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)
