"""Prepare images for training: a tfds data set, drnet prepare --name mnist --dir D, or the Parquet
files of the Hugging Face hub, drnet prepare --parquet FILES --dir D."""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from drnet_jax.commands.shared import directory
from drnet_jax.data.convert import convert
from drnet_jax.data.prepare import prepare
from drnet_jax.data.records import RECORDS
from drnet_jax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    name = flags.DEFINE_string(
        "name", None, "tfds data set, such as imagenet2012, to download and prepare.",
        flag_values=values,
    )
    parquet = flags.DEFINE_string(
        "parquet", None, "Directory of Parquet files with the columns image (bytes and path) and "
        "label, such as train-00000-of-00294.parquet, to convert to records, from which "
        "--config.data.name=records trains. The same command goes on where it was stopped. Needs "
        "pyarrow.", flag_values=values,
    )
    where = flags.DEFINE_string(
        "dir", "", "Where to put it; by default, of a tfds data set, tfds's own directory.",
        flag_values=values,
    )

    def command() -> None:
        if (name.value is None) == (parquet.value is None):
            raise UserError("expected one of --name and --parquet; see --help")
        if name.value is not None:
            _prepare(name.value, where.value)
        else:
            _convert(directory("--parquet", parquet.value, to_write=False),
                     directory("--dir", where.value))

    return command


def _prepare(name: str, where: str) -> None:
    builder = prepare(name, where)
    splits = [f"{key} ({split.num_examples})" for key, split in builder.info.splits.items()]
    print(f"{name} is ready in {builder.data_path}: {', '.join(splits)}")


def _convert(parquet: Path, out: Path) -> None:
    found = convert(parquet, out)
    splits = [f"{split} ({count})" for split, count in found.images.items()]
    print(f"{len(found.classes)} classes are ready in {out}: {', '.join(splits)}", *found.notes,
          f"train with --config.data.name={RECORDS} --config.data.dir={out}", sep="\n")
