"""Reproduce: runs what a study still needs, and writes its tables and figures as it goes."""

import dataclasses
import time
from collections.abc import Sequence

from drnet_jax.errors import first_line
from drnet_jax.reproduce import estimate, figures, report
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.jobs import RUNS
from drnet_jax.reproduce.paper import TABLES
from drnet_jax.reproduce.results import read
from drnet_jax.reproduce.running import LOG, Display, last_record, run, run_order, status
from drnet_jax.reproduce.study import Item, Study


def reproduce(study: Study, display: Display) -> None:
    """Runs all jobs that are not done; writes the tables after each, and the figures at the end.

    Raises:
        UserError: if a job fails; what was done is kept, and the same study goes on from there.
    """
    items = study.items()
    for number, item in enumerate(items):
        if not item.progress.done:
            _run(study, items, number, display)
            report.write_tables(study)
            items = study.items()
            display.say(f"[{number + 1}/{len(items)}] {_found(study, items[number])}")
    if "figure3" in study.names and figures.times(study) is None:
        display.say("figure3: measuring latencies, a minute or two")
        order = {
            "kind": "time", "runs": str(study.folder / RUNS),
            "path": str(study.folder / figures.TIMES),
            "points": [dataclasses.asdict(point) for point in figures.points(study)],
        }
        run(order, study.folder, study.folder / "latency.log", lambda: None)
    write(study, display)


def write(study: Study, display: Display) -> None:
    """Writes all tables and figures, as far as there are runs, and says where they are."""
    report.write_tables(study)
    for name in study.names:
        if name in TABLES:
            display.say(f"{name}: {study.folder / name}.md and .csv")
            continue
        try:
            missing = figures.draw(study, name)
        except OSError:
            raise
        except Exception as error:  # whatever the fonts and libraries here cannot do
            missing = f"warning: {name} could not be drawn: {first_line(error)}"
        display.say(missing or f"{name}: {study.folder / name}.png")


def _run(study: Study, items: Sequence[Item], number: int, display: Display) -> None:
    """Does one job, and shows how it goes."""
    item, took, began = items[number], report.took(items), time.time()
    others = sum(other.work.left for other in items if other is not item)

    def poll() -> None:
        record, steps, pace = last_record(item.job.workdir), item.work.steps, estimate.pace(took)
        new = record is not None and record["time"] > began  # not of a start before
        if not new and not item.progress.trained:
            at, left = "starting", max(0.0, pace * item.work.left - (time.time() - began))
        elif item.progress.trained or record["step"] >= steps:
            at, left = "evaluating", None
        else:
            at, left = f"step {record['step']} of {steps}", record["seconds_left"]
            expected = item.work.training * (1 - record["step"] / steps)
            # Of a first run the pace is what it has come to by now.
            pace = pace if took else estimate.pace([(left, expected)])
        doing = f"{item.job.run.label}: {at}"
        of_all = pace * others + (left or 0.0)
        display.show(status(number + 1, len(items), doing, left, of_all))

    run(run_order(item.job), study.folder, item.job.workdir / LOG, poll)


def _found(study: Study, item: Item) -> str:
    """What a job that is done has come to, in a line."""
    result = read(item.job.workdir)
    base = item.costs.classifier[0]
    policies = {row["name"]: row for row in result.report["policies"]}
    routed = result.report["predictor_trained"] and len(item.costs.resolutions) > 1
    shown = [policies["routed"]] if routed else [
        policies[f"fixed {size}"] for size in item.costs.resolutions
    ]
    found = ", ".join(
        f"{100 * row['top1']:.2f} % at {row['multiply_adds'] / base:.2f}" for row in shown
    )
    took = duration(result.record["seconds"])
    return f"{item.job.run.label}: {found} of the base's cost; {took}"
