"""Compiled programs, each compiled ahead of time, once, and announced."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Programs:
    """Compiles a function on its first call under a name; never again for the same name.

    An argument of another shape, type or sharding is an error of the compiled program, not a
    silent recompilation.
    """

    def __init__(self, announce: Callable[[str, float], None] = lambda name, seconds: None):
        """`announce(name, seconds)` is called after each compilation."""
        self.compiled: dict[str, jax.stages.Compiled] = {}
        self._announce = announce

    def run(self, name: str, function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Any:
        """Runs the program `name`, compiling `function` for these arguments if it is new."""
        if name not in self.compiled:
            began = time.perf_counter()
            lowered = jax.jit(function, donate_argnums=donate).lower(*args)
            self.compiled[name] = lowered.compile()
            self._announce(name, time.perf_counter() - began)
        return self.compiled[name](*args)
