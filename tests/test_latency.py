"""Latency: of drawn and of trained networks, by every runtime, and of a server under load."""

import json

import pytest

from drnet_jax.benchmark import latency, timing, trained
from drnet_jax.inference import runtimes
from tests import runs
from tests.test_benchmark import CONFIG

MIX = "0.25,0.25,0.5"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(latency, "SIZES", (1, 4))
    monkeypatch.setattr(latency, "STREAM", 2)
    monkeypatch.setattr(latency, "CALLS", 4)
    monkeypatch.setattr(timing, "TURN", 0.0)
    monkeypatch.setattr(trained, "ALONE", 3)
    monkeypatch.setattr(trained, "BATCH", 8)
    monkeypatch.setattr(trained, "BATCHES", 1)


def test_all_runtimes_are_timed_in_all_ways(quick, tmp_path, capsys):
    assert runs.call(
        "benchmark", "--latency", *CONFIG, "--config.classifier.classes=4", f"--mix={MIX}",
        "--repeats=1", f"--out={tmp_path}") == 0
    (report,) = json.loads((tmp_path / "latency.json").read_text())
    names = runtimes.installed("float32")
    assert names[-1] == "jax" and len(names) == 3
    base, small, smallest = 16, 12, 8
    ways = ["static", f"fixed {small}", f"fixed {smallest}", "predictor", "routed", "cascade"]
    assert [(row["runtime"], row["batch"], row["name"]) for row in report["rows"]] == [
        each for name in names for each in (
            *((name, size, way) for size in (1, 4) for way in ways),
            (name, 0, "static"), (name, 0, "routed"))]
    assert report["mix"] == {str(base): 0.25, str(small): 0.25, str(smallest): 0.5}
    for row in report["rows"]:
        assert 0 < row["p50"] <= row["p95"] and row["images_per_second"] > 0
        if row["name"] == "static":
            assert row["over_static"] == row["realised"] == 1
    costs = {row["name"]: row["multiply_adds"] for row in report["rows"] if row["batch"] == 4}
    mixed = 0.25 * costs["static"] + 0.25 * costs["fixed 12"] + 0.5 * costs["fixed 8"]
    assert costs["routed"] == pytest.approx(mixed + costs["predictor"])
    assert costs["cascade"] == pytest.approx(costs["fixed 8"] + costs["static"] / 2)
    shown = capsys.readouterr().out
    assert "batches of 4" in shown and "openvino routed" in shown and "jax cascade" in shown


def test_a_trained_model_is_set_against_its_milliseconds(
    quick, evaluated, images, tmp_path, capsys
):
    assert runs.call("benchmark", "--latency", f"--workdir={evaluated}", "--repeats=1",
                     f"--out={tmp_path}", f"--data={images / 'val'}") == 0
    report = json.loads((tmp_path / "latency.json").read_text())
    found = json.loads((evaluated / "eval.json").read_text())
    assert report["images"] == "15 of val"
    top1 = {policy["name"]: policy["top1"] for policy in found["policies"]}
    for runtime in runtimes.installed("float32"):
        rows = [row for row in report["rows"] if row["runtime"] == runtime]
        fixed = [row for row in rows if row["kind"] == "fixed"]
        assert [row["name"] for row in fixed] == ["32", "24", "16", "predictor"]
        for kind in ("cascade", "router"):
            asked = [row["budget"] for row in rows if row["kind"] == kind]
            assert len(asked) == trained.BUDGETS and asked == sorted(asked)
        for row in rows:
            if row["kind"] == "fixed":
                assert row["top1"] <= row["random_mix"]
                assert row["top1"] == top1[f"fixed {row['name']}"]
            else:  # the ends of a dial are met on its own images
                assert 0.99 * asked[0] <= row["multiply_adds"] <= 1.01 * asked[-1]
            assert (row["held"] is None) == (row["kind"] != "router")
            assert len(row["milliseconds"]) == 2
            assert all(each["fastest"] <= each["median"] <= each["slowest"]
                       for each in row["milliseconds"])
        assert (tmp_path / f"latency-{runtime}.png").stat().st_size > 1000
    assert "ms, batch 8" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "expected --config, or --latency and --workdir"),
    (("--workdir=x",), "--workdir: expected --latency beside it"),
    (("--workdir=/nowhere", "--latency"), "expected a working directory with checkpoints"),
    (("--workdir=x", "--latency", "--dtypes=float32,bfloat16"), "--dtypes: expected one"),
])
def test_bad_flags(capsys, arguments, message):
    assert runs.call("benchmark", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_server_under_load_answers_as_the_model_does(evaluated, capsys):
    assert runs.call("load-test", str(evaluated), "--clients=4", "--seconds=0.5", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clients"], report["images"]) == (4, 15)
    ours, plain = report["drnet serve"], report["plain"]
    for row in (ours, plain):
        assert row["requests"] > 4 and row["refused"] == row["failed"] == 0
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
    assert (ours["different"], plain["different"]) == (0, None)
    assert ours["multiply_adds"] != plain["multiply_adds"]


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "expected a model, a run's directory or an export, received none"),
    (("/nowhere",), "expected a working directory with checkpoints"),
])
def test_what_cannot_be_asked(capsys, arguments, message):
    assert runs.call("load-test", *arguments) == 2
    assert message in capsys.readouterr().err
