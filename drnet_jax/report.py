"""The evaluation of a checkpoint, told: a table, `eval.json`, and a picture of the routing."""

import json
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from drnet_jax import evaluate, images
from drnet_jax.checkpoint import check_compatible, open_existing
from drnet_jax.config import Config
from drnet_jax.cost import model_costs
from drnet_jax.data import transforms
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source, open_source
from drnet_jax.drnet import DRNet
from drnet_jax.inference import Server
from drnet_jax.mesh import data_mesh
from drnet_jax.programs import Programs

matplotlib.use("Agg")

COLUMNS = 8


def evaluate_workdir(workdir: str, which: str, override: Config | None) -> None:
    """Evaluates a checkpoint: prints a table, writes eval.json and routing.png to `workdir`.

    Args:
        workdir: of a training run; its checkpoint knows the config and the classes.
        which: "last" or "best".
        override: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.

    Raises:
        UserError: if there is no checkpoint, or networks or classes do not fit.
    """
    checkpoints = open_existing(workdir)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    meta = checkpoints.meta(step)
    config = override or meta.config
    source = open_source(config.data, training=False)
    check_compatible(meta, config, source.classes, workdir)
    check_source(source, config.data, config.model.resolutions[0])
    params, batch_stats = checkpoints.restore_model(step, data_mesh())
    checkpoints.close()

    classes = len(meta.classes)
    server = Server(
        DRNet.from_config(config, classes), params, batch_stats, config.evaluation.batch_size,
        Programs(),
    )
    costs = model_costs(config, classes)
    numbers, outcome = evaluate.evaluate(
        server, lambda: evaluate.validation_batches(config, source), costs, config.seed
    )
    report = {"checkpoint": step, "stage": meta.stage, "seed": config.seed} | numbers
    if jax.process_index() == 0:
        (Path(workdir) / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_routing(Path(workdir) / "routing.png", outcome, config, source)
        print(f"checkpoint {step} ({meta.stage}) of {workdir}")
        print(table(report))


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    base = report["policies"][0]["multiply_adds"]
    shares = "/".join(map(str, report["resolutions"]))
    lines = [
        f"{report['images']} images, batch size {report['batch_size']}; cost is in multiply-adds "
        "an image, the predictor's included where it runs (routed)",
        f"{'':12}{'top-1 %':>14}{'top-5 %':>9}{'cost':>10}{'of base':>9}{'images/s':>10}   "
        f"% at {shares}",
    ]
    for policy in report["policies"]:
        top1 = f"{100 * policy['top1']:.2f}"
        if "top1_deviation" in policy:
            top1 += f" ±{100 * policy['top1_deviation']:.2f}"
        mix = "/".join(f"{100 * share:.0f}" for share in policy["mix"])
        lines.append(
            f"{policy['name']:12}{top1:>14}{100 * policy['top5']:>9.2f}"
            f"{policy['multiply_adds'] / 1e6:>9.1f}M{policy['multiply_adds'] / base:>9.3f}"
            f"{policy['images_per_second']:>10.0f}   {mix}"
        )
    if "at_or_above_smallest_scale" in report:
        share = 100 * report["at_or_above_smallest_scale"]
        lines.append(f"sent at or above the smallest resolution known to suffice: {share:.1f} %")
    return "\n".join(lines)


def draw_routing(
    path: Path, outcome: evaluate.Outcome, config: Config, source: Source
) -> None:
    """Draws some images of each resolution, at it, under the class predicted; wrong ones in red.

    Args:
        path: where to write the PNG.
        outcome: of the routed evaluation of `source`.
    """
    resolutions = config.model.resolutions
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
            seen = images.resize(image[None].astype(np.float32), resolution)[0]
            predicted = int(outcome.top[at, 0])
            axis.imshow(np.asarray(seen).clip(0, 255).astype(np.uint8))
            axis.set_title(
                source.classes[predicted].replace("_", " ")[:18], fontsize=7,
                color="black" if predicted == outcome.label[at] else "tab:red",
            )
    figure.savefig(path, dpi=100)
