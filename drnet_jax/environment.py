"""Environment: what a measurement was made with, for its record."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

from drnet_jax.devices import cores

# What changes the speed of a run without being in its config.
VARIABLES = (
    "XLA_FLAGS", "GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_ARENA_MAX", "LD_PRELOAD", "OMP_NUM_THREADS",
)


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Versions, devices, cores and variables, for the record of a measurement."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "cores": cores(),
        "processor": _processor(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _processor() -> str:
    """The name of this host's processor, as Linux tells it; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
