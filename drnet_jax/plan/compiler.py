"""Compiler: what it says of a program, bytes, FLOPs and memory, of one device."""

import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax

from drnet_jax.devices import Program, cores
from drnet_jax.errors import first_line


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Of one device. None: this platform's compiler does not say."""

    name: str
    flops: float | None
    bytes_moved: float | None  # to and from the device's memory
    arguments: int  # bytes
    outputs: int  # bytes, less what takes the place of donated arguments
    temporaries: int  # bytes
    seconds: float  # that compiling took here, perhaps beside other programs


@dataclasses.dataclass(frozen=True)
class Failure:
    """A program that does not compile."""

    name: str
    reason: str


def analyse_all(
    programs: Iterable[tuple[Program, tuple[Any, ...]]]
) -> dict[str, Analysis | Failure]:
    """Compiles programs for their meshes, several at a time, telling of each on stderr.

    Args:
        programs: with their arguments' shapes; of those that share a name, the first counts.

    Returns:
        By name, in the order given.
    """
    first: dict[str, tuple[Program, tuple[Any, ...]]] = {}
    for program, args in programs:
        first.setdefault(program.name, (program, args))
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    try:
        coming = {name: pool.submit(analyse, *each) for name, each in first.items()}
        return {name: future.result() for name, future in coming.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def analyse(program: Program, args: tuple[Any, ...]) -> Analysis | Failure:
    """Compiles one program for its mesh."""
    began = time.perf_counter()
    try:
        compiled = program.jitted.lower(*program.abstract(*args)).compile()
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        print(f"FAILED {program.name}: {reason}", file=sys.stderr, flush=True)
        return Failure(program.name, reason)
    seconds = time.perf_counter() - began
    print(f"compiled {program.name} in {seconds:.1f} s", file=sys.stderr, flush=True)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Analysis(
        name=program.name,
        flops=cost.get("flops"),
        bytes_moved=cost.get("bytes accessed"),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        seconds=seconds,
    )
