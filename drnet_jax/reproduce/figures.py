"""Figures: 1, 3 and 4 of the paper, drawn of a study's runs."""

import json
from pathlib import Path
from typing import Any

from drnet_jax.benchmark import picture
from drnet_jax.benchmark.picture import Dot, Series, hardware, latencies
from drnet_jax.data.sources import open_source
from drnet_jax.data.transforms import square_for
from drnet_jax.reproduce import photographs
from drnet_jax.reproduce.jobs import Job
from drnet_jax.reproduce.latency import Point
from drnet_jax.reproduce.paper import STATIC, SWEPT, WELL_TRAINED
from drnet_jax.reproduce.results import read
from drnet_jax.reproduce.study import Study

TIMES = "latency.json"


def draw(study: Study, name: str) -> str:
    """Draws a figure, if its runs are done.

    Returns:
        Why it was not drawn; "" if it was.
    """
    undone = [job.run.name for job in study.needed(name) if not study.progress(job).done]
    if undone:
        return f"{name}: not drawn; not run: {', '.join(undone)}"
    path, stages = study.folder / f"{name}.png", study.jobs[WELL_TRAINED]
    if name == "figure3":
        return _draw_speed(study, path)
    stage1, stage2 = stages
    if name == "figure1":
        photographs.draw_smallest(
            path, _gallery(stage1), f"The smallest resolution that is right: {_model(stage1)}"
        )
    else:
        photographs.draw_choices(
            path, _gallery(stage2), f"Resolutions that the predictor chose: {_model(stage2)}"
        )
    return ""


def _gallery(job: Job) -> photographs.Gallery:
    config, expected = job.config, job.config.preprocessing
    square = square_for(config.resolutions[0], expected.val_crop, expected.interpolation)
    source = open_source(config.data, training=False)
    return photographs.gallery(read(job.workdir).answers, config.resolutions, source, square)


def _model(job: Job) -> str:
    """A network and its images in short."""
    data, network = job.config.data, job.config.classifier
    width = f" x{network.width:g}" * (network.width != 1)
    images = Path(data.dir).name if data.name == "folder" else data.name
    return f"{network.name}{width} on {images}"


def points(study: Study) -> list[Point]:
    """What figure 3 shows: networks of one size, resolutions of one DRNet, and DRNets by alpha."""
    alone = [study.jobs[each][-1] for each in STATIC]
    stage1 = study.jobs[WELL_TRAINED][0]
    return [
        *(Point(job.run.name, job.config.resolutions[0]) for job in alone),
        *(Point(stage1.run.name, size) for size in stage1.config.resolutions),
        *(Point(study.jobs[each][-1].run.name) for each in SWEPT),
    ]


def times(study: Study) -> dict[str, Any] | None:
    """What `latency.measure` found of these points; None if it has not yet."""
    path = study.folder / TIMES
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found if [Point(**each) for each in found["points"]] == points(study) else None


def _draw_speed(study: Study, path: Path) -> str:
    found = times(study)
    if found is None:
        return "figure3: not drawn; latencies are not measured"
    labels = [rf"$\alpha$ = {each.alpha:g}" if each.eta else r"no $\alpha$" for each in SWEPT]
    dots = [
        _dot(study, point, labels.pop(0) if point.size is None else f"{point.size} px", measured)
        for point, measured in zip(
            points(study), zip(*found["milliseconds"], strict=True), strict=True
        )
    ]
    alone, swept = len(STATIC), len(SWEPT)
    series = (
        Series("trained at one size", "single", dots[:alone]),
        Series("one network at fixed sizes (stage 1)", "fixed", dots[alone:-swept]),
        Series(r"DRNet, by $\alpha$", "drnet", dots[-swept:]),
    )
    job = study.jobs[WELL_TRAINED][-1]
    picture.draw(
        path, series, latencies(found["batch_sizes"], hardware(found["environment"])),
        f"Accuracy and measured latency: {_model(job)}",
    )
    return ""


def _dot(study: Study, point: Point, label: str, measured: tuple[dict[str, float], ...]) -> Dot:
    policy = "routed" if point.size is None else f"fixed {point.size}"
    top1 = read(study.run_folder(point.run)).policy(policy)["top1"]
    return Dot(label, top1, *(
        tuple(each[name] for each in measured) for name in ("median", "fastest", "slowest")
    ))
