"""Exports: whole or refused, and answering as the checkpoint does, without this package too."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import drnet_jax
from drnet_jax.bundle import check, files, predict
from drnet_jax.errors import UserError
from drnet_jax.routing import Cascade
from tests import runs


@pytest.fixture(scope="module")
def export(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "bundle"
    assert runs.call("export", "--workdir", str(evaluated), "--out", str(out)) == 0
    return out


@pytest.fixture
def copy(export, tmp_path):
    shutil.copytree(export, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def paths(evaluated):
    lines = (evaluated / "predictions.csv").read_text().splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def test_what_is_in_it(export):
    names = {path.name for path in export.iterdir()}
    assert names == {
        "manifest.json", "weights.safetensors", "predict.py",
        *(f"{network}.{form}" for network in ("predictor", "32", "24", "16")
          for form in ("onnx", "stablehlo"))}
    manifest = json.loads((export / "manifest.json").read_text())
    assert manifest["options"] == ["32", "24", "16", "predictor"]
    assert manifest["policy"].keys() == {"price"}
    assert manifest["files"].keys() == names - {"manifest.json"}


def test_it_answers_as_the_checkpoint(evaluated, export, paths):
    model = drnet_jax.load(evaluated, runtime="jax")
    answers = list(model.predict(paths))
    images = [cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in paths]
    assert len({answer.resolution for answer in answers}) > 1
    for runtime in predict.RUNTIMES:
        found = list(predict.Bundle(export, runtime).predict(images))
        for (label, probability, option), answer in zip(found, answers, strict=True):
            seen = "predictor" if answer.network == "predictor" else str(answer.resolution)
            assert (label, option) == (answer.label, seen)
            assert probability == pytest.approx(answer.probability, abs=1e-5)
    # Opened by this package, in JAX.
    again = list(drnet_jax.load(export, runtime="jax").predict(paths))
    assert again == answers


def test_the_script_alone(export, paths):
    """In a process that cannot import this package."""
    done = subprocess.run(
        [sys.executable, "-I", str(export / "predict.py"), *paths[:3], "nowhere.png"],
        text=True, capture_output=True, timeout=120)
    assert done.stderr == ""
    *records, failed = map(json.loads, done.stdout.splitlines())
    expected = list(predict.Bundle(export).predict(
        cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in paths[:3]))
    assert [(each["label"], each["probability"], each["option"]) for each in records] == [
        (label, round(probability, 6), option) for label, probability, option in expected]
    assert "No such file" in failed["error"]


def test_the_script_says_which_runtime_it_misses(export, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name not in predict.RUNTIMES and there(name))
    with pytest.raises(predict.Unusable, match="expected onnxruntime or jax to be installed: pip"):
        predict.Bundle(export)
    with pytest.raises(predict.Unusable, match="expected jax to be installed"):
        predict.Bundle(export, "jax")


def test_the_script_refuses_the_jax_that_is_known_to_be_wrong(export, monkeypatch):
    monkeypatch.setattr("jax.__version__", predict.WRONG)
    with pytest.raises(predict.Unusable, match=r"expected another jax than 0\.10\.2, which gives"):
        predict.Bundle(export, "jax").run("32", np.zeros((1, 32, 32, 3), np.uint8))


def test_an_export_says_what_it_needs(evaluated, tmp_path, capsys, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "onnx" and there(name))
    assert runs.call("export", f"--workdir={evaluated}", f"--out={tmp_path / 'x'}") == 2
    assert "drnet export: expected onnx, onnxruntime, but onnx is not installed; pip install" in (
        capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_cascades(evaluated, tmp_path, paths):
    out, budget = tmp_path / "bundle", "2.5e-5"
    assert runs.call("export", "--workdir", str(evaluated), "--out", str(out),
                     "--policy=cascade", f"--budget={budget}", "--forms=onnx") == 0
    model = drnet_jax.load(evaluated, runtime="jax")
    policy = model.policy(float(budget) * 1e9, kind="cascade")
    contents, _ = files.read(str(out))
    assert contents.policy == policy and isinstance(policy, Cascade)
    images = [cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in paths]
    answers = model.predict(paths, float(budget) * 1e9, policy="cascade")
    for found, answer in zip(predict.Bundle(out).predict(images), answers, strict=True):
        seen = "predictor" if answer.network == "predictor" else str(answer.resolution)
        assert (found[0], found[2]) == (answer.label, seen)


@pytest.mark.parametrize("name", [
    "manifest.json", "weights.safetensors", "predictor.onnx", "32.stablehlo"])
def test_a_flipped_bit_is_found_in_any_file_that_is_read(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    image = np.zeros((44, 44, 3), np.uint8)
    with pytest.raises(predict.Damaged, match=name):
        for runtime in predict.RUNTIMES:
            bundle = predict.Bundle(copy, runtime)
            for network in ("predictor", "32"):
                bundle.run(network, predict.prepared(image, bundle.manifest["preprocessing"])[None])
    with pytest.raises(UserError, match=name):  # though it may need another file alone
        drnet_jax.load(copy)


def test_a_missing_file_and_another_layout(copy):
    (copy / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        drnet_jax.load(copy)
    manifest = predict.read_manifest(copy) | {"format": 99}
    text = predict.as_text(manifest).encode()
    (copy / "manifest.json").write_text(json.dumps(manifest | {"checksum": predict.digest(text)}))
    with pytest.raises(UserError, match="expected an export of layout 1, received one of 99"):
        drnet_jax.load(copy)


def test_what_answers_otherwise_is_not_called_whole(evaluated, export, copy, monkeypatch):
    model = drnet_jax.load(evaluated, runtime="jax")
    engine = model.engine_for(8)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    told = check.check(copy, files.FORMS, engine, images)
    assert [line.partition(":")[0] for line in told] == list(files.FORMS)
    monkeypatch.setattr(check, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"expected stablehlo to answer .* do not use it"):
        check.check(copy, files.FORMS, engine, images)


def test_traced_anew(copy, capsys):
    (copy / "32.stablehlo").write_bytes(b"of a release of JAX that is long gone")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["32.stablehlo"] = predict.digest(b"of a release of JAX that is long gone")
    del manifest["checksum"]
    text = predict.as_text(manifest).encode()
    (copy / "manifest.json").write_text(json.dumps(manifest | {"checksum": predict.digest(text)}))
    assert runs.call("export", "--refresh", str(copy)) == 0
    image = np.zeros((44, 44, 3), np.uint8)
    (found,) = predict.Bundle(copy, "jax").predict([image])
    (expected,) = predict.Bundle(copy, "onnxruntime").predict([image])
    assert found[0] == expected[0]


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "expected --workdir and --out, or --refresh"),
    (("--workdir=DIR", "--refresh=x"), "expected --workdir and --out, or --refresh"),
    (("--workdir=DIR",), "--out: expected a directory, received none"),
    (("--workdir=DIR", "--out=DIR"), "--out: expected a new directory, or an export to replace"),
    (("--workdir=DIR", "--out=NEW", "--forms=tflite"), "--forms: expected some of stablehlo, onnx"),
    (("--workdir=DIR", "--out=NEW", "--images=NEW"), "found none"),
    (("--refresh=NEW",), "expected the manifest of an export"),
])
def test_bad_input(evaluated, tmp_path, capsys, arguments, message):
    (tmp_path / "new").mkdir()
    arguments = [each.replace("DIR", str(evaluated)).replace("NEW", str(tmp_path / "new"))
                 for each in arguments]
    assert runs.call("export", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert list((tmp_path / "new").iterdir()) == []


def test_an_export_is_never_seen_half_written(export, monkeypatch, tmp_path):
    contents, _ = files.read(str(export))
    model = drnet_jax.load(export, runtime="jax")
    def full(self, data):
        if self.name == "24.onnx":
            raise OSError(28, "No space left on device")
        return original(self, data)

    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        files.write(contents, model.costs, tmp_path / "new", ["onnx"])
    assert not (tmp_path / "new").exists()
