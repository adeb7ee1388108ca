"""Products: against published counts, XLA's own, and small networks worked by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from drnet_jax.errors import UserError
from drnet_jax.models import NETWORKS
from drnet_jax.models.resnet import ResNet10, ResNet50
from drnet_jax.ops import conv, depthwise_conv, plain_forms
from drnet_jax.products import Layer, layer_costs, multiply_adds, parameters, variable_shapes


# At 224 px for 1,000 classes; tests/test_cost.py compares them with what the paper prints.
@pytest.mark.parametrize(("name", "width", "count"), [
    ("resnet18", 1.0, 1_814_073_344), ("resnet34", 1.0, 3_663_761_408),
    ("resnet50", 1.0, 4_089_184_256), ("resnet101", 1.0, 7_801_405_440),
    ("resnet152", 1.0, 11_513_626_624), ("mobilenetv2", 1.0, 300_774_272),
    ("mobilenetv2", 0.75, 209_069_792), ("efficientnet_b0", 1.0, 385_814_752),
    ("tf_efficientnet_b0", 1.0, 385_814_752), ("efficientnet_lite0", 1.0, 385_187_552),
    ("tf_efficientnet_lite0", 1.0, 385_187_552),
])
def test_networks_match_published_counts(name, width, count):
    assert multiply_adds(layer_costs(NETWORKS[name](classes=1000, width=width), 224)) == count


def test_predictor_matches_the_paper():
    layers = layer_costs(ResNet10(classes=3), 128)
    assert parameters(layers) == 4_907_331
    assert multiply_adds(layers) == 290_194_944  # "about 300 million"


class Tiny(nn.Module):
    """Of everything that can be counted, one."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(8, (1, 3), feature_group_count=2, use_bias=False, name="grouped")(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.remat(nn.Dense)(5, use_bias=False, name="pixelwise")(x)
        x = x + self.param("offset", nn.initializers.zeros, (5,))
        return nn.DenseGeneral((2, 3), axis=(-3, -2, -1), name="head")(x)


def test_tiny_network_by_hand():
    assert layer_costs(Tiny(), 8) == (
        Layer("", "Tiny", (2, 3), 5, 0),
        Layer("conv", "Conv", (4, 4, 4), 3 * 3 * 3 * 4 + 4, (4 * 4 * 4) * (3 * 3) * 3),
        Layer("norm", "BatchNorm", (4, 4, 4), 4 + 4, 0),
        Layer("grouped", "Conv", (4, 4, 8), 3 * 2 * 8, (4 * 4 * 8) * (1 * 3) * (4 // 2)),
        Layer("pixelwise", "Dense", (2, 2, 5), 8 * 5, (2 * 2 * 5) * 8),
        Layer("head", "DenseGeneral", (2, 3), 20 * 6 + 6, 6 * 20),
    )


class Scanned(nn.Module):
    """Three dense layers as one scan, and a matrix product that is nobody's layer."""

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(1, 12)
        layers = nn.scan(
            lambda dense, x, _: (dense(x), None),
            variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
        )
        x, _ = layers(nn.Dense(12, use_bias=False, name="stack"), x, None)
        return jnp.einsum("bi,bj->ij", x, x)


def test_scanned_and_bare_products_are_counted():
    assert [(layer.path, layer.parameters, layer.multiply_adds)
            for layer in layer_costs(Scanned(), 2)] == [
        ("", 0, 12 * 12), ("stack", 3 * 12 * 12, 3 * 12 * 12),
    ]


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        dense = nn.Dense(3, use_bias=False, name="dense")
        return dense(dense(x))


def test_a_layer_called_twice_costs_twice_and_is_held_once():
    assert layer_costs(Twice(), 2) == (Layer("dense", "Dense", (2, 2, 3), 9, 2 * 4 * 9),)


class EarlyExit(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return jax.lax.cond(x.sum() > 0, lambda x: jnp.einsum("bhwc,bhwc->b", x, x),
                            lambda x: x[:, 0, 0, 0], x)


def test_products_that_depend_on_data_are_refused():
    with pytest.raises(UserError, match="inside a 'cond'"):
        layer_costs(EarlyExit(), 4)


class Convolving(nn.Module):
    layer: type[nn.Module]
    padding: str
    size: int = 3
    stride: int = 2

    @nn.compact
    def __call__(self, x, train):
        sides = (self.size, self.size), (self.stride, self.stride)
        return self.layer(5, *sides, padding=self.padding, use_bias=False)(x)


Transposed, Strided = (
    functools.partial(Convolving, layer) for layer in (nn.ConvTranspose, nn.Conv))


@pytest.mark.parametrize(("padding", "size", "stride", "large"), [
    ("SAME", 3, 2, 8), ("VALID", 3, 2, 9), ("SAME", 4, 2, 8), ("VALID", 2, 3, 12)])
def test_a_transposed_convolution_costs_what_its_forward_one_does(padding, size, stride, large):
    # Four pixels a side are made `large`, and of so many the forward one makes four.
    (up,) = layer_costs(Transposed(padding, size, stride), 4)
    (down,) = layer_costs(Strided(padding, size, stride), large)
    assert (up.output, down.output) == ((large, large, 5), (4, 4, 5))
    # Each of the four meets every tap, for 3 channels and 5; the inserted zeros meet none.
    assert up.multiply_adds == down.multiply_adds == (4 * size) ** 2 * 3 * 5


def test_a_transposed_convolution_matches_xla():
    network, image = Transposed("VALID"), jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    counted = xla_count(
        lambda v, x: network.apply(v, x, False), variable_shapes(network, 4), image)
    assert counted == 2 * multiply_adds(layer_costs(network, 4))


class Mix(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.fft.fft2(x, axes=(1, 2)).real


class Fourier(nn.Module):
    """A network, as a config names it, whose Fourier transforms cannot be counted."""

    classes: int
    width: float
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, train, mask=None):
        mix = Mix(name="mix")
        x = mix(mix(nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)))
        return nn.Dense(self.classes, use_bias=False, name="head")(x.mean((1, 2)))


def test_layers_name_what_is_not_counted():
    assert layer_costs(Fourier(7, 1.0, None, None), 4) == (
        Layer("conv", "Conv", (4, 4, 4), 9 * 3 * 4, 4 * 4 * 9 * 3 * 4),
        Layer("mix", "Mix", (4, 4, 4), 0, 0, ("fft",)),
        Layer("head", "Dense", (7,), 4 * 7, 4 * 7),
    )


def kernel(x):
    from jax.experimental import pallas

    def square(x_ref, y_ref):
        y_ref[...] = x_ref[...] @ x_ref[...]

    return pallas.pallas_call(square, out_shape=x, interpret=True)(x)


@pytest.mark.parametrize(("operation", "name"), [
    (kernel, "pallas_call"),
    (lambda x: jax.lax.ragged_dot(x, x[None], jnp.array([4])), "ragged_dot_general"),
    (lambda x: jax.pure_callback(lambda x: x, x, x), "pure_callback"),
    (lambda x: jax.ffi.ffi_call("target", jax.ShapeDtypeStruct(x.shape, x.dtype))(x), "ffi_call"),
    (jnp.linalg.cholesky, "cholesky"), (jnp.linalg.inv, "lu"), (jnp.linalg.inv, "triangular_solve"),
    (jnp.linalg.qr, "qr"), (jnp.linalg.svd, "svd"), (jnp.linalg.eigh, "eigh"),
])
def test_operations_that_hold_products_are_known(operation, name):
    class One(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return operation(x[0, :, :, 0])

    (layer,) = layer_costs(One(), 4)
    assert name in layer.uncounted


def xla_count(function, *shapes):
    """XLA's own count of floating-point operations, two to a multiply-add."""
    found = jax.jit(function).lower(*shapes).cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


@pytest.mark.parametrize(("size", "kernel", "stride", "channels", "features"), [
    (9, 3, 2, 3, 4), (8, 3, 2, 3, 4), (8, 3, 1, 4, 4), (16, 7, 2, 3, 5), (9, 7, 1, 2, 2),
    (7, 1, 2, 4, 6),
])
def test_convolution_matches_xla_but_for_taps_on_padding(size, kernel, stride, channels, features):
    class One(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = x[..., :1].repeat(channels, -1)
            shape = (kernel, kernel, channels, features)
            return conv(x, self.param("kernel", nn.initializers.zeros, shape), stride)

    pad = (kernel - 1) // 2
    outputs = np.arange(0, size + 2 * pad - kernel + 1, stride)[:, None]
    taps = outputs - pad + np.arange(kernel)
    inside = np.sum((taps >= 0) & (taps < size)) ** 2

    # XLA leaves out the taps on padding, and nothing else differs.
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    weights = jax.ShapeDtypeStruct((kernel, kernel, channels, features), jnp.float32)
    with plain_forms():
        counted = xla_count(lambda x, w: conv(x, w, stride), image, weights)
    assert counted == 2 * inside * channels * features
    assert multiply_adds(layer_costs(One(), size)) == (
        (len(outputs) * kernel) ** 2 * channels * features
    )


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [
    (9, 3, 2, "symmetric"), (8, 5, 1, "symmetric"), (8, 5, 2, "same")])
def test_a_depthwise_convolution_costs_a_tap_for_each_output(size, kernel, stride, padding):
    class One(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            weights = self.param("kernel", nn.initializers.zeros, (kernel, kernel, 1, 3))
            return depthwise_conv(x, weights, stride, padding)

    (layer,) = layer_costs(One(), size)
    side = -(-size // stride)
    assert layer.multiply_adds == side**2 * 3 * kernel**2
    assert (layer.output, layer.parameters) == ((side, side, 3), 3 * kernel**2)


class Unpadded(nn.Module):
    """Products and nothing else, so that XLA has nothing to add and nothing to leave out."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 3), 2, padding="VALID", use_bias=False)(x)
        x = nn.Conv(16, (3, 3), padding="VALID", feature_group_count=4, use_bias=False)(x)
        return nn.Dense(10, use_bias=False)(x.reshape(1, -1))


def test_network_without_padding_matches_xla_exactly():
    network, image = Unpadded(), jax.ShapeDtypeStruct((1, 17, 17, 3), jnp.float32)
    counted = xla_count(
        lambda v, x: network.apply(v, x, False), variable_shapes(network, 17), image
    )
    assert counted == 2 * multiply_adds(layer_costs(network, 17))


def test_resnet50_is_within_four_percent_of_xla():
    # XLA leaves out taps on padding (-3.4 %) and adds norms, ReLU and pooling (+0.5 %).
    network, image = ResNet50(classes=1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    counted = xla_count(
        lambda v, x: network.apply(v, x, False), variable_shapes(network, 224), image
    )
    assert 0.96 < counted / (2 * multiply_adds(layer_costs(network, 224))) < 1


# --- drnet cost ---
