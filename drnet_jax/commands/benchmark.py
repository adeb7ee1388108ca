"""Images/s of training and inference: drnet benchmark --config configs/quickstart.py --torch."""

import dataclasses
import json
from collections.abc import Callable

from absl import flags

from drnet_jax.benchmark.report import markdown, text
from drnet_jax.benchmark.speed import benchmark
from drnet_jax.commands.shared import (
    announce_devices,
    define_config,
    define_mix,
    directory,
    with_classes,
)
from drnet_jax.config import Config
from drnet_jax.config_check import parse


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config, mix = define_config(values, argv), define_mix(values)
    batch = flags.DEFINE_integer(
        "batch", None, "Batch size; default: config.batch_size in training and "
        "config.evaluation.batch_size in inference.", lower_bound=1, flag_values=values,
    )
    repeats = flags.DEFINE_integer(
        "repeats", 5, "Turns to take medians over.", lower_bound=1, flag_values=values
    )
    torch = flags.DEFINE_bool(
        "torch", False, "Also time the classifier in PyTorch.", flag_values=values
    )
    as_json = flags.DEFINE_bool(
        "json", False, "Print JSON, with the whole config, for tables.", flag_values=values
    )
    dtypes = flags.DEFINE_list(
        "dtypes", None, "Compute types to measure one after the other, such as bfloat16,float32; "
        "default: config.dtype.", flag_values=values,
    )
    out = flags.DEFINE_string(
        "out", None, "Directory for all reports as benchmark.json, and as a table benchmark.md.",
        flag_values=values,
    )

    def command() -> None:
        shares, checked = mix(), with_classes(config())
        if batch.value:
            evaluation = dataclasses.replace(checked.evaluation, batch_size=batch.value)
            checked = dataclasses.replace(
                checked, batch_size=batch.value, evaluation=evaluation
            )
        configs = [with_dtype(checked, dtype) for dtype in dtypes.value or [checked.dtype]]
        where = None if out.value is None else directory("--out", out.value)
        announce_devices()
        reports = []
        for of_dtype in configs:
            report = benchmark(of_dtype, shares, torch.value, repeats.value)
            print(json.dumps(report, indent=2) if as_json.value else text(report))
            reports.append(report)
        if where:
            where.mkdir(parents=True, exist_ok=True)
            (where / "benchmark.json").write_text(json.dumps(reports, indent=2) + "\n")
            (where / "benchmark.md").write_text(markdown(reports) + "\n")

    return command


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with another `dtype`; raises UserError if it is none."""
    return parse(dataclasses.asdict(config) | {"dtype": dtype})
