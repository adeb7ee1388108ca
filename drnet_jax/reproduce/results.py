"""Results: what a job leaves in its folder, and the figures that rows of the tables take from it.

Beside the files of any run there lie `eval.json`, as of `drnet eval`; `answers.npz`, what every
option says of every validation image (`drnet_jax.evaluation.table`); and `run.json`: the command
line that does the same, the seconds that it took over all its starts, and on what.
"""

import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.cost import Costs
from drnet_jax.evaluation.table import Table
from drnet_jax.reproduce.paper import Row, Single

REPORT, RECORD, ANSWERS = "eval.json", "run.json", "answers.npz"
DRAWS = 3  # of random resolutions, as the paper's


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a row says; None: not known."""

    parameters: float | None = None  # as the paper counts: norms of one resolution
    multiply_adds: float | None = None  # of an image, the predictor's included where it runs
    saved: float | None = None  # share of the base's multiply-adds
    top1: float | None = None
    top5: float | None = None
    deviation: float | None = None  # of top1, over draws
    between: tuple[float, float] | None = None  # least and most multiply-adds there can be


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job has found."""

    report: dict[str, Any]  # eval.json
    record: dict[str, Any]  # run.json
    answers: Table

    def policy(self, name: str) -> dict[str, Any]:
        """A policy of the report, by name."""
        return next(row for row in self.report["policies"] if row["name"] == name)


def read(workdir: Path) -> Result:
    """What a job that is done has left."""
    report = json.loads((workdir / REPORT).read_text())
    return Result(report, read_record(workdir), read_answers(workdir))


def read_record(workdir: Path) -> dict[str, Any]:
    """Its run.json."""
    return json.loads((workdir / RECORD).read_text())


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(new, path)


def write_answers(workdir: Path, table: Table) -> None:
    """Writes answers.npz."""
    columns = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    np.savez_compressed(workdir / ANSWERS, **columns)


def read_answers(workdir: Path) -> Table:
    """What `write_answers` wrote."""
    with np.load(workdir / ANSWERS) as columns:
        return Table(**columns)


class Record:
    """run.json while the job runs: it counts the seconds of all its starts."""

    def __init__(self, path: Path, began: float, values: dict[str, Any]):
        self._path, self._values, self._lock = path, values, threading.Lock()
        self._since = began - values["seconds"]  # as if it had never stopped

    @classmethod
    def open(cls, workdir: Path, began: float, command: str) -> "Record":
        """The record of a job that was started at `began`, seconds since 1970."""
        path = workdir / RECORD
        before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        workdir.mkdir(parents=True, exist_ok=True)
        return cls(path, began, {"command": command, "seconds": before})

    def tick(self, **values: Any) -> None:
        """Notes the time that went by, and `values`."""
        with self._lock:
            self._values |= {"seconds": time.time() - self._since} | values
            write(self._path, self._values)


def known(row: Row, costs: Costs, base: Costs) -> Figures:
    """What is known of a row before anything is run.

    Args:
        row: of an experiment.
        costs: of its model.
        base: of what it is compared with (`paper.base`).
    """
    parameters, of_base = costs.parameters.classifier, base.classifier[0]
    if isinstance(row.experiment, Single):
        spent = float(costs.classifier[0])
        return Figures(parameters, spent, 1 - spent / of_base)
    if row.policy == "own":
        least, most = costs.routed.min(), costs.routed.max()
        return Figures(parameters + costs.parameters.predictor, between=(least, most))
    # A random resolution needs no predictor.
    spent = float(np.mean(costs.classifier))
    return Figures(parameters, spent, 1 - spent / of_base)


def found(row: Row, costs: Costs, base: Costs, result: Result | None) -> Figures:
    """What is known of a row, and what its job, if that is done, has found."""
    before = known(row, costs, base)
    if result is None:
        return before
    if row.policy != "own":
        measured = _random(result, costs, row.policy)
    elif isinstance(row.experiment, Single):
        measured = result.policy(f"fixed {costs.resolutions[0]}")
    else:
        measured = result.policy("routed")
    names = ("multiply_adds", "top1", "top5", "deviation")
    after = dataclasses.replace(
        before, **{name: measured[name] for name in names if name in measured}
    )
    return dataclasses.replace(after, saved=1 - after.multiply_adds / base.classifier[0])


def _random(result: Result, costs: Costs, policy: str) -> dict[str, float]:
    """Figures of one draw of resolutions, all equally likely, or the mean of all draws."""
    draws = [_draw(result, costs, number) for number in range(1, DRAWS + 1)]
    _, _, number = policy.partition(" ")
    if number:
        return draws[int(number) - 1]
    mean = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return mean | {"deviation": float(np.std([draw["top1"] for draw in draws]))}


def _draw(result: Result, costs: Costs, number: int) -> dict[str, float]:
    rank = result.answers.rank
    random = np.random.default_rng([result.report["seed"], number])
    choice = random.integers(len(costs.resolutions), size=len(rank))
    drawn = rank[np.arange(len(rank)), choice]
    return {
        "multiply_adds": float(np.mean(costs.passes[choice])),
        "top1": float((drawn < 1).mean()), "top5": float((drawn < 5).mean()),
    }
