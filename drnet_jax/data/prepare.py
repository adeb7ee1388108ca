"""Preparation of tfds data sets: python -m drnet_jax.data.prepare --name mnist --dir D."""

import sys

import tensorflow_datasets as tfds

from drnet_jax.data import drnet_shapes
from drnet_jax.errors import UserError


def build(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """Returns the tfds builder of `name`; `directory` "" is tfds's own default.

    Raises:
        UserError: if tfds does not know the data set, or cannot load its code.
    """
    try:
        return tfds.builder(name, data_dir=directory or None)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"config.data.name: expected 'folder', {drnet_shapes.NAME!r} or a data set that tfds "
            f"knows (https://www.tensorflow.org/datasets/catalog), received {name!r}"
        ) from error
    except Exception as error:  # whatever the data set's own code raises
        raise UserError(f"config.data.name: tfds cannot load {name!r}: {error}") from error


def prepare(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """Downloads a data set and writes it as ArrayRecord files, unless that is done already.

    Raises:
        UserError: if tfds does not know the data set, or if preparing it needs TensorFlow, which is
            not installed, or files that have to be fetched by hand.
    """
    builder = build(name, directory)
    try:
        builder.download_and_prepare(file_format="array_record")
    except FileExistsError:  # another process has just finished the same
        return build(name, directory)
    except ImportError as error:
        raise UserError(
            f"{name}: preparing this data set needs a package that is not installed ({error}). "
            "Where it is TensorFlow: pip install tensorflow, prepare, and remove it again if you "
            "like; reading does not need it"
        ) from error
    except AssertionError as error:  # so tfds asks for files that it must not download itself
        raise UserError(f"{name}: {error}") from error
    return builder


if __name__ == "__main__":
    from drnet_jax.commands import main

    main(["drnet", "prepare", *sys.argv[1:]])
