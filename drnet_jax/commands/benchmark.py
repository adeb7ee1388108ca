"""Images/s of training and inference: drnet benchmark --config configs/quickstart.py --torch."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from drnet_jax.api import load
from drnet_jax.benchmark import latency, trained
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
from drnet_jax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config, mix = define_config(values, argv, required=False), define_mix(values)
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
        "out", None, "Directory for all reports as benchmark.json, and as a table benchmark.md "
        "(latency.json with --latency, and with --workdir a picture).", flag_values=values,
    )
    with_latency, workdir, data = _define_latency(values)

    def command() -> None:
        shares, given = mix(), config()
        where = None if out.value is None else directory("--out", out.value)
        if (given is None) == (workdir.value is None):
            raise UserError("expected --config, or --latency and --workdir; see --help")
        if workdir.value is not None and not with_latency.value:
            raise UserError("--workdir: expected --latency beside it, received none")
        if given is None:
            _trained(
                workdir.value, data.value, repeats.value, dtypes.value or ["float32"], where
            )
            return
        checked = with_classes(given)
        if batch.value:
            evaluation = dataclasses.replace(checked.evaluation, batch_size=batch.value)
            checked = dataclasses.replace(
                checked, batch_size=batch.value, evaluation=evaluation
            )
        configs = [with_dtype(checked, dtype) for dtype in dtypes.value or [checked.dtype]]
        announce_devices()
        measured = _latency if with_latency.value else functools.partial(_speed, as_json.value)
        measured(configs, shares, torch.value, repeats.value, where)

    return command


def _define_latency(values: flags.FlagValues) -> tuple[flags.FlagHolder, ...]:
    """Defines `--latency`, `--workdir` and `--data`."""
    with_latency = flags.DEFINE_bool(
        "latency", False, "Milliseconds of prediction instead: of one image, small batches and a "
        "stream, by every runtime that is installed.", flag_values=values,
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "With --latency, in place of --config: a trained model, whose accuracy is "
        "set against its milliseconds.", flag_values=values,
    )
    data = flags.DEFINE_string(
        "data", None, "With --workdir: folder of labelled images to measure on, <class>/*; by "
        "default those of validation.", flag_values=values,
    )
    return with_latency, workdir, data


def _speed(
    as_json: bool, configs: Sequence[Config], mix: Sequence[float] | None, torch: bool,
    repeats: int, where: Path | None,
) -> None:
    reports = []
    for config in configs:
        report = benchmark(config, mix, torch, repeats)
        print(json.dumps(report, indent=2) if as_json else text(report))
        reports.append(report)
    if where:
        where.mkdir(parents=True, exist_ok=True)
        (where / "benchmark.json").write_text(json.dumps(reports, indent=2) + "\n")
        (where / "benchmark.md").write_text(markdown(reports) + "\n")


def _trained(
    workdir: str, data: str | None, repeats: int, dtypes: Sequence[str], where: Path | None
) -> None:
    if len(dtypes) > 1:
        raise UserError(f"--dtypes: expected one with --workdir, received {', '.join(dtypes)}")
    place = directory("--workdir", workdir, to_write=False)
    announce_devices()
    report = trained.measure(load(place, runtime="jax"), data, repeats, dtypes[0])
    print(trained.text(report))
    if where:
        _write_latency(where, report)
        trained.draw(report, where)


def _write_latency(where: Path, report: Any) -> None:
    where.mkdir(parents=True, exist_ok=True)
    (where / "latency.json").write_text(json.dumps(report, indent=2) + "\n")


def _latency(
    configs: Sequence[Config], mix: Sequence[float] | None, torch: bool, repeats: int,
    where: Path | None,
) -> None:
    reports = []
    for config in configs:
        reports.append(latency.latency(config, mix, torch, repeats, config.dtype))
        print(latency.text(reports[-1]))
    if where:
        _write_latency(where, reports)


def with_dtype(config: Config, dtype: str) -> Config:
    """The config with another `dtype`; raises UserError if it is none."""
    return parse(dataclasses.asdict(config) | {"dtype": dtype})
