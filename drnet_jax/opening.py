"""Opening: what is known of a model, from a run, one of its checkpoints, or an export."""

import dataclasses
import functools
from pathlib import Path

import jax

from drnet_jax import transfer
from drnet_jax.bundle import files
from drnet_jax.checkpoints.existing import find_checkpoint, is_checkpoint
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.devices import data_mesh, replicated
from drnet_jax.dial import Dials
from drnet_jax.errors import UserError
from drnet_jax.transfer import Variables


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model as it was found."""

    meta: Meta
    classes: tuple[str, ...]  # among which it answers
    variables: Variables  # of these classes, on all devices
    dials: Dials  # that hold among these classes
    workdir: Path  # where evaluation leaves its files

    def among(self, classes: tuple[str, ...]) -> "Opened":
        """The same, answering among some of its classes; UserError if these will not do."""
        rows, known = _rows(classes, self.classes), self.classes
        if classes == known:
            return self
        axes = transfer.class_axes(self.meta.config, len(known))
        pick = functools.partial(
            transfer.pick_classes, axes=axes, classes=len(known), kept=rows
        )
        variables = jax.jit(pick, out_shardings=replicated(data_mesh()))(self.variables)
        # Among fewer classes everybody is surer; a predictor that knows none is not.
        told = set(classes) == set(known)
        free = "router" in self.dials and not self.meta.config.predictor.classifies
        some = {"router": self.dials["router"]} if free else {}
        dials = self.dials if told else some
        return dataclasses.replace(self, classes=classes, variables=variables, dials=dials)


def open_model(path: str, which: str) -> Opened:
    """Reads a model.

    Args:
        path: a workdir, a checkpoint's directory in it, or an export.
        which: "last" or "best" of a workdir's checkpoints.

    Raises:
        UserError: if there is none.
    """
    if files.is_bundle(path):
        contents, _ = files.read(path)
        variables = jax.device_put(contents.variables, replicated(data_mesh()))
        return Opened(contents.meta, contents.classes, variables, contents.dials, Path(path))
    checkpoints, step = find_checkpoint(path, which)
    try:
        meta, validated = checkpoints.meta(step), checkpoints.validated(step)
        variables = checkpoints.restore_model(step, data_mesh())
    finally:
        checkpoints.close()
    workdir = Path(path).absolute().parents[1] if is_checkpoint(path) else Path(path)
    return Opened(meta, meta.classes, variables, validated.dials if validated else {}, workdir)


def _rows(classes: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...]:
    """The labels of classes to answer among; UserError if these will not do."""
    rows = transfer.rows_of(classes, known)
    if rows is None:
        unknown = [name for name in classes if name not in known]
        raise UserError(
            f"classes: expected some of the model's {len(known)} ({', '.join(known[:3])}, ...), "
            f"received {len(unknown)} that it does not know, such as {unknown[0]!r}"
        )
    if len(set(rows)) < max(2, len(rows)):
        raise UserError(
            f"classes: expected two or more, each once, received {', '.join(classes) or 'none'}"
        )
    return rows
