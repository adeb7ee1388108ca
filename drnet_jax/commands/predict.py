"""Classify images: drnet predict --workdir DIR IMAGES...

IMAGES are files, folders, patterns such as "photos/*.jpg", tar archives, or - for a list of these
on standard input, one a line.
"""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from absl import flags
from tqdm import tqdm

from drnet_jax.api import Model, load
from drnet_jax.commands.model_flags import (
    define_budget,
    define_checkpoint,
    define_policy,
    define_runtime,
)
from drnet_jax.commands.shared import announce_devices, define_classes, define_workdir
from drnet_jax.errors import UserError
from drnet_jax.formatting import short
from drnet_jax.inference import inputs
from drnet_jax.inference.inputs import Item
from drnet_jax.inference.predict import Answer
from drnet_jax.inference.records import Csv, JsonLines, written


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[list[str]], None]:
    workdir = define_workdir(
        values, "Directory of a training run, of one checkpoint in it, or of an export.",
        to_write=False,
    )
    checkpoint = define_checkpoint(values)
    budget = define_budget(values)
    accuracy = flags.DEFINE_float(
        "min_accuracy", None, "Top-1 from 0 to 1 to reach for as little as it takes, on images "
        "like those of validation; in place of a budget.", 0, 1, flag_values=values,
    )
    hold = flags.DEFINE_bool(
        "hold", False, "Meet a budget of multiply-adds on these very images, though they be unlike "
        "those of validation: the price follows, and an answer depends on the images before.",
        flag_values=values,
    )
    policy = define_policy(values)
    top = flags.DEFINE_integer(
        "top", 1, "How many of the most probable classes to tell.", 1, flag_values=values
    )
    among = define_classes(values, "answers are among these of the model's classes only.")
    runtime, precision = define_runtime(values)
    form, out, resume, shard = _define_records(values)

    def command(names: list[str]) -> None:
        if not names:
            raise UserError("expected images or folders of them, received none; see --help")
        if resume.value and out.value is None:
            raise UserError("--resume: expected --out, the file to go on with, received none")
        if hold.value and (resume.value or shard.value != "1/1"):
            raise UserError(
                "--hold: expected neither --resume nor --shard, which know nothing of the images "
                "before; leave one out"
            )
        where, classes, wanted = workdir(), among(), budget()
        items, notes = inputs.items_of(names)
        items = inputs.share(items, shard.value)
        print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
        announce_devices()
        model = load(where, checkpoint.value, None, classes, runtime.value, precision.value)
        with _records(out.value, form.value, resume.value, items) as (file, done, end):
            answers = model.predict(
                inputs.read(items[done:]), wanted, True, accuracy.value, policy.value, top.value,
                hold.value,
            )
            summary = Summary(model)
            answers = summary.watch(answers, len(items), done, out.value is not None)
            options = model.costs.options
            _write(answers, JsonLines(file) if form.value == "json"
                   else Csv(file, options, top.value), begin=not end)
        print(summary.text(len(items) - done), file=sys.stderr)
        if items[done:] and not summary.answered:
            raise UserError("expected images, but none could be read; their records say why")

    return command


def _define_records(values: flags.FlagValues) -> tuple[flags.FlagHolder, ...]:
    """Defines `--format`, `--out`, `--resume` and `--shard`."""
    form = flags.DEFINE_enum(
        "format", "json", ["json", "csv"], "A line of JSON an image, or CSV.", flag_values=values
    )
    out = flags.DEFINE_string("out", None, "File for the records, in place of standard output.",
                              flag_values=values)
    resume = flags.DEFINE_bool(
        "resume", False, "Go on after the records that --out holds.", flag_values=values
    )
    shard = flags.DEFINE_string(
        "shard", "1/1", "I/N: the I-th of N parts of the images. The parts' records, in order, are "
        "those of all.", flag_values=values,
    )
    return form, out, resume, shard


def _write(answers: Iterable[Answer], writer: JsonLines | Csv, begin: bool) -> None:
    if begin:
        writer.begin()
    for answer in answers:
        writer.write(answer)


@contextlib.contextmanager
def _records(
    out: str | None, form: str, resume: bool, items: Sequence[Item]
) -> Iterator[tuple[IO[str], int, int]]:
    """The file for the records, open, how many of the items it has already, and their bytes."""
    if out is None:
        yield sys.stdout, 0, 0
        return
    path, done, end = Path(out).expanduser(), 0, 0
    if resume and path.exists():
        names, end = written(path, form)
        done = len(names)
        if names != [item.name for item in items[:done]]:
            other = next(
                (pair for pair in zip(names, items, strict=False) if pair[0] != pair[1].name),
                (names[-1], Item("none")),
            )
            raise UserError(
                f"--out {out}: expected records of these images in their order, found "
                f"{other[0]!r} where {other[1].name!r} should be; give another --out, or leave "
                "--resume out"
            )
        os.truncate(path, end)
    try:
        file = path.open("a" if end else "w", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--out: expected a file that can be written, received {out!r} "
                        f"({error.strerror})") from error
    with file:
        yield file, done, end


class Summary:
    """What became of the images."""

    def __init__(self, model: Model):
        self._model, self._options = model, Counter()
        self._failed, self._spent, self._seconds = 0, 0, 0.0

    def watch(
        self, answers: Iterable[Answer], total: int, done: int, to_file: bool
    ) -> Iterator[Answer]:
        """Passes answers on, with a bar on stderr where nothing else is shown there."""
        began = time.perf_counter()
        hidden = None if to_file or not sys.stdout.isatty() else True
        with tqdm(
            total=total, initial=done, unit=" images", disable=hidden, file=sys.stderr
        ) as bar:
            for answer in answers:
                if answer.error is None:
                    self._options[answer.network, answer.resolution] += 1
                    self._spent += answer.multiply_adds
                self._failed += answer.error is not None
                yield answer
                bar.update()
        self._seconds = time.perf_counter() - began

    @property
    def answered(self) -> int:
        return sum(self._options.values())

    def text(self, images: int) -> str:
        """A line, and one more if images could not be read."""
        answered, lines = self.answered, []
        if answered:
            shares = ", ".join(
                f"{100 * count / answered:.0f} % "
                + (network if network == "predictor" else f"{resolution} px")
                for (network, resolution), count in self._options.most_common()
            )
            lines.append(
                f"{answered} images in {self._seconds:.1f} s ({answered / self._seconds:.0f} "
                f"images/s, start included), {short(self._spent / answered)} multiply-adds an "
                f"image: {shares}; {self._model.runtime.name}, batches of "
                f"{self._model.predicting.batch_size}"
            )
        if self._failed:
            lines.append(
                f"warning: {self._failed} of {images} images could not be read; their records say "
                "why"
            )
        return "\n".join(lines)
