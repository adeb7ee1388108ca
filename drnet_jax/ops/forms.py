"""Forms: which of them a program is traced in."""

from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh

# JAX traces a function anew for each value of it. None: where JAX computes here.
_platform = jax.make_user_context(None)


def traced_for(platform: str) -> AbstractContextManager[None]:
    """Traces operations in the forms for "cpu", "gpu" or "tpu", whatever devices there are here; or
    for a "graph", which runtimes other than JAX run."""
    return _platform(platform)


def traced_for_mesh(mesh: Mesh) -> AbstractContextManager[None]:
    """Traces operations in the forms for a mesh's devices, unless others are asked for."""
    return _platform(_platform.value or mesh.devices.flat[0].platform)


def plain_forms() -> AbstractContextManager[None]:
    """Traces operations as they are defined: for counting."""
    return _platform("none")


def in_graph() -> bool:
    """Whether to trace the form made for graphs, which other runtimes run."""
    return _platform.value == "graph"


def on_cpu() -> bool:
    """Whether to trace the form made for CPUs."""
    return (_platform.value or jax.default_backend()) == "cpu"
