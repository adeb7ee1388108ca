"""Flags that commands share: `--config`, a mix, and the classes that a config may leave open."""

import dataclasses
from collections.abc import Callable

from absl import flags
from absl.flags import FlagValues
from ml_collections import config_flags

from drnet_jax.config import Config, parse
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.errors import UserError, last_line


def define_config(values: FlagValues, argv: list[str], required: bool = True
                  ) -> Callable[[], Config | None]:
    """Defines the flag `--config FILE[:ARGUMENT]` with its `--config.KEY=VALUE`.

    Args:
        values: where the flag is defined.
        argv: the command line that the overrides are read from.
        required: whether a command line without it is an error.

    Returns:
        A function that gives the checked Config once the flags are parsed, or None if none was
        given; it raises UserError for a file that cannot be read and for impossible values.
    """
    holder = config_flags.DEFINE_config_file(
        "config", None, "A config file, such as configs/default.py; override any of its keys "
        "with --config.KEY=VALUE.", flag_values=values, sys_argv=argv,
    )
    if required:
        flags.mark_flag_as_required("config", values)

    def config() -> Config | None:
        try:
            return None if holder.value is None else parse(holder.value)
        except OSError as error:  # a file that cannot be read is an error at the first touch only
            raise UserError(f"--config: {last_line(error)}") from error

    return config


def define_mix(values: FlagValues) -> Callable[[], list[float] | None]:
    """Defines `--mix 0.2,0.3,0.5`; returns what gives its numbers, or None if it was not given.

    `Costs.mean` checks that they are shares.
    """
    holder = flags.DEFINE_list(
        "mix", None, "Share of the images at each resolution, such as 0.2,0.3,0.5.",
        flag_values=values,
    )

    def mix() -> list[float] | None:
        try:
            return None if holder.value is None else [float(share) for share in holder.value]
        except ValueError as error:
            raise UserError(f"--mix: expected numbers such as 0.2,0.3,0.5; {error}") from error

    return mix


def with_classes(config: Config) -> Config:
    """The config with `classifier.classes` set, if it is not, to what the data set has.

    Raises:
        UserError: if it is not set and the data set cannot be opened.
    """
    if config.classifier.classes:
        return config
    try:
        classes = resolve_classes(open_source(config.data, training=False), 0)
    except UserError as error:
        raise UserError(
            "config.classifier.classes: expected a number of classes, received 0; set "
            f"--config.classifier.classes, or open the data set to it, for that failed:\n{error}"
        ) from error
    return dataclasses.replace(
        config, classifier=dataclasses.replace(config.classifier, classes=classes)
    )
