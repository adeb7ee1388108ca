"""Pictures: which images go to which resolution."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from drnet_jax import ops
from drnet_jax.config import Config
from drnet_jax.data import transforms
from drnet_jax.data.sources import Source
from drnet_jax.evaluation import outcomes

matplotlib.use("Agg")

COLUMNS = 8


def draw_routing(
    path: Path, outcome: outcomes.Outcome, config: Config, source: Source
) -> None:
    """Draws some images of each resolution, at it, under the class predicted; wrong ones in red.

    Args:
        path: where to write the PNG.
        outcome: of the routed evaluation of `source`.
    """
    resolutions = config.resolutions
    figure = Figure(figsize=(1.3 * COLUMNS, 1.6 * len(resolutions)), layout="constrained")
    axes = figure.subplots(len(resolutions), COLUMNS, squeeze=False)
    for row, resolution in enumerate(resolutions):
        chosen = np.flatnonzero(outcome.choice == row)
        share = len(chosen) / len(outcome.choice)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[], frame_on=False)
        axes[row, 0].set_ylabel(f"{resolution} px\n{100 * share:.0f} %")
        # Evenly over the data set, which is often sorted by class.
        shown = chosen[np.linspace(0, len(chosen) - 1, min(COLUMNS, len(chosen)), dtype=int)]
        for axis, at in zip(axes[row], shown, strict=False):
            encoded = source[int(outcome.index[at])]["image"]
            image = transforms.resize_and_centre_crop(transforms.decode(encoded), resolutions[0])
            seen = ops.resize(image[None].astype(np.float32), resolution)[0]
            predicted = int(outcome.log_p[at].argmax())
            axis.imshow(np.asarray(seen).clip(0, 255).astype(np.uint8))
            axis.set_title(
                source.classes[predicted].replace("_", " ")[:20], fontsize=7,
                color="black" if predicted == outcome.label[at] else "tab:red",
            )
    figure.savefig(path, dpi=100)
