"""Train both stages: drnet train --config configs/NAME.py --workdir DIR."""

from collections.abc import Callable

from absl import flags

from drnet_jax.commands.shared import define_config
from drnet_jax.devices import join_hosts
from drnet_jax.train.loop import train


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config = define_config(values, argv)
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory for checkpoints, metrics and reports.", required=True,
        flag_values=values,
    )
    warm_up = flags.DEFINE_bool(
        "warm-up", False, "Compile every program of training, at every size that a bucket can "
        "have, before the first step.", flag_values=values,
    )
    distributed = define_distributed(values)

    def command() -> None:
        if distributed.value:
            join_hosts()
        checked = config()
        print(checked.to_json())
        train(checked, workdir.value, warm_up.value)

    return command


def define_distributed(values: flags.FlagValues) -> flags.FlagHolder[bool]:
    return flags.DEFINE_bool(
        "distributed", False, "Join the processes of several hosts (TPU pods, Slurm, or the "
        "variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).",
        flag_values=values,
    )
