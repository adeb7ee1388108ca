"""Networks as ONNX graphs: what onnxruntime makes of them, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn

from drnet_jax import models, ops
from drnet_jax.config import Classifier
from drnet_jax.errors import UserError
from drnet_jax.graphs import networks
from drnet_jax.graphs.onnx import to_onnx
from drnet_jax.models.convnet import ConvNet
from drnet_jax.models.norm import BatchNorm
from tests.tiny import RESOLUTIONS, random_variables, tiny_drnet

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def session_of(function, shape):
    graph = to_onnx(function, shape, "a network of a test")
    return graph, onnxruntime.InferenceSession(graph.SerializeToString())


def assert_same(function, images=IMAGES, tolerance=1e-5):
    """For batches of two sizes; returns the operators of the graph."""
    graph, session = session_of(function, images.shape[1:])
    for batch in (images, images[:1]):
        expected = jax.jit(function)(batch)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, {"images": batch}), strict=True))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(found[name] / scale, values / scale, atol=tolerance)
    return [node.op_type for node in graph.graph.node]


def as_float(images):
    return images.astype(jnp.float32) / 128 - 1


WEIGHTS = RANDOM.normal(size=(3, 3, 3, 8)).astype(np.float32)
DEPTHWISE = RANDOM.normal(size=(3, 3, 1, 3)).astype(np.float32)
MATRIX = RANDOM.normal(size=(3, 5)).astype(np.float32)
SCALE, SHIFT = (RANDOM.normal(size=8).astype(np.float32) for _ in range(2))
OPERATIONS = {
    "convolution": lambda x: ops.conv(x, WEIGHTS, 2),
    "convolution, padded as TensorFlow": lambda x: ops.conv(x, WEIGHTS, 2, "same"),
    "depthwise": lambda x: ops.depthwise_conv(x, DEPTHWISE, 1),
    "dilated": lambda x: jax.lax.conv_general_dilated(
        x, WEIGHTS, (1, 1), [(2, 2), (2, 2)], rhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC")),
    "max-pool": ops.max_pool,
    "average pool": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "resize": lambda x: ops.resize(x + 1, 15) / 128,
    "product over channels": lambda x: x @ MATRIX,
    "attention": lambda x: nn.dot_product_attention(
        *[jnp.reshape(x, (x.shape[0], 144, 2, 6))] * 3),
    "reductions": lambda x: jnp.stack([x.mean((1, 2)), x.max((1, 2)), x.min((1, 2))], 1),
    "transposed and reshaped": lambda x: jnp.reshape(jnp.swapaxes(x, 1, 3), (x.shape[0], -1)),
    "patches": lambda x: jnp.reshape(
        jnp.reshape(x, (x.shape[0], 6, 4, 6, 4, 3)).swapaxes(2, 3), (x.shape[0], 36, 48)),
    "squeeze and excite": lambda x: x * nn.sigmoid(x.mean((1, 2)) @ np.eye(3, dtype=np.float32)
                                                   )[:, None, None],
    "activations": lambda x: jnp.concatenate(
        [nn.relu(x), nn.relu6(x), nn.swish(x), nn.gelu(x), nn.gelu(x, approximate=False),
         nn.tanh(x), nn.hard_swish(x), nn.softplus(x), nn.elu(x), nn.leaky_relu(x)], -1),
    "layer norm": lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(
        x.var(-1, keepdims=True) + 1e-3),
    "softmax": lambda x: nn.softmax(x.reshape(x.shape[0], -1)),
    "slices": lambda x: jnp.concatenate([x[:, 1:9:2], x[:, -4:]], 1)[:, :, 3],
    "first and last": lambda x: jnp.stack([x[:, 0, 0], x[:, -1, -1]], axis=1),
    "halves": lambda x: jnp.multiply(*jnp.split(x, 2, axis=2)),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=0.5),
    "best": lambda x: jax.lax.top_k(x.reshape(x.shape[0], -1), 4)[0],
    "choices": lambda x: jnp.where(x > 0, x, x**2) + jnp.maximum(x, 0.3) - jnp.abs(x) ** 1.5,
    "steps": lambda x: jnp.floor(3 * x) + jnp.sign(x) + jnp.square(x) - jnp.sqrt(x + 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    assert_same(lambda images: {"y": OPERATIONS[name](as_float(images))})


def test_pixels_are_resized_as_they_lie():
    """Lines of bytes, in bands; no image of full size is cast or transposed."""
    found = assert_same(lambda images: {"y": ops.resize(images, 12)})
    until_columns = found[: found.index("Concat")]
    assert until_columns == ["Reshape", *["Slice", "Cast", "MatMul"] * 6]


def test_what_scales_and_shifts_channels_is_folded_into_the_convolution():
    def normalised(images):
        x = ops.conv(as_float(images), WEIGHTS, 1)
        return {"y": nn.relu((x * SCALE + SHIFT) * 2.0)}

    found = assert_same(normalised)
    assert found.count("Conv") == 1 and "Mul" not in found and found.count("Add") == 0


SMALL = {  # of a map of 6 x 6 with 48 channels: size of the kernel, stride, padding, dilation
    "3 x 3": (3, 2, ((1, 1), (1, 1)), 1), "as TensorFlow pads": (3, 2, ((0, 1), (0, 1)), 1),
    "uneven": (3, 2, ((0, 2), (2, 0)), 1), "no padding": (3, 1, ((0, 0), (0, 0)), 1),
    "1 x 1": (1, 2, ((0, 0), (0, 0)), 1), "dilated": (3, 1, ((1, 1), (1, 1)), 2),
    "5 x 5": (5, 2, ((2, 2), (2, 2)), 1), "to one pixel": (6, 1, ((0, 0), (0, 0)), 1),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_convolution_of_a_small_map_by_many_weights_is_one_product(name):
    size, stride, padding, dilation = SMALL[name]
    weights = RANDOM.normal(size=(size, size, 48, 2**18 // (48 * size**2) + 1)).astype(np.float32)
    factor = RANDOM.normal(size=weights.shape[-1]).astype(np.float32)

    def normalised(images, kernel=weights):
        x = as_float(images).reshape(-1, 6, 6, 48)
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"y": nn.relu(y * factor[: kernel.shape[-1]] + 1)}

    found = assert_same(normalised)
    assert found.count("MatMul") == 1 and not {"Conv", "Mul"} & set(found)
    assert ("Gather" in found) and ("Pad" in found) == any(map(any, padding))
    assert "Conv" in assert_same(lambda images: normalised(images, weights[..., :9]))


@pytest.mark.parametrize(("edge", "channels", "size"), [(4, 108, 1), (1, 1728, 3)])
def test_a_convolution_of_single_pixels_is_a_product_alone(edge, channels, size):
    """By kernels of one pixel, or of images of one pixel, which a single tap meets."""
    weights = RANDOM.normal(size=(size, size, channels, 2500)).astype(np.float32)
    found = assert_same(lambda images: {
        "y": ops.conv(as_float(images).reshape(-1, edge, edge, channels), weights, 1)})
    assert not {"Gather", "Pad"} & set(found) and found.count("MatMul") == 1


def test_what_others_read_is_not_folded():
    def normalised(images):
        x = ops.conv(as_float(images), WEIGHTS, 1)
        return {"scaled": x * SCALE, "plain": x, "shifted": x + SHIFT}

    found = assert_same(normalised)
    assert (found.count("Mul"), found.count("Conv")) == (1, 1)


def test_weights_are_computed_beforehand():
    def function(images):
        weights = jnp.exp(jnp.asarray(MATRIX)) @ jnp.asarray(MATRIX).T + 1
        return {"y": as_float(images).mean((1, 2)) @ nn.softmax(weights)}

    found = assert_same(function)
    assert "Exp" not in found and found.count("MatMul") == 1


def test_what_has_no_translation_is_named():
    with pytest.raises(UserError, match=r"\(.*conv_general_dilated.*\), received 'sort' in the n"):
        to_onnx(lambda images: {"y": jnp.sort(as_float(images), axis=1)}, (24, 24, 3), "")
    transposed = nn.ConvTranspose(4, (3, 3), (2, 2))
    variables = transposed.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    with pytest.raises(UserError, match="received a transposed one"):
        to_onnx(lambda images: {"y": transposed.apply(variables, as_float(images))},
                (24, 24, 3), "")


CLASSIFIER = Classifier(
    name="", width=0.125, classes=7, resolution_aware_norm=True, zero_init=False,
    fixed_statistics=False)


@pytest.mark.parametrize("name", [
    "resnet18", "resnet50", "mobilenetv2", "efficientnet_b0", "tf_efficientnet_lite0"])
def test_networks(name):
    """Each kind of block; as lean as can be: nothing is left of their norms."""
    network = models.build_classifier(
        CLASSIFIER.__class__(**vars(CLASSIFIER) | {"name": name}), 7, "float32")
    shapes = jax.eval_shape(
        lambda key: network.init(key, jnp.zeros((1, 24, 24, 3)), False), jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: RANDOM.uniform(0.5, 1, leaf.shape).astype(np.float32)
        if path[-1].key in ("var", "scale") else
        RANDOM.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)

    def function(images):
        return {"logits": network.apply(variables, as_float(images), False)}

    norms = sum(path[-1].key == "var" for path, _ in jax.tree_util.tree_leaves_with_path(shapes))
    found = assert_same(function)
    assert found.count("Conv") == norms and "BatchNormalization" not in found
    assert "Transpose" in found and found.count("Add") <= norms


def test_a_drnet(monkeypatch):
    """Its predictor, with what it says of options and classes, and each resolution."""
    drnet = tiny_drnet({"predictor.classifies": True})
    variables, base = random_variables(drnet), RESOLUTIONS[0]
    images = RANDOM.integers(0, 256, (3, base, base, 3), dtype=np.uint8)
    assert_same(networks.predictor(drnet, *variables), images)
    for index in range(len(RESOLUTIONS)):
        assert_same(networks.classifier(drnet, index, *variables), images)


def test_a_network_without_norms():
    network = ConvNet(5, norm=lambda dtype, name: lambda x, train, mask: x)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), False)
    assert_same(lambda images: {"y": network.apply(variables, as_float(images), False)})


def test_batch_norm_in_evaluation_is_two_operators():
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), False)
    found = assert_same(lambda images: {"y": norm.apply(variables, as_float(images), False)})
    assert "Sqrt" not in found
