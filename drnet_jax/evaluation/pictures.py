"""Pictures: which images are answered by which option."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drnet_jax import ops
from drnet_jax.data.imagenet import class_words
from drnet_jax.drnet import DRNet
from drnet_jax.evaluation.files import predictions
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.runs import Batches
from drnet_jax.evaluation.table import Table

SHOWN = 8  # images an option


def draw_routing(
    path: Path, table: Table, routed: Outcome, sample: Batches, drnet: DRNet,
    classes: Sequence[str],
) -> None:
    """Draws some images of each option, as it sees them, under the class predicted, red if wrong.

    Args:
        path: where to write the PNG.
        table: of all images.
        routed: where routing sent them.
        sample: the images in memory, of which some are drawn.
        drnet: of the options.
        classes: names, [C].
    """
    used, counts = np.unique(routed.choice, return_counts=True)
    figure = Figure(figsize=(1.3 * SHOWN, 1.6 * len(used)), layout="constrained")
    axes = figure.subplots(len(used), SHOWN, squeeze=False)
    predicted, words = predictions(table, routed), class_words(classes)
    held = {number: image for images, index in sample
            for number, image in zip(index.tolist(), images, strict=True)}
    is_held = np.isin(table.index, list(held))
    for row, (option, count) in enumerate(zip(used.tolist(), counts, strict=True)):
        resolution = drnet.answering(option)[1]
        chosen = np.flatnonzero((routed.choice == option) & is_held)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[], frame_on=False)
        share = 100 * count / len(routed.choice)
        axes[row, 0].set_ylabel(f"{_name(drnet, option)}\n{share:.0f} %")
        # Evenly over the data set, which is often sorted by class.
        shown = chosen[np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen)), dtype=int)]
        for axis, at in zip(axes[row], shown, strict=False):
            image = held[int(table.index[at])]
            seen = ops.resize(image[None].astype(np.float32), resolution)[0]
            axis.imshow(np.asarray(seen).clip(0, 255).astype(np.uint8))
            axis.set_title(
                printable(words[predicted[at]]), fontsize=7, parse_math=False,
                color="black" if routed.right[at] else "tab:red",
            )
    if idle := [_name(drnet, option) for option in range(drnet.options) if option not in used]:
        figure.supxlabel(f"no image: {', '.join(idle)}", fontsize=8)
    figure.savefig(path, dpi=100)


def _name(drnet: DRNet, option: int) -> str:
    network, resolution = drnet.answering(option)
    return f"{resolution} px" if network == "classifier" else network


def printable(name: str) -> str:
    """The first letters of a class's name; bytes that are no text become question marks."""
    return name.encode("utf-8", "replace").decode().replace("_", " ")[:20]
