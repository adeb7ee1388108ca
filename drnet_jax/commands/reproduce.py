"""The paper's tables and figures: drnet reproduce table1 --workdir DIR [--scale small]."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from drnet_jax.commands.shared import define_workdir, directory
from drnet_jax.devices import cores
from drnet_jax.errors import UserError
from drnet_jax.reproduce import report
from drnet_jax.reproduce.paper import NEEDS
from drnet_jax.reproduce.reproduce import reproduce, write
from drnet_jax.reproduce.running import Display
from drnet_jax.reproduce.scales import SCALES, Scale
from drnet_jax.reproduce.study import Study

ALL, FOLDER = "all", "folder:"


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[Sequence[str]], None]:
    workdir = define_workdir(
        values, "Directory of the runs, tables and figures; the same command goes on there."
    )
    scale = flags.DEFINE_enum(
        "scale", "small", list(SCALES), "Small networks on drawn shapes, for two cores; or the "
        "paper's networks and images.", flag_values=values,
    )
    data = flags.DEFINE_string(
        "data", None, "folder:PATH, with PATH/train/<class>/* and PATH/val/<class>/*: the images "
        "in place of drawn shapes, or of ImageNet as tfds prepares it.", flag_values=values,
    )
    jobs = flags.DEFINE_integer(
        "jobs", None, "Runs at once, each on its own share of the cores; by default one a core at "
        "the small scale, and one in all at the paper's.", 1, flag_values=values,
    )
    plan = flags.DEFINE_bool(
        "plan", False, "Run nothing: print the plan, and write what the runs there give.",
        flag_values=values,
    )

    def command(names: Sequence[str]) -> None:
        wanted, folder, size = _names(names), Path(workdir()), SCALES[scale.value]
        overrides = _data(data.value, size, folder)
        # Work is done in processes of their own: this one is not to hold an accelerator.
        jax.config.update("jax_platforms", "cpu")
        study = Study(size, folder, wanted, overrides, data.value is not None)
        at_once = jobs.value or (1 if size.comparable else cores())
        print(report.plan_text(study, study.items(), at_once), flush=True)
        display, missing = Display(sys.stdout), study.missing()
        folder.mkdir(parents=True, exist_ok=True)
        if plan.value or missing:
            write(study, display)
        else:
            reproduce(study, display, at_once)
        for reason in missing:
            print(f"not run, as the images are not at hand: {reason}")

    return command


def _names(names: Sequence[str]) -> list[str]:
    """The tables and figures that are named, each once, in the paper's order."""
    wanted = [*NEEDS] if ALL in names else names
    unknown = [name for name in wanted if name not in NEEDS]
    if unknown or not names:
        raise UserError(
            f"expected names of {', '.join(NEEDS)}, or {ALL}; received "
            f"{repr(unknown[0]) if unknown else 'none'}"
        )
    return [name for name in NEEDS if name in wanted]


def _data(text: str | None, scale: Scale, folder: Path) -> dict[str, Any]:
    """The keys of the config, by path, that say which images to take, and from where."""
    if text is None:
        return {} if scale.train_images else {"data.dir": str(folder / "data")}
    if not text.startswith(FOLDER):
        raise UserError(f"--data: expected {FOLDER}PATH, received {text!r}")
    path = directory("--data", text.removeprefix(FOLDER), to_write=False)
    return {
        "data.name": "folder", "data.dir": str(path), "data.train_split": "train",
        "data.val_split": "val", **scale.photographs,
    }
