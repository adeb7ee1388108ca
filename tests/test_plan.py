"""What a plan says against what is so: counts, bytes, and programs for described devices."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from drnet_jax import buckets
from drnet_jax.cost import model_costs
from drnet_jax.devices import Program
from drnet_jax.drnet import DRNet
from drnet_jax.errors import UserError
from drnet_jax.plan import flax_baseline, plan, programs, target
from drnet_jax.plan.compiler import Failure, analyse
from drnet_jax.plan.report import reference_text
from drnet_jax.plan.report import text as text_of
from drnet_jax.plan.target import Chip, Target
from drnet_jax.products import variable_shapes
from drnet_jax.train.optimizer import make_optimizer
from drnet_jax.train.state import create_state
from tests.tiny import CLASSES, mesh_of, tiny_config

ROOT = Path(__file__).parents[1]
CONFIG = tiny_config({
    "batch_size": 64, "evaluation.batch_size": 8, "budget": 1.2e-5, "bucket_multiple": 8,
    "pretrain.epochs": 2, "finetune.epochs": 3,
})
CHIP = Chip(memory=1e6, bandwidth=1e9, flops={"float32": 1e10, "bfloat16": 2e10})
COUNTED = Target("gpu:4", "gpu", 4, 1, None, None, "no compiler")


def described(devices=2):
    """Devices of this host, as a chip that the maker says something of."""
    return Target("tpu:test:2", "tpu", devices, 1, CHIP, mesh_of(devices), "")


@pytest.fixture(scope="module", autouse=True)
def short_timings():
    """Seconds are measured here, but nothing is said of how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "DECODE_SECONDS", 0.05)
        patch.setattr(programs, "TURNS", 1)
        yield


@pytest.fixture(scope="module")
def compiled():
    # The shares of a mix need not be exact.
    return plan.plan(CONFIG, described(), [0.5005, 0.25, 0.25], 0.5, images=640)


def test_counts_are_those_of_the_model_and_of_its_state():
    report = plan.plan(CONFIG, COUNTED, None, 0.4, images=None)
    costs = model_costs(CONFIG, CLASSES)
    assert report["parameters"]["total"] == costs.parameters.total
    assert list(report["multiply_adds"].values()) == [*costs.classifier, costs.predictor]
    drnet = DRNet.from_config(CONFIG, CLASSES)
    for stage, found in report["checkpoint_bytes"].items():
        state = create_state(drnet, make_optimizer(CONFIG, stage, 1), 0.0, jax.random.key(0))
        assert found == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        trained = {name: state.params[name] for name in ("shared", "norms")}
        stats = {"norms": state.batch_stats["norms"]}
        if stage == "finetune":
            trained, stats = state.params, state.batch_stats
        # Gradients, and a sum and a sum of squares for each mean and variance.
        assert report["exchanged_bytes"][stage] == sum(
            leaf.nbytes for leaf in jax.tree.leaves((trained, stats)))
    assert (report["programs"], report["largest_batch"]) == (None, None)
    assert "By exact counts alone: no compiler." in text_of(report)
    assert "not known" in text_of(report)


def test_the_schedule_by_hand(compiled):
    costs = model_costs(CONFIG, CLASSES)
    first, second = compiled["schedule"]["pretrain"], compiled["schedule"]["finetune"]
    assert (first["steps"], second["steps"]) == (2 * 10, 3 * 10)
    assert first["multiply_adds_of_a_step"] == 64 * 3 * sum(costs.classifier)
    large, middle, small = costs.classifier
    mean = (0.5005 * large + 0.25 * middle + 0.25 * small) / 1.0005 + costs.predictor
    assert second["multiply_adds_of_a_step"] == pytest.approx(64 * 3 * mean)
    seconds = 2 * 64 * 3 * mean / (1e10 * 0.5 * 2)
    assert second["seconds_of_a_step"] == pytest.approx(seconds)
    assert second["images_per_second_of_a_host"] == pytest.approx(64 / seconds)
    assert second["device_hours"] == pytest.approx(seconds * 30 * 2 / 3600)
    assert compiled["decoding"]["images_per_second"] > 0


def test_every_program_that_a_run_begins_with_is_there(compiled):
    names = [(row["group"], row["name"]) for row in compiled["programs"]]
    sizes = {"16px": (24, 32), "12px": (8, 32), "8px": (8, 32)}  # wanted, and the whole batch
    assert names == [
        ("pretrain", "begin"),
        *(("pretrain", f"bucket {at} x32 of stage 1") for at in sizes),
        ("pretrain", "update of stage 1"),
        ("finetune", "noise"),
        ("finetune", "route"),
        *(("finetune", f"bucket {at} x{size}") for at, both in sizes.items() for size in both),
        ("finetune", "update of stage 2"),
        ("inference", "predict x8"),
        ("inference", "choose x8"),
        ("inference", "append x8 to x8"),
        *(("inference", f"classify {at} x8") for at in sizes),
    ]
    assert compiled["most_programs"] == {"pretrain": 5, "finetune": 15, "inference": 6}
    assert len(buckets.sizes(32, 8)) == 4


def test_what_the_compiler_says_of_a_program(compiled):
    rows = {row["name"]: row for row in compiled["programs"]}
    costs = model_costs(CONFIG, CLASSES)
    for at, multiply_adds in zip((16, 12, 8), costs.classifier, strict=True):
        row = rows[f"classify {at}px x8"]
        # Of four images on one of two devices; with networks so small, the resize counts, too.
        assert 0.5 < row["flops"] / (2 * 4 * multiply_adds) < 8
        assert row["memory"] >= row["arguments"] + row["outputs"] + row["temporaries"]
        assert row["bound_seconds"] == max(row["flops"] / 1e10, row["bytes_moved"] / 1e9)
        assert row["fits"] == (row["memory"] <= 1e6)
    assert rows["bucket 16px x32"]["temporaries"] > rows["bucket 16px x24"]["temporaries"]
    tables = text_of(compiled)
    assert "finetune: bucket 16px x24" in tables and "Bounds follow" in tables
    assert f"largest batch that fits: about {compiled['largest_batch']}" in tables


def test_a_device_also_holds_the_state_the_sums_and_two_batches(compiled):
    row = next(row for row in compiled["programs"] if row["name"].endswith("16px x24"))
    held = (
        compiled["checkpoint_bytes"]["finetune"] + compiled["exchanged_bytes"]["finetune"]
        + 2 * 32 * (16 * 16 * 3 + 4)
    )
    assert row["memory"] == held + row["outputs"] + row["temporaries"]


@pytest.mark.parametrize(("rows", "whole", "half", "expected"), [
    (8, 500, 300, 18),  # 100 bytes, and 50 a row
    (9, 550, 300, 18),
    (8, 2000, 1000, 4),
    (8, 9000, 5000, 0),  # 1,000 a row and 1,000 besides
    (8, 500, 500, None),
    (8, 500, 600, None),
])
def test_the_largest_batch_is_where_the_memory_ends(rows, whole, half, expected):
    assert programs.largest_batch(1000.0, rows, whole, half) == expected


def test_what_does_not_fit_or_does_not_compile_is_said(compiled):
    row = compiled["programs"][1]
    tables = text_of(compiled | {"programs": [
        row | {"fits": False}, {"group": "finetune", "name": "route", "failed": "no tiles"}]})
    assert f"does NOT fit: {row['name']}" in tables
    assert "does NOT compile: route: no tiles" in tables


def test_a_program_that_fails_is_a_row_and_not_a_traceback(capsys):
    def fail(x):
        raise jax.errors.JaxRuntimeError("INTERNAL: no tiles\nand much more")

    spec = jax.sharding.PartitionSpec("data")
    program = Program.mapped("fail", mesh_of(1), fail, (spec,), spec)
    found = analyse(program, (jax.ShapeDtypeStruct((4,), "float32"),))
    assert found == Failure("fail", "INTERNAL: no tiles")
    assert "FAILED fail" in capsys.readouterr().err


def test_our_layers_beside_flax():
    config = tiny_config({
        "classifier.name": "resnet10", "classifier.width": 0.0625, "resolutions": (32, 16),
        "predictor.resolution": 8, "budget": 2e-4, "batch_size": 4,
    })
    pairs = programs.reference(config, described())
    assert [row["name"] for pair in pairs for row in pair] == [
        "bucket 32px x2 of stage 1", "flax layers, 32px x2",
        "three blocks of our layers", "three blocks of flax layers",
        "three blocks of our layers, masked", "three blocks of flax layers"]
    for ours, theirs in pairs:
        assert 0.5 < ours["flops"] / theirs["flops"] < 2
    tables = reference_text(pairs)
    assert tables.count("three blocks of flax layers  ") == 1
    assert re.search(r"x2 of stage 1 over flax layers, 32px x2: FLOPs \d\.\d+, bytes", tables)


def test_the_twin_of_flax_has_the_same_parameters():
    network = DRNet.from_config(tiny_config({"classifier.name": "resnet18"}), 7).classifier
    ours, theirs = (
        jax.tree.map(lambda leaf: leaf.shape, variable_shapes(each, 32))
        for each in (network, flax_baseline.flax_twin(network)))
    assert ours == theirs


@pytest.mark.parametrize(("text", "message"), [
    ("v5e", "expected tpu:TYPE:TOPOLOGY"),
    ("tpu:v5e", "expected tpu:TYPE:TOPOLOGY"),
    ("gpu:", "expected tpu:TYPE:TOPOLOGY"),
    ("cpu:none", "expected tpu:TYPE:TOPOLOGY"),
    ("cpu:0", "expected tpu:TYPE:TOPOLOGY"),
    ("tpu:v9:2x2", "expected a TPU of v5e, v5p, v6e, tpu7x, received 'v9'"),
    ("tpu:v5e:2by2", "expected a topology such as 4x4, received '2by2'"),
    ("gpu:x9:2", "expected a GPU of a100, h100, received 'x9'"),
])
def test_devices_that_cannot_be_described(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        target.parse(text)


def test_without_a_compiler_the_devices_are_counted(monkeypatch):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    found = target.parse("tpu:v5e:4x4")
    assert (found.devices, found.hosts, found.mesh) == (16, 4, None)
    assert "pip install 'drnet_jax[tpu]'" in found.missing
    assert found.chip.flops["bfloat16"] == 197e12
    found = target.parse("tpu:tpu7x:2x2x2")  # two devices a chip, four chips a host
    assert (found.devices, found.hosts) == (16, 2)
    found = target.parse("gpu:h100:8")
    assert (found.devices, found.mesh) == (8, None) and "drnet_jax[cuda]" in found.missing
    assert (target.parse("gpu:8").chip, target.parse("gpu:8").hosts) == (None, 1)
    assert target.parse("gpu:h100:64").hosts == 8


@pytest.mark.parametrize(("change", "mix", "images", "message"), [
    ({"batch_size": 63}, None, None, "expected a multiple of the 4 devices, received 63"),
    ({}, [0.5, 0.5], None, "expected 3 shares"),
    ({}, None, 63, "--images: expected at least the batch of 64, received 63"),
    ({"budget": 1.0}, None, None, "config.budget (or --budget): expected"),
])
def test_what_cannot_be_planned(change, mix, images, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan.plan(dataclasses.replace(CONFIG, **change), COUNTED, mix, 0.4, images)


def test_the_dense_estimator_runs_every_resolution():
    config = tiny_config({
        "router.objective": "gumbel", "router.gumbel.estimator": "dense", "budget": 0.0})
    report = plan.plan(config, COUNTED, None, 0.4, None)
    costs = model_costs(config, CLASSES)
    assert report["schedule"]["finetune"]["multiply_adds_of_a_step"] == 8 * 3 * (
        sum(costs.classifier) + costs.predictor)
    assert report["most_programs"]["finetune"] == 4


KNOWING = tiny_config({
    "batch_size": 64, "bucket_multiple": 8, "budget": 1.2e-5, "predictor.classifies": True})


def test_a_predictor_that_knows_the_classes_is_trained_and_exchanged_in_stage_1_too():
    report = plan.plan(KNOWING, COUNTED, [0.2, 0.2, 0.2, 0.4], 0.4, images=640)
    costs = model_costs(KNOWING, CLASSES)
    state = programs.state_of(KNOWING, DRNet.from_config(KNOWING, CLASSES), "pretrain")
    trained = sum(
        leaf.size * 4 for leaf in jax.tree.leaves((state.params, state.batch_stats)))
    assert set(report["exchanged_bytes"].values()) == {trained}
    # A momentum for every parameter, the predictor's among them.
    momenta = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    assert report["checkpoint_bytes"]["pretrain"] >= trained + momenta
    assert report["mix"] == {"16": 0.2, "12": 0.2, "8": 0.2, "predictor": 0.4}
    first, second = (report["schedule"][stage]["multiply_adds_of_a_step"]
                     for stage in ("pretrain", "finetune"))
    assert first == 64 * 3 * (sum(costs.classifier) + costs.predictor)
    assert second == pytest.approx(64 * 3 * (0.2 * sum(costs.classifier) + costs.predictor))
    # Begin and update, and a bucket a resolution; noise, route and update, and its sizes.
    assert report["most_programs"] == {
        "pretrain": 2 + 3, "finetune": 3 + 3 * len(buckets.sizes(16, 8)), "inference": 3 + 3}


def test_no_bucket_is_planned_for_what_the_predictor_answers(monkeypatch):
    planned = []
    monkeypatch.setattr(
        programs, "analyse_all",
        lambda listed: planned.extend(listed) or {
            program.name: Failure(program.name, "no") for program, _ in listed})
    report = plan.plan(KNOWING, described(1), [0.1, 0.2, 0.0, 0.7], 0.4, None)
    assert [row["name"] for row in report["programs"] if row["name"].startswith("bucket")] == [
        *(f"bucket {at}px x64 of stage 1" for at in (16, 12, 8)),
        "bucket 16px x8", "bucket 16px x64", "bucket 12px x16", "bucket 12px x64",
        "bucket 8px x64"]
    for program, arguments in planned:  # their shapes fit
        jax.eval_shape(program.function, *arguments)


def test_the_reference_needs_a_compiler_and_a_resnet():
    with pytest.raises(UserError, match="no compiler"):
        programs.reference(CONFIG, COUNTED)
    with pytest.raises(UserError, match="a multiple of the 2 devices, received 63"):
        programs.reference(dataclasses.replace(CONFIG, batch_size=63), described())
    with pytest.raises(UserError, match=r"expected config.classifier.name to be a ResNet"):
        programs.reference(CONFIG, described())


def test_a_plan_whose_programs_all_fail_is_still_a_plan(monkeypatch):
    config = tiny_config({"budget": 1.2e-5})
    monkeypatch.setattr(
        programs, "analyse_all",
        lambda programs: {program.name: Failure(program.name, "no") for program, _ in programs})
    report = plan.plan(config, described(1), None, 0.4, None)
    assert report["largest_batch"] is None
    assert "does NOT compile: route: no" in text_of(report)


def test_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "drnet_jax", "plan", "--config=configs/default.py", "--json",
         "--devices=cpu:2", "--batch=16", "--images=100", f"--config.data.dir={tmp_path}",
         "--config.classifier.name=tests.tiny:TinyNet", "--config.classifier.width=1.0",
         "--config.predictor.name=tests.tiny:TinyNet", "--config.predictor.width=1.0",
         "--config.resolutions=(16, 8)", "--config.predictor.resolution=8",
         "--config.classifier.classes=3", "--config.budget=1.2e-5", "--mix=0.4,0.3,0.3"],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
        env=os.environ | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"]["count"] == 2
    assert report["schedule"]["pretrain"]["steps"] == 70 * 6
    assert report["schedule"]["pretrain"]["device_hours"] is None  # a CPU's peak is not published
    assert {row["group"] for row in report["programs"]} == {"pretrain", "finetune", "inference"}
    assert "compiled route in" in done.stderr
