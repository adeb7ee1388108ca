"""Conversion: logits as PyTorch's of every network, and complaints that name everything at once."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from drnet_jax import models
from drnet_jax.errors import UserError
from drnet_jax.models.norm import BatchNorm
from drnet_jax.products import variable_shapes
from drnet_jax.weights import names
from drnet_jax.weights.convert import convert, count_classes
from tests.tiny import TinyResNet

CLASSES, SIZES = 10, (64, 81)  # at odd sizes and even ones pads of the two frameworks differ
# Of each network what the libraries call it.
TWINS = [
    *((name, "torchvision", name) for name in
      ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
    ("resnet50", "timm", "resnet50"),
    ("mobilenetv2", "torchvision", "mobilenet_v2"),
    ("mobilenetv2", "timm", "mobilenetv2_100"),
    ("efficientnet_b0", "torchvision", "efficientnet_b0"),
    ("efficientnet_b0", "timm", "efficientnet_b0"),
    ("tf_efficientnet_b0", "timm", "tf_efficientnet_b0"),
    ("tf_efficientnet_b0", "lukemelas", "tf_efficientnet_b0"),
    ("efficientnet_lite0", "timm", "efficientnet_lite0"),
    ("tf_efficientnet_lite0", "timm", "tf_efficientnet_lite0"),
    ("tf_efficientnet_lite0", "lukemelas", "tf_efficientnet_lite0"),
]


def library(name):
    """torchvision or timm, which imports it."""
    reason = "the reference of networks is PyTorch's libraries: pip install -e .[torch]"
    torch = pytest.importorskip("torch", reason=reason)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        # PyPI's is built for CUDA: beside a PyTorch for CPUs its operators are missing, two of
        # which it wants to see when it is imported, and no classifier needs.
        operators = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        KEPT.append(operators)
    return pytest.importorskip(name, reason=reason)


KEPT = []  # what must live as long as torchvision does


@functools.cache
def twin(name, source):
    """A network of a library, with random weights and statistics in which no two are alike."""
    if source == "torchvision":
        network = library(source).models.get_model(name, weights=None, num_classes=CLASSES)
    else:
        network = library("timm").create_model(name, num_classes=CLASSES)
    import torch

    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for leaf in (module.weight, module.running_var):
                leaf.data = torch.exp(0.3 * torch.randn(leaf.shape, generator=random))
            for leaf in (module.bias, module.running_mean):
                leaf.data = 0.3 * torch.randn(leaf.shape, generator=random)
    return network.eval()


def state_dict(name, source):
    state = {key: leaf.detach().numpy() for key, leaf in twin(name, source).state_dict().items()}
    return as_lukemelas(state) if source == "lukemelas" else state


def as_lukemelas(state):
    """timm's names of an EfficientNet -> those of EfficientNet-PyTorch, which counts throughout."""
    blocks = sorted({tuple(map(int, found.groups())) for found in map(
        re.compile(r"blocks\.(\d+)\.(\d+)\.").match, state) if found})
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
            "classifier": "_fc"}
    shared = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce",
              "se.conv_expand": "_se_expand"}
    first = shared | {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = shared | {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1",
                       "conv_pwl": "_project_conv", "bn3": "_bn2"}

    def renamed(name):
        module, _, leaf = name.rpartition(".")
        if not (found := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.*)", module)):
            return f"{ends[module]}.{leaf}"
        stage, index, inner = int(found[1]), int(found[2]), found[3]
        place = blocks.index((stage, index))
        return f"_blocks.{place}.{(others if stage else first)[inner]}.{leaf}"

    return {renamed(name): leaf for name, leaf in state.items()}


@functools.cache
def ours(name):
    network = models.NETWORKS[name](classes=CLASSES, norm=BatchNorm)
    logits = jax.jit(lambda variables, images: network.apply(variables, images, False))
    return variable_shapes(network, SIZES[0]), logits


@pytest.mark.parametrize(("name", "source", "theirs"), TWINS, ids=lambda value: str(value))
def test_logits_are_pytorchs(name, source, theirs):
    tensors = state_dict(theirs, source)
    shapes, logits = ours(name)
    assert count_classes(tensors, names.RULES[name]) == CLASSES
    variables = convert(tensors, names.RULES[name], shapes, name)
    import torch

    for size in SIZES:
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = twin(theirs, source)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        found = np.asarray(logits(variables, images))
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_every_network_and_every_rule_is_tried():
    """Small predictors aside, which nobody publishes."""
    assert {name for name, *_ in TWINS} == set(names.RULES)
    assert set(models.NETWORKS) - set(names.RULES) == {"resnet10", "mobilenetv2_tiny", "convnet"}
    used = set()
    for name, source, theirs in TWINS:
        modules = {key.rpartition(".")[0] for key in state_dict(theirs, source)}
        rules = names.RULES[name]
        used |= {next(rule for rule in rules if re.fullmatch(rule[0], each)) for each in modules}
    assert {rule for rules in names.RULES.values() for rule in rules} == used


@pytest.mark.parametrize(("module", "expected"), [
    ("layer1.0.conv1", "stage1_block1/conv1"),
    ("layer4.11.downsample.1", "stage4_block12/shortcut_norm"),
    ("layer1.0.conv1.0", None),
    ("xlayer1.0.conv1", None),
    ("head", None),
    ("", None),
])
def test_a_rule_is_of_whole_names(module, expected):
    assert names.renamed(names.RESNET, module, ()) == expected


@pytest.mark.parametrize(("module", "expected"), [
    ("_blocks.0._bn1", "stage1_block1/depthwise_norm"),
    ("_blocks.2._bn1", "stage2_block2/depthwise_norm"),
    ("_blocks.3._bn1", None),
    ("features.3.conv.2", "stage2_block2/project_conv"),  # the stem is number 0
    ("features.4.conv.2", None),
    ("features.18.0", "last_conv"),
    ("blocks.1.1.conv_pw", "stage2_block2/expand_conv"),
    ("blocks.0.0.conv_pw", "stage1_block1/project_conv"),
])
def test_blocks_that_are_counted_throughout(module, expected):
    blocks = ["stage1_block1", "stage2_block1", "stage2_block2"]
    assert names.renamed(names.MOBILE, module, blocks) == expected


NETWORK = TinyResNet(classes=CLASSES, width=1 / 16)
SHAPES = variable_shapes(NETWORK, 32)


def as_pytorch(variables):
    """The state dict of a ResNet's variables, by hand."""
    state = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        module = re.sub(
            r"stage(\d)_block(\d)", lambda found: f"layer{found[1]}.{int(found[2]) - 1}",
            ".".join(path[1:-1]))
        for here, there in (("stem_conv", "conv1"), ("stem_norm", "bn1"), ("head", "fc"),
                            ("shortcut_conv", "downsample.0"), ("shortcut_norm", "downsample.1"),
                            ("norm", "bn")):
            module = module.replace(here, there)
        name = {"kernel": "weight", "scale": "weight", "mean": "running_mean",
                "var": "running_var"}.get(path[-1], path[-1])
        state[f"{module}.{name}"] = leaf.transpose(
            {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim])
    return state | {"bn1.num_batches_tracked": np.int64(3)}


def random_variables():
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.abs(random.normal(size=leaf.shape)).astype(np.float32), SHAPES)


def test_every_variable_comes_back():
    variables = random_variables()
    found = convert(as_pytorch(variables), names.RESNET, SHAPES, "x")
    expected = traverse_util.flatten_dict(variables)
    assert traverse_util.flatten_dict(found).keys() == expected.keys()
    for path, leaf in traverse_util.flatten_dict(found).items():
        np.testing.assert_array_equal(leaf, expected[path])
        assert leaf.dtype == np.float32


def complaint(**changes):
    """What is said of a state dict with some tensors replaced, or removed (None)."""
    state = as_pytorch(random_variables())
    state |= {name.replace("__", "."): change for name, change in changes.items()}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(UserError, match=r"^here\.pth: expected a tensor for each") as refused:
        convert(state, names.RESNET, SHAPES, "here.pth")
    assert "\n" not in str(refused.value)
    return str(refused.value).partition("no others; ")[2]


def test_all_that_is_wrong_is_named_at_once():
    vector = np.ones(4, np.float32)
    assert complaint(
        fc__bias=None, bn1__weight=None, extra=vector, layer3__0__conv1__weight=vector,
        conv1__weight=np.ones((4, 3, 3, 3), np.float32), bn1__bias=vector.astype(np.int64),
        bn1__running_mean=vector * np.nan, bn1__running_var=-vector,
    ) == (
        "missing: head/bias, stem_norm/scale; unexpected: extra, layer3.0.conv1.weight; "
        "unfit: bn1.running_mean, whose numbers are not finite, or a variance below 0, "
        "bn1.running_var, whose numbers are not finite, or a variance below 0, "
        "conv1.weight of shape [4, 3, 3, 3] (for stem_conv/kernel, in our layout [7, 7, 3, 4]), "
        "bn1.bias of type int64"
    )


def test_tensors_under_other_names_do_not_pass():
    state = as_pytorch(random_variables())
    shuffled = dict(zip(state, np.roll(np.array([*state.values()], object), 1), strict=True))
    assert "unfit: " in complaint(**{
        name.replace(".", "__"): tensor for name, tensor in shuffled.items()})


def test_weights_of_another_network_are_named_in_full():
    other = variable_shapes(models.NETWORKS["mobilenetv2"](classes=CLASSES, norm=BatchNorm), 32)
    with pytest.raises(UserError) as refused:
        convert(as_pytorch(random_variables()), names.MOBILE, other, "x")
    for name in ("stage7_block1/project_conv/kernel", "layer1.0.conv1.weight", "fc.bias"):
        assert name in str(refused.value)
    assert count_classes(as_pytorch(random_variables()), names.MOBILE) is None


def test_a_tensor_of_one_variable_twice_is_unexpected():
    """As where names of two libraries are mixed."""
    network = models.NETWORKS["efficientnet_lite0"](classes=CLASSES, norm=BatchNorm)
    weight = np.ones((10, 1280), np.float32)
    with pytest.raises(UserError, match=r"unexpected: _fc\.weight"):
        convert({"classifier.weight": weight, "_fc.weight": weight}, names.MOBILE,
                variable_shapes(network, 32), "x")
