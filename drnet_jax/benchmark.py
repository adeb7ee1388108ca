"""How much of the saved arithmetic is saved time: images per second of training and inference.

    python -m drnet_jax.benchmark --config configs/quickstart.py --mix 0.2,0.3,0.5 --torch

Everything runs in one process on the same drawn images, in turns, after a warm-up that compiles;
figures are medians over the turns. The choices are not the predictor's: `--mix` deals them out in
exact proportions, at random over the batch. But the predictor runs, and so does the padding that
the mix needs (a router's own draws need half of config.bucket_multiple per bucket on average).
Timed are

    training   static     a step of the plain classifier at the base size: no predictor, no routing
               dense      a finetuning step that runs all resolutions for all samples
               bucketed   a finetuning step that runs each sample at its resolution
    inference  static     the plain classifier at the base size
               predictor  the predictor alone
               routed     a stream of batches through the queues of `drnet_jax.inference`
    both       pytorch    the plain classifier at the base size in PyTorch (`--torch`)

and by itself, from encoded images to training batches, the input pipeline of the config's data.

Multiply-adds are an image's, by `drnet_jax.cost`. A training step counts three times the forward
pass, of the classifier and of the predictor alike; wherever the predictor runs it is counted, and
padding never is. The realised fraction is

    (images/s over static's) / (static's multiply-adds over this one's):

1 where time falls as arithmetic does, less where something else takes time.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from drnet_jax import benchmark_cases as cases
from drnet_jax import cli, timing
from drnet_jax.config import Config, parse
from drnet_jax.cost import model_costs, parse_mix, with_classes
from drnet_jax.data.loader import train_batches
from drnet_jax.data.sources import open_source
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.machine import environment
from drnet_jax.mesh import check_batch, data_mesh
from drnet_jax.programs import Compilation, Programs
from drnet_jax.text import short, table

INPUT_BATCHES = 4  # of the input pipeline's turn; more than it reads ahead
COLUMNS = (
    "images/s", "range", "multiply-adds", "over static", "realised", "padded %", "compile s",
)


def benchmark(
    config: Config, mix: Sequence[float] | None, with_torch: bool, repeats: int
) -> dict[str, Any]:
    """Measures everything.

    Args:
        config: with `model.classes` set; training is timed at its `batch_size`, over all devices,
            and inference at its `evaluation.batch_size`.
        mix: [R], the share of the images at each resolution; None is the same for all.
        with_torch: whether to time PyTorch too.
        repeats: turns of each case.

    Returns:
        What `--json` prints: "environment", "config", "mix", "repeats", "cases" (see `_row`),
        "bucketed_over_dense" and "input": {"images_per_second", "slowest", "fastest"} or
        {"skipped": why}.

    Raises:
        UserError: if the mix, the batch size or PyTorch will not do, before anything is compiled.
    """
    mesh, costs = data_mesh(), model_costs(config, config.model.classes)
    if mix is None:
        mix = [1 / len(costs.resolutions)] * len(costs.resolutions)
    costs.mean(mix, with_predictor=True)  # checks it
    sizes = {"training": config.batch_size, "inference": config.evaluation.batch_size}
    for size in sizes.values():
        check_batch(size, mesh.size)
    compiled: list[float] = []

    def announce(compilation: Compilation) -> None:
        compiled.append(compilation.seconds)
        print(compilation, file=sys.stderr)

    batch, images = (cases.draw(config, size) for size in sizes.values())
    images = images["image"]
    torch = list(cases.pytorch(config, costs, batch, images)) if with_torch else []
    drnet, shares = DRNet.from_config(config, config.model.classes), np.array(mix)
    contestants = [
        *cases.training(
            config, drnet, costs, mesh, batch, cases.deal(shares, sizes["training"], config.seed),
            lambda: Programs(announce),
        ),
        *cases.inference(
            drnet, costs, mesh, images, shares, config.seed, Programs(announce)
        ),
        *torch,
    ]
    timings = timing.measure(contestants, repeats, lambda: sum(compiled))
    found = {
        (case.group, case.name): (case, timed)
        for case, timed in zip(contestants, timings, strict=True)
    }
    rates = {key: timed.median for key, (_, timed) in found.items()}
    return {
        "environment": environment(mesh),
        "config": dataclasses.asdict(config),
        "mix": list(mix),
        "repeats": repeats,
        "cases": [_row(key, found) for key in found],
        "bucketed_over_dense": rates["training", "bucketed"] / rates["training", "dense"],
        "input": _input(config, repeats),
    }


def _row(
    key: tuple[str, str], found: dict[tuple[str, str], tuple[cases.Contestant, timing.Timing]]
) -> dict[str, Any]:
    """A line of the report, `found` holding all cases by (group, name).

    Returns:
        "images_per_second", "slowest" and "fastest" of the turns; "multiply_adds" of an image;
        "over_static", "over_pytorch" (if it was timed), ratios of images/s; "realised"; "padded", a
        share of the rows; "compile_seconds"; and where the mix was forced "chosen", the images of
        one call that ran at each resolution [R], as the call itself reports them.
    """
    (group, name), (case, timed) = key, found[key]
    static, static_timed = found[group, "static"]
    over_static = timed.median / static_timed.median
    row = {
        "group": group,
        "name": name,
        "images_per_second": timed.median,
        "slowest": min(timed.rates),
        "fastest": max(timed.rates),
        "multiply_adds": case.multiply_adds,
        "over_static": over_static,
        "realised": over_static / (static.multiply_adds / case.multiply_adds),
        "padded": case.padded,
        "compile_seconds": timed.compile_seconds,
    }
    if isinstance(timed.result, dict) and "chosen" in timed.result:
        row["chosen"] = np.asarray(timed.result["chosen"]).astype(int).tolist()
    if (group, "pytorch") in found:
        row["over_pytorch"] = timed.median / found[group, "pytorch"][1].median
    return row


def _input(config: Config, repeats: int) -> dict[str, Any]:
    """The rate at which training batches come, while nothing else runs; or why not."""
    try:
        source = open_source(config.data, training=True)
        batches = train_batches(
            source, config.data, size=config.model.resolutions[0],
            batch_size=config.batch_size,
            seed=config.seed,
        )
        try:
            # What is read ahead must be used up before the rate is that of decoding.
            for _ in range(INPUT_BATCHES):
                next(batches)
            rates = []
            for _ in range(repeats):
                began = time.perf_counter()
                for _ in range(INPUT_BATCHES):
                    next(batches)
                rates.append(INPUT_BATCHES * config.batch_size / (time.perf_counter() - began))
        finally:
            batches.close()
    except UserError as error:
        return {"skipped": str(error)}
    return {
        "images_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
    }


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with another `model.dtype`; raises UserError if it is none."""
    values = dataclasses.asdict(config)
    return parse(values | {"model": values["model"] | {"dtype": dtype}})


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    config, environment = report["config"], report["environment"]
    model, predictor = config["model"], config["predictor"]
    mix = "/".join(f"{100 * share:.3g}" for share in report["mix"])
    sections = [
        f"{model['classifier']} of width {model['width']}, {model['dtype']}; predictor "
        f"{predictor['name']} of width {predictor['width']} at {predictor['resolution']}\n"
        f"batch size {config['batch_size']} in training and {config['evaluation']['batch_size']} "
        f"in inference, {mix} % at "
        f"{'/'.join(map(str, model['resolutions']))} px, seed {config['seed']}, medians of "
        f"{report['repeats']} turns\n"
        f"jax {environment['jax']}, {environment['devices']} x {environment['device']}, "
        f"{environment['cores']} cores"
        + "".join(f"\n{name}={value}" for name, value in environment["variables"].items())
    ]
    for group in ("training", "inference"):
        rows = [row for row in report["cases"] if row["group"] == group]
        ours_over = ("over pytorch",) if "over_pytorch" in rows[0] else ()
        sections.append(table([(group, *COLUMNS, *ours_over), *map(_cells, rows)]))
    sections.append(f"a bucketed step is {report['bucketed_over_dense']:.2f} x a dense one")
    source = report["input"]
    sections.append(
        f"input pipeline: skipped, for {source['skipped']}" if "skipped" in source else
        f"input pipeline: {source['images_per_second']:.4g} images/s, {_range(source)}"
    )
    return "\n\n".join(sections)


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Reports of one machine, that differ in config alone, as a Markdown table."""
    config, environment = reports[0]["config"], reports[0]["environment"]
    model, mix = config["model"], "/".join(f"{100 * share:.3g}" for share in reports[0]["mix"])
    header = ("", "images/s", "range", "multiply-adds an image", "over static", "realised",
              "padded %", "compile s")
    lines = [
        f"{model['classifier']} of width {model['width']}, {mix} % at "
        f"{'/'.join(map(str, model['resolutions']))} px, batch {config['batch_size']} in training "
        f"and {config['evaluation']['batch_size']} in inference, seed {config['seed']}, medians of "
        f"{reports[0]['repeats']} turns, on {environment['devices']} x {environment['device']} "
        f"({environment['cores']} CPU cores, jax {environment['jax']}, Python "
        f"{environment['python']})",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for report in reports:
        dtype = report["config"]["model"]["dtype"]
        for row in report["cases"]:
            name, *cells = _cells(row)[: len(header)]
            label = f"{dtype}, {row['group']}, {name}"
            lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['images_per_second']:.4g}",
        _range(row),
        short(row["multiply_adds"]),
        f"{row['over_static']:.2f}",
        f"{row['realised']:.2f}",
        f"{100 * row['padded']:.1f}",
        f"{row['compile_seconds']:.1f}",
        *([f"{row['over_pytorch']:.2f}"] if "over_pytorch" in row else []),
    )


def _range(rates: dict[str, Any]) -> str:
    return f"{rates['slowest']:.4g}-{rates['fastest']:.4g}"


if __name__ == "__main__":
    read_config = cli.define_config()
    MIX = flags.DEFINE_list("mix", None, "Share of the images at each resolution; default: even.")
    BATCH = flags.DEFINE_integer(
        "batch", None, "Batch size; default: config.batch_size in training and "
        "config.evaluation.batch_size in inference.", lower_bound=1,
    )
    REPEATS = flags.DEFINE_integer("repeats", 5, "Turns to take medians over.", lower_bound=1)
    TORCH = flags.DEFINE_bool("torch", False, "Also time the classifier in PyTorch.")
    JSON = flags.DEFINE_bool("json", False, "Print JSON, with the whole config, for tables.")
    DTYPES = flags.DEFINE_list(
        "dtypes", None, "Compute types to measure one after the other, such as bfloat16,float32; "
        "default: config.model.dtype.",
    )
    OUT = flags.DEFINE_string(
        "out", None, "Directory for all reports as benchmark.json, and as a table benchmark.md."
    )

    def main() -> None:
        mix = None if MIX.value is None else parse_mix(MIX.value)
        config = with_classes(read_config())
        if BATCH.value:
            evaluation = dataclasses.replace(config.evaluation, batch_size=BATCH.value)
            config = dataclasses.replace(config, batch_size=BATCH.value, evaluation=evaluation)
        configs = [with_dtype(config, dtype) for dtype in DTYPES.value or [config.model.dtype]]
        if OUT.value:
            Path(OUT.value).mkdir(parents=True, exist_ok=True)
        reports = []
        for config in configs:
            report = benchmark(config, mix, TORCH.value, REPEATS.value)
            print(json.dumps(report, indent=2) if JSON.value else text(report))
            reports.append(report)
        if OUT.value:
            (Path(OUT.value) / "benchmark.json").write_text(json.dumps(reports, indent=2) + "\n")
            (Path(OUT.value) / "benchmark.md").write_text(markdown(reports) + "\n")

    cli.run(main)
