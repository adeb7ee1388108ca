"""Reproduce: runs what a study still needs, and writes its tables and figures as it goes."""

import dataclasses
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from drnet_jax.devices import own_cores
from drnet_jax.errors import first_line
from drnet_jax.reproduce import estimate, figures, report
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.jobs import RUNS
from drnet_jax.reproduce.paper import TABLES
from drnet_jax.reproduce.results import read
from drnet_jax.reproduce.running import (
    LOG,
    POLL,
    Display,
    Process,
    last_record,
    run,
    run_order,
    status,
)
from drnet_jax.reproduce.study import Item, Study


def reproduce(study: Study, display: Display, jobs: int) -> None:
    """Runs all jobs that are not done; writes the tables after each, and the figures at the end.

    Args:
        jobs: how many to run at once, each on its own share of the cores.

    Raises:
        UserError: if a job fails; what was done is kept, and the same study goes on from there.
    """
    split = np.array_split(own_cores(), jobs)
    shares = [part.tolist() for part in split] if jobs > 1 else [None]
    running: dict[int, tuple[Process, list[int] | None]] = {}  # by number of the job
    try:
        while True:
            items = study.items()
            for number in _ready(items, running, jobs)[: len(shares)]:
                order, log = run_order(items[number].job), items[number].job.workdir / LOG
                cores = shares.pop()
                running[number] = Process(order, study.folder, log, cores), cores
            if not running:
                break
            for number in _ended(items, running, display):
                shares.append(running.pop(number)[1])
                report.write_tables(study)
                display.say(f"[{number + 1}/{len(items)}] {_found(items[number])}")
    finally:
        for process, _ in running.values():
            process.stop()
    if "figure3" in study.names and figures.times(study) is None:
        display.say("figure3: measuring latencies, a minute or two")
        order = {
            "kind": "time", "runs": str(study.folder / RUNS),
            "path": str(study.folder / figures.TIMES),
            "points": [dataclasses.asdict(point) for point in figures.points(study)],
        }
        run(order, study.folder, study.folder / "latency.log")
    write(study, display)


def _ready(items: Sequence[Item], running: Container[int], jobs: int) -> list[int]:
    """The jobs that can be begun, as what they begin with is done, in the order of the plan.

    But one comes first with which it is high time: alone at the end, it and those that begin with
    it would take longer than all the rest.
    """
    done = {item.job.run.name for item in items if item.progress.done}
    ready = [
        number for number, item in enumerate(items)
        if not item.progress.done and number not in running
        and item.job.run.origin in ("", *done)
    ]

    def chain(number: int) -> float:
        """Seconds of a job and, after it, the longest of those that begin with it."""
        name, own = items[number].job.run.name, items[number].work.left
        after = [item.work.left for item in items if item.job.run.origin == name]
        return own + max(after, default=0.0)

    first = max(ready, key=chain, default=None)
    if first is not None and jobs * chain(first) >= sum(item.work.left for item in items):
        ready.remove(first)
        ready.insert(0, first)
    return ready


def _ended(
    items: Sequence[Item], running: Mapping[int, tuple[Process, Any]], display: Display
) -> list[int]:
    """The jobs that end next; shows how all go until then."""
    began = {number: process.began for number, (process, _) in running.items()}
    took = report.took(items)
    while True:
        ended = [number for number, (process, _) in running.items() if process.ended()]
        if ended:
            return ended
        display.show(_status(items, began, took))
        time.sleep(POLL)


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


def _status(
    items: Sequence[Item], began: Mapping[int, float], took: Sequence[tuple[float, float]]
) -> str:
    """How the jobs go that began at these times, and how long all will take.

    Args:
        took: of the jobs that are done, as of `estimate.pace`.
    """
    pace, lines, left = estimate.pace(took), [], 0.0
    for number, at in began.items():
        item, record = items[number], last_record(items[number].job.workdir)
        steps = item.work.steps
        if item.progress.trained or (_new(record, at) and record["step"] >= steps):
            doing, own = "evaluating", None
        elif not _new(record, at):
            doing, own = "starting", max(0.0, pace * item.work.left - (time.time() - at))
        else:
            doing, own = f"step {record['step']} of {steps}", record["seconds_left"]
            # Of the first runs the pace is what they have come to by now.
            expected = item.work.training * (1 - record["step"] / steps)
            pace = pace if took or not expected else estimate.pace([(own, expected)])
        lines.append(status(number + 1, len(items), f"{item.job.run.label}: {doing}", own))
        left += own or 0.0
    left += pace * sum(item.work.left for n, item in enumerate(items) if n not in began)
    return f"{'; '.join(lines)} (of all: {duration(left / len(began))})"


def _new(record: Mapping[str, Any] | None, began: float) -> bool:
    """Whether a record is of a start at that time, and not of one before."""
    return record is not None and record["time"] > began


def _found(item: Item) -> str:
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
