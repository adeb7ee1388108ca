"""Flags that commands share: each `define_...` defines one and returns what gives its value.

A value is checked when it is asked for, and nothing is made or started before all of them were.
"""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from drnet_jax.config import Config
from drnet_jax.config_check import parse
from drnet_jax.config_files import load
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.data.subset import classes_named
from drnet_jax.devices import found_devices
from drnet_jax.errors import UserError, first_line
from drnet_jax.hosts.join import VARIABLES, join


class _ConfigParser(flags.ArgumentParser):
    """`config_files.load` as a parser of flags."""

    def parse(self, argument: str) -> ConfigDict:
        return load(argument).lock()


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
        "config", None, "FILE, such as configs/default.py, or FILE:KEY=VALUE,...; "
        "--config.KEY=VALUE overrides any of its keys." + " Required." * required,
        flag_values=values, sys_argv=argv,
    )
    # Its own drops, or hides in a traceback, what is wrong with a file.
    values["config"].parser = _ConfigParser()

    def config() -> Config | None:
        if holder.value is None and required:
            raise UserError("--config: expected FILE, such as configs/default.py, received none")
        return None if holder.value is None else parse(holder.value)

    return config


def define_workdir(
    values: FlagValues, help: str = "Directory for checkpoints, metrics and reports.",
    to_write: bool = True,
) -> Callable[[], str]:
    """Defines `--workdir DIR`, required; returns what gives its path (see `directory`)."""
    holder = flags.DEFINE_string("workdir", None, f"{help} Required.", flag_values=values)

    def workdir() -> str:
        if holder.value is None:
            raise UserError("--workdir: expected a directory, received none")
        return str(directory("--workdir", holder.value, to_write))

    return workdir


def directory(flag: str, text: str, to_write: bool = True) -> Path:
    """The directory that a flag names, with its `~` expanded; it need not be there yet.

    Raises:
        UserError: if it cannot be a directory of a file system, or not be written to where it is
            to be.
    """
    if not text.strip():
        raise UserError(f"{flag}: expected a directory, received {text!r}")
    if "://" in text:
        raise UserError(
            f"{flag}: expected a directory of a file system, received {text!r}; mount the bucket "
            "(gcsfuse, s3fs, rclone mount) and give the directory that it is mounted at"
        )
    try:
        path = Path(text).expanduser()  # shells leave the ~ of --workdir=~/x
        present = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not present.is_dir():
            raise UserError(f"{flag}: expected a directory, received {text!r}; {present} is a file")
    except (OSError, RuntimeError) as error:  # too long, not to be looked into, of no such user
        raise UserError(
            f"{flag}: expected a directory, received {text!r} ({first_line(error)})"
        ) from error
    if to_write and not os.access(present, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag}: expected a directory that can be written, received {text!r}; {present} "
            "cannot be"
        )
    return path


def define_distributed(values: FlagValues) -> Callable[[], None]:
    """Defines `--distributed`; returns what joins the hosts if it was given, and says on which
    devices they compute."""
    holder = flags.DEFINE_bool(
        "distributed", False, "Join the processes of several hosts (TPU pods, Slurm, or the "
        f"variables {', '.join(VARIABLES)}).",
        flag_values=values,
    )

    def start() -> None:
        if holder.value:
            join()
        announce_devices()

    return start


def expect_installed(command: str, extra: str, names: Sequence[str]) -> None:
    """Raises UserError if a module that a command needs, of an optional extra, is missing."""
    if missing := [name for name in names if not importlib.util.find_spec(name)]:
        raise UserError(
            f"drnet {command}: expected {', '.join(names)}, but {missing[0]} is not installed; "
            f"pip install 'drnet_jax[{extra}]'"
        )


def announce_devices() -> None:
    """Says on stderr, so that a report on stdout stays one, what this run computes on.

    Raises:
        UserError: if JAX finds no such devices as it was asked for.
    """
    line = found_devices()
    if jax.process_index() == 0:
        print(line, file=sys.stderr)


def define_classes(values: FlagValues, help: str) -> Callable[[], tuple[str, ...] | None]:
    """Defines `--classes FILE`; returns what gives the names in it, or None if it was not given."""
    holder = flags.DEFINE_string(
        "classes", None, f"File of class names, one a line: {help}", flag_values=values
    )
    return lambda: None if holder.value is None else classes_named(holder.value, "--classes")


def define_mix(values: FlagValues) -> Callable[[], list[float] | None]:
    """Defines `--mix 0.2,0.3,0.5`; returns what gives its numbers, or None if it was not given.

    `Costs.mean` checks that they are shares.
    """
    holder = flags.DEFINE_list(
        "mix", None, "Share of the images of each option (the resolutions, and then the predictor "
        "if it classifies), such as 0.2,0.3,0.5; by default the same for all.",
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
