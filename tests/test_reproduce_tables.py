"""The paper's tables: what is printed, what is known of each row, and how they are written."""

import csv
import dataclasses
import io

import numpy as np
import pytest

from drnet_jax.cost import Costs, Parameters
from drnet_jax.evaluation.table import Table as Answers
from drnet_jax.reproduce import paper, results, tables
from drnet_jax.reproduce.paper import TABLES, Dynamic, Row, Single, Table, number
from drnet_jax.reproduce.results import Figures, Result
from drnet_jax.reproduce.tables import Line, Made

# Section 4, as it is printed; the labels without LaTeX and references.
PRINTED = {
    "table1": """
        [1x]              | -   | 4.1 G | 78.5%
        [1x, 0.75x, 0.5x] | Yes | 3.4 G | 82.5%
        [1x, 0.75x, 0.5x] | Yes | 2.8 G | 81.4%
        [1x, 0.75x, 0.5x] | No  | 2.9 G | 80.3%
    """,
    "table2": """
        0.2 | 2.0 | 2.3 G | 80.6%
        0.2 | 2.5 | 2.8 G | 81.4%
        0.2 | 3.0 | 3.3 G | 82.3%
        0.2 | 3.5 | 3.5 G | 82.6%
        0.1 | 3.0 | 3.3 G | 82.1%
        0.2 | 3.0 | 3.3 G | 82.3%
        0.5 | 3.0 | 3.1 G | 81.9%
        1   | 3.0 | 3.1 G | 81.5%
    """,
    "table3": """
        ResNet-50-baseline  | -   | 25.6 M | 4.1 G | -   | 76.1% | 92.9%
        DRNet-ResNet-50     | -   | 30.5 M | 3.7 G | 10% | 77.5% | 93.5%
        DRNet-ResNet-50     | 2.0 | 30.5 M | 2.3 G | 44% | 75.3% | 92.2%
        DRNet-ResNet-50     | 2.5 | 30.5 M | 2.7 G | 34% | 76.2% | 92.8%
        DRNet-ResNet-50     | 3.0 | 30.5 M | 3.2 G | 22% | 77.0% | 93.2%
        DRNet-ResNet-50     | 3.5 | 30.5 M | 3.7 G | 10% | 77.4% | 93.5%
        ResNet-101-baseline | -   | 44.5 M | 7.8 G | -   | 77.4% | 93.5%
        DRNet-ResNet-101    | -   | 49.4 M | 7.0 G | 10% | 79.0% | 94.3%
    """,
    "table4": """
        ResNet-50-baseline            | 25.6 M | 4.1 G | -   | 76.1% | 92.9%
        ResNet-50 (192x192)           | 25.6 M | 3.0 G | 27% | 74.3% | 91.9%
        SSS-ResNet-50                 | -      | 2.8 G | 32% | 74.2% | 91.9%
        Versatile-ResNet-50           | 11.0 M | 3.0 G | 27% | 74.5% | 91.8%
        PFP-A-ResNet-50               | 20.9 M | 3.7 G | 10% | 75.9% | 92.8%
        C-SGD70-ResNet-50             | -      | 2.6 G | 37% | 75.3% | 92.5%
        DRNet-ResNet-50               | 30.5 M | 3.7 G | 10% | 77.5% | 93.5%
        DRNet-ResNet-50 (alpha = 2.0) | 30.5 M | 2.3 G | 44% | 75.3% | 92.2%
    """,
    "table5": """
        Random-1      | 2.6 G | 74.70%
        Random-2      | 2.6 G | 74.65%
        Random-3      | 2.6 G | 74.60%
        Random (mean) | 2.6 G | 74.65 ± 0.04%
        DRNet         | 3.7 G | 77.5%
    """,
    "table6": """
        MobileNetV2-baseline  | 3.5 M | 300 M | -   | 71.8%
        MobileNetV2 (192x192) | 3.5 M | 221 M | 26% | 70.7%
        MobileNetV2-0.75x     | 2.6 M | 209 M | 30% | 69.8%
        DRNet-MobileNetV2     | 3.8 M | 283 M | 5%  | 72.7%
    """,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_as_printed(name):
    lines = [line for line in PRINTED[name].splitlines() if line.strip()]
    printed = [tuple(cell.strip() for cell in line.split("|")) for line in lines]
    assert [row.labels + row.paper for row in TABLES[name].rows] == printed
    table = TABLES[name]
    assert {len(row.labels) for row in table.rows} == {len(table.labels)}


@pytest.mark.parametrize(("printed", "value"), [
    ("25.6 M", 25.6e6), ("4.1 G", 4.1e9), ("10%", 0.1), ("74.65 ± 0.04%", 0.7465), ("-", None)])
def test_what_is_printed_as_a_number(printed, value):
    assert number(printed) == pytest.approx(value)


def derived(name, figure):
    table = TABLES[name]
    found = [tables.printed_of(table, row, figure) for row in table.rows]
    return [None if value is None else round(100 * value, 1) for value in found]


def test_what_is_worked_out_of_the_paper_s_figures():
    # "about 17% reduction ... 4.0% accuracy increase", "about 32%" (section 4.2), "44%" of alpha 2.
    assert derived("table1", "saved") == [None, 17.1, 31.7, 29.3]
    assert derived("table1", "over") == [None, 4.0, 2.9, 1.8]
    assert derived("table2", "saved")[0] == 43.9  # over the baseline of Table 1
    assert derived("table3", "saved")[-2:] == [None, 10.0]  # as printed, over ResNet-101
    assert derived("table3", "over")[-2:] == [None, 1.6]
    assert derived("table4", "over")[2] == -1.9  # a quoted row
    assert derived("table5", "over") == [-1.4, -1.4, -1.5, -1.4, 1.4]
    assert derived("table6", "over") == [None, -1.1, -2.0, 0.9]


def test_every_row_is_compared_with_a_row_that_is_printed():
    for table in TABLES.values():
        for row in table.rows:
            assert number(tables._of_base(row, "top1")) > 0.7


# A DRNet of four images at three resolutions, and what it is compared with.
COSTS = Costs((16, 12, 8), (100, 60, 20), 5, Parameters(1000, 50, 30))
BASE = Costs((16,), (100,), 5, Parameters(1000, 50, 0))


def result(seed=0, **policies):
    rank = np.array([[0, 0, 1], [0, 5, 9], [2, 0, 0], [7, 7, 7]])
    blank = {field.name: np.zeros(4) for field in dataclasses.fields(Answers)}
    rows = [{"name": name.replace("_", " "), **row} for name, row in policies.items()]
    return Result({"seed": seed, "policies": rows}, {}, Answers(**blank | {"rank": rank}))


ROUTED = {"top1": 0.5, "top5": 0.75, "multiply_adds": 65.0}
SINGLE, DRNET = Row(("a",), (), Single("resnet50")), Row(("b",), (), Dynamic("resnet50"))


def test_what_a_row_says_once_it_is_run():
    assert results.found(DRNET, COSTS, BASE, result(routed=ROUTED)) == Figures(
        1050, 65.0, 0.35, 0.5, 0.75, None, (25.0, 105.0))
    fixed = {"top1": 0.5, "top5": 0.75, "multiply_adds": 100.0}
    assert results.found(SINGLE, BASE, BASE, result(fixed_16=fixed)) == Figures(
        1000, 100.0, 0.0, 0.5, 0.75)


def test_what_is_known_of_a_row_that_is_not_run():
    assert results.found(DRNET, COSTS, BASE, None) == Figures(1050, between=(25.0, 105.0))
    assert results.found(SINGLE, BASE, BASE, None) == Figures(1000, 100.0, 0.0)
    smaller = dataclasses.replace(BASE, classifier=(75,))
    assert results.known(SINGLE, smaller, BASE).saved == 0.25
    # A random resolution costs the mean of all, and no predictor.
    random = dataclasses.replace(DRNET, policy="random 2")
    assert results.found(random, COSTS, BASE, None) == Figures(1000, 60.0, 0.4)


def test_random_resolutions_by_hand():
    choices = [np.random.default_rng([3, number]).integers(3, size=4) for number in (1, 2, 3)]
    of_choice = result(3).answers.rank
    draws = [[of_choice[row, option] for row, option in enumerate(choice)] for choice in choices]
    found = [
        results.found(dataclasses.replace(DRNET, policy=f"random{number}"), COSTS, BASE, result(3))
        for number in (" 1", " 2", " 3", "")
    ]
    top1 = [np.mean(np.array(draw) == 0) for draw in draws]
    assert [each.top1 for each in found] == [*top1, np.mean(top1)]
    assert [each.top5 for each in found[:3]] == [np.mean(np.array(draw) < 5) for draw in draws]
    assert [each.multiply_adds for each in found[:3]] == [
        np.mean(np.array([100, 60, 20])[choice]) for choice in choices]
    assert found[3].deviation == np.std(top1) and found[0].deviation is None
    assert len({tuple(choice) for choice in choices}) == 3  # draws, and not one thrice


TABLE = Table(
    "table9", "Of two rows, and one quoted", ("Model",),
    {"Params": "parameters", "FLOPs": "multiply_adds", "Acc@1": "top1"},
    (
        Row(("base",), ("25.6 M", "4.1 G", "76.1%"), Single("resnet50")),
        Row(("DRNet",), ("30.5 M", "3.7 G", "77.5%"), Dynamic("resnet50")),
        Row(("other",), ("-", "2.8 G", "74.2%")),
    ),
    ("A note.",),
)
MADE = Made("a", "drnet train --workdir=a", 3, 100.0, "2 cores of X, jax 1")
LINES = (
    Line(TABLE.rows[0], Figures(25557032, 4.089e9, 0.0, 0.7643, 0.93), "net, 64 px", (MADE,),
         0.7643),
    Line(TABLE.rows[1], Figures(30464363, between=(1.368e9, 4.379e9)), "net, 64/32 px, eta 0",
         (MADE, Made("b", "drnet train --workdir=b", 3)), 0.7643),
    Line(TABLE.rows[2], Figures()),
)


def test_a_table_as_markdown():
    text = tables.markdown(TABLE, LINES, "On images.", comparable=True)
    assert text == """# Table 9: Of two rows, and one quoted

On images.

| Model | here | Params | FLOPs | Acc@1 | ↓ FLOPs | Acc over baseline | run |
|---|---|---|---|---|---|---|---|
| base | net, 64 px | 25.6 M / 25.6 M / 0 | 4.1 G / 4.1 G / 0 | 76.1% / 76.43% / +0.3 | - | - | a |
| DRNet | net, 64/32 px, eta 0 | 30.5 M / 30.5 M / 0 | 3.7 G / not run (1.37 G to 4.38 G) | \
77.5% / not run | 9.8% / not run | +1.4 / not run | b |
| other |  | - | 2.8 G | 74.2% | 31.7% | -1.9 | quoted |

In each cell: the paper's / ours / ours less the paper's. FLOPs are multiply-adds of an image, the \
predictor's included. Worked out of the other figures, the paper's as ours: ↓ FLOPs, Acc over \
baseline.

- A note.

```sh
# a: seed 3, 1 min 40 s on 2 cores of X, jax 1
drnet train --workdir=a

# b: seed 3, not run
drnet train --workdir=b
```
"""


def cells(line, comparable=True):
    return [tables._cell(TABLE, line, figure, comparable)
            for figure in tables.columns_of(TABLE).values()]


def test_a_row_that_was_run_is_subtracted():
    made = (dataclasses.replace(MADE, run="b"),)
    run = Line(TABLE.rows[1], Figures(29.96e6, 3.512e9, 0.1411, 0.7711, None), "", made, 0.7643)
    assert cells(run) == [
        "30.5 M / 30.0 M / -0.5 M", "3.7 G / 3.5 G / -0.2 G", "77.5% / 77.11% / -0.4",
        "9.8% / 14.1% / +4.4", "+1.4 / +0.7 / -0.7"]
    # Of small networks on other images only what is relative to the baseline.
    small = Line(TABLE.rows[1], Figures(800e3, 9.5e6, 0.1411, 0.9711, None), "", made, 0.9643)
    assert cells(small, comparable=False) == [
        "30.5 M / 800 k", "3.7 G / 9.50 M", "77.5% / 97.11%", "9.8% / 14.1% / +4.4",
        "+1.4 / +0.7 / -0.7"]
    alone = dataclasses.replace(run, base_top1=None)  # its baseline is not run
    assert cells(alone)[-1] == "+1.4 / not run"


def test_a_mean_has_its_deviation():
    row = TABLES["table5"].rows[3]
    line = Line(row, Figures(top1=0.7512, deviation=0.0006), "", (MADE,), None)
    found = tables._cell(TABLES["table5"], line, "top1", True)
    assert found == "74.65 ± 0.04% / 75.12 ± 0.06% / +0.5"


def test_a_table_as_csv():
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(TABLE, LINES))))
    assert [row["state"] for row in rows] == ["run", "not run", "quoted"]
    base, drnet, other = rows
    assert float(base["top1_paper"]) == 0.761 and float(base["top1_ours"]) == 0.7643
    assert float(base["top1_difference"]) == pytest.approx(0.0033)
    assert (drnet["multiply_adds_ours"], drnet["least"], drnet["most"]) == (
        "", "1368000000.0", "4379000000.0")
    assert drnet["command"] == "drnet train --workdir=a && drnet train --workdir=b"
    assert (base["seconds"], base["seed"], base["hardware"]) == (
        "100.0", "3", "2 cores of X, jax 1")
    assert float(other["saved_paper"]) == pytest.approx(1 - 2.8 / 4.1)
    assert {other[name] for name in ("run", "command", "seconds", "top1_ours")} == {""}


@pytest.mark.parametrize(("value", "printed", "expected"), [
    (25557032, "25.6 M", "25.6 M"), (4089184256, "4.1 G", "4.1 G"), (300774272, "300 M", "301 M")])
def test_a_size_to_the_printed_digit(value, printed, expected):
    assert tables.as_printed(value, printed) == expected


def test_figures_need_runs_that_tables_have():
    of_tables = {each for name in TABLES for each in paper.NEEDS[name]}
    assert {each for name in paper.NEEDS for each in paper.NEEDS[name]} == of_tables
    assert [each.alpha for each in paper.SWEPT] == [0, 2.0, 2.5, 3.0, 3.5]
