"""Formatting: figures as people and files read them."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Lines of aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def short(number: float) -> str:
    """4089184256 -> "4.09 G": three digits and a unit."""
    for power, unit in ((18, " E"), (15, " P"), (12, " T"), (9, " G"), (6, " M"), (3, " k")):
        if number >= 0.9995 * (factor := 10.0**power):
            return f"{number / factor:#.3g}".rstrip(".") + unit
    return f"{number:.0f}"


def interval(value: float, low: float, high: float, form: str) -> str:
    """Shares as percentages: 0.0154, 0.014, 0.0169 and "+.1f" -> "+1.5 (+1.4 to +1.7)"."""
    return f"{100 * value:{form}} ({100 * low:{form}} to {100 * high:{form}})"


def by_option(options: Sequence[str], values: Iterable[Any]) -> dict[str, float]:
    """[O] values as files hold them: {"64": 0.5, "32": 0.2, "predictor": 0.3}."""
    return {name: float(value) for name, value in zip(options, values, strict=True)}


def percentages(mix: dict[str, float]) -> str:
    """{"64": 0.5, "32": 0.5} -> "50/50"."""
    return "/".join(f"{100 * share:.3g}" for share in mix.values())
