"""Files: what an evaluation leaves image by image and class by class."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax import dial
from drnet_jax.cost import Costs
from drnet_jax.data.sources import Source
from drnet_jax.dial import Dial, Dials
from drnet_jax.drnet import DRNet
from drnet_jax.evaluation.policies import Outcome
from drnet_jax.evaluation.table import Table
from drnet_jax.formatting import by_option

DIALS = "dial.json"
COLUMNS = (
    "filename", "label", "prediction", "prob", "network", "resolution", "multiply_adds",
)


def predictions(table: Table, routed: Outcome) -> np.ndarray:
    """The class that routing answers with, int [N]."""
    return table.answer[np.arange(len(table.label)), routed.choice]


def write_predictions(
    path: Path, table: Table, routed: Outcome, drnet: DRNet, source: Source,
    classes: Sequence[str],
) -> None:
    """Writes predictions.csv: a line an image, as it was routed (see docs/files.md)."""
    probability = table.probability[np.arange(len(table.label)), routed.choice]
    rows = zip(
        table.index.tolist(), table.label.tolist(), predictions(table, routed).tolist(),
        probability.tolist(), routed.choice.tolist(), routed.cost.tolist(), strict=True,
    )
    with _open(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index, label, prediction, prob, choice, cost in rows:
            writer.writerow((
                source.key(index), classes[label], classes[prediction], f"{prob:.6g}",
                *drnet.answering(choice), round(cost),
            ))


def write_confusion(path: Path, table: Table, routed: Outcome, classes: Sequence[str]) -> None:
    """Writes confusion.csv: images of the class of each row that were taken for each column's."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (table.label, predictions(table, routed)), 1)
    with _open(path) as file:
        writer = csv.writer(file)
        writer.writerow(("", *classes))
        writer.writerows((name, *row) for name, row in zip(classes, counts.tolist(), strict=True))


def write_dials(
    path: Path, dials: Dials, checkpoint: int, classes: Sequence[str]
) -> None:
    """Writes dial.json: settings of a checkpoint, among these classes, and what they cost."""
    path.write_text(json.dumps({
        "checkpoint": checkpoint, "classes": list(classes),
        "dials": dial.to_json(dials),
    }) + "\n")


def read_dials(path: Path, checkpoint: int, classes: Sequence[str]) -> dict[str, Dial]:
    """What `write_dials` wrote of this checkpoint among these classes; {} if that is not there."""
    if not path.exists():
        return {}
    values = json.loads(path.read_text())
    if (values["checkpoint"], values["classes"]) != (checkpoint, list(classes)):
        return {}
    return dial.from_json(values["dials"])


def by_class(
    table: Table, routed: Outcome, costs: Costs, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each class that has images: "images", "top1", mean "multiply_adds", and "mix"."""
    found = {}
    for label, name in enumerate(classes):
        own = table.label == label
        if own.any():
            part = Outcome(name, routed.choice[own], routed.rank[own], routed.cost[own])
            found[name] = {
                "images": int(own.sum()),
                "top1": part.top(1),
                "multiply_adds": part.mean_cost(),
                "mix": by_option(costs.options, part.mix(len(costs.options))),
            }
    return found


def _open(path: Path) -> Any:
    # Names of files and classes may hold bytes that are no UTF-8: they are written as they are.
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
