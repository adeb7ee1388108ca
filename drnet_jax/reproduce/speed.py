"""Figure 3: accuracy over measured latency."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drnet_jax.reproduce.photographs import DOTS, TEXT

# The same series has the same colour and mark in both panels.
STYLES = {
    "single": {"color": "#555555", "marker": "s", "linestyle": "--"},
    "fixed": {"color": "#e08214", "marker": "^", "linestyle": ":"},
    "drnet": {"color": "#2166ac", "marker": "o", "linestyle": "-"},
}


@dataclasses.dataclass(frozen=True)
class Dot:
    """A model that was measured."""

    label: str
    top1: float
    milliseconds: tuple[float, ...]  # of an image, by batch size
    fastest: tuple[float, ...]  # of all turns
    slowest: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Series:
    """Models of one kind."""

    name: str
    style: str  # of STYLES
    dots: Sequence[Dot]


def draw_speed(
    path: Path, series: Sequence[Series], batch_sizes: Sequence[int], hardware: str, title: str
) -> None:
    """Draws figure 3, a panel a batch size."""
    figure = Figure(figsize=(5.2 * len(batch_sizes), 4.3), layout="constrained")
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    for number, (axes, size) in enumerate(zip(panels, batch_sizes, strict=True)):
        for each in series:
            _series(axes, each, number)
        images = "one image at a time" if size == 1 else f"in batches of {size}"
        axes.set_title(images, fontsize=10.5, color=TEXT)
        axes.set_xlabel(f"milliseconds an image, batch size {size}\n{hardware}", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12, y=0.12)
        axes.set_xlim(left=0)
    panels[0].set_ylabel("top-1, %", fontsize=9)
    panels[0].legend(fontsize=8.5, loc="lower right", frameon=False)
    figure.suptitle(title, fontsize=11, color=TEXT)
    figure.savefig(path, dpi=DOTS)


def _series(axes: Axes, series: Series, number: int) -> None:
    """A line through the dots of a series, by latency, each with its label and spread."""
    style = STYLES[series.style]
    dots = sorted(series.dots, key=lambda dot: dot.milliseconds[number])
    times, top1 = [dot.milliseconds[number] for dot in dots], [100 * dot.top1 for dot in dots]
    spread = [
        [dot.milliseconds[number] - dot.fastest[number] for dot in dots],
        [dot.slowest[number] - dot.milliseconds[number] for dot in dots],
    ]
    axes.errorbar(
        times, top1, xerr=spread, label=series.name, elinewidth=0.8, markersize=6, linewidth=1.3,
        **style,
    )
    # Labels of the static networks below their dots, of ours above: they lie close together.
    above = series.style == "drnet"
    for dot, at in zip(dots, zip(times, top1, strict=True), strict=True):
        axes.annotate(
            dot.label, at, xytext=(0, 7 if above else -8), textcoords="offset points", ha="center",
            va="bottom" if above else "top", fontsize=8, color=style["color"],
        )
