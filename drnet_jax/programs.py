"""Compiled programs: each compiled ahead of time, once, and announced."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drnet_jax.mesh import per_device


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function to be compiled for a mesh, once, for arguments of one shape."""

    name: str  # as announced; no two programs of a run share one
    mesh: Mesh
    function: Callable  # of global arrays
    specs: tuple[P, ...]  # how each argument is split over the mesh
    donate: tuple[int, ...] = ()  # arguments whose memory it may reuse

    @classmethod
    def mapped(
        cls, name: str, mesh: Mesh, function: Callable, specs: tuple[P, ...], out_specs: Any,
        donate: tuple[int, ...] = (),
    ) -> "Program":
        """A program of each device's own shards (see `mesh.per_device`)."""
        return cls(name, mesh, per_device(mesh, function, specs, out_specs), specs, donate)

    @functools.cached_property
    def jitted(self) -> Callable:
        return jax.jit(self.function, donate_argnums=self.donate)

    def abstract(self, *args: Any) -> tuple[Any, ...]:
        """The arguments as shapes with their shardings, to lower with; no data is needed."""
        def shape(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec)
            )

        return tuple(
            jax.tree.map(functools.partial(shape, spec=spec), arg)
            for arg, spec in zip(args, self.specs, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What is announced of each compiled program."""

    name: str
    seconds: float  # that it took
    waited: float  # seconds for which whoever wanted to run it had to wait
    background: bool  # whether it was compiled beside other work

    def __str__(self) -> str:
        text = f"compiled {self.name} in {self.seconds:.1f} s"
        return text + f", in the background ({self.waited:.1f} s waited)" * self.background


class Programs:
    """Compiles a program before its first run, here or in the background; never again.

    An argument of another shape, type or sharding is an error of the compiled program, not a
    silent recompilation.
    """

    def __init__(self, announce: Callable[[Compilation], None] = lambda compilation: None):
        """`announce` is called once a program, when it is first asked for and there."""
        self.compiled: dict[str, jax.stages.Compiled] = {}
        self.waited = 0.0  # seconds, in all, for programs to be compiled
        self._announce = announce
        self._coming: dict[str, concurrent.futures.Future] = {}
        # One thread: the compiler has several, and the device's host has other work.
        self._background = concurrent.futures.ThreadPoolExecutor(1, "compile")

    def run(self, program: Program, *args: Any) -> Any:
        """Runs a program, compiled for these arguments if it is new."""
        return self.compile(program, *args)(*args)

    def compile(self, program: Program, *args: Any) -> jax.stages.Compiled:
        """The program compiled for arguments like these, which may hold data or be shapes only."""
        if program.name not in self.compiled:
            began = time.perf_counter()
            coming = self._coming.pop(program.name, None)
            # One that is still waiting its turn is compiled here at once.
            background = coming is not None and not coming.cancel()
            compiled, seconds = (
                coming.result() if background else _compile(program, program.abstract(*args))
            )
            self.compiled[program.name] = compiled
            waited = time.perf_counter() - began
            self.waited += waited
            self._announce(Compilation(program.name, seconds, waited, background))
        return self.compiled[program.name]

    def prepare(self, program: Program, *args: Any) -> None:
        """Begins to compile a program, as `compile` would, in the background, if it is new."""
        if program.name not in self.compiled and program.name not in self._coming:
            self._coming[program.name] = self._background.submit(
                _compile, program, program.abstract(*args)
            )

    def close(self) -> None:
        """Forgets what is still waiting to be compiled; returns when the present one is done."""
        self._background.shutdown(cancel_futures=True)


def _compile(program: Program, args: tuple[Any, ...]) -> tuple[jax.stages.Compiled, float]:
    began = time.perf_counter()
    compiled = program.jitted.lower(*args).compile()
    return compiled, time.perf_counter() - began
