"""The machine that this process runs on, as measurements record it."""

import os
import platform
from typing import Any

import jax

# What changes the speed of a run without being in its config.
VARIABLES = (
    "XLA_FLAGS", "GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_ARENA_MAX", "LD_PRELOAD", "OMP_NUM_THREADS",
)


def cores() -> int:
    """CPU cores that this process may use, which is how many threads XLA starts on a CPU."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Versions, devices, cores and variables, for the record of a measurement."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "cores": cores(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
