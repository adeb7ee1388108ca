"""Photographs: figures 1 and 4, which show validation images and what was made of them.

Nobody picks the images: of those that fit, the ones are shown of which the model is surest, each of
another class as far as there are classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from drnet_jax import ops
from drnet_jax.benchmark.picture import DOTS, TEXT
from drnet_jax.data import transforms
from drnet_jax.data.imagenet import class_words
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.pictures import printable
from drnet_jax.evaluation.table import Table

RIGHT, WRONG = "#1b7837", "#b2182b"
GROUP, ROW = 3, 7  # images of each resolution in figure 1, and in figure 4
SHARP = 200  # pixels at which a photograph of figure 4 is sharp enough


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Answers to images, and the images."""

    table: Table
    resolutions: tuple[int, ...]
    classes: Sequence[str]
    view: Callable[[int, int], np.ndarray]  # (row, pixels) -> as the network sees it there
    photograph: Callable[[int], np.ndarray]  # row -> the same part of it, as sharp as it is


def gallery(
    table: Table, resolutions: tuple[int, ...], source: Source, square: transforms.Square
) -> Gallery:
    """The answers to a source's images; `square` as of `drnet_jax.api.Model`.

    Images are uint8 [size, size, 3].
    """
    base = resolutions[0]

    def part(row: int, zoom: int) -> np.ndarray:
        image = transforms.decode(source[int(table.index[row])]["image"])
        # No larger than it is.
        zoom = max(1, min(zoom, min(image.shape[:2]) // base))
        enlarged = square._replace(side=square.side * zoom)
        return transforms.resize_and_centre_crop(image, enlarged, base * zoom)

    def view(row: int, size: int) -> np.ndarray:
        seen = ops.resize(part(row, 1)[None].astype(np.float32), size, square.interpolation)[0]
        return np.asarray(seen).clip(0, 255).astype(np.uint8)

    return Gallery(
        table, resolutions, class_words(source.classes), view,
        lambda row: part(row, -(-SHARP // base)),
    )


def smallest_right(right: np.ndarray) -> np.ndarray:
    """The index of the smallest resolution that is right, int [N], of right bool [N, R].

    -1 where a larger one than the smallest that is right is wrong, or all are: size is not all that
    it takes.
    """
    count = right.sum(axis=1)
    # Resolutions fall, so that the right ones must come first.
    ordered = right.cumprod(axis=1).sum(axis=1) == count
    return np.where(ordered & (count > 0), count - 1, -1)


def surest(
    candidates: np.ndarray, sureness: np.ndarray, label: np.ndarray, count: int
) -> list[int]:
    """So many of the candidates, rows int [M], surest first, each of another class if possible.

    Args:
        sureness: float [N], of all rows.
        label: int [N].
    """
    order = candidates[np.argsort(-sureness[candidates], kind="stable")]
    _, firsts = np.unique(label[order], return_index=True)
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return order[np.concatenate([np.sort(firsts), others])[:count].astype(int)].tolist()


def draw_smallest(path: Path, shown: Gallery, title: str) -> None:
    """Draws figure 1: images by the smallest resolution that is right, at every resolution."""
    table, sizes = shown.table, shown.resolutions
    right = table.right[:, : len(sizes)]
    smallest = smallest_right(right)
    width, height = 1.25 * GROUP * len(sizes) + 1.2, 1.42 * len(sizes) + 1.4
    figure = Figure(figsize=(width, height))
    outer = figure.add_gridspec(
        1, len(sizes), wspace=0.1, left=1 / width, right=1 - 0.1 / width, bottom=0.3 / height,
        top=1 - 1.15 / height,
    )
    # From easy to hard, and from small to large.
    for group, needed in enumerate(reversed(range(len(sizes)))):
        rows = surest(
            np.flatnonzero(smallest == needed), table.probability[:, needed], table.label, GROUP
        )
        axes = outer[group].subgridspec(len(sizes), GROUP, hspace=0.32, wspace=0.08).subplots(
            squeeze=False
        )
        share = 100 * (smallest == needed).mean()
        _group_title(figure, axes, _needs(sizes, needed), f"{share:.0f} % of the images")
        for line, size in enumerate(reversed(range(len(sizes)))):
            for axis, row in zip(axes[line], [*rows, *[None] * (GROUP - len(rows))], strict=True):
                axis.set(xticks=[], yticks=[], frame_on=False)
                if row is not None:
                    _view(axis, shown, row, size)
            if group == 0:
                accuracy = 100 * right[:, size].mean()
                axes[line, 0].set_ylabel(
                    f"{sizes[size]} px\n{accuracy:.1f} % right", fontsize=9, color=TEXT
                )
        for axis, row in zip(axes[0], rows, strict=False):
            name = printable(shown.classes[table.label[row]])
            axis.set_title(name, fontsize=8, color=TEXT, pad=4, parse_math=False)
    figure.suptitle(title, fontsize=11.5, color=TEXT, y=1 - 0.08 / height, va="top")
    figure.savefig(path, dpi=DOTS)


def _needs(sizes: Sequence[int], needed: int) -> str:
    if needed == len(sizes) - 1:
        return f"right at {sizes[needed]} px already"
    return f"right from {sizes[needed]} px on" if needed else f"right at {sizes[0]} px only"


def _group_title(figure: Figure, axes: np.ndarray, first: str, second: str) -> None:
    left, right = axes[0, 0].get_position().x0, axes[0, -1].get_position().x1
    top = axes[0, 0].get_position().y1
    middle, inch = (left + right) / 2, 1 / figure.get_figheight()
    figure.text(
        middle, top + 0.54 * inch, first, ha="center", fontsize=10.5, weight="bold", color=TEXT
    )
    figure.text(middle, top + 0.34 * inch, second, ha="center", fontsize=9, color=TEXT)


def _view(axis: Any, shown: Gallery, row: int, size: int) -> None:
    """An image as the network sees it at a size, and below it the answer."""
    axis.imshow(shown.view(row, shown.resolutions[size]), interpolation="nearest")
    right = bool(shown.table.right[row, size])
    colour = RIGHT if right else WRONG
    for side in axis.spines.values():
        side.set(visible=True, color=colour, linewidth=2)
    axis.set_frame_on(True)
    mark = "✓" if right else "✗"
    answer = printable(shown.classes[shown.table.answer[row, size]])
    axis.set_xlabel(f"{mark} {answer}", fontsize=7.5, color=colour, labelpad=2, parse_math=False)


def draw_choices(path: Path, shown: Gallery, title: str) -> None:
    """Draws figure 4: images by the resolution that the predictor chose, surest first.

    Below each are the predictor's confidence in its choice and the classifier's in its answer.
    """
    table, sizes = shown.table, shown.resolutions
    choice = table.scores.argmax(axis=1)
    # Of the paper's predictor the scores are log-probabilities of choosing (`routing.SCORES`).
    confidence = np.exp(table.scores.max(axis=1).astype(float))
    figure = Figure(figsize=(1.42 * ROW + 1.1, 1.9 * len(sizes) + 0.6), layout="constrained")
    axes = figure.subplots(len(sizes), ROW, squeeze=False)
    # From small to large, as from easy to hard.
    for line, option in zip(axes, reversed(range(len(sizes))), strict=True):
        rows = surest(np.flatnonzero(choice == option), confidence, table.label, ROW)
        for axis, row in zip(line, [*rows, *[None] * (ROW - len(rows))], strict=True):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if row is not None:
                _choice(axis, shown, row, option, confidence[row])
        if not rows:
            line[ROW // 2].text(
                0.5, 0.5, "it was chosen for no image", transform=line[ROW // 2].transAxes,
                ha="center", va="center", fontsize=9.5, color=TEXT,
            )
        share, relative = 100 * (choice == option).mean(), sizes[option] / sizes[0]
        line[0].set_ylabel(
            f"{sizes[option]} px ({relative:.3g}x)\n{share:.0f} % of the images", fontsize=9.5,
            color=TEXT,
        )
    figure.suptitle(title, fontsize=11, color=TEXT)
    figure.savefig(path, dpi=DOTS)


def _choice(axis: Any, shown: Gallery, row: int, option: int, confidence: float) -> None:
    """An image, its answer above, and both confidences below."""
    table = shown.table
    axis.imshow(shown.photograph(row))
    right = bool(table.right[row, option])
    axis.set_title(
        f"{'✓' if right else '✗'} {printable(shown.classes[table.answer[row, option]])}",
        fontsize=8.5, color=RIGHT if right else WRONG, parse_math=False,
    )
    axis.set_xlabel(
        f"predictor {100 * confidence:.0f} %\nclass {100 * table.probability[row, option]:.0f} %",
        fontsize=8, color=TEXT, labelpad=3,
    )
