"""The evaluation of a checkpoint, told: a table, `eval.json`, and a picture of the routing."""

import json
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from drnet_jax import curve, evaluate, images, outcomes, policies, text
from drnet_jax.checkpoint import check_compatible, open_existing
from drnet_jax.config import Config
from drnet_jax.cost import model_costs
from drnet_jax.data import transforms
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import Source, open_source
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.inference import Server
from drnet_jax.mesh import data_mesh
from drnet_jax.programs import Programs

matplotlib.use("Agg")

COLUMNS = 8


def evaluate_workdir(
    workdir: str, which: str, override: Config | None, budget: float | None = None,
    with_curve: bool = False,
) -> None:
    """Evaluates a checkpoint: prints tables, writes eval.json and routing.png to `workdir`.

    Args:
        workdir: of a training run; its checkpoint knows the config and the classes.
        which: "last" or "best".
        override: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.
        budget: in place of the checkpoint's config.budget.target, in the same unit; 0 for none.
        with_curve: whether to go through all budgets too, and write curve.json, .csv and .png.

    Raises:
        UserError: if there is no checkpoint, networks or classes do not fit, or no choice of
            resolutions costs what the budget says, or there is none to draw a curve of.
    """
    checkpoints = open_existing(workdir)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise UserError(
            f"--checkpoint=best: expected a checkpoint that was validated, found none in "
            f"{workdir}; evaluate the last one with --checkpoint=last"
        )
    meta = checkpoints.meta(step)
    config = override or meta.config
    source = open_source(config.data, training=False)
    check_compatible(meta, config, source.classes, workdir)
    costs = model_costs(config, len(meta.classes))
    target = policies.GIGA * (meta.config.budget.target if budget is None else budget)
    policies.check_target(costs, target)
    if with_curve and len(costs.resolutions) == 1:
        raise UserError("--curve: expected several config.model.resolutions, received one")
    check_source(source, config.data, config.model.resolutions[0])
    params, batch_stats = checkpoints.restore_model(step, data_mesh())
    checkpoints.close()

    server = Server(
        DRNet.from_config(config, len(meta.classes)), params, batch_stats,
        config.evaluation.batch_size, Programs(), meta.config.router.objective, costs,
    )
    numbers, outcome, known = evaluate.evaluate(
        server, lambda: outcomes.validation_batches(config, source), costs, target, config.seed
    )
    report = {"checkpoint": step, "stage": meta.stage, "seed": config.seed} | numbers
    if jax.process_index() == 0:
        (Path(workdir) / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_routing(Path(workdir) / "routing.png", outcome, config, source)
        print(f"checkpoint {step} ({meta.stage}) of {workdir}")
        print(text_report(report))
        if with_curve:
            swept = curve.sweep(known, costs, config.seed)
            curve.write(swept, Path(workdir))
            print("\n" + curve.text_of(swept))


def text_report(report: dict[str, Any]) -> str:
    """The report as tables and sentences."""
    base = report["policies"][0]["multiply_adds"]
    sizes = "/".join(map(str, report["resolutions"]))
    lines = [
        f"{report['images']} images, batch size {report['batch_size']}; cost is in multiply-adds "
        "an image, the predictor's included where it runs (routed), and of all passes (cascade)",
        text.table([
            ("", "top-1 %", "top-5 %", "cost", "of base", "images/s", f"% at {sizes}"),
            *(_row(policy, base) for policy in report["policies"]),
        ]),
        "",
        *_budget_lines(report["budget"]),
        *_router_lines(report["router"], report["resolutions"]),
        "",
        *_cascade_lines(report["policies"]),
    ]
    if "at_or_above_smallest_scale" in report:
        share = 100 * report["at_or_above_smallest_scale"]
        lines.append(f"sent at or above the smallest resolution known to suffice: {share:.1f} %")
    return "\n".join(lines)


def _row(policy: dict[str, Any], base: float) -> tuple[str, ...]:
    top1 = f"{100 * policy['top1']:.2f}"
    if "top1_deviation" in policy:
        top1 += f" ±{100 * policy['top1_deviation']:.2f}"
    return (
        policy["name"], top1, f"{100 * policy['top5']:.2f}", text.short(policy["multiply_adds"]),
        f"{policy['multiply_adds'] / base:.3f}", f"{policy['images_per_second']:.0f}",
        "/".join(f"{100 * share:.0f}" for share in policy["mix"]),
    )


def _budget_lines(budget: dict[str, Any]) -> list[str]:
    if not budget["target"]:
        return ["budget: none; each image goes where the predictor would send it (dial 0)"]
    line = (
        f"budget: {text.short(budget['target'])} asked for, {text.short(budget['multiply_adds'])} "
        f"realised, at dial {budget['dial']:.4g} (found on the scores alone, without labels)"
    )
    return [line, *([f"warning: {budget['missed']}"] if "missed" in budget else [])]


def _router_lines(router: dict[str, Any], resolutions: list[int]) -> list[str]:
    def gain(name: str, form: str) -> str:
        found = router["gains"][name]
        return text.interval(found["value"], *found["interval"], form)

    return [
        "routed, with 95 % intervals over images:",
        text.table([
            ("top-1 %", gain("top1", ".2f")),
            ("points over a random mix of the same proportions", gain("over_same_mix", "+.2f")),
            ("points over the best random mix of the same cost", gain("over_best_mix", "+.2f")),
            ("% of what the oracle gains over such a mix", gain("of_oracle", ".1f")),
            ("entropy of the mix in nats", f"{router['entropy']:.3f}"),
        ]),
        "",
        text.table([
            ("images by smallest right resolution", *(f"sent to {size}" for size in resolutions)),
            *((f"{size} px", *map(str, row))
              for size, row in zip(resolutions, router["agreement"], strict=True)),
        ]),
    ]


def _cascade_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"cascade at the cost of routing: {policy['cascades']} (chosen for each half of the "
        "images by the other half)"
        for policy in rows if "cascades" in policy
    ]


def draw_routing(
    path: Path, outcome: outcomes.Outcome, config: Config, source: Source
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
            predicted = int(outcome.log_p[at].argmax())
            axis.imshow(np.asarray(seen).clip(0, 255).astype(np.uint8))
            axis.set_title(
                source.classes[predicted].replace("_", " ")[:20], fontsize=7,
                color="black" if predicted == outcome.label[at] else "tab:red",
            )
    figure.savefig(path, dpi=100)
