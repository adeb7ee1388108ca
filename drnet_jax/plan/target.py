"""Target: the devices that a plan is made for, described so that none of them need be at hand."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from drnet_jax.devices import data_mesh
from drnet_jax.errors import UserError, first_line

FORMS = "tpu:TYPE:TOPOLOGY such as tpu:v5e:4x4, gpu:N, gpu:TYPE:N such as gpu:h100:8, or cpu:N"


CHIPS, CARDS = 4, 8  # that a host has, where nobody says how many


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the maker publishes of one device of JAX's (half a chip, where a chip is two)."""

    memory: float  # bytes
    bandwidth: float  # bytes/s
    flops: dict[str, float]  # by dtype; a multiply-add is two


def _chip(gigabytes: float, terabytes_per_second: float, bfloat16: float, float32: float) -> Chip:
    return Chip(
        gigabytes * 1e9, terabytes_per_second * 1e12,
        {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12},
    )


# cloud.google.com/tpu/docs and the data sheets of NVIDIA, dense products. At JAX's default
# precision TPUs multiply float32 as bfloat16 and NVIDIA's as TF32.
TPUS = {
    "v5e": _chip(16, 0.819, 197, 197),
    "v5p": _chip(95, 2.765, 459, 459),
    "v6e": _chip(32, 1.64, 918, 918),
    "tpu7x": _chip(96, 3.69, 1153, 1153),
}
GPUS = {
    "a100": _chip(80, 2.039, 312, 156),
    "h100": _chip(80, 3.352, 989, 494),
}
# What XLA is to know of a GPU that it compiles for without having it. One that is not here is
# counted, not compiled for.
GPU_TARGETS = {
    "h100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
""",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for."""

    name: str
    platform: str  # "tpu", "gpu" or "cpu"
    devices: int
    hosts: int
    chip: Chip | None  # None: not known
    mesh: Mesh | None  # what programs are compiled for; None: there is no compiler here
    missing: str  # why there is none, and what would help


def parse(text: str) -> Target:
    """The devices that `--devices` names. Call it before JAX has counted this host's devices.

    Raises:
        UserError: if it names none that can be described.
    """
    kind, _, rest = text.partition(":")
    # Nothing runs on an accelerator: without one, its plugin would only look for it in vain.
    jax.config.update("jax_platforms", "cpu")
    if kind == "tpu" and ":" in rest:
        return _tpu(text, *rest.split(":", 1))
    if kind == "gpu" and rest:
        return _gpu(text, *rest.rpartition(":")[::2])
    if kind == "cpu" and rest:
        return _cpu(text, _count(text, rest))
    raise UserError(f"--devices: expected {FORMS}, received {text!r}")


def _count(text: str, number: str) -> int:
    if not number.isdecimal() or not 1 <= int(number) <= 10_000:
        raise UserError(f"--devices: expected {FORMS}, received {text!r}")
    return int(number)


def _tpu(text: str, kind: str, topology: str) -> Target:
    if kind not in TPUS:
        raise UserError(f"--devices: expected a TPU of {', '.join(TPUS)}, received {kind!r}")
    sides = topology.split("x")
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--devices: expected a topology such as 4x4, received {topology!r}")
    chips = math.prod(map(int, sides))
    if importlib.util.find_spec("libtpu") is None:
        missing = "libtpu is not installed; pip install 'drnet_jax[tpu]' compiles the programs"
        devices = 2 * chips if kind == "tpu7x" else chips
        return Target(text, "tpu", devices, -(-chips // CHIPS), TPUS[kind], None, missing)
    # Else libtpu asks a metadata engine, which only cloud machines have, who it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    found = _describe(text, platform="tpu", topology_name=f"{kind}:{topology}")
    hosts = len({device.process_index for device in found})
    return Target(text, "tpu", len(found), hosts, TPUS[kind], data_mesh(found), "")


def _gpu(text: str, kind: str, number: str) -> Target:
    count = _count(text, number)
    if kind and kind not in GPUS:
        raise UserError(f"--devices: expected a GPU of {', '.join(GPUS)}, received {kind!r}")
    target = Target(text, "gpu", count, -(-count // CARDS), GPUS.get(kind), None, "")
    if kind not in GPU_TARGETS:
        named = ", ".join(f"gpu:{name}:N" for name in GPU_TARGETS)
        return dataclasses.replace(target, missing=f"programs are compiled for {named} only")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        return dataclasses.replace(
            target,
            missing="jax's CUDA plugin is not installed; pip install 'drnet_jax[cuda]' compiles "
            "the programs, without a GPU too",
        )
    found = _describe(
        text, platform="cuda", target_config=GPU_TARGETS[kind], topology=f"1x1x{count}"
    )
    return dataclasses.replace(target, mesh=data_mesh(found))


def _cpu(text: str, count: int) -> Target:
    jax.config.update("jax_num_cpu_devices", count)
    return Target(text, "cpu", count, 1, None, data_mesh(jax.devices("cpu")[:count]), "")


def _describe(text: str, **description: Any) -> list[jax.Device]:
    try:
        return topologies.get_topology_desc(**description).devices
    except Exception as error:  # each plugin has errors of its own
        raise UserError(
            f"--devices: expected devices that XLA can describe, received {text!r} "
            f"({first_line(error)})"
        ) from error
