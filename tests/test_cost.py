"""Costs of whole models: the paper's numbers, means worked by hand, and `drnet cost`."""

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drnet_jax.config_check import parse
from drnet_jax.cost import Costs, Parameters, model_costs
from drnet_jax.errors import UserError
from drnet_jax.models import NETWORKS
from drnet_jax.products import layer_costs, multiply_adds, parameters
from tests import runs

ROOT = Path(__file__).parent.parent
IMAGENET = ROOT / "configs" / "imagenet_resnet50.py"


def imagenet(**classifier):
    values = runpy.run_path(str(IMAGENET))["get_config"]()
    values.classifier.update(classifier)
    return parse(values)


@pytest.fixture(scope="module")
def resnet50():
    return model_costs(imagenet(), 1000)


def test_whole_model(resnet50):
    assert resnet50.resolutions == (224, 168, 112)
    assert resnet50.classifier == (4_089_184_256, 2_503_027_712, 1_077_899_264)
    assert resnet50.predictor == 290_194_944
    # 53 norms with 26,560 channels in all, a scale and a bias each, for two more resolutions.
    assert resnet50.parameters == Parameters(25_557_032, 4_907_331, 2 * 2 * 26_560)
    assert resnet50.parameters.total == 30_570_603


def test_shared_norms_add_no_parameters():
    small = dataclasses.replace(
        imagenet(name="convnet", resolution_aware_norm=False), resolutions=(128, 64))
    assert model_costs(small, 10).parameters.extra_norms == 0


def test_random_choice_costs_what_the_paper_says(resnet50):
    # Table 5: drawing one of 224, 168 and 112 at random costs 2.6 G, without a predictor.
    assert round(resnet50.mean([1 / 3] * 3, with_predictor=False) / 1e9, 1) == 2.6


@pytest.mark.parametrize(("alpha", "printed"), [(2.0, 2.3), (2.5, 2.8), (3.0, 3.3)])
def test_alpha_leaves_the_predictor_out(resnet50, alpha, printed):
    # Table 2: a model whose classifier meets alpha has these costs, predictor included.
    large, _, small = (cost / 1e9 for cost in resnet50.classifier)
    share = (alpha - small) / (large - small)
    mix = [share, 0, 1 - share]
    assert resnet50.mean(mix, with_predictor=False) / 1e9 == pytest.approx(alpha)
    assert round(resnet50.mean(mix, with_predictor=True) / 1e9, 1) == printed


MOBILE = {
    "classifier": {"name": "mobilenetv2"}, "resolutions": (224, 196, 168),
    "predictor": {"name": "mobilenetv2_tiny", "resolution": 64},
}


@pytest.fixture(scope="module")
def mobilenet():
    values = runpy.run_path(str(IMAGENET))["get_config"]()
    values.update(MOBILE)
    return model_costs(parse(values), 1000)


def test_the_mobile_model(mobilenet):
    # 196 px leave as many pixels to the last stages as 224 do: 13 and 7 a side, of 14 and 7.
    assert mobilenet.classifier == (300_774_272, 259_955_264, 188_942_096)
    assert mobilenet.predictor == 15_153_888
    # 52 norms with 17,056 channels in all.
    assert mobilenet.parameters == Parameters(3_504_872, 259_203, 2 * 2 * 17_056)


def printed(count, unit, digits):
    return f"{count / unit:.{digits}f}"


def test_parameters_of_tables_3_4_and_6(resnet50, mobilenet):
    resnet101 = model_costs(imagenet(name="resnet101"), 1000)
    narrow = layer_costs(NETWORKS["mobilenetv2"](classes=1000, width=0.75), 224)
    assert printed(parameters(narrow), 1e6, 1) == "2.6"
    for costs, baseline, drnet in (
        (resnet50, "25.6", "30.5"), (resnet101, "44.5", "49.4"), (mobilenet, "3.5", "3.8"),
    ):
        found = costs.parameters
        assert printed(found.classifier, 1e6, 1) == baseline
        # The paper adds what it has rounded (of ResNet-101 44.5 + 4.9, though 44.549 + 4.907 is
        # 49.456) and leaves out the norms of the other resolutions, without which its ResNet-50
        # would have 30.6 and its ResNet-101 49.7.
        rounded = (float(printed(count, 1e6, 1)) for count in (found.classifier, found.predictor))
        assert printed(sum(rounded), 1, 1) == drnet
    assert printed(mobilenet.parameters.total, 1e6, 1) == "3.8"  # with them, too


def test_multiply_adds_of_tables_3_4_and_6(resnet50, mobilenet):
    def cost(name, size, width=1.0):
        return multiply_adds(layer_costs(NETWORKS[name](classes=1000, width=width), size))

    assert printed(resnet50.classifier[0], 1e9, 1) == "4.1"
    assert printed(cost("resnet50", 192), 1e9, 1) == "3.0"
    assert printed(cost("resnet101", 224), 1e9, 1) == "7.8"
    assert printed(cost("mobilenetv2", 192), 1e6, 0) == "221"
    assert printed(cost("mobilenetv2", 224, 0.75), 1e6, 0) == "209"
    # The paper prints MobileNetV2's "300 M" as its authors do; to the last digit it has 301.
    assert printed(mobilenet.classifier[0], 1e6, 0) == "301"
    # Its DRNets' depend on what was learnt: they must be costs that the models can have.
    for costs, printed_costs in (
        (resnet50, (3.7e9, 2.3e9, 2.7e9, 3.2e9)), (mobilenet, (283e6,)),
        (model_costs(imagenet(name="resnet101"), 1000), (7.0e9,)),
    ):
        assert all(costs.routed.min() < cost < costs.routed.max() for cost in printed_costs)


COSTS = Costs((32, 16), (1000, 200), 50, Parameters(1, 1, 1))


def test_mean_by_hand():
    assert COSTS.mean([0.25, 0.75], with_predictor=False) == 400
    assert COSTS.mean([0.25, 0.75], with_predictor=True) == 450
    # Shares rounded to three digits still weigh as a whole.
    assert COSTS.mean([0.9995, 0], with_predictor=False) == pytest.approx(1000)


@pytest.mark.parametrize("mix", [
    [], [1], [0.5, 0.25, 0.25], [1.5, -0.5], [0.5, 0.49], [0.5, 0.51], [float("nan"), 1],
])
def test_mean_refuses_a_bad_mix(mix):
    with pytest.raises(UserError, match="mix: expected 2 shares, one for each of 32, 16, "):
        COSTS.mean(mix, with_predictor=False)


KNOWING = dataclasses.replace(COSTS, classifies=True)


def test_the_predictors_own_answer_by_hand():
    assert (COSTS.options, KNOWING.options) == (("32", "16"), ("32", "16", "predictor"))
    # What routing charges, what a routed image costs, and what a pass of each costs by itself.
    for found, expected in (
        (COSTS.charged, [1000, 200]), (KNOWING.charged, [1000, 200, 0]),
        (COSTS.routed, [1050, 250]), (KNOWING.routed, [1050, 250, 50]),
        (COSTS.passes, [1000, 200]), (KNOWING.passes, [1000, 200, 50]),
    ):
        np.testing.assert_array_equal(found, expected)
    assert KNOWING.charged.dtype == np.float32
    assert KNOWING.mean([0.25, 0.25, 0.5], with_predictor=False) == 300
    assert KNOWING.mean([0.25, 0.25, 0.5], with_predictor=True) == 350
    with pytest.raises(UserError, match="mix: expected 3 shares, one for each of 32, 16, pred"):
        KNOWING.mean([0.5, 0.5], with_predictor=True)


@pytest.mark.parametrize(("costs", "low", "words"), [
    (COSTS, 250, "the predictor, and 16 px for all"), (KNOWING, 50, "the predictor"),
])
def test_budgets_reach_down_to_the_cheapest_option(costs, low, words):
    for budget in (0, low, 1050):
        costs.check_budget(budget)
    for budget in (0.99 * low, 1.01 * 1050):
        message = rf"expected {low / 1e9:g} \({words}\) to 1\.05e-06 \(the predictor, and 32 px"
        with pytest.raises(UserError, match=message):
            costs.check_budget(budget)


def test_whole_model_whose_predictor_knows_the_classes(resnet50):
    config = imagenet()
    found = model_costs(dataclasses.replace(
        config, router=dataclasses.replace(config.router, objective="outcome"),
        predictor=dataclasses.replace(config.predictor, classifies=True)), 1000)
    # 512 features: 1,000 classes and a fourth option; three numbers more for each of the four.
    assert found.predictor - resnet50.predictor == 512 * 1001 + 3 * 4
    assert found.parameters.predictor - resnet50.parameters.predictor == 513 * 1001 + 3 * 4
    assert found.classifier == resnet50.classifier
    assert found.classifies and not resnet50.classifies
    (layers,) = found.layers["predictor"].values()
    assert [layer.path for layer in layers[-2:]] == ["network/head", "sure"]




def test_the_command_prints_the_papers_numbers(capsys):
    assert runs.call("cost", "--config", str(IMAGENET), "--mix", "0.2,0.3,0.5", "--layers") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "224 4.09 G 1.000" in lines
    assert "predictor 290 M 0.071" in lines
    assert "classifier, one set of norms 25,557,032 25.6 M" in lines
    assert "both, as the paper counts 30,464,363 30.5 M" in lines
    assert "norms of the other resolutions 106,240 106 k" in lines
    # 0.2 x 4.089 + 0.3 x 2.503 + 0.5 x 1.078 = 2.108, and the predictor's 0.290.
    assert "classifier (compare with alpha) 2.11 G 0.515" in lines
    assert "with the predictor 2.40 G 0.586" in lines
    assert "head Dense 1000 2,049,000 2,048,000 2,048,000 2,048,000" in lines
    assert any(line.startswith("Multiply-adds are not time") for line in lines)
    assert not any(line.startswith("uncounted") for line in lines)


def test_the_command_prints_json_with_classes_from_the_data_set(tmp_path, monkeypatch, capsys):
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "empty.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert runs.call(
        "cost", f"--config={IMAGENET}:classifier.name=resnet18,classifier.classes=0", "--json",
        "--config.resolutions=(64,32)", "--config.predictor.resolution=32",
        "--config.data.name=folder", "--config.data.dir=.", "--config.data.val_split=val",
        "--mix=1,0") == 0
    found = json.loads(capsys.readouterr().out)
    layers = found["layers"]["classifier"]
    assert list(layers) == ["64", "32"]
    for size, listed in layers.items():
        assert sum(layer["multiply_adds"] for layer in listed) == (
            found["multiply_adds"]["classifier"][size]
        )
        assert sum(layer["parameters"] for layer in listed) == 11_689_512 - 998 * 513
    assert found["mean"]["classifier"] == found["multiply_adds"]["classifier"]["64"]
    assert found["parameters"]["total"] == sum(
        found["parameters"][name] for name in ("classifier", "predictor", "extra_norms")
    )
    assert found["uncounted"] == []


def test_what_is_not_counted_is_said(capsys):
    arguments = (
        "cost", f"--config={IMAGENET}", "--config.classifier.name=tests.test_products:Fourier",
        "--config.resolutions=(16,8)", "--config.predictor.name=convnet",
        "--config.predictor.resolution=8",
    )
    assert runs.call(*arguments) == 0
    out = capsys.readouterr().out
    assert out.count("uncounted: fft in module 'mix' of the classifier\n") == 1
    assert out.count("uncounted") == 1
    assert runs.call(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["uncounted"] == ["fft in module 'mix' of the classifier"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--mix=0.2,0.8",), "error: mix: expected 3 shares"),
    (("--mix=a,b,c",), "error: --mix: expected numbers"),
    (("--config.classifier.classes=0", "--config.data.dir=absent"),
     "error: config.classifier.classes: expected a number"),
])
def test_errors_of_the_command(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ("--config.classifier.name=convnet", "--config.predictor.name=convnet")
    assert runs.call("cost", "--config", str(IMAGENET), *small, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message)
    assert not out


def python(*arguments):
    """A Python of its own, for what an import brings along."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=120)


def test_the_module_is_the_command():
    done = python("-m", "drnet_jax.cost", "--config", str(IMAGENET), "--mix=a,b,c")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --mix: expected numbers")


def test_costs_need_neither_data_sets_nor_decoders():
    code = (
        "import sys, drnet_jax.routing, drnet_jax.cost; "
        "print({'cv2', 'tensorflow_datasets', 'grain'} & set(sys.modules))"
    )
    assert python("-c", code).stdout == "set()\n"
