"""Ask a server as much as it can answer, beside a plain one: drnet load-test MODEL.

MODEL and the flags that it shares with them are as of `drnet serve`; `--` and more of that
command's flags may follow.
"""

import json
from collections.abc import Callable

from absl import flags

from drnet_jax.api import load
from drnet_jax.benchmark import load as load_test
from drnet_jax.commands.model_flags import (
    define_budget,
    define_checkpoint,
    define_policy,
    define_runtime,
)
from drnet_jax.commands.serve import NEEDED
from drnet_jax.commands.shared import announce_devices, define_classes, expect_installed
from drnet_jax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[list[str]], None]:
    clients = flags.DEFINE_integer(
        "clients", 32, "That ask at once, each for one image after the other.", 1,
        flag_values=values,
    )
    seconds = flags.DEFINE_float(
        "seconds", 20, "For which each server is asked.", 0.1, flag_values=values
    )
    as_json = flags.DEFINE_bool("json", False, "Print JSON.", flag_values=values)
    checkpoint = define_checkpoint(values)
    budget = define_budget(values)
    policy = define_policy(values)
    among = define_classes(values, "answers are among these of the model's classes only.")
    runtime, precision = define_runtime(values)
    shared = ("checkpoint", "budget", "policy", "classes", "runtime", "precision")

    def command(names: list[str]) -> None:
        if not names:
            raise UserError("expected a model, a run's directory or an export, received none")
        expect_installed("load-test", "serve", NEEDED)
        announce_devices()
        named = {
            "path": names[0], "checkpoint": checkpoint.value, "classes": among(),
            "runtime": runtime.value, "precision": precision.value,
        }
        model = load(**named)
        given = [f"--{name}={values[name].value}" for name in shared if values[name].value]
        report = load_test.measure(
            model, model.policy(budget(), kind=policy.value), [names[0], *given, *names[1:]],
            named, clients.value, seconds.value,
        )
        print(json.dumps(report, indent=2) if as_json.value else load_test.text(report))

    return command
