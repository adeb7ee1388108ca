"""The benchmark through its command line, and the parts whose figures can be worked by hand."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from drnet_jax.benchmark import speed, timing, torch_cases
from drnet_jax.benchmark.cases import Contestant, ForcedStep, deal
from drnet_jax.benchmark.report import text as report_text
from drnet_jax.benchmark.timing import Case, Timing, measure
from drnet_jax.cost import model_costs
from drnet_jax.errors import UserError
from drnet_jax.models import NETWORKS
from drnet_jax.products import layer_costs, parameters
from drnet_jax.train.objectives import GumbelObjective
from tests import runs
from tests.tiny import RESOLUTIONS, Trainer, mesh_of, random_batch, tiny_config

ROOT = Path(__file__).parent.parent
# In place of conftest's; and programs that run so briefly need not be fast, only soon compiled.
FLAGS = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
BATCH = 24
MIX = "0.25,0.25,0.5"
COUNTS = [6, 6, 12]  # of BATCH at MIX


# --- The command line ---------------------------------------------------------------------------


CONFIG = [
    "--config", str(ROOT / "configs" / "default.py"),
    "--config.classifier.name=tests.tiny:TinyNet", "--config.classifier.width=1.0",
    "--config.predictor.name=tests.tiny:TinyNet", "--config.predictor.width=1.0",
    f"--config.resolutions={RESOLUTIONS}", "--config.predictor.resolution=8",
    "--config.bucket_multiple=4", "--config.data.name=folder",
    "--config.router.objective=gumbel", "--config.budget=0", "--config.predictor.classifies=False",
]
# Turns of a second are for figures, and here are none.
SHORT_TURNS = """
import sys
from drnet_jax import commands
from drnet_jax.benchmark import timing

timing.TURN = 0.02
commands.main(["drnet", "benchmark", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of two classes."""
    path = tmp_path_factory.mktemp("images")
    for split in ("train", "validation"):
        for name in ("cats", "dogs"):
            (path / split / name).mkdir(parents=True)
            for index in range(BATCH):
                cv2.imwrite(
                    str(path / split / name / f"{index}.png"), np.full((20, 20, 3), index, np.uint8)
                )
    return path


@pytest.fixture(scope="module")
def report(folder):
    done = subprocess.run(
        [sys.executable, "-c", SHORT_TURNS, *CONFIG, f"--config.data.dir={folder}",
         f"--batch={BATCH}", f"--mix={MIX}", "--repeats=3", "--json"],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("devices: 1 x cpu\n")
    return json.loads(done.stdout)


def rows(report, group):
    return {row["name"]: row for row in report["cases"] if row["group"] == group}


def test_cases(report):
    assert list(rows(report, "training")) == ["static", "stage 1", "dense", "bucketed"]
    assert list(rows(report, "inference")) == ["static", "predictor", "routed"]
    for row in report["cases"]:
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert "over_pytorch" not in row


def test_every_case_compiles_something_of_its_own(report):
    assert all(row["compile_seconds"] > 0 for row in report["cases"])


def test_multiply_adds(report):
    """A step counts three forward passes; the predictor's where it runs."""
    overrides = {
        "classifier.classes": 2, "predictor.name": "tests.tiny:TinyNet", "predictor.resolution": 8,
        "predictor.width": 1.0,
    }
    costs = model_costs(tiny_config(overrides), 2)
    large, middle, small = costs.classifier
    mixed = 0.25 * large + 0.25 * middle + 0.5 * small + costs.predictor
    training, inference = rows(report, "training"), rows(report, "inference")
    assert training["static"]["multiply_adds"] == 3 * large
    # A predictor that does not classify learns nothing in stage 1.
    assert training["stage 1"]["multiply_adds"] == 3 * (large + middle + small)
    assert training["dense"]["multiply_adds"] == 3 * (large + middle + small + costs.predictor)
    assert training["bucketed"]["multiply_adds"] == pytest.approx(3 * mixed)
    assert inference["static"]["multiply_adds"] == large
    assert inference["predictor"]["multiply_adds"] == costs.predictor
    assert inference["routed"]["multiply_adds"] == pytest.approx(mixed)


def test_ratios_follow_from_the_printed_figures(report):
    for group in ("training", "inference"):
        found = rows(report, group)
        static = found["static"]
        assert static["over_static"] == static["realised"] == 1
        for row in found.values():
            faster = row["images_per_second"] / static["images_per_second"]
            lighter = static["multiply_adds"] / row["multiply_adds"]
            assert row["over_static"] == pytest.approx(faster)
            assert row["realised"] == pytest.approx(faster / lighter)
    training = rows(report, "training")
    assert report["bucketed_over_dense"] == pytest.approx(
        training["bucketed"]["images_per_second"] / training["dense"]["images_per_second"]
    )


def test_the_forced_mix_ran(report):
    assert list(report["mix"].values()) == [0.25, 0.25, 0.5]
    for estimator in ("dense", "bucketed"):
        assert rows(report, "training")[estimator]["chosen"] == COUNTS
    stream = 12
    assert rows(report, "inference")["routed"]["chosen"] == [stream * n for n in COUNTS]


def test_padding(report):
    training, inference = rows(report, "training"), rows(report, "inference")
    # 6, 6 and 12 in multiples of 4; 72, 72 and 144 in queues of 24.
    assert training["bucketed"]["padded"] == pytest.approx(1 - 24 / (8 + 8 + 12))
    assert inference["routed"]["padded"] == 0
    assert all(training[name]["padded"] == 0 for name in ("static", "stage 1", "dense"))


def test_input_pipeline(report):
    source = report["input"]
    assert 0 < source["slowest"] <= source["images_per_second"] <= source["fastest"]


def test_what_was_measured_is_on_record(report):
    environment = report["environment"]
    assert environment["jax"] == jax.__version__
    assert (environment["device"], environment["devices"]) == ("cpu", 1)
    assert environment["variables"]["XLA_FLAGS"] == FLAGS
    assert report["config"]["classifier"]["classes"] == 2  # as the folder has
    sizes = (report["config"]["batch_size"], report["config"]["evaluation"]["batch_size"])
    assert (sizes, report["repeats"]) == ((BATCH, BATCH), 3)


@pytest.mark.parametrize("repeated", [False, True])
def test_text(report, repeated):
    """Every case is a line under its group; PyTorch's column is there only if it ran."""
    if repeated:
        report = report | {"cases": [row | {"over_pytorch": 1.25} for row in report["cases"]]}
    lines = report_text(report).splitlines()
    for group in ("training", "inference"):
        header = next(i for i, line in enumerate(lines) if line.startswith(f"{group} "))
        assert lines[header].endswith("over pytorch" if repeated else "compile s")
        for line, row in zip(lines[header + 1:], rows(report, group).values(), strict=False):
            assert line.startswith(f"{row['name']}  ")
            assert f"{row['images_per_second']:.4g}" in line
            assert line.endswith("1.25") == repeated
    assert lines[-1].startswith("input pipeline: ")


def test_text_says_why_the_input_pipeline_was_skipped(report):
    text = report_text(report | {"input": {"skipped": "there is no data"}})
    assert text.splitlines()[-1] == "input pipeline: skipped, for there is no data"


@pytest.mark.parametrize(("arguments", "message"), [
    (("--mix=0.5,x,0.5",), "--mix: expected numbers"),
    (("--batch=0",), "--batch=0"),
    (("--batch=24",), "config.classifier.classes: expected a number of classes"),
    (("--config.classifier.classes=2", "--out=gs://bucket/a"), "--out: expected a directory of a"),
])
def test_command_line_errors(capsys, arguments, message):
    assert runs.call("benchmark", *CONFIG, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err


# --- With a predictor that answers ----------------------------------------------------------------


@pytest.fixture(scope="module")
def answered():
    """A quarter of the images at each of two resolutions, and half for the predictor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN", 0.02)
        patch.setattr(speed, "data_mesh", lambda: mesh_of(1))
        return run(
            [0.25, 0.25, 0.5], resolutions=(16, 8), budget=8e-6, **{
                "predictor.classifies": True, "bucket_multiple": 4, "data.name": "folder"})


def test_what_the_predictor_answers_is_counted_and_costs_no_bucket(answered):
    assert answered["mix"] == {"16": 0.25, "8": 0.25, "predictor": 0.5}
    training, inference = rows(answered, "training"), rows(answered, "inference")
    for estimator in ("dense", "bucketed"):
        assert training[estimator]["chosen"] == [2, 2, 4]
    assert inference["routed"]["chosen"] == [12 * 2, 12 * 2, 12 * 4]
    # 2 and 2 in multiples of 4; 24 and 24 in queues of 8.
    assert training["bucketed"]["padded"] == pytest.approx(1 - 4 / 8)
    assert inference["routed"]["padded"] == 0
    costs = model_costs(tiny_config({"resolutions": (16, 8), "predictor.classifies": True}), 7)
    mixed = sum(costs.classifier) / 4 + costs.predictor
    assert training["bucketed"]["multiply_adds"] == pytest.approx(3 * mixed)
    assert inference["routed"]["multiply_adds"] == pytest.approx(mixed)
    assert training["static"]["multiply_adds"] == 3 * costs.classifier[0]
    assert training["stage 1"]["multiply_adds"] == 3 * (sum(costs.classifier) + costs.predictor)
    assert "25/25/50 % at 16/8 px and by the predictor, " in report_text(answered)


# --- Errors before long work --------------------------------------------------------------------


def run(mix=None, batch_size=8, with_torch=False, **overrides):
    sizes = {"batch_size": batch_size, "evaluation.batch_size": batch_size}
    return speed.benchmark(tiny_config(sizes | overrides), mix, with_torch, repeats=1)


@pytest.mark.parametrize("mix", [[0.5, 0.5], [0.5, 0.3, 0.3], [1.5, -0.5, 0.0]])
def test_bad_mix(mix):
    with pytest.raises(UserError, match="mix: expected 3 shares"):
        run(mix)


def test_batch_that_does_not_split():
    with pytest.raises(UserError, match=r"--batch\): expected a multiple of the 8 devices.* 12"):
        run(batch_size=12)


def test_torch_of_another_network():
    pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"one of resnet10, resnet18.*received 'tests.tiny:TinyNet"):
        run(with_torch=True)


def test_torch_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"--torch: expected PyTorch, but .*\(pip install torch t"):
        run(with_torch=True)


# --- Parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mix", "images", "counts"), [
    ([1 / 3] * 3, 96, [32, 32, 32]),
    ([0.3, 0.3, 0.4], 10, [3, 3, 4]),
    ([1.0, 0.0, 0.0], 8, [8, 0, 0]),
    ([0.333, 0.333, 0.333], 9, [3, 3, 3]),
    ([0.05, 0.05, 0.9], 8, [0, 1, 7]),
])
def test_deal(mix, images, counts):
    choice = deal(np.array(mix), images, seed=0)
    assert choice.dtype == np.int32
    assert np.bincount(choice, minlength=3).tolist() == counts
    np.testing.assert_array_equal(choice, deal(np.array(mix), images, seed=0))


def test_deal_is_dealt_at_random():
    choice = deal(np.array([0.5, 0.5]), 64, seed=0)
    assert 0 < choice[:32].sum() < 32
    assert (choice != deal(np.array([0.5, 0.5]), 64, seed=1)).any()


def forced_step(trainer, choice):
    return ForcedStep.of(trainer.step, itertools.repeat(np.array(choice, np.int32)))


def test_forced_step_is_a_finetuning_step_with_other_choices():
    # The costs of a ResNet-50, which are beyond int32.
    objective = GumbelObjective((4_089_184_256, 2_339_000_000, 1_057_000_000), 1e9, 0.2, 1.0)
    trainer = Trainer(objective=objective)
    trainer.step = forced_step(trainer, [2, 0, 2, 2, 1, 2, 2, 2])
    before = trainer.state()
    predictor = jax.tree.map(np.array, before.params["predictor"])
    after, metrics = trainer.run(before, random_batch(8))
    assert metrics["chosen"].tolist() == [1, 1, 6]
    over = (4_089_184_256 + 2_339_000_000 + 6 * 1_057_000_000) / 8 - 1e9
    assert metrics["router_loss"] / 8 == pytest.approx(0.2 * over / 3_032_184_256)
    # Buckets of 1, 1 and 6, in multiples of 4; and the predictor ran, and learnt.
    assert {"route", "bucket 16px x4", "bucket 12px x4", "bucket 8px x8"} < set(trainer.announced)
    np.testing.assert_array_equal(metrics["slots"], [4, 4, 8])
    moved = jax.tree.map(lambda a, b: np.any(a != b), predictor, after.params["predictor"])
    assert moved["head"]["kernel"]


def test_a_forced_step_counts_on_the_fullest_device():
    # The first device holds 4 + 4 + 0 images, the second 0 + 3 + 5.
    choice = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2], np.int32)
    plan, counts = forced_step(Trainer(devices=2), choice).deal_out(choice.tobytes())
    np.testing.assert_array_equal(counts, [4, 4, 5])
    np.testing.assert_array_equal(plan.choice, choice)
    np.testing.assert_array_equal(plan.counts, [[4, 4, 0], [0, 3, 5]])


class Clock:
    """Stands in for `time`: it moves only when a case is called."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def case(self, name, images, seconds):
        """A case whose calls take `seconds`, one after the other; the last repeats."""
        seconds = list(seconds)

        def call():
            self.calls.append(name)
            self.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]
            return len(self.calls)

        return Case(name, images, call)


def test_turns_interleave_and_leave_the_compilation_out(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    # First call (compiles), second call (sizes the turn), then the turns.
    a = clock.case("a", 10, [7.0, 1.0, 2.0, 4.0, 5.0])
    b = clock.case("b", 6, [3.0, 1.0, 1.0, 1.0, 1.0])
    found = measure([a, b], 3, lambda: clock.now)
    assert "".join(clock.calls) == "ababababab"
    assert found[0].rates == (5.0, 2.5, 2.0)
    assert found[0].median == 2.5
    assert found[1].rates == (6.0, 6.0, 6.0)
    assert [timed.compile_seconds for timed in found] == [7.0, 3.0]
    assert [timed.result for timed in found] == [9, 10]


def test_short_calls_share_a_turn(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    found = measure([clock.case("a", 3, [timing.TURN / 8])], 2, lambda: 0.0)
    assert len(clock.calls) == 2 + 2 * 8
    assert found[0].rates == pytest.approx([3 * 8 / timing.TURN] * 2)


def test_row():
    """Twice the images per second at a third of the arithmetic: two thirds of it realised."""
    def case(name, multiply_adds, padded, rates, result):
        contestant = Contestant(name, 8, lambda: None, "training", multiply_adds, padded)
        return contestant, Timing(rates, 1.5, result)

    found = {
        ("training", "static"): case("static", 300.0, 0.0, (9.0, 10.0, 14.0), {}),
        ("training", "bucketed"): case(
            "bucketed", 100.0, 0.2, (20.0, 30.0, 10.0), {"chosen": np.array([2.0, 6.0])}
        ),
        ("training", "pytorch"): case("pytorch", 300.0, 0.0, (8.0, 8.0, 8.0), 0.7),
    }
    assert speed._row(("training", "bucketed"), found) == {
        "group": "training", "name": "bucketed", "images_per_second": 20.0, "slowest": 10.0,
        "fastest": 30.0, "multiply_adds": 100.0, "over_static": 2.0,
        "realised": pytest.approx(2 / 3), "padded": 0.2, "compile_seconds": 1.5,
        "chosen": [2, 6], "over_pytorch": 2.5,
    }


def torch_networks():
    """Those of PyTorch, by name; a skip where they are not installed."""
    for name in ("torch", "torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"PyTorch's networks are the reference, and {name} is not installed")
    return importlib.import_module("drnet_jax.benchmark.torch_baseline").NETWORKS


@pytest.mark.parametrize(("name", "width"), [
    ("resnet34", 0.25), ("resnet152", 0.25), ("mobilenetv2", 0.5), ("efficientnet_b0", 1.0),
    ("tf_efficientnet_lite0", 1.0),
])
def test_pytorchs_networks_have_as_many_parameters_as_ours(name, width):
    theirs = torch_networks()[name](name, 10, width)
    ours = layer_costs(NETWORKS[name](classes=10, width=width), 64)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameters(ours)


def test_pytorchs_networks_cover_ours_but_for_the_predictors():
    assert set(NETWORKS) - set(torch_networks()) == {"mobilenetv2_tiny", "convnet"}


def test_a_width_that_timm_has_not_is_refused():
    with pytest.raises(UserError, match=r"--torch: expected a config.classifier.width of 1, as ti"):
        torch_networks()["efficientnet_lite0"]("efficientnet_lite0", 10, 0.5)


@pytest.mark.parametrize("absent", ["torchvision", "timm"])
def test_a_library_of_pytorch_is_missing(absent, monkeypatch):
    torch_networks()
    monkeypatch.setitem(sys.modules, absent, None)
    config = tiny_config({"classifier.name": "efficientnet_lite0", "resolutions": (32,)})
    costs, batch = model_costs(config, config.classifier.classes), random_batch(4, base=32)
    with pytest.raises(UserError, match=rf"--torch: expected PyTorch, but .*{absent}.*pip install"):
        next(torch_cases.pytorch(config, costs, batch, batch["image"]))


@pytest.mark.parametrize(("name", "width", "rate"), [
    ("resnet10", 0.03125, 0.1), ("mobilenetv2", 0.25, 0.01)])
def test_pytorch_cases(name, width, rate):
    torch_networks()
    torch = importlib.import_module("torch")
    config = tiny_config({
        "classifier.name": name, "classifier.width": width, "resolutions": (32,),
        "predictor.resolution": 8, "pretrain.learning_rate": rate,
    })
    costs = model_costs(config, config.classifier.classes)
    threads = torch.get_num_threads()
    try:
        batch = random_batch(4, base=32)
        train, infer = torch_cases.pytorch(config, costs, batch, batch["image"])
        losses = [train.call() for _ in range(10)]
        classes = infer.call()
    finally:
        torch.set_num_threads(threads)
    assert losses[-1] < 0.5 * losses[0]  # it trains
    assert classes.shape == (4,)
    assert (train.group, train.multiply_adds) == ("training", 3 * costs.classifier[0])
    assert (infer.group, infer.multiply_adds) == ("inference", costs.classifier[0])
