"""What a run takes: drnet plan --config configs/imagenet_resnet50.py --devices tpu:v5e:4x4."""

import dataclasses
import json
from collections.abc import Callable

from absl import flags

from drnet_jax.commands.shared import define_config, define_mix, with_classes
from drnet_jax.config import Config
from drnet_jax.data.sources import open_source
from drnet_jax.errors import UserError
from drnet_jax.plan.plan import plan
from drnet_jax.plan.programs import reference
from drnet_jax.plan.report import reference_text, text
from drnet_jax.plan.target import parse


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config, mix = define_config(values, argv), define_mix(values)
    devices = flags.DEFINE_string(
        "devices", None, "tpu:TYPE:TOPOLOGY, gpu:N, gpu:TYPE:N or cpu:N, such as tpu:v5e:4x4.",
        required=True, flag_values=values,
    )
    batch = flags.DEFINE_integer(
        "batch", None, "Global batch size; default: config.batch_size.", lower_bound=1,
        flag_values=values,
    )
    images = flags.DEFINE_integer(
        "images", None, "Training images in an epoch; default: of the data set, if it is here.",
        lower_bound=1, flag_values=values,
    )
    utilisation = flags.DEFINE_float(
        "utilisation", 0.4, "Assumed share of the published FLOP/s.", lower_bound=0.01,
        upper_bound=1.0, flag_values=values,
    )
    against_flax = flags.DEFINE_bool(
        "reference", False, "Only compile our layers beside flax's own, and print the ratios.",
        flag_values=values,
    )
    as_json = flags.DEFINE_bool(
        "json", False, "Print JSON in place of tables.", flag_values=values
    )

    def command() -> None:
        target, shares = parse(devices.value), mix()
        checked = with_classes(config())
        if batch.value:
            checked = dataclasses.replace(checked, batch_size=batch.value)
        if against_flax.value:
            report = reference(checked, target)
            rows, tables = [row for pair in report for row in pair], reference_text(report)
        else:
            report = plan(
                checked, target, shares, utilisation.value, images.value or _images(checked)
            )
            rows, tables = report["programs"] or [], text(report)
        print(json.dumps(report, indent=2) if as_json.value else tables)
        if any("failed" in row for row in rows):
            raise UserError("some programs do not compile for these devices; see above")

    return command


def _images(config: Config) -> int | None:
    """The training images of the config's data set; None if it cannot be opened here."""
    try:
        return len(open_source(config.data, training=True))
    except UserError:
        return None
