"""Networks: against PyTorch's, published counts, and what padding must not change."""

import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from drnet_jax.config import Classifier, Predictor
from drnet_jax.errors import UserError
from drnet_jax.models import NETWORKS, build_classifier, build_predictor, convnet
from drnet_jax.models.layers import relu6, round_to_8
from drnet_jax.models.mobile import MobileNet, Stage
from drnet_jax.models.norm import MOMENTS
from drnet_jax.models.predictor import ClassifyingPredictor, sureness
from drnet_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from drnet_jax.ops import plain_forms
from drnet_jax.products import layer_costs, multiply_adds

MODEL = Classifier(
    name="resnet18", width=0.125, classes=0, resolution_aware_norm=True, zero_init=False,
    fixed_statistics=False)
CHANNELS = 8  # of its first stage


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(net):
    """Shapes and dtypes of the variables: nothing is allocated and nothing compiled."""
    def init():
        return net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False)

    return jax.eval_shape(init)


def random_variables(net, seed=0):
    """Variables in which no scale, bias or statistic has the value it is initialised to."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            gain = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (gain * rng.normal(size=leaf.shape)).astype("f4")
        low, high = {"scale": (0.5, 1.0), "var": (0.5, 2.0)}.get(kind, (-0.2, 0.2))
        return rng.uniform(low, high, leaf.shape).astype("f4")

    return jax.tree.map_with_path(fill, shapes_of(net))


# All that ResNets are made of, in few layers: a stage that keeps its size and one that halves it,
# blocks with a shortcut and without.
RESNETS = {"basic": ((2, 1), BasicBlock), "bottleneck": ((2, 1), Bottleneck),
           "block": ((1,), Bottleneck)}
# And inverted residual blocks: with an expansion and without, with a shortcut and without.
INVERTED = functools.partial(
    MobileNet, stages=(Stage(1, 64, 1, 1), Stage(2, 128, 2, 2, 5)), last=128, squeeze_excite=True,
    activation=nn.silu, padding="same")
SMALL = {*RESNETS, "inverted"}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Those by name, ours and PyTorch's."""
    monkeypatch.setitem(NETWORKS, "inverted", INVERTED)
    for name, (blocks, block) in RESNETS.items():
        monkeypatch.setitem(NETWORKS, name, functools.partial(ResNet, blocks=blocks, block=block))
        if importlib.util.find_spec("torch"):
            layouts = importlib.import_module("drnet_jax.benchmark.torch_baseline").LAYOUTS
            monkeypatch.setitem(layouts, name, (blocks, block is Bottleneck))


# --- networks ---


# Of 1,000 classes, and for predictors of three options; torchvision's and timm's, but for the last
# three, of which the first is the paper's and two are worked by hand.
COUNTS = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808,
    "mobilenetv2": 3_504_872, "efficientnet_b0": 5_288_548, "tf_efficientnet_b0": 5_288_548,
    "efficientnet_lite0": 4_652_008, "tf_efficientnet_lite0": 4_652_008,
    "resnet10": 4_907_331, "mobilenetv2_tiny": 259_203, "convnet": 96_451,
}
PREDICTORS = {"resnet10", "mobilenetv2_tiny", "convnet"}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    assert parameter_count(of_name(name)) == COUNTS[name]


def test_every_network_has_its_count_pinned():
    assert set(NETWORKS) - set(SMALL) == set(COUNTS)


def of_name(name, width=1.0):
    if name in PREDICTORS:
        return build_predictor(Predictor(name, width, 128, classifies=False), 3, 10, "float32")
    return build_classifier(dataclasses.replace(MODEL, name=name, width=width), 1000, "float32")


# Of torchvision and timm: mobilenet_v2(width_mult=...) and efficientnet_*(channel_multiplier=...).
@pytest.mark.parametrize(("name", "width", "count"), [
    ("mobilenetv2", 0.75, 2_636_424), ("mobilenetv2", 1.4, 6_108_776),
    ("efficientnet_b0", 0.5, 1_712_522), ("efficientnet_lite0", 0.5, 2_293_672),
])
def test_widths_are_rounded_as_published(name, width, count):
    assert parameter_count(of_name(name, width)) == count


def test_channels_are_rounded_to_eights_but_never_by_more_than_a_tenth():
    # 16 x 0.75 lies between 8 and 16; 8 would be too few for 9; 24 x 0.35 is 8.4, and 8 will do.
    assert [round_to_8(c) for c in (1, 8.4, 9, 12, 18, 19.9, 20, 240)] == [
        8, 8, 16, 16, 24, 24, 24, 240]


def test_relu6_by_hand():
    values, gradients = jax.vmap(jax.value_and_grad(relu6))(jnp.array([-1.0, 0, 2, 6, 9]))
    assert values.tolist() == [0, 0, 2, 6, 6]
    assert gradients.tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("name", COUNTS)
def test_every_parameter_receives_a_gradient(name):
    """One that does not is a constant, which the trace of the gradients tells: nothing is run."""
    net = of_name(name, 0.25)
    shapes, images = shapes_of(net), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def loss(params, images, batch_stats):
        logits, _ = net.apply(
            {"params": params, "batch_stats": batch_stats}, images, True, mutable=[MOMENTS],
            rngs={"dropout": jax.random.key(0)})
        return jnp.sum(jnp.square(logits))

    with plain_forms():
        trace = jax.make_jaxpr(jax.grad(loss))(shapes["params"], images, shapes["batch_stats"])
    paths = list(flatten_dict(shapes["params"]))
    reached = {trace.jaxpr.invars[len(paths)]}  # the images
    for equation in trace.jaxpr.eqns:
        if any(variable in reached for variable in equation.invars if not hasattr(variable, "val")):
            reached.update(equation.outvars)
    assert not [path for path, gradient in zip(paths, trace.jaxpr.outvars, strict=True)
                if hasattr(gradient, "val") or gradient not in reached]


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize(("name", "expected"), [
    ("basic", ["stage1_block1/norm2", "stage1_block2/norm2", "stage2_block1/norm2"]),
    ("bottleneck", ["stage1_block1/norm3", "stage1_block2/norm3", "stage2_block1/norm3"]),
    # Not the block between, which changes the shape: it has nothing but the branch.
    ("inverted", ["stage1_block1/project_norm", "stage2_block2/project_norm"]),
])
def test_residual_branches_begin_at_zero_where_asked(name, expected, zero_init):
    model = dataclasses.replace(MODEL, name=name, zero_init=zero_init)
    net = build_classifier(model, 10, "float32", (16,))

    @jax.jit
    def scales():
        params = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False)["params"]
        return {"/".join(path[:-1]): leaf for path, leaf in flatten_dict(params).items()
                if path[-1] == "scale"}

    found = scales()
    zero = sorted(name for name, scale in found.items() if not scale.any())
    assert zero == (expected if zero_init else [])
    assert all((scale == 1).all() for name, scale in found.items() if name not in zero)


def test_parameter_count_of_the_cheap_predictor_by_hand():
    net = build_predictor(Predictor("convnet", 0.5, 32, classifies=False), 3, 10, "float32")
    convolutions = 9 * (4 * 3 * 16 + 16 * 32 + 32 * 64)
    assert parameter_count(net) == convolutions + 2 * (16 + 32 + 64) + 64 * 3 + 3


def test_squares_of_pixels_become_channels_and_odd_sizes_are_padded():
    image = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(
        convnet.fold_pixels(image)[0],
        [[[1, 2, 4, 5], [3, 0, 6, 0]], [[7, 8, 0, 0], [9, 0, 0, 0]]],
    )


def parameter_count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(net)["params"]))


# By batch statistics where True, by running ones where False.
@pytest.mark.parametrize(("name", "size", "train"), [
    ("resnet18", 224, True), ("resnet50", 112, False),
    ("basic", 75, True), ("bottleneck", 75, True), ("bottleneck", 224, True)])
def test_logits_equal_pytorch(name, size, train):
    pytest.importorskip("torch")
    from tests.torch_reference import to_torch, torch_twin

    net = build_classifier(dataclasses.replace(MODEL, name=name), 10, "float32")
    variables, images = random_variables(net), draw((4, size, size, 3))
    apply = jax.jit(functools.partial(net.apply, train=train, mutable=[MOMENTS]))
    logits, _ = apply(variables, images)
    twin = torch_twin(variables, name, 10, CHANNELS).train(train)
    expected = twin(to_torch(images)).detach().numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize(("name", "size"), [("basic", 32), ("block", 45)])
def test_gradients_equal_pytorch(name, size):
    torch = pytest.importorskip("torch")
    from tests.torch_reference import to_state_dict, to_torch, torch_twin

    net = build_classifier(dataclasses.replace(MODEL, name=name), 10, "float32")
    variables, images, labels = random_variables(net), draw((6, size, size, 3)), np.arange(6)

    @jax.jit
    def gradients(params):
        def loss(params):
            logits, _ = net.apply(variables | {"params": params}, images, True, mutable=[MOMENTS])
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), labels])

        return jax.grad(loss)(params)

    twin = torch_twin(variables, name, 10, CHANNELS)
    torch.nn.functional.cross_entropy(twin(to_torch(images)), torch.from_numpy(labels)).backward()
    found = to_state_dict(gradients(variables["params"]))
    for name, parameter in twin.named_parameters():
        expected = parameter.grad.numpy()
        tolerance = 1e-4 * abs(expected).max()
        np.testing.assert_allclose(found.pop(name), expected, 1e-3, tolerance, err_msg=name)
    assert not found


@pytest.mark.parametrize("name", ["block", "convnet", "inverted"])
def test_padded_rows_change_neither_logits_nor_gradients_nor_moments(name):
    net = build_classifier(dataclasses.replace(MODEL, name=name), 5, "float32")
    variables, images, labels = random_variables(net), draw((4, 32, 32, 3)), np.array([0, 1, 2, 3])

    mask = jnp.array([True, True, True, False])

    @jax.jit
    def run(images):
        def loss(params):
            logits, state = net.apply(
                variables | {"params": params}, images, True, mask, mutable=[MOMENTS],
                rngs={"dropout": jax.random.key(0)})
            entropies = -jax.nn.log_softmax(logits)[jnp.arange(4), labels]
            return jnp.sum(jnp.where(mask, entropies, 0)), (logits[:3], state)

        return jax.grad(loss, has_aux=True)(variables["params"])

    clean = run(images)
    images[3] = 1e4
    jax.tree.map(np.testing.assert_array_equal, run(images), clean)


def test_bfloat16_computes_low_and_keeps_parameters_statistics_and_logits_high():
    net = build_classifier(dataclasses.replace(MODEL, name="bottleneck"), 5, "bfloat16")
    apply = functools.partial(net.apply, train=True, mutable=[MOMENTS, "intermediates"],
                              capture_intermediates=True)
    logits, state = jax.eval_shape(apply, shapes_of(net), jnp.zeros((2, 32, 32, 3)))
    kept = (shapes_of(net), logits, state[MOMENTS])
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    inner = {name: value for name, value in state["intermediates"].items()
             if name not in ("__call__", "head")}
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype("bfloat16")}


# --- the predictor that knows the classes ---


def test_how_sure_an_answer_is_by_hand():
    logits = 5 + np.log([[6, 3, 1], [1, 1, 1], [1, 4, 4]])
    expected = [
        [0.6, 0.3, -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)) / np.log(3)],
        [1 / 3, 0, 1],
        [4 / 9, 0, -(8 / 9 * np.log(4 / 9) + 1 / 9 * np.log(1 / 9)) / np.log(3)],
    ]
    np.testing.assert_allclose(sureness(jnp.array(logits)), expected, rtol=1e-5, atol=1e-6)
    # Where a probability is 0 in float32 it adds nothing to the entropy.
    np.testing.assert_allclose(sureness(jnp.array([[0.0, 300.0]])), [[1, 1, 0]], atol=1e-6)


class Outputs(nn.Module):
    """A network of parameters that are what it says of two images: of 3 classes and 2 options."""

    @nn.compact
    def __call__(self, x, train, mask=None):
        return self.param("outputs", nn.initializers.zeros, (2, 5))


def test_options_see_how_sure_the_answer_is_and_do_not_teach_it():
    net = ClassifyingPredictor(Outputs(), classes=3, options=2)
    outputs, kernel, weights = draw((2, 5)), draw((3, 2), 1), draw((2, 2), 2)
    params = {"network": {"outputs": outputs}, "sure": {"kernel": kernel}}
    shapes = jax.tree.map(jnp.shape, net.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), True))
    assert shapes == {"params": jax.tree.map(jnp.shape, params)}

    def run(params):
        return net.apply({"params": params}, jnp.zeros((2, 8, 8, 3)), True)

    sure = sureness(outputs[:, :3])
    np.testing.assert_allclose(
        run(params), np.hstack([outputs[:, :3], outputs[:, 3:] + sure @ kernel]), rtol=1e-5)

    grads = jax.grad(lambda params: jnp.sum(weights * run(params)[:, 3:]))(params)
    np.testing.assert_array_equal(
        grads["network"]["outputs"], np.hstack([np.zeros((2, 3)), weights]))
    np.testing.assert_allclose(grads["sure"]["kernel"], sure.T @ weights, rtol=1e-5)
    # The other way round, an answer is an answer, whatever the options make of it.
    grads = jax.grad(lambda params: jnp.sum(run(params)[:, :3]))(params)
    np.testing.assert_array_equal(
        grads["network"]["outputs"], np.hstack([np.ones((2, 3)), np.zeros((2, 2))]))
    assert not grads["sure"]["kernel"].any()


def test_counts_of_the_predictor_that_knows_the_classes_by_hand():
    plain, knowing = (
        build_predictor(Predictor("convnet", 0.5, 32, classifies), options, 10, "float32")
        for classifies, options in ((False, 3), (True, 4)))
    # 64 features: of each class and of the option to answer a weight each, and a bias; and of four
    # options three weights, on how sure the answer is.
    assert parameter_count(knowing) - parameter_count(plain) == (64 + 1) * 11 + 3 * 4
    counts = [multiply_adds(layer_costs(net, 32)) for net in (knowing, plain)]
    assert counts[0] - counts[1] == 64 * 11 + 3 * 4


def test_the_predictors_answers_are_float32_in_bfloat16():
    net = build_predictor(Predictor("convnet", 0.5, 32, True), 4, 10, "bfloat16", (32,))
    variables = shapes_of(net)
    logits, state = jax.eval_shape(
        functools.partial(net.apply, train=True, mutable=[MOMENTS]), variables,
        jnp.zeros((2, 32, 32, 3)))
    assert logits.shape == (2, 14)
    assert state[MOMENTS]["network"].keys() == variables["batch_stats"]["network"].keys()
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, state))} == {
        jnp.dtype("float32")}


# --- names ---


@pytest.mark.parametrize("name", [
    "resnet19", "no_such_package:net", "drnet_jax.models:no_such_network", ":", ""])
def test_an_unknown_network_is_named_in_the_message(name):
    with pytest.raises(UserError, match=r"classifier\.name: expected one of .*resnet50") as error:
        build_classifier(dataclasses.replace(MODEL, name=name), 10, "float32")
    assert repr(name) in str(error.value)
    with pytest.raises(UserError, match=r"predictor\.name"):
        build_predictor(Predictor(name, 0.5, 32, classifies=True), 3, 10, "float32")


def test_a_network_is_found_in_the_working_directory(tmp_path, monkeypatch):
    """As with `python -m`, also where a script started this process."""
    (tmp_path / "networks_of_ones_own.py").write_text(
        "from drnet_jax.models.convnet import ConvNet as Own\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [each for each in sys.path if each not in ("", ".")])
    found = build_classifier(
        dataclasses.replace(MODEL, name="networks_of_ones_own:Own"), 10, "float32")
    assert isinstance(found, convnet.ConvNet)
    name = "not_there:Own"
    with pytest.raises(UserError, match=r"\(ModuleNotFoundError: No module named 'not_there'\)$"):
        build_classifier(dataclasses.replace(MODEL, name=name), 10, "float32")
