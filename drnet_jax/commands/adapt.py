"""Fit a trained network for other resolutions: drnet adapt --workdir DIR --resolutions 168,112.

The norms of the new resolutions learn the network's own answers at its base, without labels; the
network itself stays as it is. With --recalibrate the statistics of all norms are taken anew.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from drnet_jax.adapt.run import Settings, adapt
from drnet_jax.adapt.statistics import recalibrate
from drnet_jax.checkpoints.existing import newest
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.commands.shared import (
    define_classes,
    define_distributed,
    define_workdir,
    directory,
)
from drnet_jax.data.sources import Source, open_source
from drnet_jax.data.unlabelled import UnlabelledSource
from drnet_jax.errors import UserError
from drnet_jax.train.stopping import Stopping

DEFAULT = Settings(resolutions=())


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    workdir = define_workdir(values, "Directory of an import, or of a run that is complete.")
    resolutions = flags.DEFINE_list(
        "resolutions", None, "Sizes below the base to fit the network for, such as 168,112.",
        flag_values=values,
    )
    data = flags.DEFINE_string(
        "data", None, "Folder of images, in any folders; with --recalibrate of <class>/*. By "
        "default the training split of the run's config.", flag_values=values,
    )
    classes = define_classes(
        values, "those in use, among which the network is taught to answer as at its base."
    )
    epochs = flags.DEFINE_float(
        "epochs", DEFAULT.epochs, "Passes over the images.", 1e-6, flag_values=values
    )
    batch = flags.DEFINE_integer(
        "batch", DEFAULT.batch_size, "Images a step.", 1, flag_values=values
    )
    rate = flags.DEFINE_float(
        "learning_rate", DEFAULT.learning_rate, "Adam's, after its warm-up.", 1e-12,
        flag_values=values,
    )
    anew = flags.DEFINE_bool(
        "recalibrate", False, "Take the statistics of all norms anew, each resolution's if it then "
        "answers no worse; for networks that were trained at several sizes.", flag_values=values,
    )
    images = flags.DEFINE_integer(
        "images", 2048, "With --recalibrate: images that the statistics are of.", 1,
        flag_values=values,
    )
    start = define_distributed(values)

    def command() -> None:
        where, among = workdir(), classes() or ()
        if anew.value == bool(resolutions.value):
            raise UserError(
                "expected --resolutions, or --recalibrate, received "
                + ("both" if anew.value else "neither")
            )
        sizes, meta = _sizes(resolutions.value), _newest(where)
        folder = None if data.value is None else directory("--data", data.value, to_write=False)
        start()
        if anew.value:
            source = _labelled(meta, folder)
            for verdict in recalibrate(where, source, images.value, batch.value):
                print(verdict)
            return
        source = UnlabelledSource(str(folder)) if folder else open_source(meta.config.data, True)
        if jax.process_index() == 0:
            print(*source.notes, sep="\n", end="\n" * bool(source.notes), flush=True)
        settings = Settings(sizes, among, epochs.value, batch.value, rate.value)
        with Stopping() as stopping:
            adapt(where, source, settings, stopping)

    return command


def _newest(workdir: str) -> Meta:
    meta = newest(workdir)
    if meta is None:
        raise UserError(
            f"{workdir}: expected a workdir with checkpoints, found none; drnet train makes some, "
            "and drnet import-torch one"
        )
    return meta


def _sizes(texts: list[str] | None) -> tuple[int, ...]:
    try:
        return tuple(map(int, texts or []))
    except ValueError as error:
        raise UserError(
            f"--resolutions: expected sizes such as 168,112, received {','.join(texts)!r}"
        ) from error


def _labelled(meta: Meta, folder: Path | None) -> Source:
    data = meta.config.data
    if folder is not None:
        data = dataclasses.replace(data, name="folder", dir=str(folder))
    return open_source(data, True, meta.classes)
