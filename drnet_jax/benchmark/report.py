"""Report: a benchmark as tables."""

from collections.abc import Sequence
from typing import Any

from drnet_jax.formatting import percentages, short, table

COLUMNS = (
    "images/s", "range", "multiply-adds", "over static", "realised", "padded %", "compile s",
)


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    config, environment = report["config"], report["environment"]
    classifier, predictor = config["classifier"], config["predictor"]
    sections = [
        f"{classifier['name']} of width {classifier['width']:g}, {config['dtype']}; predictor "
        f"{predictor['name']} of width {predictor['width']:g} at {predictor['resolution']}\n"
        f"batch size {config['batch_size']} in training and {config['evaluation']['batch_size']} "
        f"in inference, {_mix(report)}, seed {config['seed']}, medians of "
        f"{report['repeats']} turns\n"
        f"jax {environment['jax']}, {environment['devices']} x {environment['device']}, "
        f"{environment['cores']} cores"
        + "".join(f"\n{name}={value}" for name, value in environment["variables"].items())
    ]
    for group in ("training", "inference"):
        rows = [row for row in report["cases"] if row["group"] == group]
        ours_over = ("over pytorch",) if "over_pytorch" in rows[0] else ()
        sections.append(table([(group, *COLUMNS, *ours_over), *map(_cells, rows)]))
    sections.append(f"a bucketed step is {report['bucketed_over_dense']:.2f} x a dense one")
    source = report["input"]
    sections.append(
        f"input pipeline: skipped, for {source['skipped']}" if "skipped" in source else
        f"input pipeline: {source['images_per_second']:.4g} images/s, {_range(source)}"
    )
    return "\n\n".join(sections)


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Reports of one machine, that differ in config alone, as a Markdown table."""
    config, environment = reports[0]["config"], reports[0]["environment"]
    classifier = config["classifier"]
    header = ("", "images/s", "range", "multiply-adds an image", "over static", "realised",
              "padded %", "compile s")
    lines = [
        f"{classifier['name']} of width {classifier['width']:g}, {_mix(reports[0])}, batch "
        f"{config['batch_size']} in training and {config['evaluation']['batch_size']} in "
        f"inference, seed {config['seed']}, medians of {reports[0]['repeats']} turns, on "
        f"{environment['devices']} x {environment['device']} ({environment['cores']} CPU cores, "
        f"jax {environment['jax']}, Python {environment['python']})",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for report in reports:
        dtype = report["config"]["dtype"]
        for row in report["cases"]:
            name, *cells = _cells(row)[: len(header)]
            label = f"{dtype}, {row['group']}, {name}"
            lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


def _mix(report: dict[str, Any]) -> str:
    mix, resolutions = report["mix"], report["config"]["resolutions"]
    own = " and by the predictor" * (len(mix) > len(resolutions))
    return f"{percentages(mix)} % at {'/'.join(map(str, resolutions))} px{own}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        f"{row['images_per_second']:.4g}",
        _range(row),
        short(row["multiply_adds"]),
        f"{row['over_static']:.2f}",
        f"{row['realised']:.2f}",
        f"{100 * row['padded']:.1f}",
        f"{row['compile_seconds']:.1f}",
        *([f"{row['over_pytorch']:.2f}"] if "over_pytorch" in row else []),
    )


def _range(rates: dict[str, Any]) -> str:
    return f"{rates['slowest']:.4g}-{rates['fastest']:.4g}"
