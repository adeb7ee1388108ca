"""Networks of one's own: what is wrong is found by tracing, and told in one line with the fix."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from drnet_jax.cost import model_costs
from drnet_jax.errors import UserError
from drnet_jax.models import check
from drnet_jax.train.device import Plan
from tests import runs
from tests.tiny import (
    CLASSES,
    RESOLUTIONS,
    Trainer,
    assert_equal,
    random_batch,
    random_variables,
    tiny_config,
    tiny_drnet,
)


class Own(nn.Module):
    """A user's own network, right as it is; one that is wrong overrides a method."""

    classes: int
    width: float
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Conv(max(1, round(4 * self.width)), (3, 3), 2, use_bias=False)(x)
        return self.answer(self.pooled(self.normed(x, train, mask)), train)

    def normed(self, x, train, mask):
        return self.norm(dtype=self.dtype, name="first")(x, train, mask)

    def pooled(self, x):
        return x.mean((1, 2))

    def answer(self, x, train):
        return nn.Dense(self.classes, name="head")(x)


def own(**methods):
    return type("Own", (Own,), methods)


def dropout(self, x, train):
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(self.classes, name="head")(x)


def dropout_at_all_times(self, x, train):
    return nn.Dense(self.classes)(nn.Dropout(0.5, deterministic=False)(x))


def noise(self, x, train):
    x += jax.random.normal(self.make_rng("noise"), x.shape) if train else 0
    return nn.Dense(self.classes)(x)


def flax_norm(self, x, train, mask):
    return nn.BatchNorm(use_running_average=not train, name="first")(x)


def norm_twice(self, x, train, mask):
    norm = self.norm(name="first")
    return norm(norm(x, train, mask), train, mask)


def remat_norm(self, x, train, mask):
    return nn.remat(self.norm, static_argnums=(2,))(name="first")(x, train, mask)


def remember(self, x, train, mask):
    self.variable("cache", "seen", jnp.zeros, ())
    return x


def mistake(self, x):
    return self.no_such_layer(x)


WithDropout = own(answer=dropout)
WithLayerNorm = own(normed=lambda self, x, train, mask: nn.LayerNorm()(x))
WithRemat = own(normed=remat_norm)
FlaxNorm = own(normed=flax_norm)
FrozenNorm = own(normed=lambda self, x, train, mask: self.norm(name="first")(x, False))
NormWithoutMask = own(normed=lambda self, x, train, mask: self.norm(name="first")(x, train))
NormTwice = own(normed=norm_twice)
Remembers = own(normed=remember)
Flat = own(pooled=lambda self, x: x.reshape(len(x), -1))
OtherHead = own(answer=lambda self, x, train: nn.Dense(1000)(x))
Pair = own(answer=lambda self, x, train: (nn.Dense(self.classes)(x), x))
Decides = own(answer=lambda self, x, train: nn.Dense(self.classes)(x).astype(int))
DropoutAlways = own(answer=dropout_at_all_times)
Noise = own(answer=noise)
Mistake = own(pooled=mistake)


class SmallImage(Own):
    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Conv(4, (3, 3))(jax.image.resize(x, (len(x), 4, 4, 3), "nearest"))
        return self.answer(self.pooled(self.normed(x, train, mask)), train)


class NoMask(nn.Module):
    classes: int
    width: float
    norm: Any
    dtype: Any

    def __call__(self, x, train):
        return x


def with_depth(width, classes, norm, dtype, depth):
    return Own(classes, width, norm, dtype)


def a_class(width, classes, norm, dtype):
    return Own


def nothing(**options):
    """Forgets to return the network."""


def failing(**options):
    raise RuntimeError("no weights here\nand more of it")


def refused(name, network="classifier"):
    """The message about a network of this module."""
    with pytest.raises(UserError) as error:
        tiny_drnet({f"{network}.name": f"tests.test_check:{name}"})
    message = str(error.value)
    assert message.startswith(f"config.{network}.name: 'tests.test_check:{name}'")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["Own", "WithDropout", "WithLayerNorm", "WithRemat"])
def test_a_network_of_ones_own_will_do_as_classifier_and_as_predictor(name):
    address = f"tests.test_check:{name}"
    drnet = tiny_drnet({"classifier.name": address, "predictor.name": address})
    params, batch_stats = jax.eval_shape(drnet.init, jax.random.key(0))
    assert params["shared"]["head"]["kernel"].shape[-1] == CLASSES
    assert params["predictor"]["head"]["kernel"].shape[-1] == len(RESOLUTIONS)
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), np.uint8)
    logits, _ = jax.eval_shape(
        functools.partial(drnet.classify, 1), params, batch_stats, images)
    assert logits.shape == (2, CLASSES)
    # As a predictor that knows the classes it has a head for these and the options, in one.
    drnet = tiny_drnet({"predictor.name": address, "predictor.classifies": True})
    params, _ = jax.eval_shape(drnet.init, jax.random.key(0))
    assert params["predictor"]["network"]["head"]["kernel"].shape[-1] == (
        CLASSES + len(RESOLUTIONS) + 1)


@pytest.mark.parametrize(("name", "message"), [
    # The factory.
    ("CLASSES", "expected a class or a function, called as factory(width=..., classes=..., "),
    ("with_depth", "cannot be called as factory(width=..., classes=..., norm=..., dtype=...): "
     "missing a required argument: 'depth'"),
    ("a_class", "expected the factory to return a module of flax.linen, received the class Own"),
    ("nothing", "expected the factory to return a module of flax.linen, received a NoneType"),
    ("failing", "the factory failed: RuntimeError: no weights here ("),
    # The call.
    ("NoMask", "expected __call__(self, x, train, mask=None), but too many positional arguments"),
    ("Mistake", '"Own" object has no attribute "no_such_layer"'),
    ("OtherHead", "expected logits float [2, 7] of 2 images, one for each of the factory's "
     "`classes`, received float [2, 1000]"),
    ("Pair", "expected logits float [2, 7] of 2 images, one for each of the factory's `classes`, "
     "received a tuple"),
    ("Decides", "received int32 [2, 7]"),
    ("Flat", "works at 8 px and not at 12 px; let it end in an average over height and width"),
    # Randomness and state.
    ("DropoutAlways", "cannot be evaluated at 8 px: random numbers are for dropout alone, and in "
     "training alone (nn.Dropout(rate, deterministic=not train))"),
    ("Noise", "cannot be trained at 8 px: random numbers are for dropout alone"),
    ("Remembers", "received the collection 'cache'"),
    # The norms.
    ("FlaxNorm", "module 'first' (BatchNorm) keeps its statistics by itself, where each resolution "
     "must have its own; use norm(dtype=...)(x, train, mask), `norm` being what the factory"),
    ("FrozenNorm", "module 'first' (BatchNorm) keeps its statistics by itself"),
    ("NormWithoutMask", "norm 'first' is called without the mask, so that padded rows would count; "
     "call it as norm(dtype=...)(x, train, mask)"),
    ("NormTwice", "norm 'first' is called 2 times in one pass"),
])
def test_what_is_wrong_is_one_line_that_names_the_network_and_the_fix(name, message):
    assert message in refused(name)


def test_a_network_without_residual_branches_cannot_begin_at_none():
    with pytest.raises(UserError, match=re.escape(
            "config.classifier.name: 'tests.test_check:Own': expected norms that end residual "
            "branches, which config.classifier.zero_init lets begin at 0, received none")):
        tiny_drnet({"classifier.name": "tests.test_check:Own", "classifier.zero_init": True})
    tiny_drnet({"classifier.name": "tests.tiny:TinyResNet", "classifier.zero_init": True})


def test_the_line_of_the_mistake_is_told():
    line = mistake.__code__.co_firstlineno + 1
    assert refused("Mistake").endswith(f"({__file__}, line {line})")


def test_a_predictor_that_is_to_know_the_classes_is_checked_with_as_many_outputs():
    with pytest.raises(UserError, match=re.escape("expected logits float [2, 11] of 2 images")):
        tiny_drnet({
            "predictor.name": "tests.test_check:OtherHead", "predictor.classifies": True})


def test_a_predictor_is_checked_at_its_own_size_and_needs_no_mask():
    assert "received float [2, 1000]" in refused("OtherHead", "predictor")
    assert "keeps its statistics by itself" in refused("FlaxNorm", "predictor")
    for name in ("NormWithoutMask", "Flat"):  # it sees one size, and no row of padding
        tiny_drnet({"predictor.name": f"tests.test_check:{name}"})


def test_a_module_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "my_broken_networks.py").write_text("import flax\ndef net(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = r"received 'my_broken_networks:net' \(SyntaxError: .*networks.py, line 2\)\)$"
    with pytest.raises(UserError, match=expected):
        tiny_drnet({"classifier.name": "my_broken_networks:net"})


def test_a_network_is_traced_once(monkeypatch):
    drnet = tiny_drnet()
    monkeypatch.setattr(check, "_trace", None)  # to trace would fail
    assert tiny_drnet() == drnet


@pytest.mark.parametrize("command", ["train", "cost"])
def test_commands_say_so_before_anything_starts(command, tmp_path, capsys):
    images, workdir = runs.make_images(tmp_path / "images", 8, 1), tmp_path / "run"
    flags = runs.arguments(images, workdir, {"classifier.name": "tests.test_check:FlaxNorm"})
    if command == "cost":
        flags = [flag for flag in flags if flag not in ("--workdir", str(workdir))]
    assert runs.call(command, *flags) == 2
    *devices, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: config.classifier.name: 'tests.test_check:FlaxNorm'")
    assert len(devices) == (command == "train")
    assert not workdir.exists()


def test_a_network_that_costs_the_same_at_any_size_is_refused():
    config = tiny_config({"classifier.name": "tests.test_check:SmallImage"})
    found = 4 * 4 * 9 * 3 * 4 + 4 * CLASSES
    with pytest.raises(UserError, match=re.escape(
            "config.classifier.name: 'tests.test_check:SmallImage': expected less work at 8 than "
            f"at 16 px, received {found} and {found} multiply-adds")):
        model_costs(config, CLASSES)


# --- dropout ---


def dropout_trainer(stage, devices=1, estimator="selected", **overrides):
    address = "tests.test_check:WithDropout"
    return Trainer(devices, stage, estimator, overrides={
        "classifier.name": address, "predictor.name": address, **overrides})


def test_dropout_is_drawn_from_the_key_in_training_alone():
    drnet, images = dropout_trainer("finetune").drnet, random_batch(4)["image"]
    params, batch_stats = random_variables(drnet)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, seed):
        key = jax.random.key(seed)
        return (drnet.classify(0, params, batch_stats, images, train, key=key)[0],
                drnet.predict(params, batch_stats, images, train, key)[0].options)

    for first, again, other in zip(*(logits(True, seed) for seed in (1, 1, 2)), strict=True):
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)
    assert_equal(logits(False, 1), logits(False, 2))


@pytest.mark.parametrize("classifies", [False, True])
def test_a_step_draws_dropout_from_the_runs_key_and_its_own_number(classifies):
    trainer = dropout_trainer(
        "pretrain", resolutions=(16,), **{"predictor.classifies": classifies})
    batch = random_batch(8)

    def moved(seed, number):
        state = trainer.state()
        state = state.replace(step=state.step + number)
        return trainer.run(state, batch, seed)[0].params

    first = moved(1, 0)
    assert_equal(first, moved(1, 0))
    for other in (moved(2, 0), moved(1, 1)):
        heads = [(first["shared"]["head"], other["shared"]["head"])]
        if classifies:  # else it stands still
            heads += [(each["predictor"]["network"]["head"] for each in (first, other))]
        for mine, its in heads:
            assert np.abs(mine["kernel"] - its["kernel"]).max() > 0


@pytest.mark.parametrize("estimator", ["selected", "dense"])
def test_every_program_of_finetuning_has_its_key(estimator):
    trainer = dropout_trainer("finetune", estimator=estimator)
    shapes = jax.eval_shape(trainer.state), random_batch(8)
    for program, arguments in trainer.step.all_programs(*shapes, [[4]] * len(RESOLUTIONS)):
        jax.eval_shape(program.function, *arguments)  # would miss a random number generator


def test_the_predictor_drops_the_same_when_it_chooses_and_when_it_learns():
    trainer = dropout_trainer("finetune", devices=2)
    drnet, state, batch = trainer.drnet, trainer.state(), random_batch(8)
    key = jax.random.key(3)
    noise = trainer.step.programs.run(trainer.step.noise_program(8), key, state.step)
    plan, *_ = trainer.step.route(state, batch, noise, key)
    halves = []
    for device in (0, 1):
        of_device = Plan(None, None, None, plan.key[device : device + 1])
        images = batch["image"][4 * device : 4 * device + 4]
        halves.append(drnet.predict(
            state.params, state.batch_stats, images, True,
            of_device.dropout_key(len(RESOLUTIONS)))[0].options)
    logits = jnp.concatenate(halves)
    np.testing.assert_array_equal(plan.choice, jnp.argmax(jax.nn.log_softmax(logits) + noise, -1))
    assert not np.allclose(halves[0][0], halves[1][0])
