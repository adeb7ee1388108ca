"""Resolutions: what is shared and what each has of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from drnet_jax import resolutions
from drnet_jax.models import build_classifier
from tests.tiny import assert_equal, random_variables, tiny_config, tiny_drnet


@pytest.fixture(scope="module")
def plain():
    """Abstract variables of a ResNet, whose norms sit at several depths."""
    network = build_classifier(
        tiny_config({"classifier.name": "resnet18"}).classifier, 7, "float32")
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))


def paths(tree):
    return set(traverse_util.flatten_dict(tree, sep="/"))


@pytest.mark.parametrize(
    ("aware", "keys"), [(True, ("16", "12", "8")), (False, ("all", "all", "all"))])
def test_norm_keys(aware, keys):
    assert resolutions.norm_keys((16, 12, 8), aware) == keys


def test_split_sends_to_norms_what_owns_statistics(plain):
    shared, norms, stats = resolutions.split(plain)
    # The shortcuts' norms among them.
    assert "stage2_block1/shortcut_norm/scale" in paths(norms)
    assert {path.rsplit("/", 1)[1] for path in paths(norms)} == {"scale", "bias"}
    owners = {path.rsplit("/", 1)[0] for path in paths(norms)}
    assert owners == {path.rsplit("/", 1)[0] for path in paths(stats)}
    assert {path.rsplit("/", 1)[1] for path in paths(shared)} == {"kernel", "bias"}
    assert {path for path in paths(shared) if path.endswith("bias")} == {"head/bias"}


def test_split_goes_by_ownership_and_not_by_name():
    variables = {
        "params": {
            "scale": {"scale": 1},  # called so, but it owns no statistics
            "block": {"odd": {"gain": 2, "kernel": 3}, "norm": {"bias": 4}},
        },
        "batch_stats": {"block": {"odd": {"mean": 5}}},
    }
    shared, norms, stats = resolutions.split(variables)
    assert shared == {"scale": {"scale": 1}, "block": {"norm": {"bias": 4}}}
    assert norms == {"block": {"odd": {"gain": 2, "kernel": 3}}}
    assert stats == {"block": {"odd": {"mean": 5}}}


def test_merge_is_the_inverse_of_split(plain):
    shared, norms, stats = resolutions.split(plain)
    assert resolutions.merge(shared, norms) == plain["params"]
    assert stats == plain["batch_stats"]


def test_a_network_without_norms_is_all_shared():
    variables = {"params": {"head": {"kernel": 1}}}
    assert resolutions.split(variables) == ({"head": {"kernel": 1}}, {}, {})
    assert resolutions.merge({"head": {"kernel": 1}}, {}) == variables["params"]


def test_replicated_norms_are_equal_copies():
    norms = {"norm": {"scale": jnp.arange(3.0)}}
    copies = resolutions.replicate_norms(norms, ("224", "112"))
    assert list(copies) == ["224", "112"]
    buffers = {tree["norm"]["scale"].unsafe_buffer_pointer() for tree in (norms, *copies.values())}
    assert len(buffers) == 3  # one buffer donated twice would be an error
    for tree in copies.values():
        assert_equal(tree, norms)
    assert list(resolutions.replicate_norms(norms, ("all",) * 3)) == ["all"]


@pytest.mark.parametrize("aware", [True, False])
def test_the_layout_of_a_fresh_drnet(aware):
    drnet = tiny_drnet({"classifier.resolution_aware_norm": aware})
    params, batch_stats = jax.eval_shape(drnet.init, jax.random.key(0))
    expected = {"16", "12", "8"} if aware else {"all"}
    assert params.keys() == {"predictor", "shared", "norms"}
    assert batch_stats.keys() == {"predictor", "norms"}
    for norms in (params["norms"], batch_stats["norms"]):
        assert norms.keys() == expected
        for tree in norms.values():
            assert paths(tree) == paths(norms[drnet.norm_keys[0]])
    assert paths(params["shared"]) == {
        "conv1/kernel", "conv2/kernel", "head/kernel", "head/bias"}


@pytest.mark.parametrize("classifies", [False, True])
def test_the_options_and_what_the_predictor_says_of_them(classifies):
    drnet = tiny_drnet({"predictor.classifies": classifies, "classifier.classes": 7})
    assert drnet.options == 3 + classifies
    answering = [("classifier", 16), ("classifier", 12), ("classifier", 8), ("predictor", 8)]
    assert [drnet.answering(option) for option in range(drnet.options)] == (
        answering[: drnet.options])
    variables = jax.eval_shape(drnet.init, jax.random.key(0))
    prediction, moments = jax.eval_shape(
        lambda *variables: drnet.predict(*variables, np.zeros((2, 16, 16, 3), np.uint8), True),
        *variables)
    assert prediction.options == jax.ShapeDtypeStruct((2, drnet.options), np.float32)
    assert prediction.classes == (
        jax.ShapeDtypeStruct((2, 7), np.float32) if classifies else None)
    assert moments.keys() == variables[1]["predictor"].keys()


def test_each_resolution_is_a_plain_network_with_its_own_norms():
    drnet = tiny_drnet()
    params, batch_stats = random_variables(drnet)
    images = np.random.default_rng(0).uniform(size=(2, 12, 12, 3)).astype(np.float32)
    apply = jax.jit(drnet.classifier.apply, static_argnums=2)
    logits = {}
    for key in drnet.norm_keys:
        variables = resolutions.plain_variables(params, batch_stats, key)
        assert_equal(variables["params"]["norm1"], params["norms"][key]["norm1"])
        assert_equal(variables["params"]["conv1"], params["shared"]["conv1"])
        assert_equal(variables["batch_stats"], batch_stats["norms"][key])
        logits[key] = apply(variables, images, False)
    assert np.abs(logits["16"] - logits["8"]).max() > 0.1
