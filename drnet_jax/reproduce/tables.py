"""Tables: a table of the paper beside our figures, as Markdown for people and CSV for programs."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from drnet_jax.formatting import short
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.paper import TABLES, UNITS, Row, Single, Table, base, number
from drnet_jax.reproduce.results import Figures

NOT_RUN, QUOTED, NONE = "not run", "quoted", "-"
SAVED, OVER = "↓ FLOPs", "Acc over baseline"  # columns that we add to the paper's
RELATIVE = ("saved", "over")  # figures beside the baseline's


@dataclasses.dataclass(frozen=True)
class Made:
    """A run that makes figures, or would."""

    run: str  # its name
    command: str  # that trains it
    seed: int
    seconds: float | None = None  # that it took; None: it is not done
    hardware: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A row with all that is known of it."""

    row: Row
    ours: Figures
    here: str = ""  # what stands for the row's model
    made: tuple[Made, ...] = ()  # by which runs, the last its own; none: it is quoted
    base_top1: float | None = None  # ours, of what it is compared with

    @property
    def state(self) -> str:
        """Why there is no figure of ours, or "run"."""
        if not self.made:
            return QUOTED
        return NOT_RUN if self.made[-1].seconds is None else "run"

    def figure(self, name: str) -> float | None:
        """One of ours, of `columns_of`; of what others are compared with none is relative."""
        if name in RELATIVE and _is_base(self.row):
            return None
        if name != "over":
            return getattr(self.ours, name)
        if self.base_top1 is None or self.ours.top1 is None:
            return None
        return self.ours.top1 - self.base_top1


def columns_of(table: Table) -> dict[str, str]:
    """The paper's columns, and those that we work out of them: heads and figures."""
    added = {} if "saved" in table.columns.values() else {SAVED: "saved"}
    return table.columns | added | {OVER: "over"}


def printed_of(table: Table, row: Row, figure: str) -> float | None:
    """What the paper says of a row, as a number: printed, or worked out of what is printed."""
    printed = number(table.printed(row, figure))
    if printed is not None or figure not in RELATIVE or _is_base(row):
        return printed
    spent, top1 = (number(_of_base(row, name)) for name in ("multiply_adds", "top1"))
    if figure == "saved":
        return 1 - number(table.printed(row, "multiply_adds")) / spent
    return number(table.printed(row, "top1")) - top1


def _is_base(row: Row) -> bool:
    return row.experiment is not None and row.experiment == base(row.experiment)


def _of_base(row: Row, figure: str) -> str:
    """What the paper prints of the network that a row is compared with."""
    wanted = base(row.experiment or Single("resnet50"))
    return next(
        table.printed(each, figure) for table in TABLES.values() for each in table.rows
        if each.experiment == wanted
    )


def markdown(table: Table, lines: Sequence[Line], heading: str, comparable: bool) -> str:
    """The table, how it is to be read, and the command lines that make it.

    Args:
        table: of the paper.
        lines: its rows, in order.
        heading: on what it was made.
        comparable: whether networks and images are the paper's; else only what is relative to the
            baseline is subtracted from the paper's.
    """
    columns = columns_of(table)
    rows = [(*table.labels, "here", *columns, "run")]
    for line in lines:
        rows.append((
            *line.row.labels, line.here,
            *(_cell(table, line, figure, comparable) for figure in columns.values()),
            line.made[-1].run if line.made else QUOTED,
        ))
    added = [head for head in columns if head not in table.columns]
    return "\n".join([
        f"# {table.name.replace('table', 'Table ')}: {table.title}", "",
        heading, "",
        "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|",
        *("| " + " | ".join(row) + " |" for row in rows[1:]), "",
        "In each cell: the paper's / ours / ours less the paper's. FLOPs are multiply-adds of an "
        f"image, the predictor's included. Worked out of the other figures, the paper's as ours: "
        f"{', '.join(added)}.", "",
        *(f"- {note}" for note in table.notes), "",
        *_commands(lines),
    ])


def _cell(table: Table, line: Line, figure: str, comparable: bool) -> str:
    """Paper / ours / difference of one figure, as far as there are."""
    paper, ours = printed_of(table, line.row, figure), line.figure(figure)
    size = figure in ("parameters", "multiply_adds")
    cells = [NONE if paper is None else _printed(table, line.row, figure, paper)]
    if ours is not None:
        exactly = size and comparable and paper is not None
        cells.append(
            as_printed(ours, table.printed(line.row, figure)) if exactly
            else short(ours) if size else _points(figure, ours, line.ours.deviation)
        )
        if paper is not None and (comparable or figure in RELATIVE):
            cells.append(_difference(cells, ours - paper, size))
    elif line.state != QUOTED and not (figure in RELATIVE and _is_base(line.row)):
        cells.append(NOT_RUN + _between(line, figure))
    return " / ".join(cells)


def _printed(table: Table, row: Row, figure: str, value: float) -> str:
    printed = table.printed(row, figure)
    return _points(figure, value, None) if printed == NONE else printed


def as_printed(value: float, printed: str) -> str:
    """A size in the unit, and to the digit, of one that is printed: 25557032, "25.6 M" -> "25.6 M".
    """
    digits, _, unit = printed.partition(" ")
    return f"{value / UNITS[unit]:.{len(digits.partition('.')[2])}f} {unit}"


def _points(figure: str, share: float, deviation: float | None) -> str:
    """Shares in percent: what is saved to a tenth, accuracies to a hundredth with a deviation."""
    if figure == "saved":
        return f"{100 * share:.1f}%"
    if figure == "over":
        return f"{100 * share:+.1f}"
    spread = f" ± {100 * deviation:.2f}" if figure == "top1" and deviation is not None else ""
    return f"{100 * share:.2f}{spread}%"


def _difference(cells: Sequence[str], difference: float, size: bool) -> str:
    """Ours less the paper's: of sizes as they are printed, of shares in points."""
    if not size:
        return f"{100 * difference:+.1f}"
    (paper, unit), (ours, _) = (cell.split(" ") for cell in cells)
    left = float(ours) - float(paper)
    return f"{left:+.{len(paper.partition('.')[2])}f} {unit}" if round(left, 6) else "0"


def _between(line: Line, figure: str) -> str:
    """What a cost that depends on routing must lie between."""
    if figure != "multiply_adds" or line.ours.between is None:
        return ""
    return " ({} to {})".format(*map(short, line.ours.between))


def _commands(lines: Sequence[Line]) -> list[str]:
    """The runs that lines are of, once each, with the command line that repeats it."""
    text = []
    for run in {made.run: made for line in lines for made in line.made}.values():
        took = NOT_RUN if run.seconds is None else f"{duration(run.seconds)} on {run.hardware}"
        text.append(f"# {run.run}: seed {run.seed}, {took}\n{run.command}")
    return ["```sh", "\n\n".join(text), "```", ""]


def csv_text(table: Table, lines: Sequence[Line]) -> str:
    """The table as CSV: figures as plain numbers, shares between 0 and 1."""
    columns = columns_of(table)
    fields = [
        *table.labels, "state", "here",
        *(f"{name}_{of}" for name in columns.values()
          for of in ("paper", "ours", "difference")),
        "deviation", "least", "most", "run", "seed", "seconds", "hardware", "command",
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, fields, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        row: dict[str, Any] = dict(zip(table.labels, line.row.labels, strict=True))
        row |= {"state": line.state, "deviation": line.ours.deviation}
        row |= dict(zip(("least", "most"), line.ours.between or (), strict=False))
        row["here"] = line.here
        if line.made:
            row |= dataclasses.asdict(line.made[-1])
            row["command"] = " && ".join(made.command for made in line.made)
        for figure in columns.values():
            paper, ours = printed_of(table, line.row, figure), line.figure(figure)
            known = {"paper": paper, "ours": ours}
            if paper is not None and ours is not None:
                known["difference"] = ours - paper
            row |= {f"{figure}_{of}": f"{value:.10g}" for of, value in known.items()
                    if value is not None}
        writer.writerow(row)
    return file.getvalue()

