"""What `torch.save` wrote, zip and legacy form, read without PyTorch and without running any of it.

A pickle is a program: it names functions and has them called. Here it may name the few that put
tensors together, and these only take notes; any other name ends the reading.
"""

import functools
import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from drnet_jax.errors import UserError, first_line

ZIP = b"PK\3\4"  # that a file begins with
EXPECTED = "tensors by their names"
NESTED = "state_dict", "model"  # keys under which training scripts keep it
LEGACY = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a legacy file
STORAGES = {
    "BFloat16Storage": np.dtype(jnp.bfloat16), "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"),
    "BoolStorage": np.dtype("?"), "ByteStorage": np.dtype("u1"), "CharStorage": np.dtype("i1"),
    "ShortStorage": np.dtype("<i2"), "IntStorage": np.dtype("<i4"), "LongStorage": np.dtype("<i8"),
}


class Storage(NamedTuple):
    """A line of numbers that tensors are views of."""

    kind: str  # a key of STORAGES; no np.dtype, which a pickle could change
    key: str
    size: int


class Tensor(NamedTuple):
    """A view, as the pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


BytesOf = Callable[[Storage], bytes]


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the state dict in a file, by name; it may lie under one of the keys NESTED.

    Raises:
        UserError: if the file is none of `torch.save`'s, is damaged, holds something else, or would
            have a function run.
    """
    encoded = path.read_bytes()
    try:
        described, bytes_of = (_zip if encoded.startswith(ZIP) else _legacy)(encoded)
        return {
            name: _array(tensor, bytes_of(tensor.storage))
            for name, tensor in _state_dict(described).items()
        }
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes make pickle and zipfile raise all there is
        raise UserError(
            f"{path}: expected a whole file of weights that torch.save wrote, or one named "
            f"*.safetensors; it cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error


def _zip(encoded: bytes) -> tuple[Any, BytesOf]:
    """The object in a file of the zip form, tensors as `Tensor`s, and what gives their bytes."""
    archive = zipfile.ZipFile(io.BytesIO(encoded))
    names = archive.namelist()
    # All lies in one folder, named after the file as it was saved.
    folder = names[0].partition("/")[0]
    order = f"{folder}/byteorder"
    _check_order(order not in names or archive.read(order) == b"little")
    described = _Unpickler(io.BytesIO(archive.read(f"{folder}/data.pkl"))).load()

    @functools.cache  # many tensors may share one
    def bytes_of(storage: Storage) -> bytes:
        return archive.read(f"{folder}/data/{storage.key}")

    return described, bytes_of


def _legacy(encoded: bytes) -> tuple[Any, BytesOf]:
    """`_zip` of the legacy form: five pickles, and the storages one after the other."""
    file = io.BytesIO(encoded)
    begins = _Unpickler(file).load(), _Unpickler(file).load()
    if begins != LEGACY:
        raise ValueError(f"it begins with {begins!r}")
    _check_order(_Unpickler(file).load()["little_endian"])
    unpickler = _Unpickler(file)
    described, found = unpickler.load(), {}
    for key in _Unpickler(file).load():
        count, = struct.unpack("<q", file.read(8))
        found[key] = file.read(count * unpickler.sizes[key])
    return described, lambda storage: found[storage.key]


def _check_order(little: bool) -> None:
    if not little:
        raise UserError("expected numbers in little-endian order, received big-endian ones")


def _state_dict(described: Any) -> dict[str, Tensor]:
    if not isinstance(described, dict):
        raise UserError(f"expected a state dict: {EXPECTED}; received a {type(described).__name__}")
    if not any(isinstance(value, Tensor) for value in described.values()):
        nested = [described[key] for key in NESTED if isinstance(described.get(key), dict)]
        if not nested:
            keys = ", ".join(map(repr, described)) or "nothing"
            raise UserError(
                f"expected a state dict: {EXPECTED}, or these under {' or '.join(NESTED)}; "
                f"received {keys}"
            )
        described = nested[0]
    if others := [key for key, value in described.items() if not isinstance(value, Tensor)]:
        names = ", ".join(map(str, others))
        raise UserError(f"expected a state dict: {EXPECTED}; what is no tensor is {names}")
    return {str(key): value for key, value in described.items()}


class _Unpickler(pickle.Unpickler):
    """Puts a `Tensor` in the place of each tensor, and refuses all but tensors and containers."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.sizes: dict[str, int] = {}  # bytes of a number, by the key of its storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        allowed: dict[str, Callable] = {
            "collections.OrderedDict": OrderedDict,
            # Methods of this object, which a pickle cannot change.
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        }
        if f"{module}.{name}" not in allowed:
            raise UserError(
                f"expected a state dict: {EXPECTED}; this pickle would load {module}.{name}, which "
                "was not run; save the tensors alone, with torch.save(model.state_dict(), ...)"
            )
        return allowed[f"{module}.{name}"]

    def persistent_load(self, reference: Any) -> Storage:
        # "storage", its type, key, device and length; the legacy form may add that it is a view.
        tag, kind, key, _, size, *view = reference
        if tag != "storage" or kind not in STORAGES or any(view):
            raise ValueError(f"storage {reference!r}")
        self.sizes[key] = STORAGES[kind].itemsize
        return Storage(kind, key, size)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *unused: Any
    ) -> Tensor:
        return Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor: Any, *unused: Any) -> Any:
        return tensor


def _array(tensor: Tensor, encoded: bytes) -> np.ndarray:
    storage, offset, shape, strides = tensor
    dtype = STORAGES[storage.kind]
    numbers = np.frombuffer(encoded, dtype)
    # The last number of the view must lie in the storage: numpy does not look.
    last = offset + sum((count - 1) * step for count, step in zip(shape, strides, strict=True))
    fits = min(offset, *shape, *strides, 0) == 0 and (0 in shape or last < len(numbers))
    # None is larger than what it is a view of: a few bytes cannot fill the memory.
    if len(numbers) != storage.size or math.prod(shape) > len(numbers) or not fits:
        raise ValueError(f"{tensor} of {len(numbers)} numbers")
    view = np.lib.stride_tricks.as_strided(
        numbers[offset:], shape, [step * dtype.itemsize for step in strides]
    )
    return view.copy()
