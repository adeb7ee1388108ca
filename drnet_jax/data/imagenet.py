"""ImageNet-1K: its synsets and their words, ImageNet-100, and how its files are named."""

import functools
import importlib.resources
import re
from collections.abc import Sequence

from drnet_jax.data.index import digest_of

IMAGENET_100 = "imagenet100"
# Parquet copies of ImageNet add the synset that the archive names once more.
_TWICE = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})_n\d{8}(\.\w+)")


@functools.cache
def synsets() -> dict[str, str]:
    """WordNet IDs of the 1,000 classes, in the order of their labels -> "tench, Tinca tinca"."""
    file = importlib.resources.files(__package__).joinpath("imagenet_synsets.tsv")
    lines = (line for line in file.read_text("utf-8").splitlines() if not line.startswith("#"))
    return dict(line.split("\t") for line in lines)


def class_words(classes: Sequence[str]) -> tuple[str, ...]:
    """Names to show to people: of an ImageNet synset its first word, else the class's own name."""
    words = synsets()
    return tuple(words[name].partition(",")[0] if name in words else name for name in classes)


def imagenet_100() -> tuple[str, ...]:
    """The classes of ImageNet-100, sorted: the 100 of the smallest SHA-256."""
    return tuple(sorted(sorted(synsets(), key=digest_of)[:100]))


def plain_name(name: str) -> str:
    """A file's name as ImageNet's own archives have it: n01440764_10026_n01440764.JPEG and
    n01440764_10026.JPEG are one image. Other names stay."""
    return "".join(found.groups()) if (found := _TWICE.fullmatch(name)) else name
