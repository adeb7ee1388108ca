"""Existing checkpoints: the one that is meant, the newest that is whole, and those that are not."""

import os
import sys
from pathlib import Path

from drnet_jax.checkpoints import digests
from drnet_jax.checkpoints.manager import FOLDER, Checkpoints, steps_in
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.errors import UserError

ASIDE = "damaged"  # in the workdir: where checkpoints go that are not whole


def newest(workdir: str) -> Meta | None:
    """What the newest whole checkpoint of a run is; None if there is none. Creates nothing.

    Raises:
        UserError: if there are some, but none is whole.
    """
    if not (Path(workdir) / FOLDER).is_dir():
        return None
    checkpoints = Checkpoints(workdir)
    try:
        there = checkpoints.steps()  # before the look at them: a run may just write its first
        step = checkpoints.latest()
        if step is None and there:
            raise UserError(_none_whole(checkpoints))
        return None if step is None else checkpoints.meta(step)
    finally:
        checkpoints.close()


def put_damaged_aside(workdir: str) -> list[str]:
    """Moves checkpoints that are not whole out of the way of those to come, and says which.

    By one process alone, and so without orbax, in which all meet.
    """
    directory, told = Path(workdir).absolute() / FOLDER, []
    for step in steps_in(directory):
        if found := digests.damage(directory / str(step)):
            aside = directory.with_name(ASIDE)
            aside.mkdir(exist_ok=True)
            number = sum(path.name.split("-")[0] == str(step) for path in aside.iterdir())
            place = aside / (f"{step}-{number}" if number else str(step))
            (directory / str(step)).rename(place)
            told.append(f"warning: checkpoint {step} is damaged ({found}): moved to {place}")
    return told


def _none_whole(checkpoints: Checkpoints) -> str:
    damaged = checkpoints.damaged()
    remedy = "use another --workdir to start anew" if damaged else "train until it has saved one"
    return "; ".join((
        f"{checkpoints.directory}: expected a whole checkpoint, found none", *damaged, remedy
    ))


def is_checkpoint(path: str) -> bool:
    """Whether a path is that of one checkpoint, `workdir/checkpoints/STEP`."""
    directory = Path(path).absolute()
    return directory.name.isdecimal() and directory.parent.name == FOLDER


def find_checkpoint(path: str, which: str) -> tuple[Checkpoints, int]:
    """The checkpoints of a run, opened for reading, and the step of the one that is meant.

    Args:
        path: a workdir, or a checkpoint's directory in it, `workdir/checkpoints/STEP`.
        which: "last" or "best" of a workdir.

    Raises:
        UserError: if there is none.
    """
    directory = Path(path).absolute()
    if is_checkpoint(path):
        checkpoints = open_existing(str(directory.parents[1]))
        step = int(directory.name) if int(directory.name) in checkpoints.steps() else None
        expected = f"one of the steps {', '.join(map(str, checkpoints.steps()))}"
        if step is not None and (found := checkpoints.damage(step)):
            raise UserError(f"{path}: expected a whole checkpoint, but {found}")
    else:
        checkpoints = open_existing(str(directory))
        step = checkpoints.best() if which == "best" else checkpoints.latest()
        for line in checkpoints.damaged():
            print(f"warning: {line}; using step {step}", file=sys.stderr)
        expected = "one that was validated; take the last one with --checkpoint=last"
    if step is None:
        checkpoints.close()
        raise UserError(f"{path}: no such checkpoint is there; expected {expected}")
    return checkpoints, step


def open_existing(workdir: str) -> Checkpoints:
    """Opens the checkpoints of a run that has some; raises UserError if there is none."""
    workdir = os.path.expanduser(workdir)
    if not (Path(workdir) / FOLDER).is_dir():
        raise UserError(
            f"{workdir}: expected a working directory with checkpoints, found none; drnet "
            "train --workdir makes some"
        )
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest() is None:
        raise UserError(_none_whole(checkpoints))
    return checkpoints
