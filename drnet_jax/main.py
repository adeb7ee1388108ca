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
BUDGET = flags.DEFINE_float(
    "budget", None, "With --mode eval: mean cost to route at in 1e9 multiply-adds, the "
    "predictor's included; 0 for none. In place of config.budget.target.", lower_bound=0,
)
CURVE = flags.DEFINE_bool(
    "curve", None, "With --mode eval: also accuracy over cost, of all policies, into curve.json, "
    "curve.csv and curve.png.",
)
WARM_UP = flags.DEFINE_bool(
    "warm-up", None, "With --mode train: compile every program of training, at every size that a "
    "bucket can have, before the first step.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes of several hosts (TPU pods, Slurm, or the variables "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).",
)


def main() -> None:
    if DISTRIBUTED.value:
        join_hosts()
    if MODE.value == "eval":
        if WARM_UP.value is not None:
            raise UserError("--warm-up: expected with --mode train only")
        evaluate_workdir(
            WORKDIR.value, CHECKPOINT.value, CONFIG(), BUDGET.value, bool(CURVE.value)
        )
        return
    for flag in (BUDGET, CURVE):
        if flag.value is not None:
            raise UserError(f"--{flag.name}: expected with --mode eval only")
    config = CONFIG()
    if config is None:
        raise UserError("--config: expected a config file, such as configs/quickstart.py")
    print(config.to_json())
    train(config, WORKDIR.value, bool(WARM_UP.value))


if __name__ == "__main__":
    cli.run(main)
