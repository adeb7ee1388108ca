"""Flags of commands that predict with a trained model; see `shared`."""

from collections.abc import Callable

from absl import flags
from absl.flags import FlagValues

from drnet_jax.api import POLICIES
from drnet_jax.config import GIGA
from drnet_jax.errors import UserError
from drnet_jax.inference.runtimes import PRECISIONS


def define_checkpoint(values: FlagValues) -> flags.FlagHolder:
    """Defines `--checkpoint`."""
    return flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "Which checkpoint of a run.", flag_values=values
    )


def define_policy(values: FlagValues) -> flags.FlagHolder:
    """Defines `--policy`."""
    return flags.DEFINE_enum(
        "policy", None, POLICIES, "How options are chosen; by default the router, if the predictor "
        "is trained.", flag_values=values,
    )


def define_budget(values: FlagValues) -> Callable[[], float | str | None]:
    """Defines `--budget`; returns what gives it as `Model.predict` takes it."""
    holder = flags.DEFINE_string(
        "budget", None, "Mean cost of an image: in 1e9 multiply-adds, of all that is run; or 12ms, "
        "of this machine's time in full batches; 0 for no limit. In place of config.budget.",
        flag_values=values,
    )

    def budget() -> float | str | None:
        text = holder.value
        if text is None or text.endswith("ms"):
            return text
        try:
            found = float(text)
        except ValueError:
            found = -1.0
        if not 0 <= found < float("inf"):
            raise UserError(f"--budget: expected a number such as 2.5, or 12ms, received {text!r}")
        return found * GIGA

    return budget


def define_runtime(values: FlagValues) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines `--runtime` and `--precision`."""
    runtime = flags.DEFINE_enum(
        "runtime", "auto", ["auto", *PRECISIONS], "What runs the networks: auto is the fastest "
        "that is installed.", flag_values=values,
    )
    precision = flags.DEFINE_enum(
        "precision", None, ["float32", "bfloat16"], "Of the networks' arithmetic; by default "
        "that of training, or float32.", flag_values=values,
    )
    return runtime, precision
