"""Dynamic Resolution Networks in JAX."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from drnet_jax.api import load


def __getattr__(name: str) -> Any:
    # Importing the package imports neither JAX nor tfds: the command line answers --help at once.
    if name == "load":
        from drnet_jax.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
