"""Which form of an operation is traced: as it is defined, or as the CPU runs it fastest."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Traces operations as they are defined, not as this platform runs them: for counting."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def on_cpu() -> bool:
    """Whether to trace the form made for the CPU."""
    return jax.default_backend() == "cpu" and not _plain.get()
