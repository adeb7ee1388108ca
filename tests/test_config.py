"""The config files, and every way in which `parse` refuses one."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict

from drnet_jax import config_files
from drnet_jax.commands.shared import define_config
from drnet_jax.config_check import RANGES, parse
from drnet_jax.config_files import override
from drnet_jax.errors import UserError

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
CONFIGS = sorted(set((ROOT / "configs").glob("*.py")) - {ROOT / "configs" / "variants.py"})
# What the rows of the paper's tables take, and our training of the same networks: what these change
# of the file's config is in golden/variants.json.
VARIED = [
    "imagenet_resnet50:eta=0", "imagenet_resnet50:alpha=3.0", "imagenet_resnet50:single",
    "imagenet_resnet50:single,resolutions=(192,)", "imagenet_resnet50:imagenet100,single",
    "imagenet_resnet50:imagenet100", "imagenet_resnet50:imagenet100,shared_norm",
    "imagenet_resnet50:imagenet100,eta=0.5,alpha=3.0", "imagenet_resnet50:modern",
    "imagenet_resnet50:imagenet100,modern", "imagenet_resnet101:single",
    "imagenet_resnet101:modern", "imagenet_mobilenetv2:single",
    "imagenet_mobilenetv2:single,resolutions=(192,)",
    "imagenet_mobilenetv2:single,classifier.width=0.75", "imagenet_mobilenetv2:modern",
]


def load(path=ROOT / "configs" / "default.py"):
    return runpy.run_path(str(path))["get_config"]()


def default_with(key, value):
    """The default config as plain dicts, with `value` at the dotted `key`."""
    leaves = traverse_util.flatten_dict(load().to_dict(), sep=".")
    return traverse_util.unflatten_dict(leaves | {key: value}, sep=".")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_config_is_golden(path, update_golden):
    golden, text = GOLDEN / f"{path.stem}.json", parse(load(path)).to_json() + "\n"
    if update_golden:
        golden.write_text(text)
    assert golden.exists(), "a new config: run pytest with --update-golden and commit the file"
    assert text == golden.read_text(), "if it is meant, run pytest with --update-golden"


def varied(argument):
    """The checked config of "FILE:ARGUMENT" by dotted key."""
    file, _, words = argument.partition(":")
    config = parse(config_files.load(f"{ROOT / 'configs' / file}.py" + f":{words}" * bool(words)))
    return traverse_util.flatten_dict(json.loads(config.to_json()), sep=".")


def test_variants_are_golden(update_golden):
    found = {}
    for each in VARIED:
        plain = varied(each.partition(":")[0])
        changed = {key: value for key, value in varied(each).items() if value != plain[key]}
        found[each] = {key: changed[key] for key in sorted(changed)}
    golden, text = GOLDEN / "variants.json", json.dumps(found, indent=2) + "\n"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text(), "if it is meant, run pytest with --update-golden"


def test_no_golden_file_is_left_over():
    stems = {path.stem for path in CONFIGS} | {"variants"}
    assert {path.stem for path in GOLDEN.iterdir()} <= stems


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_survives_json(path):
    config = parse(load(path))
    assert parse(json.loads(config.to_json())) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_have_the_keys_and_types_of_the_default(path):
    default = traverse_util.flatten_dict(load().to_dict())
    found = traverse_util.flatten_dict(load(path).to_dict())
    assert found.keys() == default.keys()
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in default.items()
    }


def test_every_key_of_the_default_has_a_comment():
    lines = (ROOT / "configs" / "default.py").read_text().splitlines()
    leaves = [line for line in lines if re.match(r'\s+"\w+": [^{]', line)]
    assert len(leaves) == len(traverse_util.flatten_dict(load().to_dict()))
    assert [line for line in leaves if not re.search(r",  # \S", line)] == []


@pytest.mark.parametrize(("key", "value", "message"), [
    # A key nobody knows, a group that is none, a group in place of a value.
    ("sed", 1, r"config: unknown key 'sed'; known are seed, batch_size"),
    ("router.alpa", 1.0, r"config\.router: unknown key 'alpa'"),
    ("router", 3, r"config\.router: expected a group of keys, received 3"),
    ("seed", {"a": 1}, r"config\.seed: expected int"),
    # The wrong type.
    ("seed", "0", r"config\.seed: expected int, received '0' \(str\)"),
    ("seed", True, r"config\.seed: expected int, received True \(bool\)"),
    ("seed", 1.0, r"config\.seed: expected int, received 1\.0 \(float\)"),
    ("router.gumbel.eta", False, r"config\.router\.gumbel\.eta: expected float, received False"),
    ("router.gumbel.eta", None, r"config\.router\.gumbel\.eta: expected float, received None"),
    ("data.name", 3, r"config\.data\.name: expected str"),
    ("classifier.resolution_aware_norm", 1, r"classifier\.resolution_aware_norm: expected bool"),
    ("resolutions", 224, r"config\.resolutions: expected a tuple, received 224"),
    ("resolutions", (224, 112.0), r"config\.resolutions: expected int"),
])
def test_malformed_config(key, value, message):
    leaves = traverse_util.flatten_dict(load().to_dict(), sep=".")
    leaves = {k: v for k, v in leaves.items() if not k.startswith(key + ".")}
    with pytest.raises(UserError, match=message):
        parse(traverse_util.unflatten_dict(leaves | {key: value}, sep="."))


INFINITE = float("inf")
IMPOSSIBLE = [
    ("seed", 2**31), ("batch_size", 10**9), ("log_every", 10**9), ("bucket_lead", 10**9),
    ("bucket_multiple", 512),  # more than the batch of 256
    ("budget", INFINITE), ("budget", 1e9), ("classifier.width", INFINITE), ("classifier.width", 65),
    ("classifier.classes", 10**9), ("predictor.width", INFINITE), ("data.threads", 10**6),
    ("data.workers", 10**6), ("data.crop_area", (0.5, INFINITE)), ("data.crop_ratio", (1.0, 1e9)),
    ("resolutions", (100_000, 224, 112)), ("predictor.resolution", 100_000),
    ("evaluation.batch_size", 10**9), ("evaluation.speed_images", 0),
    ("evaluation.every_epochs", INFINITE), ("checkpoint.keep", 10**9),
    ("checkpoint.every_steps", 10**10),
    ("router.objective", "argmax"), ("router.gumbel.estimator", "dense"),
    ("router.outcome.exploration", -0.1),
    ("budget", -1.0), ("budget", 0.0),
    ("seed", -1), ("seed", 2**31 - 1),
    ("batch_size", 0), ("bucket_multiple", 0), ("bucket_lead", -1), ("log_every", 0),
    ("data.name", ""),
    ("data.crop_area", (0.0, 1.0)), ("data.crop_area", (0.5, 0.2)), ("data.crop_area", (0.5, 1.1)),
    ("data.crop_area", (0.5,)), ("data.crop_ratio", (-1.0, 1.0)), ("data.crop_ratio", (2.0, 1.0)),
    ("data.workers", -1), ("data.threads", 0),
    ("classifier.width", 0), ("classifier.classes", -1), ("classifier.classes", 1),
    ("resolutions", ()), ("resolutions", (112, 224)),
    ("resolutions", (224, 224)), ("resolutions", (224, 7)),
    ("resolutions", tuple(range(224, 215, -1))), ("dtype", "float16"),
    ("predictor.width", 0), ("predictor.resolution", 7), ("predictor.resolution", 225),
    ("router.gumbel.estimator", "soft"), ("router.gumbel.temperature", 0),
    ("router.gumbel.alpha", 0),
    ("router.gumbel.eta", -0.1), ("optimizer.predictor_rate", 0),
    ("optimizer.momentum", 1), ("optimizer.momentum", -0.1), ("optimizer.weight_decay", -1e-4),
    ("optimizer.clip_norm", -1),
    *((f"{stage}.{key}", value) for stage in ("pretrain", "finetune") for key, value in (
        ("epochs", -1), ("learning_rate", 0), ("warmup_epochs", -1), ("decay_epochs", 0),
        ("decay_factor", 0), ("decay_factor", 1.1))),
    ("pretrain.distillation", -0.1), ("pretrain.distillation", 1.1),
    ("pretrain.mixup", -1), ("pretrain.cutmix", 101), ("pretrain.teacher", "mean"),
    ("pretrain.schedule", "linear"), ("finetune.schedule", "exponential"),
    ("pretrain.label_smoothing", 1), ("finetune.label_smoothing", -0.1),
    ("optimizer.name", "adam"), ("optimizer.ema", 1), ("optimizer.ema", -0.1),
    ("data.images_per_class", -1), ("preprocessing.mean", (1.0, 2.0)),
    ("preprocessing.deviation", (1.0, 0.0, 1.0)), ("preprocessing.val_crop", 0),
    ("preprocessing.val_crop", 1.1),
    ("evaluation.batch_size", 0), ("evaluation.every_epochs", 0),
    ("checkpoint.every_steps", 0), ("checkpoint.keep", 0),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_value(key, value):
    with pytest.raises(UserError) as raised:
        parse(default_with(key, value))
    # The message names the key and says what was expected and what was received.
    pattern = rf"config\.{re.escape(key)}: expected .+, received .+"
    assert re.fullmatch(pattern, str(raised.value))


def test_the_papers_objective_has_the_papers_predictor():
    with pytest.raises(UserError) as raised:
        parse(default_with("router.objective", "gumbel"))
    assert str(raised.value) == (
        "config.predictor.classifies: expected False with config.router.objective='gumbel', whose "
        "predictor is the paper's, received True")


NUMBERS = sorted(key for key, value in traverse_util.flatten_dict(load().to_dict(), sep=".").items()
                 if isinstance(value, float))


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), INFINITE, -INFINITE])
def test_numbers_are_finite(key, value):
    with pytest.raises(UserError, match=re.escape(f"config.{key}: expected a finite number")):
        parse(default_with(key, value))


@pytest.mark.parametrize("key", sorted(RANGES))
def test_the_ends_of_a_range_are_possible_and_what_lies_beyond_is_not(key):
    config = load().to_dict()
    value = traverse_util.flatten_dict(config, sep=".")[key]
    low, high = RANGES[key]
    least = 1 if isinstance(value, int) else 1e-6
    for beyond in (low - least, high + max(least, high * 1e-9)):
        if math.isfinite(beyond):
            pattern = rf"config\.{re.escape(key)}: expected (at least|more)"
            with pytest.raises(UserError, match=pattern):
                parse(default_with(key, type(value)(beyond)))
    assert low <= value <= high


@pytest.mark.parametrize(("key", "value"), [
    ("seed", 2**31 - 2), ("data.threads", 1024), ("resolutions", (4096, 8)),
    ("bucket_multiple", 256),
    ("evaluation.batch_size", 2**16), ("pretrain.epochs", 0.5), ("pretrain.warmup_epochs", 0.25),
    ("evaluation.every_epochs", 0.1), ("optimizer.clip_norm", 0.0),
])
def test_values_at_the_ends_and_parts_of_an_epoch_are_possible(key, value):
    assert parse(default_with(key, value)).get(key) == value


@pytest.mark.parametrize(("epochs", "images", "steps"), [
    (2.0, 2560, 20), (0.5, 2560, 5), (0.25, 2560, 2), (0.01, 2560, 1), (0.0, 2560, 0),
    (1.5, 2600, 15),  # what does not fill a batch is left out of every epoch
])
def test_steps_of_parts_of_an_epoch(epochs, images, steps):
    config = parse(default_with("pretrain.epochs", epochs))
    assert config.steps("pretrain", images) == steps


def test_parts_of_an_epoch_from_the_command_line():
    """Although the file may have said a whole number."""
    values = flags.FlagValues()
    file = str(ROOT / "configs" / "quickstart.py")
    argv = ["drnet", "--config", file, "--config.pretrain.epochs=0.5"]
    config = define_config(values, argv)
    values(argv)
    assert config().pretrain.epochs == 0.5


def test_a_run_needs_a_stage():
    leaves = traverse_util.flatten_dict(load().to_dict(), sep=".")
    leaves |= {"pretrain.epochs": 0, "finetune.epochs": 0}
    with pytest.raises(UserError, match="at least one stage"):
        parse(traverse_util.unflatten_dict(leaves, sep="."))


@pytest.mark.parametrize("key", sorted(traverse_util.flatten_dict(load().to_dict(), sep=".")))
def test_missing_key(key):
    leaves = traverse_util.flatten_dict(load().to_dict(), sep=".", keep_empty_nodes=True)
    del leaves[key]
    if key == "router.outcome.exploration":  # the only one of its group
        leaves["router.outcome"] = {}
    with pytest.raises(UserError, match=rf"key '{key.rpartition('.')[2]}' is missing"):
        parse(traverse_util.unflatten_dict(leaves, sep="."))


def test_an_integer_will_do_for_a_float():
    alpha = parse(default_with("router.gumbel.alpha", 3)).router.gumbel.alpha
    assert (alpha, type(alpha)) == (3.0, float)


def test_override_by_router_key_and_by_path():
    config = override(
        load(), "alpha=2,estimator=dense,seed=1,resolutions=(224,112),data.dir=/a"
    )
    assert (config.router.gumbel.alpha, config.router.gumbel.estimator) == (2.0, "dense")
    assert (config.seed, config.resolutions, config.data.dir) == (1, (224, 112), "/a")


def test_variants_are_applied_in_their_order_and_before_keys():
    def low(config):
        config.seed, config.batch_size = 1, 10

    def high(config):
        config.seed = 2

    for argument in ("high,low", "low,high", "low,log_every=7,high"):
        config = override(load(), argument, (low, high))
        assert (config.seed, config.batch_size) == (2, 10)
        assert (config.log_every == 7) == ("log_every" in argument)
    assert override(load(), "seed=3,high", (low, high)).seed == 3
    assert override(load(), "", (low, high)) == load()


@pytest.mark.parametrize("words", ["modern,single", "single,modern"])
def test_a_single_resolution_has_nothing_to_route_however_it_is_trained(words):
    config = varied(f"imagenet_resnet50:{words}")
    assert config["resolutions"] == [224] and config["pretrain.schedule"] == "cosine"
    assert not config["predictor.classifies"] and config["pretrain.distillation"] == 0
    assert config["finetune.epochs"] == 0


def test_every_variant_says_what_it_is():
    for variant in config_files.variants_beside(str(ROOT / "configs" / "default.py")):
        assert variant.__doc__, variant.__name__


def test_an_unknown_variant_is_told_with_those_that_there_are():
    file = str(ROOT / "configs" / "imagenet_resnet101.py")
    with pytest.raises(UserError) as raised:
        config_files.load(f"{file}:modern,simple")
    assert str(raised.value) == (
        "config argument: expected modern, imagenet100, shared_norm, single, or key=value,..., "
        "received 'simple'")


def test_override_by_nothing():
    assert override(load(), "") == load()


@pytest.mark.parametrize(("argument", "message"), [
    ("alpha", "expected key=value,..., received 'alpha'"),
    ("alpha=1,", "expected key=value,..., received ''"),
    ("alpa=1", "unknown key 'alpa'; expected one of alpha, "),
    ("classifier.alpha=1", "unknown key 'classifier.alpha'"),
    ("seed.deep=1", "unknown key 'seed.deep'"),
    ("classifier=1", "'classifier' is a group"),
    ("alpha=x", "alpha expects float, received 'x'"),
    ("seed=1.5", "seed expects int, received '1.5'"),
])
def test_override_errors(argument, message):
    with pytest.raises(UserError, match=re.escape(message)):
        override(load(), argument)


def test_parse_takes_a_locked_config_dict():
    assert parse(ConfigDict(load()).lock()) == parse(load().to_dict())
