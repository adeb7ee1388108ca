"""Picture: accuracy over measured latency, as in Figure 3 of the paper, or over other costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

TEXT = "#333333"
DOTS = 150  # an inch
# The same series has the same colour and mark in both panels.
STYLES = {
    "single": {"color": "#555555", "marker": "s", "linestyle": "--"},
    "fixed": {"color": "#e08214", "marker": "^", "linestyle": ":"},
    "drnet": {"color": "#2166ac", "marker": "o", "linestyle": "-"},
    "cascade": {"color": "#1b7837", "marker": "D", "linestyle": "-."},
}


@dataclasses.dataclass(frozen=True)
class Dot:
    """A model that was measured."""

    label: str
    top1: float
    cost: tuple[float, ...]  # of an image, by panel
    least: tuple[float, ...]  # of all turns
    most: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Series:
    """Models of one kind."""

    name: str
    style: str  # of STYLES
    dots: Sequence[Dot]


class Panel(NamedTuple):
    """One of the costs that are set against accuracy."""

    title: str
    cost: str  # what is told along its axis


def latencies(batch_sizes: Sequence[int], hardware: str) -> list[Panel]:
    """A panel for each batch size, of milliseconds."""
    return [
        Panel(
            "one image at a time" if size == 1 else f"in batches of {size}",
            f"milliseconds an image, batch size {size}\n{hardware}",
        ) for size in batch_sizes
    ]


def draw(path: Path, series: Sequence[Series], shown: Sequence[Panel], title: str) -> None:
    """Draws series of models in each panel."""
    figure = Figure(figsize=(5.2 * len(shown), 4.7), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for number, (axes, panel) in enumerate(zip(panels, shown, strict=True)):
        for each in series:
            _line(axes, each, number)
        axes.set_title(panel.title, fontsize=10.5, color=TEXT)
        axes.set_xlabel(panel.cost, fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14, y=0.14)
    panels[0].set_ylabel("top-1, %", fontsize=9)
    limits = panels[0].get_ylim()  # the margins may reach beyond 100 %, where nothing can be
    panels[0].set_yticks([tick for tick in panels[0].get_yticks() if limits[0] <= tick <= 100])
    panels[0].set_ylim(limits)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(series), fontsize=9, frameon=False
    )
    figure.suptitle(title, fontsize=11, color=TEXT)
    figure.draw_without_rendering()  # where dots lie in pixels is known from here on
    for number, axes in enumerate(panels):
        _label(axes, series, number)
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=DOTS)


def _line(axes: Axes, series: Series, number: int) -> None:
    """A line through the dots of a series, by cost, each with the spread of its turns."""
    dots = sorted(series.dots, key=lambda dot: dot.cost[number])
    spread = [
        [dot.cost[number] - dot.least[number] for dot in dots],
        [dot.most[number] - dot.cost[number] for dot in dots],
    ]
    axes.errorbar(
        *zip(*(_place(dot, number) for dot in dots), strict=True), xerr=spread, label=series.name,
        elinewidth=0.7, markersize=6, linewidth=1.3, **STYLES[series.style],
    )


def _place(dot: Dot, number: int) -> tuple[float, float]:
    return dot.cost[number], 100 * dot.top1


HALO = withStroke(linewidth=2.5, foreground="white")
# Where a label may go, in points from its dot, best first.
PLACES = (
    (0, 10), (0, -10), (24, 0), (-24, 0), (22, 9), (-22, 9), (22, -9), (-22, -9), (0, 20), (0, -20),
    (34, 18), (-34, 18), (34, -18), (-34, -18),
)


def _label(axes: Axes, series: Sequence[Series], number: int) -> None:
    """Labels every dot where that covers the fewest others."""
    taken = [box for each in series for box in _drawn(axes, each, number)]
    for dot, style in ((dot, each.style) for each in series for dot in each.dots):
        text = axes.annotate(
            dot.label, _place(dot, number), PLACES[0], textcoords="offset points", ha="center",
            va="center", fontsize=8, color=STYLES[style]["color"], path_effects=[HALO],
        )
        text.set_position(min(PLACES, key=lambda place: _covered(text, place, taken)))
        taken.append(text.get_window_extent())


def _drawn(axes: Axes, series: Series, number: int) -> list[Bbox]:
    """Boxes, in pixels, around the dots of a series, its spreads, and the lines between dots."""
    def pixels(costs: Iterable[float]) -> np.ndarray:
        tops = [100 * dot.top1 for dot in series.dots]
        return axes.transData.transform(list(zip(costs, tops, strict=True)))

    marks, left, right = (
        pixels(costs[number] for costs in each) for each in zip(*(
            (dot.cost, dot.least, dot.most) for dot in series.dots
        ), strict=True)
    )
    steps = np.linspace(0, 1, 20)[:, None]
    lines = itertools.pairwise(marks[np.argsort(marks[:, 0])])
    between = np.concatenate([np.zeros((0, 2)), *(
        (1 - steps) * one + steps * other for one, other in lines
    )])
    return [
        *(Bbox.from_extents(*(mark - 6), *(mark + 6)) for mark in marks),
        *(Bbox.from_extents(*(at - 2), *(at + 2)) for at in between),
        *(Bbox.from_extents(*(low - 2), *(high + 2))
          for low, high in zip(left, right, strict=True)),
    ]


def _covered(text: Annotation, place: tuple[int, int], taken: Sequence[Bbox]) -> float:
    """The area, in pixels, that a label at a place would share with others; more for far ones."""
    text.set_position(place)
    own = text.get_window_extent()
    shared = (Bbox.intersection(own, other) for other in taken)
    return sum(each.width * each.height for each in shared if each) + math.hypot(*place)


def hardware(environment: Mapping[str, Any]) -> str:
    """What something was measured on, in a few words."""
    if environment["device"] == "cpu":
        cores = f"{environment['cores']} core{'s' * (environment['cores'] != 1)}"
        device = f"{cores} of {environment['processor'] or 'a CPU'}"
    else:
        device = f"{environment['devices']} x {environment['device']}"
    return f"{device}, jax {environment['jax']}"
