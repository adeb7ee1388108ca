"""Which form of an operation is traced: as it is defined, or as CPUs run it fastest.

What decides is the devices that a program is traced *for*: a mesh of TPUs described on a host
without any gets the forms that TPUs are to run. Accelerators get every operation as it is defined,
which is the form that their compilers know how to fuse.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Traces operations in the forms for "cpu", "gpu" or "tpu", whatever devices there are here."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def plain_forms() -> contextlib.AbstractContextManager[None]:
    """Traces operations as they are defined: for counting."""
    return traced_for("none")


def on_cpu() -> bool:
    """Whether to trace the form made for CPUs; outside `traced_for`, where JAX computes here."""
    return (_platform.get() or jax.default_backend()) == "cpu"
