"""Evaluate a checkpoint: drnet eval --workdir DIR [--data FOLDER]."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from drnet_jax.api import Model, load
from drnet_jax.checkpoints.existing import is_checkpoint
from drnet_jax.commands.shared import (
    define_classes,
    define_config,
    define_distributed,
    define_workdir,
    directory,
)
from drnet_jax.config import GIGA, Config
from drnet_jax.data.sources import Source
from drnet_jax.errors import UserError, first_line
from drnet_jax.evaluation import curve
from drnet_jax.evaluation.evaluate import Evaluation
from drnet_jax.evaluation.files import DIALS, write_confusion, write_dials, write_predictions
from drnet_jax.evaluation.pictures import draw_routing
from drnet_jax.evaluation.report import text_report
from drnet_jax.train.resume import CLASSIFIER_KEYS, PREDICTOR_KEYS, check_compatible, differing

USED = ("data", "evaluation", "seed")  # groups and keys of --config; see `drnet_jax.api.load`


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config = define_config(values, argv, required=False)
    workdir = define_workdir(values, "Directory of a training run.")
    checkpoint = flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "Which checkpoint to evaluate.",
        flag_values=values,
    )
    budget = flags.DEFINE_float(
        "budget", None, "Mean cost to route at in 1e9 multiply-adds, the predictor's included; "
        "0 for none. In place of config.budget.", lower_bound=0, flag_values=values,
    )
    data = flags.DEFINE_string(
        "data", None, "Folder of <class>/*, or of <split>/<class>/*, to evaluate on, in place of "
        "the validation split that the model was trained with.", flag_values=values,
    )
    among = define_classes(values, "answers are among these of the model's classes only.")
    with_curve = flags.DEFINE_bool(
        "curve", False, "Also accuracy over cost, of all policies, into curve.json, curve.csv and "
        "curve.png.", flag_values=values,
    )
    start = define_distributed(values)

    def command() -> None:
        override, where = config(), workdir()
        if is_checkpoint(where):
            raise UserError(
                f"--workdir: expected the workdir of a run, received one of its checkpoints, "
                f"{where!r}, whose files are to stay as they are; drnet predict and "
                "drnet_jax.load take it"
            )
        if override and data.value is not None:
            raise UserError("--config and --data: expected one of them, received both")
        folder = None if data.value is None else directory("--data", data.value, to_write=False)
        classes = among()
        start()
        model = load(where, checkpoint.value, override, classes)
        if override:
            keys = CLASSIFIER_KEYS + PREDICTOR_KEYS
            check_compatible(model.meta, override, None, where, keys)
            announce_ignored(model.meta.config, override)
        if with_curve.value and len(model.costs.options) == 1:
            raise UserError("--curve: expected several config.resolutions, received one")
        wanted = model.budget if budget.value is None else budget.value * GIGA
        model.costs.check_budget(wanted)
        source = model.source(folder)
        if jax.process_index() == 0:
            print(*source.notes, sep="\n", end="\n" * bool(source.notes), flush=True)
        found = model.measure(source, wanted)
        if jax.process_index() == 0:
            among_which = f", among {len(classes)} of its classes" if classes else ""
            print(f"checkpoint {model.meta.step} ({model.meta.stage}) of {where}{among_which}")
            write(Path(where), model, source, found, with_curve.value)

    return command


def announce_ignored(saved: Config, config: Config) -> None:
    """Says which keys of a config that differ from the checkpoint's are not looked at."""
    ignored = [
        f"config.{key}" for key in differing(saved, config) if key.partition(".")[0] not in USED
    ]
    if ignored and jax.process_index() == 0:
        print(f"{', '.join(ignored)}: not those of --config, but the checkpoint's, are used")


def write(
    folder: Path, model: Model, source: Source, found: Evaluation, with_curve: bool
) -> None:
    """Prints the tables, which no disk can keep back, and writes all files, pictures last."""
    print(text_report(found.report))
    swept = None
    if with_curve:
        swept = curve.sweep(
            found.table, model.costs, model.config.seed, model.config.evaluation.rule
        )
        print("\n" + curve.text_of(swept))
    drnet = model.engine.drnet
    (folder / "eval.json").write_text(json.dumps(found.report, indent=2) + "\n")
    write_dials(folder / DIALS, model.dials_of(found.table), model.meta.step, model.classes)
    write_predictions(
        folder / "predictions.csv", found.table, found.routed, drnet, source, model.classes
    )
    write_confusion(folder / "confusion.csv", found.table, found.routed, model.classes)
    written = ["eval.json", DIALS, "predictions.csv", "confusion.csv"]
    pictures: dict[str, Callable[[Path], None]] = {
        "routing.png": lambda path: draw_routing(
            path, found.table, found.routed, found.sample, drnet, model.classes
        ),
    }
    if swept:
        curve.write(swept, folder)
        written += ["curve.json", "curve.csv"]
        pictures["curve.png"] = lambda path: curve.draw(swept, path, model.predictor_trained)
    for name, draw in pictures.items():
        try:
            draw(folder / name)
            written.append(name)
        except Exception as error:  # whatever the fonts and libraries here cannot do
            print(f"warning: {name} could not be drawn: {first_line(error)}")
    print(f"written to {folder}: {', '.join(written)}, of these images")
