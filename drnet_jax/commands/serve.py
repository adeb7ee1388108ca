"""Answer over HTTP: drnet serve MODEL, a run's directory or an export."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from drnet_jax.api import load
from drnet_jax.commands.model_flags import (
    define_budget,
    define_checkpoint,
    define_policy,
    define_runtime,
)
from drnet_jax.commands.shared import announce_devices, define_classes, expect_installed
from drnet_jax.errors import UserError

if TYPE_CHECKING:
    from drnet_jax.serve.app import Limits

NEEDED = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
TOKEN = "DRNET_TOKEN"


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[list[str]], None]:
    host = flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine's.",
        flag_values=values,
    )
    port = flags.DEFINE_integer(
        "port", 8000, "Port to listen at; 0 for any that is free.", 0, 65535, flag_values=values
    )
    checkpoint = define_checkpoint(values)
    budget = define_budget(values)
    policy = define_policy(values)
    among = define_classes(values, "answers are among these of the model's classes only.")
    runtime, precision = define_runtime(values)
    batch = flags.DEFINE_integer(
        "batch", 32, "Images of a bucket at most.", 1, flag_values=values
    )
    limits = _define_limits(values)

    def command(names: list[str]) -> None:
        if len(names) != 1:
            raise UserError(
                f"expected one model, a run's directory or an export, received {len(names)}"
            )
        expect_installed("serve", "serve", NEEDED)
        from drnet_jax.serve.run import serve

        classes, wanted = among(), budget()
        announce_devices()
        model = load(names[0], checkpoint.value, None, classes, runtime.value, precision.value)
        serve(
            model.like(batch.value), limits(), wanted, policy.value, os.environ.get(TOKEN),
            (host.value, port.value),
        )

    return command


def _define_limits(values: flags.FlagValues) -> Callable[[], "Limits"]:
    limit = flags.DEFINE_integer(
        "limit", 256, "Images that are waiting or worked on at once; more are refused (429).", 1,
        flag_values=values,
    )
    max_wait = flags.DEFINE_float(
        "max_wait", 0, "Milliseconds for which an image waits for its bucket to fill.", 0,
        flag_values=values,
    )
    megabytes = flags.DEFINE_float("megabytes", 20, "Of a request at most.", 0, flag_values=values)
    megapixels = flags.DEFINE_float("megapixels", 50, "Of an image at most.", 0, flag_values=values)
    timeout = flags.DEFINE_float(
        "timeout", 30, "Seconds for a request to come in, and again for its answer.", 0.1,
        flag_values=values,
    )
    p95 = flags.DEFINE_float(
        "p95", None, "Milliseconds within which 95 % of the answers are to come: under load the "
        "budget gives way, down to the cheapest option.", 0, flag_values=values,
    )

    def limits() -> "Limits":
        from drnet_jax.serve.app import Limits

        return Limits(
            limit.value, megabytes.value, megapixels.value, max_wait.value / 1e3, timeout.value,
            None if p95.value is None else p95.value / 1e3,
        )

    return limits
