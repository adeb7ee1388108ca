"""Prepare a tfds data set for training: drnet prepare --name mnist --dir D."""

from collections.abc import Callable

from absl import flags

from drnet_jax.data.prepare import prepare


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    name = flags.DEFINE_string(
        "name", None, "tfds data set, such as imagenet2012.", required=True, flag_values=values
    )
    directory = flags.DEFINE_string(
        "dir", "", "Where to put it; by default tfds's own directory.", flag_values=values
    )

    def command() -> None:
        builder = prepare(name.value, directory.value)
        splits = [f"{key} ({split.num_examples})" for key, split in builder.info.splits.items()]
        print(f"{name.value} is ready in {builder.data_path}: {', '.join(splits)}")

    return command
