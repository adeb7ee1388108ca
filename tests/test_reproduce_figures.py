"""Figures 1, 3 and 4, the estimate of a study, and what is said while it runs."""

import dataclasses
import io
import re

import cv2
import numpy as np
import pytest

from drnet_jax.benchmark import picture
from drnet_jax.benchmark.picture import Dot, Series
from drnet_jax.data.transforms import Square
from drnet_jax.evaluation.table import Table as Answers
from drnet_jax.reproduce import estimate, photographs, report, running
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.photographs import Gallery, smallest_right, surest
from drnet_jax.reproduce.running import Display
from tests import runs
from tests.tiny import COSTS, RIGHT, tiny_config


def test_the_smallest_resolution_that_is_right():
    # Right at all; at two; at one, but not the next; at the base alone; at none; not at the base.
    assert smallest_right(RIGHT).tolist() == [2, 1, -1, 0, -1, -1]


def test_the_surest_of_each_class_come_first():
    sureness = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 1.0])
    label = np.array([1, 1, 2, 1, 3, 0])
    candidates = np.array([0, 1, 2, 3, 4])  # without the surest
    assert surest(candidates, sureness, label, 3) == [0, 2, 4]
    assert surest(candidates, sureness, label, 5) == [0, 2, 4, 1, 3]
    assert surest(candidates, sureness, label, 9) == [0, 2, 4, 1, 3]
    assert surest(candidates[:0], sureness, label, 3) == []


def gallery(count=6, resolutions=(16, 12, 8)):
    columns = {field.name: np.zeros(count) for field in dataclasses.fields(Answers)} | {
        "label": np.arange(count) % 3, "answer": np.zeros((count, 3), int),
        "rank": np.where(RIGHT[:count], 0, 3), "probability": np.full((count, 3), 0.5),
        # One resolution is never chosen, and has no image to show.
        "scores": np.log(np.tile([[0.7, 0.1, 0.2], [0.2, 0.1, 0.7]], (count // 2, 1))),
    }
    return Gallery(
        Answers(**columns), resolutions, ("a_b", "$c$", "d"),
        lambda row, size: np.full((size, size, 3), row, np.uint8),
        lambda row: np.full((40, 40, 3), row, np.uint8))


class Photographs:
    """A source of one photograph: black, but for its white centre."""

    classes = ("n01440764", "other")

    def __getitem__(self, index):
        image = np.zeros((448, 300, 3), np.uint8)
        image[100:348, 50:250] = 255
        return {"image": cv2.imencode(".png", image)[1].tobytes(), "label": 0}


def test_a_gallery_shows_what_the_network_sees_and_sharp_photographs():
    table = dataclasses.replace(gallery().table, index=np.zeros(6, int))
    shown = photographs.gallery(table, (64, 32), Photographs(), Square(73))
    assert shown.classes == ("tench", "other")
    for size in (64, 32):
        view = shown.view(0, size)
        assert view.shape == (size, size, 3)
        assert view[0, 0].max() == 0 and view[size // 2, size // 2].min() == 255
    # No larger than the photograph, 300 pixels of 4 times 64.
    assert shown.photograph(0).shape == (256, 256, 3)
    small = photographs.gallery(table, (224, 112), Photographs(), Square(256))
    assert small.photograph(0).shape == (224, 224, 3)


def texts(monkeypatch, draw):
    """What is written in a figure that `draw` draws, and where the figure is drawn to a file."""
    found = []

    def save(figure, path, dpi):
        figure.canvas.draw()  # fails where a letter is not in the font: warnings are errors
        found.extend(text.get_text() for text in figure.findobj(
            lambda artist: hasattr(artist, "get_text")) if text.get_text())

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    draw()
    return found


def test_figure_1_shows_every_resolution_of_an_image(monkeypatch):
    found = texts(monkeypatch, lambda: photographs.draw_smallest("f.png", gallery(), "Title"))
    assert {"Title", "right at 8 px already", "right from 12 px on", "right at 16 px only",
            "17 % of the images", "8 px\n33.3 % right", "16 px\n66.7 % right"} <= set(found)
    # Images 0, 1 and 3, at three resolutions each.
    assert sum(text.startswith("✓ ") for text in found) == 3 + 2 + 1
    assert sum(text.startswith("✗ ") for text in found) == 0 + 1 + 2
    assert [text for text in found if text in ("a b", "$c$", "d")] == ["a b", "$c$", "a b"]


def test_figure_4_shows_choices_and_both_confidences(monkeypatch):
    found = texts(monkeypatch, lambda: photographs.draw_choices("f.png", gallery(), "Title"))
    assert {"8 px (0.5x)\n50 % of the images", "12 px (0.75x)\n0 % of the images",
            "16 px (1x)\n50 % of the images", "it was chosen for no image"} <= set(found)
    assert found.count("predictor 70 %\nclass 50 %") == 6


def test_figure_3_labels_every_dot_on_both_panels(monkeypatch):
    def dot(label, top1, *times):
        return Dot(label, top1, times, tuple(0.9 * t for t in times), tuple(1.2 * t for t in times))

    series = (
        Series("alone", "single", [dot("16 px", 0.9, 2.0, 1.0)]),
        Series("by size", "fixed", [dot("16 px", 0.9, 2.0, 1.0), dot("8 px", 0.7, 1.0, 0.2)]),
        Series("DRNet", "drnet", [dot("first", 0.91, 1.9, 0.8), dot("second", 0.9, 1.9, 0.8)]),
    )
    figures = []
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig",
                      lambda figure, path, dpi: figures.append(figure))
        picture.draw("f.png", series, picture.latencies([1, 256], "2 cores"), "Title")
    panels = figures[0].axes
    for axes, size in zip(panels, (1, 256), strict=True):
        assert axes.get_xlabel() == f"milliseconds an image, batch size {size}\n2 cores"
        assert [text.get_text() for text in axes.texts] == [
            "16 px", "16 px", "8 px", "first", "second"]
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    (line, *_), *_ = panels[1].containers
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0], [90.0])


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (44.6, "45 s"), (80, "1 min 20 s"), (1320, "22 min"), (11100, "3 h 5 min"),
    (12 * 86400, "12 days")])
def test_a_duration(seconds, text):
    assert duration(seconds) == text


def test_an_estimate_by_hand():
    config = tiny_config({"router.objective": "gumbel", "budget": 0.0, "finetune.epochs": 0,
                          "pretrain.epochs": 2})
    # 100 images make 12 steps of 8 an epoch; all of 100 + 60 + 20 three times.
    work = estimate.work(config, COSTS, images=100, step=6, done=False)
    assert (work.steps, work.multiply_adds) == (24, 3 * 180 * 8 * 24)
    training = work.multiply_adds / estimate.RATE
    assert work.seconds == pytest.approx(training + estimate.BESIDES)
    assert work.left == pytest.approx(0.75 * training + estimate.BESIDES)
    assert estimate.work(config, COSTS, 100, 24, done=True).left == 0


@pytest.mark.parametrize(("overrides", "forward"), [
    ({"router.gumbel.eta": 0.0}, 100 + 5),
    ({"router.gumbel.alpha": 60e-9}, 60 + 5),  # what the regulariser asks for
    ({"router.gumbel.alpha": 1.0}, 100 + 5),
    ({"router.gumbel.estimator": "dense"}, 180 + 5),
])
def test_an_estimate_of_stage_2(overrides, forward):
    config = tiny_config({"router.objective": "gumbel", "budget": 0.0, "pretrain.epochs": 0,
                          "finetune.epochs": 1} | overrides)
    assert estimate.work(config, COSTS, 16, 0, False).multiply_adds == pytest.approx(
        3 * forward * 8 * 2)


def test_the_pace_is_that_of_the_runs_that_are_done():
    assert estimate.pace([]) == 1
    assert estimate.pace([(30.0, 10.0), (50.0, 30.0)]) == 2


def test_how_a_job_goes_in_a_line():
    assert running.status(3, 19, "ResNet-50, stage 1: step 40 of 368", 80) == (
        "[3/19] ResNet-50, stage 1: step 40 of 368, 1 min 20 s left")
    assert running.status(3, 19, "ResNet-50, stage 1: evaluating", None) == (
        "[3/19] ResNet-50, stage 1: evaluating")


def test_hardware_in_a_few_words():
    cpu = {"device": "cpu", "cores": 2, "processor": "AMD EPYC", "jax": "0.10.1", "devices": 1}
    assert report.hardware(cpu) == "2 cores of AMD EPYC, jax 0.10.1"
    assert report.hardware(cpu | {"processor": ""}) == "2 cores of a CPU, jax 0.10.1"
    gpu = {"device": "NVIDIA H100", "cores": 16, "processor": "X", "jax": "0.12.0", "devices": 8}
    assert report.hardware(gpu) == "8 x NVIDIA H100, jax 0.12.0"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_written_over_on_a_terminal_alone():
    terminal, log = Terminal(), io.StringIO()
    for file in (terminal, log):
        display = Display(file)
        for text in ("a long line", "short", "kept"):
            (display.say if text == "kept" else display.show)(text)
        display.show("next")
    assert terminal.getvalue() == "\ra long line\rshort      \rkept \n\rnext"
    assert log.getvalue() == "a long line\nkept\n"  # the others would come within a minute


def test_the_last_record_of_training(tmp_path):
    assert running.last_record(tmp_path) is None
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "compile", "step": 0}\n')
    assert running.last_record(tmp_path) is None
    metrics.write_text("x" * (1 << 17) + '\n{"kind": "train", "step": 3}\n'
                       '{"kind": "validation", "step": 3}\n{"kind": "train", "st')
    assert running.last_record(tmp_path) == {"kind": "train", "step": 3}


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "expected names of table1, table2, .*, figure4, or all; received none"),
    (("table7",), "expected names of table1, .*; received 'table7'"),
    (("table1", "--scale=huge"), "--scale"),
    (("table1", "--data=/images"), "--data: expected folder:PATH, received '/images'"),
    (("table1", "--data=folder:"), "--data: expected a directory, received ''"),
    (("table1", "--data=folder:/no/such"), "/no/such"),
    (("table1", "--data=folder:/no/such", "--scale=paper"), "/no/such"),
])
def test_errors_are_one_line_and_nothing_is_made(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "study"
    assert runs.call("reproduce", *arguments, "--workdir", str(workdir)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and re.match(f"error: .*{message}", err)
    assert not workdir.exists()
