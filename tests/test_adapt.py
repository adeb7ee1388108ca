"""Adaptation: what stands still, what is learnt by hand, a real kill, and statistics taken anew."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drnet_jax import images as drnet_images
from drnet_jax.adapt import run as adaptation
from drnet_jax.adapt.statistics import Verdict, statistics
from drnet_jax.adapt.statistics import _engine as make_engine
from drnet_jax.adapt.statistics import _read as read
from drnet_jax.adapt.step import AdaptState, adapt_program, begin, make_optimizer
from drnet_jax.checkpoints.existing import newest, open_existing
from drnet_jax.data.folder import FolderSource
from drnet_jax.data.transforms import Square
from drnet_jax.data.unlabelled import UnlabelledSource
from drnet_jax.devices import Programs, data_mesh, replicated, split
from drnet_jax.errors import UserError
from drnet_jax.evaluation.table import host_batches
from drnet_jax.ops import conv
from tests import runs
from tests.tiny import (
    assert_close,
    assert_equal,
    mesh_of,
    random_batch,
    random_variables,
    tiny_drnet,
)

AMONG = (1, 4, 5)


def one_step(devices, among=(), optimizer=None, steps=1):
    """The norms after steps of a tiny network on random images, and the last metrics."""
    drnet, mesh = tiny_drnet(), mesh_of(devices)
    optimizer = optimizer or optax.sgd(1.0)
    variables = begin(drnet, "16", *random_variables(drnet), jax.random.key(0))
    program, programs = adapt_program(drnet, mesh, optimizer, among), Programs()
    norms = {key: variables[0]["norms"][key] for key in drnet.norm_keys[1:]}
    state = jax.device_put(
        AdaptState(jnp.int32(0), jax.tree.map(jnp.copy, norms), optimizer.init(norms)),
        replicated(mesh))
    params, stats = jax.device_put(variables, replicated(mesh))
    images = jax.device_put(random_batch(8)["image"], split(mesh))
    for _ in range(steps):
        state, metrics = programs.run(program, state, params, stats, images)
    programs.close()
    return drnet, variables, state, jax.tree.map(np.asarray, metrics)


def test_all_resolutions_begin_with_the_bases_norms():
    drnet = tiny_drnet()
    params, stats = random_variables(drnet)
    found = begin(drnet, "16", params, stats, jax.random.key(0))
    for tree, was in zip(found, (params, stats), strict=True):
        for key in drnet.norm_keys:
            assert_equal(tree["norms"][key], was["norms"]["16"])
    assert_equal(found[0]["shared"], params["shared"])


@pytest.mark.parametrize("among", [(), AMONG])
def test_the_gradient_is_that_of_the_cross_entropy_against_the_base(among):
    """By finite differences of a loss worked out in numpy."""
    drnet, (params, stats), state, metrics = one_step(1, among)
    images, chosen = random_batch(8)["image"], list(among) or slice(None)

    def log_p(index, params):
        logits = np.asarray(drnet.classify(index, params, stats, images)[0], float)[:, chosen]
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    teacher = np.exp(log_p(0, params))
    for index, key in enumerate(drnet.norm_keys[1:], 1):
        def loss(scale, index=index, key=key):
            norms = params["norms"] | {key: scale}
            return -(teacher * log_p(index, params | {"norms": norms})).sum(1).mean()

        own = params["norms"][key]
        np.testing.assert_allclose(metrics["loss"][index - 1], loss(own), rtol=1e-5)
        agree = (log_p(index, params).argmax(1) == teacher.argmax(1)).mean()
        assert metrics["agreement"][index - 1] == pytest.approx(agree)
        for name in ("scale", "bias"):
            moved = own["norm2"][name] - np.asarray(state.norms[key]["norm2"][name])  # at rate 1
            slopes = []
            for channel in range(len(moved)):
                step = np.zeros_like(moved)
                step[channel] = 0.003
                up, down = (
                    loss(own | {"norm2": own["norm2"] | {name: own["norm2"][name] + by}})
                    for by in (step, -step)
                )
                slopes.append((up - down) / 0.006)
            # ReLUs bend, and float32 rounds: of all channels together a few per cent.
            assert np.linalg.norm(moved - slopes) < 0.05 * np.linalg.norm(slopes)


@pytest.mark.parametrize("among", [(), AMONG])
def test_two_devices_learn_what_one_does(among):
    one, two = one_step(1, among), one_step(2, among)
    assert_close(two[2].norms, one[2].norms)
    assert_close(two[3], one[3])


def test_steps_bring_the_answers_nearer_to_the_bases():
    *_, first = one_step(1)
    *_, last = one_step(1, optimizer=make_optimizer(0.05, 40), steps=40)
    assert (last["loss"] < first["loss"]).all()
    assert (last["agreement"] >= first["agreement"]).all()


def test_the_rate_warms_up_and_falls_to_nothing():
    norms = {"scale": jnp.ones(1)}
    optimizer = make_optimizer(0.1, 100)
    state, moved = optimizer.init(norms), []
    for _ in range(100):
        update, state = optimizer.update({"scale": jnp.ones(1)}, state, norms)
        moved.append(-float(update["scale"][0]))  # of equal gradients Adam moves by its rate
    np.testing.assert_allclose(moved[:3], [0, 0.005, 0.01], atol=1e-5)
    np.testing.assert_allclose(moved[20], 0.1, rtol=1e-3)
    np.testing.assert_allclose(moved[60], 0.05, rtol=1e-3)
    assert moved[99] < 1e-4


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(images, tmp_path_factory):
    """The workdir of a network that was trained at one size, by stage 1 alone."""
    workdir = tmp_path_factory.mktemp("single")
    assert runs.call("train", *runs.arguments(images, workdir, {
        "resolutions": (32,), "pretrain.epochs": 1, "finetune.epochs": 0,
    })) == 0
    return workdir


def flags(workdir, images, *more):
    return ("adapt", "--workdir", str(workdir), "--data", str(images / "train"), "--batch", "8",
            "--epochs", "2", *more)


def model(workdir):
    checkpoints = open_existing(str(workdir))
    found = checkpoints.restore_model(checkpoints.latest(), data_mesh(jax.devices()[:1]))
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def adapted(single, images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    shutil.copytree(single, workdir)
    assert runs.call(*flags(workdir, images, "--resolutions", "16,24")) == 0
    return workdir


def test_the_base_is_as_it_was_and_the_others_have_learnt(single, adapted):
    before, after = model(single), model(adapted)
    for was, now in zip(before, after, strict=True):
        assert_equal(now["norms"]["32"], was["norms"]["32"])
    assert_equal(after[0]["shared"], before[0]["shared"])
    for key in ("24", "16"):
        assert_equal(after[1]["norms"][key], before[1]["norms"]["32"])  # the base's statistics
        for kind in ("scale", "bias"):
            moved = after[0]["norms"][key]["norm1"][kind] - before[0]["norms"]["32"]["norm1"][kind]
            assert np.abs(moved).min() > 0
    meta = newest(str(adapted))
    assert (meta.resolutions, meta.stage, meta.stage_end) == ((32, 24, 16), "pretrain", True)
    assert meta.step == newest(str(single)).step + 12
    lines = [json.loads(line) for line in (adapted / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "adapt"]
    assert set(logged[-1]["agreement"]) == {"24", "16"}


def test_an_adapted_network_is_evaluated_at_all_its_sizes(adapted, images):
    assert runs.call("eval", "--workdir", str(adapted)) == 0
    report = json.loads((adapted / "eval.json").read_text())
    assert report["resolutions"] == [32, 24, 16]


def test_a_kill_and_the_same_command_end_as_if_there_had_been_none(
    single, adapted, images, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(single, workdir)
    first = newest(str(workdir)).step
    command = flags(workdir, images, "--resolutions", "16,24")
    driver = (  # a checkpoint a step, and time to be killed in
        "import time, sys; from drnet_jax import commands; from drnet_jax.adapt import run; "
        "log = run._log; run._log = lambda *a: (time.sleep(0.3), log(*a)); "
        "run.LOG_EVERY = run.SAVE_EVERY = 1; sys.exit(commands.run(['drnet', *sys.argv[1:]]))")
    process = subprocess.Popen(
        [sys.executable, "-c", driver, *command], env=runs.environment(8), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any((workdir / "checkpoints" / str(first + n)).exists() for n in (3, 4, 5)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = newest(str(workdir))
    assert first < stopped.step < first + 12 and not stopped.stage_end
    assert runs.call(*command) == 0
    for found, expected in zip(model(workdir), model(adapted), strict=True):
        assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("more", "message"), [
    (("--resolutions", "40"), "--resolutions: expected different sizes below the base, 32"),
    (("--resolutions", "16,16"), "--resolutions: expected different sizes below the base, 32"),
    (("--resolutions", "a"), "--resolutions: expected sizes such as 168,112, received 'a'"),
    ((), "expected --resolutions, or --recalibrate, received neither"),
    (("--resolutions", "16", "--recalibrate"), "received both"),
    (("--resolutions", "16", "--batch", "64"), "--batch: expected at most the 48 images"),
    (("--resolutions", "16", "--batch", "9"), "expected a multiple of the 8 devices, received 9"),
    (("--resolutions", "4"), "sizes of 8 to 4096 pixels"),
])
def test_bad_input(single, images, capsys, more, message):
    before = sorted(single.rglob("*"))
    assert runs.call(*flags(single, images, *more)) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert sorted(single.rglob("*")) == before


def test_classes_that_the_network_does_not_know(single, images, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("class0\nclass9\n")
    assert runs.call(*flags(single, images, "--resolutions", "16", "--classes", str(names))) == 2
    assert "--classes: expected some of the network's 3 classes" in capsys.readouterr().err


def test_a_run_that_is_not_complete_is_refused(images, tmp_path, capsys):
    assert runs.call("adapt", "--workdir", str(tmp_path), "--resolutions", "16") == 2
    assert "expected a workdir with checkpoints" in capsys.readouterr().err


def test_another_adaptation_does_not_go_on_from_a_stopped_one(adapted, images, tmp_path):
    stopped = newest(str(adapted))
    wanted = {"resolutions": [16], "seed": 0}
    with pytest.raises(UserError, match=r"resolutions: \[24, 16\] then, \[16\] now"):
        (tmp_path / adaptation.SETTINGS).write_text(
            json.dumps({"resolutions": [24, 16], "seed": 0, "first_step": 6}))
        adaptation._begun(tmp_path, stopped, wanted)


def test_unlabelled_images_are_all_below_a_folder(images, tmp_path):
    source = UnlabelledSource(str(images / "train"))
    assert len(source) == 48 and source[0]["label"] == 0
    assert source.fingerprint != UnlabelledSource(str(images / "val")).fingerprint
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="found none"):
        UnlabelledSource(str(empty))


def test_half_a_class_file_is_refused(single, images, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("class0\n")
    assert runs.call(*flags(single, images, "--resolutions", "16", "--classes", str(names))) == 2
    assert "expected two or more different class names" in capsys.readouterr().err


# --- Statistics taken anew -----------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after", "taken"), [(0.5, 0.5, True), (0.5, 0.49, False)])
def test_statistics_are_taken_where_they_do_no_harm(before, after, taken):
    verdict = Verdict(64, before, after)
    assert verdict.taken is taken
    assert ("replaced" in str(verdict)) is taken


def test_a_set_of_norms_for_all_becomes_one_for_each(images, tmp_path, capsys):
    workdir = tmp_path / "shared"
    assert runs.call("train", *runs.arguments(images, workdir, {
        "classifier.resolution_aware_norm": False, "pretrain.epochs": 1, "finetune.epochs": 0,
    })) == 0
    before = newest(str(workdir))
    capsys.readouterr()
    assert runs.call("adapt", "--workdir", str(workdir), "--recalibrate", "--images", "24",
                     "--batch", "8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" px")[0] for line in lines] == ["32", "24", "16"]
    after = newest(str(workdir))
    replaced = [line.split(" px")[0] for line in lines if "replaced" in line]
    if not replaced:
        assert after.step == before.step
        return
    assert after.step == before.step + 1 and after.config.classifier.resolution_aware_norm
    assert not before.config.classifier.resolution_aware_norm
    params, _ = model(workdir)
    assert_equal(params["norms"]["24"], params["norms"]["32"])


def test_statistics_are_those_of_all_images(adapted, images):
    """Of the first norm, which sees what the weights make of the images, worked out in numpy."""
    meta, (params, stats) = read(str(adapted))
    engine = make_engine(meta, 8)
    source = FolderSource(str(images), "train", "train")
    found = statistics(engine, params, stats, source, meta)
    pixels = np.concatenate([
        batch["image"][batch["mask"]]
        for batch in host_batches(
            engine, source, meta.config.data, Square.of(meta.preprocessing))])
    assert len(pixels) == 48
    for key in ("32", "16"):
        view = drnet_images.view(jnp.asarray(pixels), int(key))
        rows = np.asarray(conv(view, params["shared"]["conv1"]["kernel"], 2), float)
        norm = found[key]["norm1"]
        np.testing.assert_allclose(norm["mean"], rows.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(norm["var"], rows.var((0, 1, 2), ddof=1), rtol=1e-3)
