"""Report: a plan as tables."""

from collections.abc import Sequence
from typing import Any

from drnet_jax.formatting import percentages, short, table


def text(report: dict[str, Any]) -> str:
    """The report as tables."""
    config, devices, held = report["config"], report["devices"], report["parameters"]
    classifier, memory = config["classifier"], devices["memory"]
    mix = percentages(report["mix"])
    sections = [
        f"{classifier['name']} of width {classifier['width']:g}, {config['dtype']}, batch "
        f"{config['batch_size']} on {devices['count']} devices of {devices['hosts']} "
        f"host{'s' * (devices['hosts'] > 1)} ({devices['name']}), {mix} % at "
        f"{'/'.join(map(str, config['resolutions']))} px in stage 2",
        "parameters " + short(held["total"]) + "; multiply-adds of an image: " + ", ".join(
            f"{short(count)} {'of the predictor' if at == 'predictor' else f'at {at} px'}"
            for at, count in report["multiply_adds"].items()
        ),
        _stages(report),
        f"decoding: this machine ({report['decoding']['cores']} CPU cores) makes "
        f"{report['decoding']['images_per_second']:.0f} training images/s of photographs of "
        "500 x 375 pixels, while it does nothing else",
    ]
    programs = report["programs"]
    most = report["most_programs"]
    sections.append(
        f"programs that a run can come to compile: {most['pretrain']} in stage 1, "
        f"{most['finetune']} in stage 2, {most['inference']} of inference"
    )
    if programs is None:
        sections.append(f"By exact counts alone: {report['missing']}.")
        return "\n\n".join(sections)
    whole = [row for row in programs if "failed" not in row]
    if whole:
        mean = sum(row["seconds"] for row in whole) / len(whole)
        sections[-1] += f"; here a program takes {mean:.1f} s on average"
    sections.append(_program_table(programs))
    sections.append(
        "By the compiler, for one device; memory is what it must hold at once, the state of the "
        "run included"
        + (f", of {memory / 1e9:.0f} GB" if memory else "")
        + ". Bounds follow from the maker's figures: no device was timed."
    )
    if report["largest_batch"] is not None:
        sections.append(
            f"largest batch that fits: about {report['largest_batch']} (memory taken as linear "
            "between two sizes of the largest bucket)"
        )
    for row in programs:
        if "failed" in row:
            sections.append(f"does NOT compile: {row['name']}: {row['failed']}")
        elif row["fits"] is False:
            sections.append(f"does NOT fit: {row['name']}")
    return "\n\n".join(sections)


def _stages(report: dict[str, Any]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "not known" if value is None else format(value, form)

    header = (
        "stage", "steps", "multiply-adds a step", "checkpoint MB", "exchanged MB a step",
        "device-hours", "images/s a host",
    )
    share = report["utilisation"]
    return table([header, *(
        (stage, cell(of["steps"], ",d"), short(of["multiply_adds_of_a_step"]),
         f"{report['checkpoint_bytes'][stage] / 1e6:.1f}",
         f"{report['exchanged_bytes'][stage] / 1e6:.1f}",
         cell(of["device_hours"], ".3g"), cell(of["images_per_second_of_a_host"], ".0f"))
        for stage, of in report["schedule"].items()
    )]) + (
        f"\nDevice-hours, and the images/s that a host must then decode, assume {100 * share:g} % "
        "of the published FLOP/s. Checkpoints are counted before compression."
    )


def _program_table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "program", "GFLOP", "GB moved", "arguments MiB", "temporaries MiB", "memory MiB",
        "bound ms", "compile s",
    )
    return table([header, *map(_cells, rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def cell(value: float | None, scale: float, form: str) -> str:
        return "" if value is None else format(value / scale, form)

    name = f"{row['group']}: {row['name']}"
    if "failed" in row:
        return (name, "failed", *[""] * 6)
    return (
        name, cell(row["flops"], 1e9, ".1f"), cell(row["bytes_moved"], 1e9, ".3f"),
        *(f"{row[key] / 2**20:.0f}" for key in ("arguments", "temporaries", "memory")),
        cell(row["bound_seconds"], 1e-3, ".2f"), f"{row['seconds']:.1f}",
    )


def reference_text(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The pairs of `reference`, with the ratios of ours to flax's."""
    rows = {row["name"]: row for pair in pairs for row in pair}
    lines = [_program_table(list(rows.values()))]
    for ours, theirs in pairs:
        if "failed" in ours or "failed" in theirs:
            lines += [f"failed: {row['failed']}" for row in (ours, theirs) if "failed" in row]
            continue
        ratios = [
            f"{what} {ours[key] / theirs[key]:.3f}"
            for key, what in (("flops", "FLOPs"), ("bytes_moved", "bytes moved"),
                              ("temporaries", "temporaries"), ("seconds", "compile seconds"))
            if theirs[key]
        ]
        lines.append(f"{ours['name']} over {theirs['name']}: {', '.join(ratios)}")
    return "\n\n".join(lines)
