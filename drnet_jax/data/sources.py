"""Sources: opens the data set that a config names, or the part of it that it asks for."""

from collections.abc import Sequence

from drnet_jax import config
from drnet_jax.data.folder import FolderSource
from drnet_jax.data.listing import some
from drnet_jax.data.protocol import Source
from drnet_jax.data.records import RECORDS, RecordsSource
from drnet_jax.data.subset import Subset, classes_named
from drnet_jax.data.tfds_source import TfdsSource
from drnet_jax.errors import UserError


def open_source(
    data: config.Data, training: bool, classes: Sequence[str] | None = None,
    leave_out: bool = False,
) -> Source:
    """Opens the training split of `data`, or else its validation split.

    Args:
        classes: names in the order of their labels, as a checkpoint knows them; by default those of
            the training split. With them a folder needs neither that split nor images of all, and
            its class folders may lie in `data.dir` itself. Where `data.classes` names some, these
            are kept in their place.
        leave_out: whether images of other classes than `classes` are left out.

    Raises:
        UserError: if the data set is unknown, missing, not prepared, prepared in a format without
            random access, without the split, not one of labelled images, or of other classes.
    """
    split = data.train_split if training else data.val_split
    kept = None
    if leave_out or data.classes:
        kept = classes or classes_named(data.classes)
    if data.name == "folder":
        source = FolderSource(data.dir, split, data.train_split, classes, kept)
    else:
        source = (
            RecordsSource(data.dir, split) if data.name == RECORDS
            else TfdsSource(data.name, data.dir, split)
        )
        if classes is not None and kept is None and tuple(classes) != source.classes:
            raise UserError(
                f"config.data.name: expected a data set of the {len(classes)} classes "
                f"{', '.join(classes[:3])}, ...; {data.name!r} has {len(source.classes)}, "
                f"{', '.join(source.classes[:3])}, ..."
            )
    per_class = data.images_per_class if training else 0
    if kept is None and not per_class:
        return source
    subset = Subset(source, kept or source.classes, per_class)
    if training and kept is not None and classes is None and subset.without:
        raise UserError(
            "config.data.classes: expected training images of every class, found none of "
            f"{some(subset.without)} in the split {split!r} of {data.dir or data.name}"
        )
    return subset


def resolve_classes(source: Source, configured: int) -> int:
    """Returns the number of classes: what the source has, which `configured` must be, or 0.

    Raises:
        UserError: if config.classifier.classes disagrees with the source, or it has but one.
    """
    found = len(source.classes)
    if found < 2:
        raise UserError(
            f"config.data: expected at least two classes, found {', '.join(source.classes)} only; "
            "in a folder every class has a folder of its own, <split>/<class>"
        )
    if configured not in (0, found):
        raise UserError(
            f"config.classifier.classes: expected {found}, as many as the data set has classes, or "
            f"0 to take that number; received {configured}"
        )
    return found
