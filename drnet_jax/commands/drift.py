"""A run whose mix drifts: drnet drift --config configs/quickstart.py --batch 128 --steps 2000."""

import dataclasses
import json
from collections.abc import Callable

from absl import flags

from drnet_jax.benchmark.drift import QUARTERS, drift, text
from drnet_jax.commands.shared import announce_devices, define_config, with_classes


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config = define_config(values, argv)
    batch = flags.DEFINE_integer(
        "batch", None, "Batch size; default: config.batch_size.", lower_bound=1,
        flag_values=values,
    )
    steps = flags.DEFINE_integer(
        "steps", 2000, "Steps to run.", lower_bound=QUARTERS, flag_values=values
    )
    as_json = flags.DEFINE_bool(
        "json", False, "Print JSON, with the whole config, for tables.", flag_values=values
    )

    def command() -> None:
        checked = with_classes(config())
        if batch.value:
            checked = dataclasses.replace(checked, batch_size=batch.value)
        announce_devices()
        report = drift(checked, steps.value)
        print(json.dumps(report, indent=2) if as_json.value else text(report))

    return command
