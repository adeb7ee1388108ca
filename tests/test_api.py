"""A trained model from Python and from `drnet predict`, against what its evaluation wrote."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import drnet_jax
from drnet_jax import checkpoint
from drnet_jax.errors import UserError
from tests import runs


@pytest.fixture(scope="module")
def model(evaluated):
    return drnet_jax.load(evaluated)


@pytest.fixture(scope="module")
def rows(evaluated):
    with (evaluated / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def as_row(answer):
    return (answer.image, answer.label, f"{answer.probability:.4f}", str(answer.resolution),
            str(answer.multiply_adds))


def test_answers_are_those_of_the_evaluation_image_by_image(model, rows):
    answers = list(model.predict(row["filename"] for row in rows))
    assert [as_row(answer) for answer in answers] == [
        (row["filename"], row["prediction"], f"{float(row['prob']):.4f}", row["resolution"],
         row["multiply_adds"]) for row in rows]
    # More than one resolution, and the budget that the model was trained for.
    assert len({answer.resolution for answer in answers}) > 1
    mean = np.mean([answer.multiply_adds for answer in answers])
    assert mean == pytest.approx(model.budget, rel=0.02)


def test_files_bytes_and_arrays_of_any_size_come_out_in_order(model, rows):
    path = rows[0]["filename"]
    encoded, image = Path(path).read_bytes(), cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    wide = cv2.resize(image, (300, 20))
    answers = list(model.predict([path, wide, encoded, image, *[image] * 40]))
    assert [answer.image for answer in answers] == [path, *range(1, 44)]
    same = [dataclasses.replace(answer, image=0) for answer in answers]
    assert same[0] == same[2] == same[3] == same[-1]


def test_answers_come_before_the_images_end(model, rows):
    """However rare a resolution is, nobody waits for its bucket to fill for long."""
    seen = 0

    def endless():
        nonlocal seen
        while True:
            seen += 1
            yield rows[seen % len(rows)]["filename"]

    answers = model.predict(endless())
    first = [next(answers) for _ in range(3)]
    assert [answer.image for answer in first] == [rows[at]["filename"] for at in (1, 2, 3)]
    assert seen < 20 * model.engine.batch_size
    answers.close()


def test_a_budget_moves_images(model, rows):
    paths = [row["filename"] for row in rows]
    low, high = (min(model.costs.classifier), max(model.costs.classifier))
    for budget, resolution in ((low, 16), (high, 32)):
        answers = model.predict(paths, budget=budget + model.costs.predictor)
        assert {answer.resolution for answer in answers} == {resolution}
    with pytest.raises(UserError, match=r"expected 2\.\d+e-05 .* received 1"):
        model.predict(paths, budget=1e9)


def test_what_cannot_be_read_is_an_error_or_a_record(model, rows, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    bad = [tmp_path / "no.png", tmp_path / "nowhere.png", np.zeros((4, 4), np.uint8)]
    for image in bad:
        with pytest.raises(UserError):
            list(model.predict([rows[0]["filename"], image]))
    answers = list(model.predict([bad[0], rows[0]["filename"], *bad[1:]], skip_errors=True))
    assert [answer.label is None for answer in answers] == [True, False, True, True]
    assert "cannot be decoded" in answers[0].error and str(bad[0]) in answers[0].error
    assert "none of that name" in answers[2].error
    assert "uint8 [H, W, 3]" in answers[3].error


def test_a_model_evaluates_folders(model, evaluated, images, tmp_path):
    own = json.loads((evaluated / "eval.json").read_text())
    again = model.evaluate()
    assert again["router"] == own["router"] and again["budget"] == own["budget"]
    # Without a split, and with some of the classes only.
    shutil.copytree(images / "val" / "class1", tmp_path / "class1")
    found = model.evaluate(tmp_path)
    assert (found["images"], list(found["classes"])) == (5, ["class1"])
    assert any("no images of 2 of the 3 classes" in note for note in found["notes"])
    assert found["classes"]["class1"] == own["classes"]["class1"] or found["budget"]["price"] != (
        own["budget"]["price"])


def test_predict_prints_a_line_an_image(evaluated, rows, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    shutil.copy(rows[0]["filename"], tmp_path / "a" / "one.png")
    (tmp_path / "a" / "two.png").write_bytes(b"no image")
    (tmp_path / "a" / "three.txt").write_bytes(b"text")
    assert runs.call("predict", "--workdir", str(evaluated), str(tmp_path / "a"),
                     rows[0]["filename"]) == 0
    out, err = capsys.readouterr()
    one, two, same = map(json.loads, out.splitlines())
    assert one["label"] == same["label"] == rows[0]["prediction"]
    assert "cannot be decoded" in two["error"] and "label" not in two
    assert "passed over 1 files that are no image" in err
    assert "1 of 3 images could not be read" in err
    assert runs.call("predict", "--workdir", str(evaluated), "--format=csv",
                     rows[0]["filename"]) == 0
    header, line = csv.reader(capsys.readouterr().out.splitlines())
    assert dict(zip(header, line, strict=True))["label"] == rows[0]["prediction"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("predict",), "--workdir"),
    (("predict", "--workdir=DIR"), "expected images or folders of them"),
    (("predict", "--workdir=DIR", "/dev"), "found none"),
    (("predict", "--workdir=/nowhere", "x.png"), "train first"),
    (("predict", "--workdir=DIR", "--budget=1", "x.png"), "expected 2."),
])
def test_predict_errors(evaluated, arguments, message, capsys):
    arguments = [argument.replace("DIR", str(evaluated)) for argument in arguments]
    assert runs.call(*arguments) == 2
    out, err = capsys.readouterr()
    error = err.splitlines()[-1]
    assert out == "" and error.startswith("error: ") and message in error


def test_a_checkpoint_is_found_by_its_directory(evaluated, model):
    last = evaluated / "checkpoints" / str(model.meta.step)
    assert drnet_jax.load(last).price == model.price
    first = evaluated / "checkpoints" / "18"  # the end of stage 1: no price is known there
    assert (drnet_jax.load(first).meta.stage, drnet_jax.load(first).price) == ("pretrain", 0.0)
    with pytest.raises(UserError, match="expected one of the steps"):
        drnet_jax.load(evaluated / "checkpoints" / "999")


def test_another_normalisation_is_refused(evaluated, monkeypatch):
    read = checkpoint.Meta.from_json

    def changed(values, where):
        values["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
        return read(values, where)

    monkeypatch.setattr(checkpoint.Meta, "from_json", changed)
    with pytest.raises(UserError, match="normalised by"):
        drnet_jax.load(evaluated)
