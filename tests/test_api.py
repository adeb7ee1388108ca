"""A trained model from Python and from `drnet predict`, against what its evaluation wrote."""

import csv
import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import drnet_jax
from drnet_jax import api
from drnet_jax.checkpoints import existing, manager
from drnet_jax.data.folder import FolderSource
from drnet_jax.devices import data_mesh, replicated
from drnet_jax.dial import Dial, Setting
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.evaluation.report import text_report
from drnet_jax.inference import inputs, records
from drnet_jax.inference.predict import Named
from drnet_jax.opening import Opened
from drnet_jax.routing import Cascade
from drnet_jax.serve.run import in_multiply_adds
from drnet_jax.train.loop import train
from tests import runs
from tests.tiny import random_variables


@pytest.fixture(scope="module")
def model(evaluated):
    return drnet_jax.load(evaluated, runtime="jax")


@pytest.fixture(scope="module")
def rows(evaluated):
    return rows_of(evaluated)


def rows_of(workdir):
    with (workdir / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def assert_as_in(rows, answers):
    """Answers are those of predictions.csv; of the probability the last digits may differ."""
    assert [
        (each.image, each.label, each.network, str(each.resolution), str(each.multiply_adds))
        for each in answers
    ] == [
        tuple(row[name] for name in
              ("filename", "prediction", "network", "resolution", "multiply_adds"))
        for row in rows
    ]
    np.testing.assert_allclose(
        [each.probability for each in answers], [float(row["prob"]) for row in rows], rtol=2e-4)


def test_answers_are_those_of_the_evaluation_image_by_image(model, rows):
    answers = list(model.predict(row["filename"] for row in rows))
    assert_as_in(rows, answers)
    # More than one resolution, and the budget that the model was trained for.
    assert len({answer.resolution for answer in answers}) > 1
    mean = np.mean([answer.multiply_adds for answer in answers])
    assert mean == pytest.approx(model.budget, rel=0.02)


def test_images_that_the_predictor_answers(evaluated, tmp_path, capsys):
    """In the files of an evaluation, from Python, as lines of JSON and as CSV."""
    shutil.copytree(evaluated, tmp_path / "run")
    budget = "2.2e-5"  # less than that of the predictor and the smallest resolution for all
    where = "--workdir", str(tmp_path / "run"), "--budget", budget
    (tmp_path / "run" / "routing.png").unlink()
    assert runs.call("eval", *where) == 0
    assert "could not be drawn" not in capsys.readouterr().out
    assert (tmp_path / "run" / "routing.png").exists()
    rows, model = rows_of(tmp_path / "run"), drnet_jax.load(tmp_path / "run")
    by_predictor = [row for row in rows if row["network"] == "predictor"]
    assert 0 < len(by_predictor) < len(rows)
    seen = {(row["resolution"], row["multiply_adds"]) for row in by_predictor}
    assert seen == {("16", str(model.costs.predictor))}
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    routed, = (policy for policy in report["policies"] if policy["name"] == "routed")
    assert routed["mix"]["predictor"] == pytest.approx(len(by_predictor) / len(rows))
    assert report["speed"]["differing"] == 0

    # Prediction takes the price from a table of the last validation: of the same images here.
    answers = list(model.predict((row["filename"] for row in rows), budget=2.2e4))
    assert {answer.network for answer in answers} == {"classifier", "predictor"}
    assert np.mean([answer.multiply_adds for answer in answers]) == pytest.approx(2.2e4, rel=0.1)
    capsys.readouterr()
    for form in ("json", "csv"):
        assert runs.call(
            "predict", *where, f"--format={form}", *(row["filename"] for row in rows)) == 0
        out = capsys.readouterr().out.splitlines()
        found = [json.loads(line) for line in out] if form == "json" else csv.DictReader(out)
        for record, answer in zip(found, answers, strict=True):
            for name in records.SAME:
                value = getattr(answer, name)
                expected = pytest.approx(value, rel=2e-4) if name == "probability" else value
                assert type(value)(record[name]) == expected
            options = record["options"] if form == "json" else {
                name.removeprefix("option_"): value for name, value in record.items()
                if name.startswith("option_")}
            assert list(options) == ["32", "24", "16", "predictor"]
            assert list(map(float, options.values())) == pytest.approx(
                list(answer.options.values()), rel=2e-4, abs=1e-6)


def test_files_bytes_and_arrays_of_any_size_come_out_in_order(model, rows):
    path = rows[0]["filename"]
    encoded, image = Path(path).read_bytes(), cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    wide = cv2.resize(image, (300, 20))
    named, picture = Named("one", encoded), Image.open(path)
    answers = list(model.predict([path, wide, encoded, image, named, picture, *[image] * 40]))
    assert [answer.image for answer in answers] == [path, 1, 2, 3, "one", *range(5, 46)]
    same = [dataclasses.replace(answer, image=0) for answer in answers]
    assert same[0] == same[2] == same[3] == same[4] == same[5] == same[-1]


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
    assert seen < 20 * model.predicting.batch_size
    answers.close()


def test_a_budget_moves_images(model, rows):
    paths = [row["filename"] for row in rows]
    low, high = model.costs.routed.min(), model.costs.routed.max()
    for budget, by in ((low, ("predictor", 16)), (high, ("classifier", 32))):
        answers = list(model.predict(paths, budget=budget))
        assert {(answer.network, answer.resolution) for answer in answers} == {by}
        assert {answer.multiply_adds for answer in answers} == {budget}
    # As in evaluation, 0 is none: nothing is charged, rather than all sent to the cheapest.
    spent = np.mean([answer.multiply_adds for answer in model.predict(paths, budget=0)])
    assert spent == model.evaluate(budget=0)["budget"]["multiply_adds"]
    assert spent > low
    with pytest.raises(UserError, match=r"expected 1\.\d+e-05 G to \S+ G, received 1 G"):
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


def test_what_is_one_image_or_none_is_refused(model, rows):
    path = rows[0]["filename"]
    picture = Image.open(path)
    for one in (path, Path(path), b"bytes", np.asarray(picture), picture, 3):
        with pytest.raises(UserError, match=r"expected an iterable of images, received .* a list"):
            model.predict(one)
    answers = list(model.predict([picture, 3, None, path], skip_errors=True))
    assert [answer.label is None for answer in answers] == [False, True, True, False]
    assert answers[1].error.endswith("uint8 [H, W, 3], received int")


def test_few_images_are_no_batch_of_the_configured_size(evaluated, model, rows):
    config = dataclasses.replace(
        model.config, evaluation=dataclasses.replace(model.config.evaluation, batch_size=16)
    )
    large = drnet_jax.load(evaluated, config=config, runtime="jax")
    paths = [row["filename"] for row in rows]
    few = list(large.predict(paths[:3]))
    assert few == list(model.predict(paths[:3]))
    engine = large.predicting
    assert (engine.sizes, engine.mesh.size) == ((8, 16), 8)  # of devices
    assert all(program.name.endswith("x8") for program in engine.programs.compiled)
    next(large.predict(paths[:9]))
    assert "choose x16" in {program.name for program in engine.programs.compiled}


def checkpoint_of(model, **changes):
    return dataclasses.replace(model.meta, config=dataclasses.replace(model.meta.config, **changes))


def test_a_budget_is_held_on_the_images_at_hand(model, rows):
    """Many of one image, which no dial foretells, among others."""
    cheapest, dearest = model.costs.routed.min(), model.costs.routed.max()
    wanted = (cheapest + dearest) / 2
    paths = [row["filename"] for row in rows]
    many = ([paths[0]] * 8 + paths) * 50
    answers = model.like(8).predict(many, budget=wanted, hold=True)
    spent = [answer.multiply_adds for answer in answers]
    assert len(spent) == len(many)
    assert np.mean(spent) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("kind", ["router", "cascade"])
def test_a_budget_of_milliseconds_in_multiply_adds(model, kind):
    low, high = (setting.cost(model.milliseconds) for setting in
                 (model.dials[kind].settings[0], model.dials[kind].settings[-1]))
    assert low < high
    asked = f"{(low + high) / 2:.6f}ms"
    found = in_multiply_adds(model, asked, kind)
    costs = [setting.cost(model.costs.networks) for setting in model.dials[kind].settings]
    assert costs[0] < found < costs[-1]
    assert in_multiply_adds(model, 3e4, kind) == 3e4
    assert in_multiply_adds(model, None, kind) == model.budget
    with pytest.raises(UserError, match=r"budget: expected .*ms, received 1e\+06ms"):
        in_multiply_adds(model, "1000000ms", kind)


def test_what_cannot_be_held(model):
    with pytest.raises(UserError, match=r"hold: expected a budget .*, received no budget"):
        model.predict([], budget=0, hold=True)
    with pytest.raises(UserError, match=r"hold: .*, received a cascade"):
        model.predict([], budget=3e4, policy="cascade", hold=True)
    with pytest.raises(UserError, match=r"hold: .*, received milliseconds"):
        model.holding("5ms", 0.0)


def test_dials_of_an_earlier_validation_are_for_its_objective(
    evaluated, model, monkeypatch
):
    """As after a change of config in the middle of stage 2, until its first validation."""
    last = model.meta.step
    router = dataclasses.replace(model.config.router, objective="gumbel")
    least, most = model.costs.routed.min(), model.costs.routed.max()

    def load(**changes):
        later = dataclasses.replace(checkpoint_of(model, **changes), metrics={}, dials={})
        read = manager.Checkpoints.meta
        with monkeypatch.context() as patch:
            patch.setattr(manager.Checkpoints, "steps", lambda self: [18, last, last + 1])
            patch.setattr(manager.Checkpoints, "meta", lambda self, step: (
                later if step > last else read(self, step)))
            checkpoints = manager.Checkpoints(str(evaluated))
            validated = checkpoints.validated(last + 1)
            checkpoints.close()
        dials = validated.dials if validated else {}
        return api.Model(later, later.config, model.variables, dials)

    assert load().policy() == model.policy()
    at = [load(budget=budget / 1e9).policy() for budget in (least, (least + most) / 2, most)]
    assert at[0] > at[1] > at[2]
    other = load(router=router)
    with pytest.raises(UserError, match=r"nobody knows what a router costs; drnet eval finds out"):
        other.predict([])
    other.predict([], budget=0)


def test_among_some_classes_a_predictor_that_classifies_has_no_dial(
    evaluated, rows, tmp_path, capsys
):
    """It is surer of fewer classes, so that prices that were found among all do not hold."""
    shutil.copytree(evaluated, tmp_path / "run")
    workdir, some = tmp_path / "run", ("class2", "class0")
    part = drnet_jax.load(workdir, classes=some)
    paths = [row["filename"] for row in rows]
    assert part.dials == {} and part.costs.classifies
    with pytest.raises(UserError, match=r"validated among these 2 of its 3 classes, received"):
        part.predict(paths)
    assert {answer.label for answer in part.predict(paths, budget=0)} == {"class0", "class2"}
    # An evaluation finds its own; images of the other class are left out.
    report = part.evaluate()
    assert report["images"] == 10 and list(report["classes"]) == ["class2", "class0"]
    assert report["budget"]["multiply_adds"] == pytest.approx(part.budget, rel=0.02)
    assert report["speed"]["differing"] == 0
    assert report["notes"] == [f"{Path(paths[0]).parents[1]}: left out 1 folder of other classes: "
                               "class1"]

    (tmp_path / "classes.txt").write_text("class2\n\nclass0\n")
    where = "--workdir", str(workdir), "--classes", str(tmp_path / "classes.txt")
    assert runs.call("predict", *where, "--budget=0", paths[0]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "class0"
    assert runs.call("predict", *where, paths[0]) == 2
    assert "nobody knows what a router costs" in capsys.readouterr().err
    # Until the command that evaluates has left them beside the checkpoints.
    assert runs.call("eval", *where) == 0
    assert runs.call("predict", *where, paths[0]) == 0
    assert drnet_jax.load(workdir, classes=some).dials.keys() == {"router", "cascade"}
    assert drnet_jax.load(workdir, classes=some[::-1]).dials == {}
    assert drnet_jax.load(workdir).dials == drnet_jax.load(evaluated).dials  # the checkpoint's


def test_among_some_classes_a_predictor_that_only_chooses_keeps_its_dial(model):
    """What it says of an image does not depend on the classes."""
    predictor = dataclasses.replace(model.config.predictor, classifies=False)
    meta = checkpoint_of(model, predictor=predictor)
    drnet = DRNet.from_config(meta.config, len(meta.classes))
    variables = jax.device_put(random_variables(drnet), replicated(data_mesh()))
    whole = Opened(meta, meta.classes, variables, model.dials, Path())
    part = whole.among(("class0", "class2"))
    assert part.dials == {"router": model.dials["router"]}


def test_a_tilde_is_the_home_directory(model, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/runs/a: expected a working directory"):
        drnet_jax.load("~/runs/a")
    with pytest.raises(UserError, match=f"^{tmp_path}/runs/a: expected a working directory"):
        existing.open_existing("~/runs/a")  # as config.init_from
    with pytest.raises(UserError, match=f"can be written, received '{tmp_path}/file'"):
        train(model.config, "~/file")


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


def test_predict_fails_if_no_image_can_be_read(evaluated, tmp_path, capsys):
    (tmp_path / "two.png").write_bytes(b"no image")
    assert runs.call("predict", "--workdir", str(evaluated), str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert "cannot be decoded" in json.loads(out)["error"]
    assert err.splitlines()[-1] == (
        "error: expected images, but none could be read; their records say why")


def test_predict_prints_a_line_an_image(evaluated, rows, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    shutil.copy(rows[0]["filename"], tmp_path / "a" / "one.png")
    (tmp_path / "a" / "two.png").write_bytes(b"no image")
    (tmp_path / "a" / "three.txt").write_bytes(b"text")
    assert runs.call("predict", "--workdir", str(evaluated), str(tmp_path / "a"),
                     rows[0]["filename"]) == 0
    out, err = capsys.readouterr()
    one, two, same = map(json.loads, out.splitlines())
    assert one["label"] == one["name"] == same["label"] == rows[0]["prediction"]
    assert "cannot be decoded" in two["error"] and "label" not in two
    assert "passed over 1 file that is no image (.txt): three.txt" in err
    assert "1 of 3 images could not be read" in err
    assert runs.call("predict", "--workdir", str(evaluated), "--format=csv",
                     rows[0]["filename"]) == 0
    header, line = csv.reader(capsys.readouterr().out.splitlines())
    assert header == [
        "image", "label", "name", "probability", "network", "resolution", "multiply_adds",
        "option_32", "option_24", "option_16", "option_predictor", "error"]
    assert dict(zip(header, line, strict=True))["label"] == rows[0]["prediction"]


def test_predict_lists_folders_as_data_does(images, tmp_path):
    for name in ("b/one.JPG", "a/two.png", ".hidden.png", "a/three.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "more").symlink_to(images / "val" / "class1")
    found, notes = inputs.items_of([str(tmp_path)])
    more = [str(tmp_path / "more" / f"{index}.png") for index in range(5)]
    assert [item.name for item in found] == [
        str(tmp_path / "a/two.png"), str(tmp_path / "b/one.JPG"), *more]
    assert notes == [
        f"{tmp_path}: passed over 1 file that is no image (.npy): a/three.npy",
        f"{tmp_path}: passed over 1 hidden file or folder: .hidden.png",
        f"{tmp_path}: passed over 1 link to a folder that it lies in: loop",
    ]


def test_predict_passes_over_folders_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "one.png").touch()
    scandir = os.scandir

    def refuse(path):  # as root may read everything
        if str(path).startswith(str(tmp_path / "secret")):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    items, notes = inputs.items_of([str(tmp_path)])
    assert [item.name for item in items] == [str(tmp_path / "one.png")]
    assert notes == [f"{tmp_path}: passed over 1 folder that cannot be read: secret"]
    with pytest.raises(UserError, match="cannot read the folder: Permission denied"):
        inputs.items_of([str(tmp_path / "secret")])


def test_eval_measures_a_plain_folder(evaluated, images, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(evaluated, workdir)
    shutil.copytree(images / "val" / "class1", tmp_path / "test" / "class1")
    assert runs.call("eval", "--workdir", str(workdir), "--data", str(tmp_path / "test")) == 0
    found = json.loads((workdir / "eval.json").read_text())
    assert (found["images"], list(found["classes"])) == (5, ["class1"])
    assert "no images of 2 of the 3 classes" in capsys.readouterr().out


def test_eval_tells_which_keys_of_a_config_do_not_count(evaluated, images, capsys):
    changes = {"batch_size": 4, "finetune.epochs": 9, "seed": 7, "evaluation.batch_size": 16}
    arguments = runs.arguments(images, evaluated, changes | {"data.dir": "/nowhere"})
    assert runs.call("eval", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == (
        "config.batch_size, config.finetune.epochs: not those of --config, but the checkpoint's, "
        "are used\n")
    assert "no folder /nowhere" in err
    assert runs.call("eval", *arguments, "--data", str(images)) == 2
    assert capsys.readouterr().err == (
        "error: --config and --data: expected one of them, received both\n")


def test_eval_writes_nothing_into_a_checkpoint(evaluated, model, capsys):
    step = evaluated / "checkpoints" / str(model.meta.step)
    before = sorted(step.iterdir())
    assert runs.call("eval", "--workdir", str(step)) == 2
    assert capsys.readouterr().err.startswith("error: --workdir: expected the workdir of a run")
    assert sorted(step.iterdir()) == before


@pytest.mark.parametrize(("arguments", "message"), [
    (("predict", "x.png"), "--workdir: expected a directory, received none"),
    (("predict", "--workdir=DIR"), "expected images or folders of them"),
    (("predict", "--workdir=DIR", "DIR/checkpoints"), "found none"),
    (("predict", "--workdir=EMPTY", "x.png"),
     "expected a whole checkpoint, found none; train until it has saved one"),
    (("predict", "--workdir=/nowhere", "x.png"), "drnet train --workdir makes some"),
    (("predict", "--workdir=DIR", "--budget=1", "x.png"), "expected 1."),
])
def test_predict_errors(evaluated, tmp_path, arguments, message, capsys):
    (tmp_path / "checkpoints").mkdir()
    arguments = [argument.replace("DIR", str(evaluated)).replace("EMPTY", str(tmp_path))
                 for argument in arguments]
    assert runs.call(*arguments) == 2
    out, err = capsys.readouterr()
    error = err.splitlines()[-1]
    assert out == "" and error.startswith("error: ") and message in error


def test_a_checkpoint_is_found_by_its_directory(evaluated, model):
    last = evaluated / "checkpoints" / str(model.meta.step)
    assert drnet_jax.load(last).policy() == model.policy()
    with pytest.raises(UserError, match="expected one of the steps"):
        drnet_jax.load(evaluated / "checkpoints" / "999")


def test_stage_1_predicts_if_its_predictor_knows_the_classes(evaluated, model, rows):
    first = drnet_jax.load(evaluated / "checkpoints" / "18")  # the end of stage 1
    assert (first.meta.stage, first.costs) == ("pretrain", model.costs)
    # Its dials are its own.
    assert first.policy() == first.meta.metrics["price"] != model.policy()
    assert first.dials == first.meta.dials != model.dials
    paths = [row["filename"] for row in rows]
    answers = list(first.predict(paths))
    report = first.evaluate()
    assert report["stage"] == "pretrain" and report["speed"]["differing"] == 0
    assert report["predictor_trained"]
    assert np.mean([answer.multiply_adds for answer in answers]) == pytest.approx(
        report["budget"]["multiply_adds"])
    alone = list(first.predict(paths, budget=first.costs.predictor))
    assert {answer.network for answer in alone} == {"predictor"}


def without_classes(model):
    """A checkpoint of stage 1 of the same networks, but that the predictor does not classify."""
    predictor = dataclasses.replace(model.config.predictor, classifies=False)
    meta = dataclasses.replace(checkpoint_of(model, predictor=predictor), stage="pretrain")
    drnet = DRNet.from_config(meta.config, len(meta.classes))
    variables = jax.device_put(random_variables(drnet), replicated(data_mesh()))
    cascade = {kind: dial for kind, dial in model.dials.items() if kind == "cascade"}
    return api.Model(meta, meta.config, variables, cascade)


def test_stage_1_of_a_predictor_without_classes_predicts_by_cascades(model, rows):
    first = without_classes(model)
    assert not first.costs.classifies and not first.predictor_trained
    with pytest.raises(UserError, match=r"one of stage pretrain .* its predictor is not trained"
                       ) as refused:
        first.predict([], policy="router")
    assert "\n" not in str(refused.value)
    smallest = first.costs.passes.min()
    first.dials["cascade"] = Dial((
        Setting(Cascade((2, 0), "margin", 0.5), (0.5, 0.0, 1.0, 0.0), 0.5),))
    (only,) = first.dials["cascade"].settings
    answers = list(first.predict(
        [rows[0]["filename"]], budget=only.cost((*first.costs.classifier, 0))))
    assert answers[0].options is None and answers[0].multiply_adds >= smallest


def test_stage_1_of_a_predictor_without_classes_is_evaluated_with_a_warning(model):
    report = without_classes(model).evaluate()
    assert report["predictor_trained"] is False and len(report["policies"]) == 7
    assert "warning: the predictor of this checkpoint is not trained" in text_report(report)
    # What is of stage 2 is trained.
    assert model.predictor_trained


def test_the_best_checkpoint_is_the_most_accurate_of_those_that_route(model):
    def rank(stage, top1, dials=model.meta.dials):
        meta = dataclasses.replace(
            model.meta, stage=stage, dials=dials, metrics={"top1": top1} if top1 else {})
        return manager._rank(meta)

    # With a predictor that classifies stage 1 routes, too.
    assert rank("pretrain", 0.8) > rank("finetune", 0.7) > rank("pretrain", 0.6)
    # Else it has cascades alone, and its accuracy is that of no routing.
    none = {"cascade": model.meta.dials["cascade"]}
    assert rank("finetune", 0.1) > rank("pretrain", 0.9, none) > rank("pretrain", 0.8, none)
    assert rank("pretrain", 0.1, none) > rank("finetune", None)


def test_dials_of_one_stage_are_none_of_the_other(evaluated, monkeypatch):
    """As of a kill before the first validation of stage 2: stage 1 learnt other scores."""
    checkpoints = manager.Checkpoints(str(evaluated))
    first, last = 18, checkpoints.latest()
    assert checkpoints.meta(first).dials and checkpoints.meta(last).dials
    assert checkpoints.validated(first).step == first
    assert checkpoints.validated(last).step == last
    read = checkpoints.meta
    monkeypatch.setattr(checkpoints, "steps", lambda: [first, last])
    monkeypatch.setattr(checkpoints, "meta", lambda step: dataclasses.replace(
        read(step), dials={} if step == last else read(step).dials))
    assert checkpoints.validated(last) is None
    checkpoints.close()


def test_evaluation_reads_each_image_at_most_twice(evaluated, monkeypatch):
    """The first few once more than the others, before the work begins."""
    read, counts = FolderSource.__getitem__, Counter()

    def counting(source, index):
        counts[index] += 1
        return read(source, index)

    monkeypatch.setattr(FolderSource, "__getitem__", counting)
    assert runs.call("eval", "--workdir", str(evaluated)) == 0
    assert sorted(counts) == list(range(15)) and set(counts.values()) == {1, 2}
