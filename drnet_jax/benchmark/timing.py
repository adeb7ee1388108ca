"""Timing: wall-clock time of several things, taken in turns so that all see the same machine."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

TURN = 0.25  # seconds that a turn lasts at least: shorter calls are repeated within it


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time."""

    name: str
    images: int  # that one call works through
    call: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The throughput of a case."""

    rates: tuple[float, ...]  # images/s of each turn
    compile_seconds: float  # of the first call, which is part of no rate
    result: Any  # of the last call

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


def measure(
    cases: Sequence[Case], repeats: int, compile_seconds: Callable[[], float]
) -> list[Timing]:
    """Times the cases in turns, A B C A B C ..., after a warm-up of two calls of each.

    The first call compiles, the second tells how many calls make a turn.

    Args:
        repeats: turns of each case.
        compile_seconds: tells how many seconds have gone into compiling so far.
    """
    compiled = []
    for case in cases:
        before = compile_seconds()
        run(case, 1)
        compiled.append(compile_seconds() - before)
    calls = [max(1, round(TURN / run(case, 1)[0])) for case in cases]

    rates: list[list[float]] = [[] for _ in cases]
    results: list[Any] = [None] * len(cases)
    for _ in range(repeats):
        for index, case in enumerate(cases):
            seconds, results[index] = run(case, calls[index])
            rates[index].append(calls[index] * case.images / seconds)
    return [
        Timing(tuple(rates), seconds, result)
        for rates, seconds, result in zip(rates, compiled, results, strict=True)
    ]


def run(case: Case, calls: int) -> tuple[float, Any]:
    """Seconds of so many calls, one after the other, and the last one's result.

    Each is waited for, as the training loop waits for a step's metrics before it starts the next.
    """
    began = time.perf_counter()
    for _ in range(calls):
        result = jax.block_until_ready(case.call())
    return time.perf_counter() - began, result
