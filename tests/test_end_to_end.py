"""Both stages, evaluation from the directory alone, and bad input."""

import json
import shutil
import time

import jax
import numpy as np
import pytest

from drnet_jax.checkpoints.existing import newest, open_existing
from drnet_jax.checkpoints.manager import Checkpoints
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.data.subset import classes_named
from drnet_jax.devices import data_mesh
from tests import runs


def lines(workdir):
    path = workdir / "metrics.jsonl"
    whole = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in whole if line.endswith("}")]


def final_parameters(workdir):
    checkpoints = open_existing(str(workdir))
    model = checkpoints.restore_model(checkpoints.latest(), data_mesh(jax.devices()[:1]))
    checkpoints.close()
    return model


def test_a_run_leaves_what_it_promises(finished):
    assert json.loads((finished / "config.json").read_text())["seed"] == 3
    assert classes_named(str(finished / "classes.txt")) == ("class0", "class1", "class2")
    assert list((finished / "tensorboard").glob("events*"))
    programs = [line["program"] for line in lines(finished) if line["kind"] == "compile"]
    assert {"begin", "bucket 32px x8 of stage 1", "route", "bucket 32px x8"} <= set(programs)
    steps = [line["step"] for line in lines(finished) if line["kind"] == "train"]
    assert steps == list(range(1, 37))
    last = [line for line in lines(finished) if line["kind"] == "train"][-1]
    assert last["stage"] == "finetune" and list(last["mix"]) == ["32", "24", "16", "predictor"]
    np.testing.assert_allclose(sum(last["mix"].values()), 1, rtol=1e-6)
    assert {"loss", "learning_rate", "accuracy", "multiply_adds", "entropy", "padding",
            "images_per_second", "data_wait", "compile_wait"} <= last.keys()
    first = next(line for line in lines(finished) if line["kind"] == "train")
    assert list(first["accuracy"]) == ["32", "24", "16", "predictor"] and "router_loss" in first
    # A predictor that knows the classes routes from stage 1 on.
    validated = [line for line in lines(finished) if line["kind"] == "validation"]
    assert [line["stage"] for line in validated] == ["pretrain"] * 3 + ["finetune"] * 3
    for line in validated:
        assert {"top1", "top1_by_option", "multiply_adds", "price", "mix", "foretold"} <= set(line)
        assert -1 <= line["foretold"] <= 1
    checkpoints = open_existing(str(finished))
    # The latest three, the best (one of them or not) and the end of stage 1.
    assert {18, 32, 35, 36} - {35} <= set(checkpoints.steps())
    assert checkpoints.best() in checkpoints.steps()
    meta = checkpoints.meta(36)
    assert (meta.stage, meta.stage_end) == ("finetune", True)
    assert meta.bucket_sizes["32"]["8"] == 0  # the whole batch is in use
    assert checkpoints.meta(18).bucket_sizes == {}
    assert meta.classes == ("class0", "class1", "class2")
    assert meta.to_json()["preprocessing"]["resize"] == 37
    assert checkpoints.meta(18).stage == "pretrain"
    # Everything that is written is read back.
    assert Meta.from_json(json.loads(json.dumps(meta.to_json())), "") == meta
    assert (meta.progress.first_step, meta.progress.examples, meta.progress.images) == (18, 144, 48)
    checkpoints.close()


def test_evaluation_needs_nothing_but_the_workdir(finished):
    status, out, err = runs.run("--mode", "eval", "--workdir", str(finished))
    assert status == 0, err
    report = json.loads((finished / "eval.json").read_text())
    assert report["images"] == 15
    names = [policy["name"] for policy in report["policies"]]
    assert names == ["fixed 32", "fixed 24", "fixed 16", "fixed predictor", "routed", "random",
                     "oracle", "cascade"]
    assert report.keys() == {
        "checkpoint", "stage", "seed", "predictor_trained", "answers_among", "first_image",
        "images", "batch_size", "resolutions", "options", "policies", "budget", "router",
        "ceilings", "speed", "classes", "notes"}
    assert report["speed"] == {"images": 15, "differing": 0}
    assert report["ceilings"].keys() == {"resolutions", "mirror", "foresight"}
    assert report["router"].keys() == {"gains", "entropy", "agreement", "foretold"}
    assert report["router"]["gains"].keys() == {
        "top1", "over_same_mix", "over_best_mix", "over_resolution_mix", "of_oracle"}
    assert all(name in out for name in names)
    assert "over the best random mix" in out
    by_name = dict(zip(names, report["policies"], strict=True))
    assert by_name["random"]["mix"] == by_name["routed"]["mix"]
    assert by_name["oracle"]["top1"] >= max(by_name[name]["top1"] for name in names[:6])
    assert all(policy["images_per_second"] > 0 for policy in report["policies"])
    # In training the last validation was of the same parameters.
    last = [line for line in lines(finished) if line["kind"] == "validation"][-1]
    assert by_name["routed"]["top1"] == last["top1"]
    np.testing.assert_allclose(by_name["routed"]["multiply_adds"], last["multiply_adds"])
    # Both route at the budget of the config.
    assert report["budget"]["target"] == 5e4
    assert report["budget"]["price"] == last["price"] != 0
    assert report["router"]["foretold"] == pytest.approx(last["foretold"], abs=1e-4)
    assert last["top1_by_option"] == {
        name: by_name[f"fixed {name}"]["top1"] for name in report["options"]}
    assert last["multiply_adds"] <= 5e4
    assert (finished / "routing.png").stat().st_size > 0
    assert not (finished / "curve.png").exists()


def test_a_budget_and_a_curve_from_the_command_line(finished, capsys):
    assert runs.call("eval", "--workdir", str(finished), "--budget", "4e-5", "--curve") == 0
    out = capsys.readouterr().out
    report = json.loads((finished / "eval.json").read_text(), parse_constant=pytest.fail)
    assert report["budget"]["target"] == 4e4
    routed, = (policy for policy in report["policies"] if policy["name"] == "routed")
    assert routed["multiply_adds"] == report["budget"]["multiply_adds"] <= 4e4
    assert "40.0 k asked for" in out
    swept = json.loads((finished / "curve.json").read_text(), parse_constant=pytest.fail)
    fixed = {policy["name"]: policy for policy in report["policies"]}
    assert swept["options"] == ["32", "24", "16", "predictor"] == list(swept["fixed"])
    assert swept.keys() - {"missed"} == {
        "resolutions", "options", "fixed", "oracle", "predictor", "points"}
    for point in swept["points"]:
        assert point.keys() == {"budget", "of_base", "price", "mix", "policies", "gains"}
        assert point["gains"].keys() == {
            "routed", "routed_over_resolution_mix", "best_policy",
            "best_policy_over_resolution_mix", "routed_over_cascade"}
    for size, point in swept["fixed"].items():
        assert point["top1"] == fixed[f"fixed {size}"]["top1"]
        assert point["multiply_adds"] == fixed[f"fixed {size}"]["multiply_adds"]
    assert len((finished / "curve.csv").read_text().splitlines()) == len(swept["points"]) + 1
    assert (finished / "curve.png").stat().st_size > 0
    assert "top-1 % by budget" in out


def test_a_budget_out_of_reach_is_told_before_long_work(finished, capsys):
    assert runs.call("eval", "--workdir", str(finished), "--budget", "1") == 2
    out, err = capsys.readouterr()
    assert "expected 1.159e-05 (the predictor) to 5.769e-05" in err and "received 1" in err
    assert out == ""


def test_stage_2_from_another_run(images, finished, tmp_path, capsys):
    assert runs.call(*runs.arguments(images, tmp_path, {
        "pretrain.epochs": 0, "finetune.epochs": 0.5, "init_from": str(finished),
        "router.objective": "gumbel", "router.gumbel.alpha": 1e-5,
        "router.gumbel.estimator": "dense", "predictor.width": 0.5, "predictor.classifies": False,
    })) == 0
    assert "compiled dense" in capsys.readouterr().out
    # Half an epoch, whose first step is taken with the classifier of the other run's stage 1.
    checkpoints = open_existing(str(tmp_path))
    assert checkpoints.latest() == 3
    assert checkpoints.meta(3).stage == "finetune"
    checkpoints.close()


def test_a_warm_up_compiles_all_of_training_before_its_first_step(images, tmp_path):
    status, _, err = runs.run("--warm-up", *runs.arguments(images, tmp_path, {
        "pretrain.epochs": 0.5, "finetune.epochs": 0.5, "bucket_lead": 1000,
        "resolutions": (32, 16),
    }))
    assert status == 0, err
    kinds = [(line["kind"], line.get("program")) for line in lines(tmp_path)]
    first = [kind for kind, _ in kinds].index("train")
    training = {
        "begin", "noise", "route", "update of stage 1", "update of stage 2",
        *(f"bucket {at}px x8 of stage 1" for at in (32, 16)),
        *(f"bucket {at}px x{size}" for at in (32, 16) for size in (4, 8)),
    }
    assert {program for _, program in kinds[:first]} == training
    assert not training & {program for _, program in kinds[first:]}
    trained = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert all(line["compile_wait"] == 0 for line in trained)
    # All sizes are in use, whatever the lead: two whole batches would be half padding.
    assert min(line.get("padding", 1) for line in trained) < 1 / 2


def test_new_bucket_sizes_compile_in_the_background(finished):
    """Two steps after they are first wanted, as TINY says: in step 19, the first of stage 2, the
    whole batch serves."""
    of_stage_2 = [line for line in lines(finished) if line.get("stage") == "finetune"]
    trained = [line for line in of_stage_2 if line["kind"] == "train"]
    rows = [8 * sum(share > 0 for share in line["mix"].values()) for line in trained]
    assert trained[0]["padding"] == pytest.approx(1 - 8 / rows[0])
    # The record before the first step with a smaller size is that of step 20.
    smaller = [line["step"] for line in lines(finished)
               if line["kind"] == "compile" and line["program"].endswith("px x4")]
    assert smaller and min(smaller) == 20


def test_a_collapsed_router_is_told_with_a_hint(images, tmp_path, capsys):
    pushed = {
        "router.objective": "gumbel", "predictor.classifies": False, "budget": 0.0,
        "router.gumbel.alpha": 1e-6, "router.gumbel.eta": 30.0, "optimizer.predictor_rate": 5.0,
        "pretrain.epochs": 0, "resolutions": (32, 16),
    }
    assert runs.call(*runs.arguments(images, tmp_path, pushed)) == 0
    assert "every image is answered by one option" in capsys.readouterr().out
    last = [line for line in lines(tmp_path) if line["kind"] == "train"][-1]
    assert last["mix"]["16"] == 1.0


def refused(capsys, *flags):
    """What stderr says of a command that is refused before anything is compiled."""
    assert runs.call(*flags) == 2
    out, err = capsys.readouterr()
    assert "compiled" not in out
    return err


@pytest.mark.parametrize(("overrides", "message"), [
    ({"router.tau": 2}, "unknown key"),
    ({"batch_size": "many"}, "batch_size"),
    ({"resolutions": (16, 32)}, "largest first"),
    ({"data.dir": "/nowhere/at/all"}, "/nowhere/at/all"),
    ({"data.name": "no_such_set"}, "no_such_set"),
    ({"classifier.classes": 7}, "expected 3"),
    ({"batch_size": 1000}, "48 training images"),
    ({"batch_size": 12}, "a multiple of the 8 devices"),
    ({"predictor.name": "no_module:Net"}, "no_module"),
    ({"pretrain.epochs": 0, "init_from": "/nowhere"}, "/nowhere"),
])
def test_bad_input_is_told_before_anything_starts(images, tmp_path, capsys, overrides, message):
    assert message in refused(capsys, *runs.arguments(images, tmp_path / "run", overrides))
    assert not (tmp_path / "run").exists()


def test_a_corrupt_image_is_named(tmp_path, capsys):
    images = runs.make_images(tmp_path / "images", train=4, val=2)
    (images / "val" / "class0" / "0.png").write_bytes(b"not an image")
    assert "class0/0.png" in refused(capsys, *runs.arguments(images, tmp_path / "run"))


def test_evaluation_without_a_checkpoint_says_so(tmp_path, capsys):
    assert "drnet train --workdir makes some" in refused(capsys, "eval", "--workdir", str(tmp_path))


def test_readers_leave_what_a_live_run_is_writing(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    half_written = tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp"
    half_written.mkdir()
    reader = open_existing(str(tmp_path))
    assert reader.latest() == newest(str(tmp_path)).step == 36
    reader.close()
    assert half_written.exists()
    assert newest(str(tmp_path / "nothing")) is None
    assert not (tmp_path / "nothing").exists()
    writer = Checkpoints(str(tmp_path), write=True)
    deadline = time.monotonic() + 60
    while half_written.exists():  # orbax removes it in the background
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.close()


def test_the_best_of_checkpoints_without_validation(finished, tmp_path, capsys):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    checkpoints = open_existing(str(tmp_path))
    for step in checkpoints.steps():
        if checkpoints.meta(step).metrics:
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
    checkpoints.close()
    assert "--checkpoint=last" in refused(
        capsys, "eval", "--checkpoint", "best", "--workdir", str(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(images, tmp_path, capsys):
    assert runs.call(*runs.arguments(images, tmp_path, {
        "pretrain.learning_rate": 1e30, "pretrain.warmup_epochs": 0, "resolutions": (32, 16),
        "predictor.classifies": False,  # its logits would be told first
    })) == 2
    err = capsys.readouterr().err
    assert "the loss of step" in err
    assert "class" in err and ".png" in err
    assert "no checkpoint yet" in err


@pytest.mark.parametrize("objective", ["gumbel", "outcome"])
def test_a_predictor_that_turns_nan_stops_the_run_and_is_never_saved(
    images, tmp_path, capsys, objective,
):
    # Without a check it trains on: the largest of NaNs is the first, so that all go to the base.
    assert runs.call(*runs.arguments(images, tmp_path, {
        "pretrain.epochs": 0, "optimizer.predictor_rate": 1e38, "router.objective": objective,
        "predictor.classifies": objective == "outcome",
        "checkpoint.every_steps": 1, "resolutions": (32, 16),
    })) == 2
    err = capsys.readouterr().err
    assert "the sum of the predictor's logits of step 2 is nan" in err
    assert "The last good checkpoint is that of step 1" in err
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_parameters(tmp_path)))
