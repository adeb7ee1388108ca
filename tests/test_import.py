"""`drnet import-torch`, and what is to be had of an import: evaluation, and runs that begin there.
"""

import json
import pickle
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import drnet_jax
from drnet_jax.checkpoints.existing import newest, open_existing
from drnet_jax.config_check import parse
from drnet_jax.data.imagenet import synsets
from drnet_jax.devices import data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.weights import imports, names
from tests import runs
from tests.tiny import assert_equal

CLASSES = ("class2", "class0", "other", "class1")
# Of tests.tiny:TinyNet, as PyTorch would call its layers.
RULES = ((r"conv(\d)", r"conv\1"), (r"bn(\d)", r"norm\1"), (r"fc", "head"))


def tensors():
    """A state dict of a TinyNet of four classes."""
    random = np.random.default_rng(0)
    found = {}
    for layer, (there, here) in enumerate(((3, 4), (4, 8)), 1):
        found[f"conv{layer}.weight"] = random.normal(size=(here, there, 3, 3)) / 3
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"bn{layer}.{leaf}"] = np.exp(0.3 * random.normal(size=here))
    found |= {"fc.weight": random.normal(size=(4, 8)), "fc.bias": random.normal(size=4)}
    return {name: tensor.astype(np.float32) for name, tensor in found.items()}


@pytest.fixture(scope="module", autouse=True)
def rules():
    """TinyNet as a network that weights can be imported for."""
    names.RULES["tests.tiny:TinyNet"] = RULES
    yield
    del names.RULES["tests.tiny:TinyNet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The weights, and the names of their classes."""
    folder = tmp_path_factory.mktemp("files")
    save_file(tensors(), folder / "tiny.safetensors")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def importing(files, images, workdir, overrides=None, weights="tiny.safetensors"):
    return ("import-torch", str(files / weights), "--classes", str(files / "classes.txt"),
            *runs.arguments(images, workdir, overrides))


@pytest.fixture(scope="module")
def imported(files, images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported") / "run"
    assert runs.call(*importing(files, images, workdir)) == 0
    return workdir


def test_an_import_is_a_checkpoint_of_these_weights_at_every_resolution(imported):
    meta = newest(str(imported))
    assert (meta.step, meta.stage, meta.stage_end, meta.classes) == (0, "pretrain", True, CLASSES)
    assert not meta.config.predictor.classifies and meta.dials == {} and meta.metrics == {}
    assert parse(json.loads((imported / "config.json").read_text())) == meta.config
    checkpoints = open_existing(str(imported))
    params, stats = checkpoints.restore_model(0, data_mesh())
    checkpoints.close()
    source = tensors()
    assert_equal(params["shared"], {
        "conv1": {"kernel": source["conv1.weight"].transpose(2, 3, 1, 0)},
        "conv2": {"kernel": source["conv2.weight"].transpose(2, 3, 1, 0)},
        "head": {"kernel": source["fc.weight"].T, "bias": source["fc.bias"]},
    })
    for key in ("32", "24", "16"):
        for layer in "12":
            assert_equal(params["norms"][key][f"norm{layer}"], {
                "scale": source[f"bn{layer}.weight"], "bias": source[f"bn{layer}.bias"]})
            assert_equal(stats["norms"][key][f"norm{layer}"], {
                "mean": source[f"bn{layer}.running_mean"],
                "var": source[f"bn{layer}.running_var"]})
    assert list(params["norms"]) == list(stats["norms"]) and len(params["norms"]) == 3


def test_what_was_imported_is_told(files, images, tmp_path, capsys):
    assert runs.call(*importing(files, images, tmp_path / "run")) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files / 'tiny.safetensors'}: 12 tensors, 456 parameters of a tests.tiny:TinyNet of 4 "
        "classes (class2, class0, other, ...)",
        f"{tmp_path / 'run'}: a checkpoint of step 0 for 32, 24, 16 px, all with the same norms; "
        "its predictor is not trained",
    ]


def test_an_import_is_evaluated_among_all_classes_and_among_some(imported, tmp_path, capsys):
    shutil.copytree(imported, tmp_path / "run")
    where = "eval", "--workdir", str(tmp_path / "run")
    assert runs.call(*where) == 0
    out = capsys.readouterr().out
    assert "no images of 1 of the 4 classes: other" in out
    assert "the predictor of this checkpoint is not trained" in out
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert report["answers_among"] == 4 and report["images"] == 15

    (tmp_path / "some.txt").write_text("class1\nclass2\n")
    assert runs.call(*where, "--classes", str(tmp_path / "some.txt")) == 0
    out = capsys.readouterr().out
    assert "left out 1 folder of other classes: class0" in out
    assert f"checkpoint 0 (pretrain) of {tmp_path / 'run'}, among 2 of its classes" in out
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert (report["answers_among"], report["images"]) == (2, 10)
    assert sorted(report["classes"]) == ["class1", "class2"]


def test_answers_among_some_classes_are_those_of_the_whole_model(imported):
    whole = drnet_jax.load(imported)
    part = drnet_jax.load(imported, classes=["class1", "class2"])
    assert part.classes == ("class1", "class2") and part.meta.classes == CLASSES
    batch = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for index in range(3):
        before, after = (np.asarray(model.engine.classify(index, model.engine.upload(batch)))
                         for model in (whole, part))
        before = before[:, [3, 0]]
        expected = before - np.log(np.exp(before).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("classes", "message"), [
    (["class1", "lion"], "expected some of the model's 4 .* 1 that it does not know, such as 'li"),
    (["class1"], "expected two or more, each once, received class1$"),
    (["class1", "class2", "class1"], "expected two or more, each once"),
    ([], "expected two or more, each once, received none"),
])
def test_classes_to_answer_among_are_checked(imported, classes, message):
    with pytest.raises(UserError, match=f"^classes: {message}"):
        drnet_jax.load(imported, classes=classes)


def test_an_import_predicts_only_once_it_is_evaluated(imported, images):
    with pytest.raises(UserError, match="of which nobody knows what a cascade costs; drnet eval"):
        drnet_jax.load(imported).predict([str(images)])


@pytest.mark.parametrize(("overrides", "message"), [
    ({"classifier.name": "tests.tiny:TinyPredictor"}, "a network that weights can be imported for"),
    ({"classifier.name": "resnet18"}, "tiny.safetensors: expected a tensor for each variable"),
    ({"classifier.width": 2.0}, "unfit: bn1.bias of shape [4]"),
    ({"classifier.classes": 3}, "config.classifier.classes: expected 0 or the 4 classes"),
    ({"budget": 1}, "config.budget (or --budget): expected 2."),
])
def test_weights_that_do_not_fit_are_one_line_and_write_nothing(
    files, images, tmp_path, overrides, message, capsys
):
    assert runs.call(*importing(files, images, tmp_path / "run", overrides)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "run").exists()


def test_a_file_that_would_run_code_is_one_line(files, images, tmp_path, capsys):
    weights = tmp_path / "evil.pth"
    weights.write_bytes(pickle.dumps(parse, 2))
    assert runs.call(*importing(files, images, tmp_path / "run", weights=weights)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "would load drnet_jax.config_check.parse, which was not run" in error
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(files, images, imported, capsys):
    assert runs.call(*importing(files, images, imported)) == 2
    assert "--workdir: expected a new directory" in capsys.readouterr().err


def test_one_file_is_named(images, tmp_path, capsys):
    assert runs.call("import-torch", *runs.arguments(images, tmp_path / "run")) == 2
    assert "expected a file of weights" in capsys.readouterr().err


def test_the_classes_of_a_thousand_are_imagenets(files, images, tmp_path):
    head = {"fc.weight": np.ones((1000, 8), np.float32), "fc.bias": np.ones(1000, np.float32)}
    save_file(tensors() | head, tmp_path / "a.safetensors")
    config = newest_config(files, images, tmp_path)
    meta, count, costs = imports.import_torch(
        str(tmp_path / "a.safetensors"), config, str(tmp_path / "run"))
    assert meta.classes == tuple(synsets()) and (count, costs.parameters.classifier) == (12, 9420)
    with pytest.raises(UserError, match=r"names of the 4 classes .* received 1000 \(ImageNet's"):
        imports.import_torch(
            str(files / "tiny.safetensors"), config, str(tmp_path / "another"))


def newest_config(files, images, folder):
    """The config of the tests, through an import."""
    assert runs.call(*importing(files, images, folder / "first")) == 0
    return newest(str(folder / "first")).config


def test_training_does_not_go_on_from_an_import_but_begins_with_it(imported, images, capsys):
    overrides = {"predictor.classifies": False}
    assert runs.call(*runs.arguments(images, imported, overrides)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"use another --workdir, and --config.init_from={imported}" in error
    assert runs.call(*runs.arguments(images, imported, overrides), "--changed-data") == 2


def begun(workdir, step):
    """The weights that a run has after a step, and its network."""
    checkpoints = open_existing(str(workdir))
    meta = checkpoints.meta(step)
    variables = checkpoints.restore_model(step, data_mesh())
    checkpoints.close()
    return meta, jax.tree.map(np.asarray, variables)


# One step, too small to move anything by more than a hair.
STEP = {
    "batch_size": 48, "checkpoint.every_steps": 1, "pretrain.epochs": 0, "finetune.epochs": 0,
    "pretrain.learning_rate": 1e-9, "finetune.learning_rate": 1e-9, "bucket_multiple": 48,
}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_either_stage_begins_with_an_import(imported, images, tmp_path, stage, capsys):
    """Of whose four classes the data set has three, in another order; and of other resolutions."""
    overrides = STEP | {
        f"{stage}.epochs": 1, "init_from": str(imported), "resolutions": (32, 20)}
    assert runs.call(*runs.arguments(images, tmp_path / "run", overrides)) == 0
    out = capsys.readouterr().out
    for line in (
        f"beginning with the weights of {imported}, step 0 (pretrain)",
        "the norms of 20 px begin as those of 32 px",
        "of the last layer are kept the rows of 3 of 4 classes", "the predictor starts anew",
    ):
        assert line in out.splitlines()
    meta, (params, _) = begun(tmp_path / "run", 1)
    assert (meta.stage, meta.classes) == (stage, ("class0", "class1", "class2"))
    source = tensors()
    head = params["shared"]["head"]
    np.testing.assert_allclose(head["kernel"], source["fc.weight"].T[:, [1, 3, 0]], atol=1e-6)
    np.testing.assert_allclose(head["bias"], source["fc.bias"][[1, 3, 0]], atol=1e-6)
    for key in ("32", "20"):
        scale = params["norms"][key]["norm2"]["scale"]
        np.testing.assert_allclose(scale, source["bn2.weight"], atol=1e-6)


def test_other_classes_start_the_last_layer_anew(imported, images, tmp_path, capsys):
    """Transfer learning: the data set has a class that the weights do not know."""
    shutil.copytree(images, tmp_path / "images")
    for split in ("train", "val"):
        (tmp_path / "images" / split / "class0").rename(tmp_path / "images" / split / "lion")
    overrides = STEP | {"pretrain.epochs": 1, "init_from": str(imported)}
    assert runs.call(*runs.arguments(tmp_path / "images", tmp_path / "run", overrides)) == 0
    assert (
        "the last layer starts anew: 1 of the 3 classes are none of the 4 known, such as 'lion'"
        in capsys.readouterr().out.splitlines())
    meta, (params, _) = begun(tmp_path / "run", 1)
    drnet = DRNet.from_config(meta.config, 3)
    fresh, _ = jax.jit(drnet.init)(jax.random.key(meta.config.seed))
    np.testing.assert_allclose(
        params["shared"]["head"]["kernel"], fresh["shared"]["head"]["kernel"], atol=1e-6)
    kernel = tensors()["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["shared"]["conv1"]["kernel"], kernel, atol=1e-6)


@pytest.mark.parametrize(("overrides", "key"), [
    ({"classifier.width": 2.0}, "classifier.width: 1.0 in the checkpoint, 2.0 here"),
    ({"preprocessing.mean": (127.0, 127.0, 127.0)}, "preprocessing.mean"),
    ({"preprocessing.interpolation": "bicubic"}, "preprocessing.interpolation"),
    ({"classifier.resolution_aware_norm": False}, "classifier.resolution_aware_norm"),
])
def test_another_network_is_refused(imported, images, tmp_path, overrides, key, capsys):
    overrides = {"init_from": str(imported)} | overrides
    assert runs.call(*runs.arguments(images, tmp_path / "run", overrides)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{imported}: expected a checkpoint of the same networks; config.{key}" in error
    assert not (tmp_path / "run").exists()


def test_a_finished_run_gives_what_its_stage_1_ended_with(finished, images, tmp_path, capsys):
    overrides = STEP | {"pretrain.epochs": 1, "init_from": str(finished)}
    assert runs.call(*runs.arguments(images, tmp_path / "run", overrides)) == 0
    out = capsys.readouterr().out
    assert f"beginning with the weights of {finished}, step 18 (pretrain)" in out
    assert "anew" not in out
    _, source = begun(finished, 18)
    _, (params, _) = begun(tmp_path / "run", 1)
    for name in ("shared", "predictor", "norms"):
        for found, expected in zip(
            jax.tree.leaves(params[name]), jax.tree.leaves(source[0][name]), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-6)
