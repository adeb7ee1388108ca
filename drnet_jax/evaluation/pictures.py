"""Pictures: which images go to which resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drnet_jax import ops
from drnet_jax.data import transforms
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.files import predictions
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Table

SHOWN = 8  # images a resolution


def draw_routing(
    path: Path, table: Table, routed: Outcome, resolutions: Sequence[int], square: int,
    source: Source, classes: Sequence[str],
) -> None:
    """Draws some images of each resolution, at it, under the class predicted; wrong ones in red.

    Args:
        path: where to write the PNG.
        table: of the images of `source`.
        routed: where routing sent them.
        resolutions: [R].
        square: what images are resized to before the base size is cropped.
        classes: names, [C].
    """
    figure = Figure(figsize=(1.3 * SHOWN, 1.6 * len(resolutions)), layout="constrained")
    axes = figure.subplots(len(resolutions), SHOWN, squeeze=False)
    predicted = predictions(table, routed)
    for row, resolution in enumerate(resolutions):
        chosen = np.flatnonzero(routed.choice == row)
        share = len(chosen) / len(routed.choice)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[], frame_on=False)
        axes[row, 0].set_ylabel(f"{resolution} px\n{100 * share:.0f} %")
        # Evenly over the data set, which is often sorted by class.
        shown = chosen[np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen)), dtype=int)]
        for axis, at in zip(axes[row], shown, strict=False):
            encoded = source[int(table.index[at])]["image"]
            image = transforms.resize_and_centre_crop(
                transforms.decode(encoded), square, resolutions[0]
            )
            seen = ops.resize(image[None].astype(np.float32), resolution)[0]
            axis.imshow(np.asarray(seen).clip(0, 255).astype(np.uint8))
            axis.set_title(
                printable(classes[predicted[at]]), fontsize=7, parse_math=False,
                color="black" if routed.right[at] else "tab:red",
            )
    figure.savefig(path, dpi=100)


def printable(name: str) -> str:
    """The first letters of a class's name; bytes that are no text become question marks."""
    return name.encode("utf-8", "replace").decode().replace("_", " ")[:20]
