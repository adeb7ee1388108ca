"""Evaluate a checkpoint: drnet eval --workdir DIR."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from drnet_jax.checkpoint import check_compatible, open_existing
from drnet_jax.commands.shared import define_config
from drnet_jax.commands.train import define_distributed
from drnet_jax.config import GIGA, Config
from drnet_jax.cost import model_costs
from drnet_jax.data.loader import check_source
from drnet_jax.data.sources import open_source
from drnet_jax.devices import Programs, data_mesh, join_hosts
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.evaluation import curve, evaluate, outcomes
from drnet_jax.evaluation.pictures import draw_routing
from drnet_jax.evaluation.report import text_report
from drnet_jax.inference.engine import Engine


def define(values: flags.FlagValues, argv: list[str]) -> Callable[[], None]:
    config = define_config(values, argv, required=False)
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of a training run.", required=True, flag_values=values
    )
    checkpoint = flags.DEFINE_enum(
        "checkpoint", "last", ["last", "best"], "Which checkpoint to evaluate.",
        flag_values=values,
    )
    budget = flags.DEFINE_float(
        "budget", None, "Mean cost to route at in 1e9 multiply-adds, the predictor's included; "
        "0 for none. In place of config.budget.", lower_bound=0, flag_values=values,
    )
    curve = flags.DEFINE_bool(
        "curve", False, "Also accuracy over cost, of all policies, into curve.json, curve.csv and "
        "curve.png.", flag_values=values,
    )
    distributed = define_distributed(values)

    def command() -> None:
        if distributed.value:
            join_hosts()
        evaluate_workdir(workdir.value, checkpoint.value, config(), budget.value, curve.value)

    return command


def evaluate_workdir(
    workdir: str, which: str, override: Config | None, budget: float | None = None,
    with_curve: bool = False,
) -> None:
    """Evaluates a checkpoint: prints tables, writes eval.json and routing.png to `workdir`.

    Args:
        workdir: of a training run; its checkpoint knows the config and the classes.
        which: "last" or "best".
        override: whose `data`, `evaluation` and `seed` to use instead of the checkpoint's.
        budget: in place of the checkpoint's config.budget, in the same unit; 0 for none.
        with_curve: whether to go through all budgets too, and write curve.json, .csv and .png.

    Raises:
        UserError: if there is no checkpoint, networks or classes do not fit, or no choice of
            resolutions costs what the budget says, or there is none to draw a curve of.
    """
    checkpoints = open_existing(workdir)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise UserError(
            f"--checkpoint=best: expected a checkpoint that was validated, found none in "
            f"{workdir}; evaluate the last one with --checkpoint=last"
        )
    meta = checkpoints.meta(step)
    config = override or meta.config
    source = open_source(config.data, training=False)
    check_compatible(meta, config, source.classes, workdir)
    costs = model_costs(config, len(meta.classes))
    target = GIGA * (meta.config.budget if budget is None else budget)
    costs.check_budget(target)
    if with_curve and len(costs.resolutions) == 1:
        raise UserError("--curve: expected several config.resolutions, received one")
    check_source(source, config.data, config.resolutions[0])
    params, batch_stats = checkpoints.restore_model(step, data_mesh())
    checkpoints.close()

    engine = Engine(
        DRNet.from_config(config, len(meta.classes)), costs, config.evaluation.batch_size,
        Programs(),
    )
    engine.load(params, batch_stats)
    numbers, outcome, known = evaluate.evaluate(
        engine, lambda: outcomes.validation_batches(config, source), costs, target, config.seed
    )
    report = {"checkpoint": step, "stage": meta.stage, "seed": config.seed} | numbers
    if jax.process_index() == 0:
        (Path(workdir) / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_routing(Path(workdir) / "routing.png", outcome, config, source)
        print(f"checkpoint {step} ({meta.stage}) of {workdir}")
        print(text_report(report))
        if with_curve:
            swept = curve.sweep(known, costs, config.seed)
            curve.write(swept, Path(workdir))
            print("\n" + curve.text_of(swept))
