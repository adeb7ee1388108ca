"""Records: answers as lines of JSON or of CSV, in a file that can be gone on with."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from drnet_jax.errors import UserError
from drnet_jax.inference.predict import Answer, Guess

SAME = ("image", "label", "name", "probability", "network", "resolution", "multiply_adds")


def as_json(answer: Answer) -> dict[str, Any]:
    """What a line of JSON holds of an answer: all that is known."""
    record = {name: getattr(answer, name) for name in SAME}
    record["probability"] = _rounded(answer.probability)
    if answer.options:
        record["options"] = {name: _rounded(value) for name, value in answer.options.items()}
    if answer.top and len(answer.top) > 1:
        record["top"] = [
            guess._asdict() | {"probability": _rounded(guess.probability)} for guess in answer.top
        ]
    record["error"] = answer.error
    return {name: value for name, value in record.items() if value is not None}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)  # of float32


class JsonLines:
    """A line of JSON an image."""

    def __init__(self, file: IO[str]):
        self._file = file

    def begin(self) -> None:
        """Writes what stands before the first record."""

    def write(self, answer: Answer) -> None:
        print(json.dumps(as_json(answer)), file=self._file)


class Csv:
    """A line of names, and one an image; of each further class of the best there are columns."""

    def __init__(self, file: IO[str], options: Sequence[str], top: int):
        self._writer = csv.writer(file, lineterminator="\n")
        self._options, self._further = options, range(2, top + 1)

    def begin(self) -> None:
        """Writes what stands before the first record."""
        further = [f"{name}_{place}" for place in self._further for name in Guess._fields]
        self._writer.writerow(
            [*SAME, *(f"option_{name}" for name in self._options), *further, "error"]
        )

    def write(self, answer: Answer) -> None:
        record = as_json(answer)
        options = record.get("options", {})
        top = [*record.get("top", ()), *[{}] * (1 + len(self._further))]
        self._writer.writerow([
            *(record.get(name, "") for name in SAME),
            *(options.get(name, "") for name in self._options),
            *(top[place - 1].get(name, "") for place in self._further for name in Guess._fields),
            answer.error or "",
        ])


def written(path: Path, form: str) -> tuple[list[str], int]:
    """The images of the whole records in a file, "json" or "csv", and the byte after the last.

    Raises:
        UserError: if it holds anything else.
    """
    names, end = [], 0
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        # Line by line, so that the file can tell where it is.
        lines = iter(file.readline, "")
        try:
            for name, whole in (_names_in_csv if form == "csv" else _names_in_json)(lines):
                if not whole:
                    break
                names.append(name)
                end = file.tell()
        except (ValueError, KeyError, IndexError, csv.Error) as error:
            raise UserError(
                f"{path}: expected records of drnet predict as {form}, found something else after "
                f"{len(names)} of them; give another --out, or leave --resume out"
            ) from error
    return (names[1:] if form == "csv" else names), end


def _names_in_json(lines: Iterator[str]) -> Iterator[tuple[str, bool]]:
    for line in lines:
        whole = line.endswith("\n")
        yield json.loads(line)["image"] if whole else "", whole


def _names_in_csv(lines: Iterator[str]) -> Iterator[tuple[str, bool]]:
    last = ""

    def watched() -> Iterator[str]:
        nonlocal last
        for last in lines:  # noqa: UP028 (`last` is looked at)
            yield last

    try:
        for row in csv.reader(watched(), strict=True):  # one that spans lines takes several
            yield row[0], last.endswith("\n")
    except csv.Error:  # of a file that ends within quotes
        if next(lines, None) is not None:
            raise
        yield "", False
