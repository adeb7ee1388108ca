"""Trains or evaluates: python -m drnet_jax.main --config configs/NAME.py --workdir DIR."""

from absl import flags

from drnet_jax import cli
from drnet_jax.errors import UserError
from drnet_jax.mesh import join_hosts
from drnet_jax.report import evaluate_workdir
from drnet_jax.train.loop import train

CONFIG = cli.define_config(required=False)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints, metrics and reports.", required=True
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train both stages, or evaluate a checkpoint."
)
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "Which checkpoint to evaluate."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of several hosts (TPU pods, Slurm, or the variables "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).",
)


def main() -> None:
    if DISTRIBUTED.value:
        join_hosts()
    if MODE.value == "eval":
        evaluate_workdir(WORKDIR.value, CHECKPOINT.value, CONFIG())
        return
    config = CONFIG()
    if config is None:
        raise UserError("--config: expected a config file, such as configs/quickstart.py")
    print(config.to_json())
    train(config, WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
