"""Train both stages: drnet train --config configs/NAME.py --workdir DIR."""

from collections.abc import Callable

import jax
from absl import flags

from drnet_jax.commands.shared import define_config, define_distributed, define_workdir
from drnet_jax.train.loop import train
from drnet_jax.train.stopping import Stopping


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config, workdir = define_config(values, argv), define_workdir(values)
    warm_up = flags.DEFINE_bool(
        "warm-up", False, "Compile every program of training, at every size that a bucket can "
        "have, before the first step.", flag_values=values,
    )
    changed_data = flags.DEFINE_bool(
        "changed-data", False, "Go on although the training images have changed since the newest "
        "checkpoint: with the new ones, from the next epoch on.", flag_values=values,
    )
    stopped_status = flags.DEFINE_integer(
        "stopped_status", 0, "Exit status of a run that was asked to stop, by SIGTERM or SIGHUP, "
        "and has saved.", 0, 255, flag_values=values,
    )
    start = define_distributed(values)

    def command() -> None:
        checked, where = config(), workdir()
        start()
        if jax.process_index() == 0:
            print(checked.to_json())
        with Stopping(stopped_status.value) as stopping:
            train(checked, where, warm_up.value, changed_data.value, stopping)

    return command
