"""Images without labels: whatever lies below a folder."""

import os
from collections.abc import Mapping
from typing import Any

from drnet_jax.data.index import fingerprint_of, joined
from drnet_jax.data.listing import images_below, read
from drnet_jax.errors import UserError


class UnlabelledSource:
    """The images anywhere below a folder, as a `Source` of one class, sorted by path."""

    classes = ("",)

    def __init__(self, directory: str):
        """Lists the folder; raises UserError if it cannot be read or holds no image."""
        paths, self.notes = images_below(directory)
        if not paths:
            raise UserError(f"{directory}: expected images in this folder, found none")
        self._root = directory
        self._names = [os.path.relpath(path, directory) for path in paths]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": read(self.key(index)), "label": 0}

    def key(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(joined(self._names))
