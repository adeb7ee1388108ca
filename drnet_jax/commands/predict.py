"""Classify images: drnet predict --workdir DIR IMAGES... (files, and folders of them)."""

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator

from absl import flags

from drnet_jax.api import load
from drnet_jax.commands.shared import announce_devices, define_classes, define_workdir
from drnet_jax.config import GIGA
from drnet_jax.data.listing import images_below
from drnet_jax.errors import UserError
from drnet_jax.inference.predict import Answer


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[list[str]], None]:
    workdir = define_workdir(
        values, "Directory of a training run, or of one checkpoint in it.", to_write=False
    )
    checkpoint = flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "Which checkpoint to use.", flag_values=values
    )
    budget = flags.DEFINE_float(
        "budget", None, "Mean cost to route at in 1e9 multiply-adds, the predictor's included; "
        "0 for none. In place of config.budget.", lower_bound=0, flag_values=values,
    )
    among = define_classes(values, "answers are among these of the model's classes only.")
    form = flags.DEFINE_enum(
        "format", "json", ["json", "csv"], "A line of JSON an image, or CSV.", flag_values=values
    )

    def command(images: list[str]) -> None:
        if not images:
            raise UserError("expected images or folders of them, received none; see --help")
        where, paths = workdir(), [path for image in images for path in files_of(image)]
        classes = among()
        announce_devices()
        model = load(where, checkpoint.value, classes=classes)
        answers = model.predict(
            paths, None if budget.value is None else budget.value * GIGA, skip_errors=True
        )
        write = write_csv if form.value == "csv" else write_json
        if failed := write(answers):
            print(
                f"warning: {failed} of {len(paths)} images could not be read; their records say "
                "why", file=sys.stderr,
            )

    return command


def files_of(path: str) -> list[str]:
    """The images below a folder, in order of their names; a file, whatever it is, is itself.

    Tells on stderr what else a folder holds; raises UserError if it holds no image.
    """
    if not os.path.isdir(path):
        return [path]
    images, notes = images_below(path)
    for note in notes:
        print(note, file=sys.stderr)
    if not images:
        raise UserError(f"{path}: expected images in this folder, found none")
    return images


def write_json(answers: Iterator[Answer]) -> int:
    """Prints a line an image; returns how many could not be read."""
    failed = 0
    for answer in answers:
        record = {
            name: value for name, value in dataclasses.asdict(answer).items() if value is not None
        }
        failed += answer.error is not None
        print(json.dumps(record))
    return failed


def write_csv(answers: Iterator[Answer]) -> int:
    """Prints a header and a line an image; returns how many could not be read."""
    failed, writer = 0, csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Answer))
    for answer in answers:
        failed += answer.error is not None
        writer.writerow(dataclasses.astuple(answer))
    return failed
