"""Reading weights: bit-equal to what PyTorch wrote, in every form; and nothing is ever run."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from drnet_jax.errors import UserError
from drnet_jax.weights import pickled
from drnet_jax.weights.files import read_weights

FORMS = "zip", "legacy", "safetensors"
MAGIC, PROTOCOL = pickled.LEGACY
NATIVE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch writes the files that are read")


def tensors_of(torch):
    """All types; a scalar, an empty one, a transposed one, every other row, and shared storage."""
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return OrderedDict({
        "float32": torch.randn(3, 2, 5, 5), "float16": torch.randn(7).half(),
        "bfloat16": torch.randn(4, 3).bfloat16(), "float64": torch.randn(2).double(),
        "int64": torch.tensor(2**40), "int32": torch.arange(3, dtype=torch.int32),
        "uint8": torch.arange(3, dtype=torch.uint8), "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3), "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "transposed": torch.randn(4, 5, 6).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "whole": whole, "rows": whole[1::2], "corner": whole[2:, 1:3],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    })


def write(torch, form, tensors, path):
    if form == "safetensors":
        from safetensors.torch import save_file

        path = path.with_suffix(".safetensors")
        # It knows neither parameters, strides, nor shared storage.
        save_file({name: each.detach().clone().contiguous() for name, each in tensors.items()},
                  path)
        return path
    torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_bit_for_bit(torch, tmp_path, form):
    tensors = tensors_of(torch)
    found = read_weights(write(torch, form, tensors, tmp_path / "weights.pth"))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        tensor, array = tensor.detach(), found[name]
        assert array.shape == tuple(tensor.shape)
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == jnp.bfloat16
            tensor = tensor.view(torch.int16)
        assert array.tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("wrap", [
    lambda tensors: {"state_dict": tensors, "epoch": 3, "best": [0.5], "optimizer": {}},
    lambda tensors: {"epoch": None, "model": {f"module.{name}": each
                                              for name, each in tensors.items()}},
    lambda tensors: OrderedDict((f"module.{name}", each) for name, each in tensors.items()),
])
def test_the_state_dict_of_a_training_script_is_found(torch, tmp_path, form, wrap):
    tensors = {"a.weight": torch.arange(3.0), "module.b": torch.ones(2)}
    found = read_weights(write(torch, form, wrap(tensors), tmp_path / "weights.pth"))
    assert list(found) == list(tensors)
    np.testing.assert_array_equal(found["a.weight"], [0, 1, 2])


def test_a_module_has_its_state_dict_read(torch, tmp_path):
    """With hooks, metadata and version, as `Module.state_dict` returns it."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    path = write(torch, "zip", network.state_dict(), tmp_path / "network.pt")
    assert list(read_weights(path)) == list(network.state_dict())


class Evil:
    """Has `os.system` called by whoever unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def as_legacy(value):
    """The bytes of a legacy file that holds a value, without any storage."""
    return b"".join(pickle.dumps(each, 2) for each in (MAGIC, PROTOCOL, NATIVE, value, []))


def write_zip(path, value, **files):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", value)
        for name, encoded in files.items():
            archive.writestr(f"archive/{name}", encoded)
    return path


@pytest.mark.parametrize("place", ["zip", "legacy", "first", "keys", "nested"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, place):
    evil, path = Evil(tmp_path / "ran"), tmp_path / "evil.pth"
    if place == "zip":
        write_zip(path, pickle.dumps(evil, 2))
    elif place == "keys":  # the last of the pickles
        path.write_bytes(as_legacy({}).removesuffix(pickle.dumps([], 2)) + pickle.dumps(evil, 2))
    else:
        values = {"legacy": evil, "nested": {"state_dict": {"a": [evil]}}}
        path.write_bytes(as_legacy(values[place]) if place in values else pickle.dumps(evil, 2))
    with pytest.raises(UserError, match=r"would load (posix|nt)\.system, which was not run") as at:
        read_weights(path)
    assert "\n" not in str(at.value) and str(at.value).startswith(f"{path}: ")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))  # the trap is one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [
    b"builtins\neval", b"torch._utils\n_rebuild_tensor", b"torch\nload", b"torch.storage\n_load",
    b"collections\nOrderedDict.fromkeys", b"functools\npartial", b"__builtin__\ngetattr",
])
def test_no_other_name_is_looked_up(tmp_path, name):
    path = tmp_path / "weights.pth"
    write_zip(path, b"\x80\x02c" + name + b"\n.")
    with pytest.raises(UserError, match=f"would load {name.decode().replace(chr(10), '.')}"):
        read_weights(path)


def test_what_a_pickle_may_name_it_cannot_change(tmp_path):
    """BUILD sets attributes: here the defaults of the function that puts tensors together."""
    path = write_zip(
        tmp_path / "weights.pth", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        b"N}X\x0c\0\0\0__defaults__)s\x86b.")  # its state: (None, {"__defaults__": ()})
    with pytest.raises(UserError, match="AttributeError"):
        read_weights(path)
    assert pickled._Unpickler._tensor.__defaults__ is None


def described(storage, offset, shape, strides):
    """A pickle {"a": tensor}, its storage four float32."""
    pid = b"".join([
        b"(X\7\0\0\0storage", b"ctorch\nFloatStorage\n", b"X\1\0\0\0" + b"0", b"X\3\0\0\0cpu",
        b"K" + bytes([storage]), b"tQ",
    ])

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", each) for each in values) + b"t"

    return (
        b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + pid
        + b"J" + struct.pack("<i", offset) + numbers(shape) + numbers(strides) + b"\x89NtRs."
    )


@pytest.mark.parametrize(("storage", "offset", "shape", "strides", "whole"), [
    (4, 0, (2, 2), (2, 1), True),
    (4, 1, (3,), (1,), True),
    (4, 2, (3,), (1,), False),  # one number beyond the end
    (4, 0, (2, 2), (3, 1), False),
    (4, -1, (2,), (1,), False),
    (4, 3, (2,), (-1,), False),
    (4, 0, (4, 4), (0, 1), False),  # more than there is
    (4, 0, (2, 2), (2,), False),
    (9, 0, (2,), (1,), False),  # not the length of what is stored
])
def test_no_view_leaves_its_storage(tmp_path, storage, offset, shape, strides, whole):
    path = write_zip(
        tmp_path / "a.pth", described(storage, offset, shape, strides),
        **{"data/0": np.arange(4, dtype="<f4").tobytes()})
    if whole:
        expected = np.arange(4.0)[offset : offset + np.prod(shape)].reshape(shape)
        np.testing.assert_array_equal(read_weights(path)["a"], expected)
    else:
        with pytest.raises(UserError, match="cannot be read"):
            read_weights(path)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_one_line(torch, tmp_path, form):
    path = write(torch, form, tensors_of(torch), tmp_path / "weights.pth")
    encoded = path.read_bytes()
    random = np.random.default_rng(0)
    shuffled = random.permutation(np.frombuffer(encoded, np.uint8)).tobytes()
    short = [encoded[:length] for length in (0, 1, 7, 100, len(encoded) // 2, len(encoded) - 1)]
    for damaged in (*short, shuffled, b"\0" * 100, b"<html></html>", b"PK\3\4"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="it cannot be read") as refused:
            read_weights(path)
        assert "\n" not in str(refused.value) and str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(("value", "message"), [
    ([1, 2], "received a list"),
    ({"epoch": 3, "args": {}}, "under state_dict or model; received 'epoch', 'args'"),
    ({}, "received nothing"),
])
def test_what_is_no_state_dict_is_told(tmp_path, value, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(as_legacy(value))
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_a_state_dict_of_more_than_tensors_is_refused(torch, tmp_path):
    path = write(torch, "zip", {"a": torch.ones(1), "extra": 3}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"what is no tensor is extra$"):
        read_weights(path)


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(as_legacy({}).replace(pickle.dumps(NATIVE, 2), pickle.dumps(
        NATIVE | {"little_endian": False}, 2)))
    with pytest.raises(UserError, match="little-endian order"):
        read_weights(path)
    write_zip(path, pickle.dumps({}, 2), byteorder=b"big")
    with pytest.raises(UserError, match="little-endian order"):
        read_weights(path)


def test_a_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: expected a file of weights, found none"):
        read_weights(tmp_path / "none.pth")


def test_safetensors_need_no_pytorch(tmp_path):
    save_file({"module.a": np.arange(3)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_weights(tmp_path / "a.safetensors")["a"], [0, 1, 2])
