"""Protocol: what a source of labelled images is to the rest."""

from collections.abc import Mapping
from typing import Any, Protocol

from drnet_jax.data.index import Index


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


class Indexed(Source, Protocol):
    """A source of which parts can be taken."""

    def index(self) -> Index:
        """Labels and file names of all examples, whose images may have to be read for them."""
        ...
