"""Devices: which there are, the mesh, how arrays lie on it, and programs compiled for it.

The mesh has one axis, `data`: state is replicated over it, batches are split. A program is compiled
ahead of time, once, and announced.
"""

import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drnet_jax.config import AXIS
from drnet_jax.errors import UserError, first_line
from drnet_jax.ops import traced_for_mesh


def found_devices() -> str:
    """What JAX computes on, as one line; a warning where JAX_PLATFORMS names other devices first.

    Raises:
        UserError: if JAX finds no devices of the kinds that JAX_PLATFORMS names.
    """
    asked = jax.config.jax_platforms or ""
    try:
        devices = jax.devices()
    except Exception as error:  # without a GPU and with "cuda" alone an AssertionError of no text
        raise UserError(
            f"JAX_PLATFORMS={asked}: expected such devices, and JAX, which must be able to use "
            f"each kind, found none ({(str(error) and first_line(error)) or 'none is visible'}); "
            "install the extra that they need (drnet_jax[cuda] or drnet_jax[tpu]), or compute on "
            "the CPU with JAX_PLATFORMS=cpu"
        ) from error
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    text = f"devices: {len(devices)} x {devices[0].device_kind}{hosts}"
    first = asked.partition(",")[0]
    try:
        jax.devices(first or None)
    except RuntimeError:  # "cuda,cpu" without a GPU, which JAX passes over without a word
        return f"warning: {text}; JAX_PLATFORMS={asked}, but JAX finds no device of {first!r}"
    return text


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over the given devices, by default all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    # Auto: with explicit axis types the gradients of linen modules fail to trace.
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def check_batch(size: int, devices: int) -> None:
    """Raises UserError unless a global batch of `size` can be split evenly over the devices."""
    if size % devices:
        raise UserError(
            f"config.batch_size (or --batch): expected a multiple of the {devices} devices, "
            f"received {size}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a whole copy on every device."""
    return NamedSharding(mesh, P())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading axis split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's share of a batch -> global arrays, split over all devices."""
    sharding = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def per_device(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over the devices: what it sees are each device's own shards.

    Its operations are traced in the forms for the platform of the mesh.
    """
    def traced(*args: Any) -> Any:
        with traced_for_mesh(mesh):
            return function(*args)

    return jax.shard_map(traced, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function to be compiled for a mesh, once, for arguments of one shape."""

    name: str  # as announced
    mesh: Mesh
    function: Callable  # of global arrays
    specs: tuple[P, ...]  # how each argument is split over the mesh
    donate: tuple[int, ...] = ()  # arguments whose memory it may reuse

    @classmethod
    def mapped(
        cls, name: str, mesh: Mesh, function: Callable, specs: tuple[P, ...], out_specs: Any,
        donate: tuple[int, ...] = (),
    ) -> "Program":
        """A program of each device's own shards (see `per_device`)."""
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
        self.compiled: dict[Program, jax.stages.Compiled] = {}
        self.waited = 0.0  # seconds, in all, for programs to be compiled
        self._announce = announce
        self._coming: dict[Program, concurrent.futures.Future] = {}
        # One thread: the compiler has several, and the device's host has other work.
        self._background = concurrent.futures.ThreadPoolExecutor(1, "compile")

    def run(self, program: Program, *args: Any) -> Any:
        """Runs a program, compiled for these arguments if it is new."""
        return self.compile(program, *args)(*args)

    def compile(self, program: Program, *args: Any) -> jax.stages.Compiled:
        """The program compiled for arguments like these, which may hold data or be shapes only."""
        if program not in self.compiled:
            began = time.perf_counter()
            coming = self._coming.pop(program, None)
            # One that is still waiting its turn is compiled here at once.
            background = coming is not None and not coming.cancel()
            compiled, seconds = (
                coming.result() if background else _compile(program, program.abstract(*args))
            )
            self.compiled[program] = compiled
            waited = time.perf_counter() - began
            self.waited += waited
            self._announce(Compilation(program.name, seconds, waited, background))
        return self.compiled[program]

    def knows(self, program: Program) -> bool:
        """Whether a program is compiled, or will be in the background."""
        return program in self.compiled or program in self._coming

    def prepare(self, program: Program, *args: Any) -> None:
        """Begins to compile a program, as `compile` would, in the background, if it is new."""
        if not self.knows(program):
            self._coming[program] = self._background.submit(
                _compile, program, program.abstract(*args)
            )

    def close(self) -> None:
        """Forgets what is still waiting to be compiled; returns when the present one is done."""
        self._background.shutdown(cancel_futures=True)


def _compile(program: Program, args: tuple[Any, ...]) -> tuple[jax.stages.Compiled, float]:
    began = time.perf_counter()
    compiled = program.jitted.lower(*args).compile()
    return compiled, time.perf_counter() - began


def cores() -> int:
    """CPU cores that this process may use, which is how many threads XLA starts on a CPU."""
    return len(own_cores())


def own_cores() -> list[int]:
    """The numbers of these cores."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
