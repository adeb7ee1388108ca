"""Going on: what must be as it was, what may change, and the images, which may on demand."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from drnet_jax.checkpoints.existing import newest, open_existing
from drnet_jax.checkpoints.meta import Progress
from drnet_jax.devices import data_mesh
from drnet_jax.drnet import DRNet
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.resume import Span, spans
from drnet_jax.train.run import _doubts
from drnet_jax.train.state import create_state
from tests import runs
from tests.tiny import assert_equal, tiny_config

# Six steps an epoch with 48 images, three with 24.
SHORT = {
    "resolutions": (32, 16), "bucket_lead": 0, "pretrain.distillation": 0.0,
    "pretrain.epochs": 3, "pretrain.decay_epochs": 2, "finetune.epochs": 1,
    "checkpoint.every_steps": 8, "checkpoint.keep": 9, "evaluation.every_epochs": 100,
    "predictor.classifies": False,
}


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The workdir of a run that has come to its end, with checkpoints of steps 8, 16, 18 and 24."""
    workdir = tmp_path_factory.mktemp("finished")
    assert runs.call(*runs.arguments(images, workdir, SHORT)) == 0
    return workdir


def trained(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


@pytest.mark.parametrize(("overrides", "messages"), [
    ({"resolutions": (32, 24)}, ["resolutions: (32, 16) in the checkpoint"]),
    ({"classifier.width": 2.0}, ["classifier.width: 1.0 in the checkpoint, 2.0 here"]),
    ({"predictor.width": 2.0}, ["predictor.width"]),
    ({"predictor.classifies": True},
     ["config.predictor.classifies: False in the checkpoint, True here"]),
    # Steps are counted by these: one message names them all.
    ({"batch_size": 16, "pretrain.epochs": 2, "finetune.epochs": 2},
     ["batch_size: expected 8, received 16", "pretrain.epochs: expected 3.0, received 2.0",
      "finetune.epochs: expected 1.0, received 2.0", "step 24", "another --workdir"]),
    ({"optimizer.decay_norms_and_biases": False},
     ["config.optimizer.decay_norms_and_biases: expected True, received False"]),
    ({"optimizer.name": "rmsprop"},
     ["config.optimizer.name: expected 'sgd', received 'rmsprop', with which"]),
    ({"optimizer.ema": 0.9}, ["config.optimizer.ema: expected 0.0, received 0.9, with which"]),
])
def test_a_checkpoint_of_another_run_is_refused(images, finished, overrides, messages, capsys):
    config = (finished / "config.json").read_text()
    assert runs.call(*runs.arguments(images, finished, SHORT | overrides)) == 2
    out, err = capsys.readouterr()
    assert all(message in err for message in messages), err
    assert len(err.splitlines()) == 2  # the devices, and that
    assert "compiled" not in out
    assert (finished / "config.json").read_text() == config


def test_changed_images_are_refused_or_gone_on_with_from_the_next_epoch(
    images, finished, tmp_path, capsys,
):
    # Stopped in the second epoch of three, after which half of the images were deleted.
    shutil.copytree(finished, tmp_path / "run")
    for step in (16, 18, 24):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images" / "train").glob("*/?.png"):
        if int(path.stem) < 8:
            path.unlink()
    command = runs.arguments(
        tmp_path / "images", tmp_path / "run", SHORT | {"optimizer.momentum": 0.8})
    assert runs.call(*command) == 2
    err = capsys.readouterr().err
    assert "training images: expected 48" in err and "received 24" in err
    assert "--changed-data" in err

    assert runs.call(*command, "--changed-data") == 0
    out = capsys.readouterr().out
    assert "24 images of 3 classes to train on (train), 15 to validate on (val)" in out
    assert "48 before, 24 now; going on with them in epoch 3 of pretrain" in out
    # Said in one line, with where the data are.
    assert "optimizer.momentum 0.9 -> 0.8" in out and "config.data.dir" in out
    # The third epoch has three steps; the one of stage 2, too.
    lines = trained(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 15))
    assert [line["stage"] for line in lines[10:12]] == ["pretrain", "finetune"]
    # From epoch 2 on the rate is a tenth.
    rates = [line["learning_rate"] for line in lines]
    assert rates[7:11] == pytest.approx([0.02, 0.002, 0.002, 0.002])
    meta = newest(str(tmp_path / "run"))
    assert meta.progress == Progress(11, 24, 24, meta.progress.fingerprint)
    # With the same images there is nothing to allow any more.
    assert runs.call(*command) == 0
    assert "have changed" not in capsys.readouterr().out


MODERN = {
    "predictor.classifies": True, "pretrain.schedule": "cosine", "finetune.schedule": "cosine",
    "pretrain.label_smoothing": 0.1, "finetune.label_smoothing": 0.1, "pretrain.distillation": 0.5,
    "pretrain.teacher": "ensemble", "pretrain.mixup": 0.5, "pretrain.cutmix": 1.0,
    "optimizer.name": "rmsprop", "optimizer.ema": 0.5, "optimizer.decay_norms_and_biases": False,
}


def test_a_modern_run_that_stopped_ends_as_it_would_have(images, tmp_path, capsys):
    """From step 8 of 18 of stage 1, with average, mixing and schedule where they were."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert runs.call(*runs.arguments(images, whole, SHORT | MODERN)) == 0
    shutil.copytree(whole, stopped)
    for step in (16, 18, 24):
        shutil.rmtree(stopped / "checkpoints" / str(step))
    assert runs.call(*runs.arguments(images, stopped, SHORT | MODERN)) == 0
    assert "going on from step 8" in capsys.readouterr().out
    found, expected = (restored(workdir, 24) for workdir in (stopped, whole))
    assert_equal(found, expected)
    rates = [line["learning_rate"] for line in trained(stopped)]
    assert rates == [line["learning_rate"] for line in trained(whole)]
    # Twelve steps down from the end of the warm-up, then those of stage 2, which only warms up.
    assert rates[5:7] == pytest.approx([0.02, 0.02]) and rates[11] == pytest.approx(
        0.01 * (1 + np.cos(np.pi * 5 / 12)))
    # What inference is given is the average, and not what the last step has left.
    model, training = found
    assert training.keys() == {"step", "opt_state", "params", "batch_stats"}
    for name in ("shared", "norms", "predictor"):
        assert all(
            (kept != last).any() for kept, last in zip(
                jax.tree.leaves(model["params"][name]), jax.tree.leaves(training["params"][name]),
                strict=True))
    validated = newest(str(whole)).metrics["top1"]
    assert runs.call("eval", "--workdir", str(whole)) == 0
    (routed,) = (policy for policy in json.loads((whole / "eval.json").read_text())["policies"]
                 if policy["name"] == "routed")
    assert routed["top1"] == validated


def restored(workdir, step):
    """(model, training) of a checkpoint."""
    checkpoints = open_existing(str(workdir))
    config = checkpoints.meta(step).config
    drnet = DRNet.from_config(config, 3)
    optimizer = make_optimizer(config, "finetune", 6)
    state = jax.eval_shape(
        functools.partial(create_state, drnet, optimizer, config.optimizer.ema), jax.random.key(0))
    found = checkpoints.restore(step, state.model, state.training, data_mesh(jax.devices()[:1]))
    checkpoints.close()
    return found


def test_a_predictor_that_is_to_know_the_classes_does_not_begin_with_one_that_does_not(
    images, finished, tmp_path, capsys,
):
    overrides = {
        "pretrain.epochs": 0, "init_from": finished, "predictor.classifies": True}
    assert runs.call(*runs.arguments(images, tmp_path / "run", SHORT | overrides)) == 0
    out = capsys.readouterr().out.splitlines()
    told = out.index(f"beginning with the weights of {finished}, step 18 (pretrain)")
    assert out[told + 1] == "the predictor starts anew"


def test_the_learning_rate_is_logged(finished):
    first = [line["learning_rate"] for line in trained(finished)[:7]]
    assert first == pytest.approx([0.02 * share / 6 for share in range(1, 7)] + [0.02])


def test_a_workdir_that_is_a_file_is_refused_and_kept(images, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert runs.call(*runs.arguments(images, tmp_path / "run", SHORT)) == 2
    assert "--workdir" in capsys.readouterr().err


CONFIG = tiny_config({"batch_size": 8, "pretrain.epochs": 3, "finetune.epochs": 1.5})


@pytest.mark.parametrize(("stage", "step", "progress", "count", "expected"), [
    ("pretrain", 4, Progress(0, 32, 48, ""), 48,
     {"pretrain": Span(0, 18), "finetune": Span(18, 27)}),
    ("finetune", 20, Progress(18, 16, 48, ""), 48, {"finetune": Span(18, 27)}),
    # Its first epoch had six steps, the others have two each.
    ("pretrain", 6, Progress(0, 16, 16, "", ahead=-4), 16,
     {"pretrain": Span(0, 10, -4), "finetune": Span(10, 13)}),
    # After all but the last epoch the images grew to ten steps an epoch.
    ("pretrain", 12, Progress(0, 160, 80, "", ahead=8), 80,
     {"pretrain": Span(0, 22, 8), "finetune": Span(22, 37)}),
    # The next whole epoch is beyond the end.
    ("finetune", 25, Progress(18, 32, 16, "", ahead=-3), 16, {"finetune": Span(18, 25, -3)}),
])
def test_the_steps_of_stages_by_hand(finished, stage, step, progress, count, expected):
    meta = dataclasses.replace(
        newest(str(finished)), stage=stage, step=step, progress=progress)
    assert spans(CONFIG, count, meta) == expected


def test_a_run_from_the_start():
    assert spans(CONFIG, 48, None) == {"pretrain": Span(0, 18), "finetune": Span(18, 27)}
    alone = tiny_config({"batch_size": 8, "pretrain.epochs": 0, "finetune.epochs": 1})
    assert spans(alone, 48, None) == {"pretrain": Span(0, 0), "finetune": Span(0, 6)}


@pytest.mark.parametrize(("overrides", "devices", "expected"), [
    ({}, 2, []),
    ({}, 4, ["config.bucket_multiple: 4 is more than the 2 images of a device"]),
    ({"finetune.epochs": 0}, 1, ["config.finetune.epochs: 0, so that a predictor with"]),
    ({"pretrain.teacher": "ensemble"}, 1, ["config.pretrain.teacher: 'ensemble', of which with"]),
    ({"pretrain.teacher": "ensemble", "pretrain.distillation": 0.5}, 1, []),
    # It learns in stage 1, or there is nothing to choose.
    ({"finetune.epochs": 0, "predictor.classifies": True}, 1, []),
    ({"finetune.epochs": 0, "resolutions": (16,)}, 1, []),
])
def test_what_a_config_hardly_means_is_told(overrides, devices, expected):
    found = _doubts(tiny_config(overrides), devices)
    assert len(found) == len(expected)
    assert all(map(str.startswith, found, expected))
