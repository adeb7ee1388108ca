"""Files of weights, in whichever form: tensors by their names."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from drnet_jax.errors import UserError, first_line
from drnet_jax.weights import pickled

WRAPPER = "module."  # before every name of a network that was trained on several devices


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` file, or of what `torch.save` wrote, by name.

    Raises:
        UserError: if there is no such file, or it is damaged or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file of weights, found none of that name")
    try:
        tensors = _safetensors(path) if path.suffix == ".safetensors" else pickled.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    if tensors and all(name.startswith(WRAPPER) for name in tensors):
        tensors = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    return tensors


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, TypeError) as error:  # TypeError: of a dtype that numpy has not
        raise UserError(
            f"{path}: expected a whole safetensors file; it cannot be read ({first_line(error)})"
        ) from error
