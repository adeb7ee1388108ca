"""Operations: every form against the plain one, and which form is traced where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import per_device
from drnet_jax.ops import (
    conv,
    depthwise_conv,
    max_pool,
    moments,
    plain_forms,
    scale_and_shift,
    traced_for,
)
from tests.tiny import mesh_of


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_gradients(function, *arguments):
    """The output, and the gradients with respect to all arguments, for one random cotangent."""
    @jax.jit
    def run(*arguments):
        y, vjp = jax.vjp(function, *arguments)
        return y, *vjp(jnp.asarray(draw(*y.shape, seed=7)))

    return run(*arguments)


def plain(x, kernel, stride, padding="symmetric"):
    """By lax, which knows TensorFlow's padding."""
    pad = (kernel.shape[0] - 1) // 2
    pads = "SAME" if padding == "same" else [(pad, pad)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2])


SHAPES = [(6, 5, 1, 4), (8, 9, 3, 4), (4, 5, 3, 4), (2, 9, 3, 4), (1, 1, 3, 4), (8, 7, 3, 512)]


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("platform", "height", "width", "size", "features"), [
    *(("cpu", *shape) for shape in SHAPES), ("cpu", 6, 5, 7, 4), ("cpu", 9, 8, 7, 4),
    ("cpu", 8, 9, 5, 4), ("cpu", 9, 10, 5, 64), ("gpu", 6, 5, 1, 4),
    ("tpu", 8, 9, 3, 4)])
def test_conv_and_its_gradients_are_the_plain_ones(
        platform, height, width, size, features, stride, padding):
    x, kernel = draw(2, height, width, 3), draw(size, size, 3, features, seed=1)
    assert_plain(conv, x, kernel, stride, padding, platform)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_single_pixel_meets_one_tap(stride, padding):
    x, kernel = draw(1, 1, 1, 3), draw(5, 5, 3, 4, seed=1)
    assert_plain(conv, x, kernel, stride, padding, "cpu")
    with traced_for("cpu"):
        lowered = jax.jit(lambda x: conv(x, kernel, stride, padding)).lower(x).as_text()
    assert "tensor<1x3xf32>, tensor<3x4xf32>" in lowered


def assert_plain(operation, x, kernel, stride, padding, platform):
    # The platform chooses the form; the arithmetic runs on whatever there is.
    expected = value_and_gradients(lambda x, k: plain(x, k, stride, padding), x, kernel)
    with traced_for(platform):
        found = value_and_gradients(lambda x, k: operation(x, k, stride, padding), x, kernel)
    assert found[0].shape[1:3] == tuple(-(-side // stride) for side in x.shape[1:3])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5 * abs(b).max())


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(("platform", "images", "height", "width", "size", "stride"), [
    ("cpu", 8, 7, 6, 3, 1), ("cpu", 3, 7, 6, 3, 2), ("cpu", 12, 6, 7, 5, 2), ("cpu", 1, 9, 8, 5, 1),
    ("cpu", 2, 1, 2, 5, 2), ("cpu", 2, 8, 9, 3, 3), ("gpu", 2, 7, 6, 3, 2), ("tpu", 2, 6, 7, 5, 2),
])
def test_depthwise_conv_and_its_gradients_are_the_plain_ones(
        platform, images, height, width, size, stride, padding):
    x, kernel = draw(images, height, width, 4), draw(size, size, 1, 4, seed=1)
    assert_plain(depthwise_conv, x, kernel, stride, padding, platform)


def test_padding_of_pytorch_and_of_tensorflow_by_hand():
    x, kernel = jnp.arange(1.0, 7).reshape(1, 1, 6, 1), jnp.ones((3, 3, 1, 1))
    for operation in (conv, depthwise_conv):
        for platform in ("cpu", "tpu"):
            with traced_for(platform):
                # Zeros before and after; or, two being too many for an even side, after alone.
                assert operation(x, kernel, 2).ravel().tolist() == [1 + 2, 2 + 3 + 4, 4 + 5 + 6]
                assert operation(x, kernel, 2, "same").ravel().tolist() == [1 + 2 + 3, 3 + 4 + 5,
                                                                           5 + 6]


def test_the_kernels_gradient_is_of_the_kernels_type_in_half_precision():
    """Sums of 1,024 products in bfloat16 would stall at 256."""
    x, kernel = jnp.ones((4, 16, 16, 2), jnp.bfloat16), jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    with traced_for("cpu"):
        dk = jax.grad(lambda k: jnp.sum(depthwise_conv(x, k, 1).astype("f4")))(kernel)
    assert dk.dtype == jnp.bfloat16 and dk.ravel().tolist() == [1024, 1024]


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (2, 1)])
def test_max_pool_and_its_gradient_equal_the_window_by_window_maximum(platform, height, width):
    x = draw(2, height, width, 3) - 5  # all negative: padding with zeros would show
    with traced_for(platform):
        y, dx = value_and_gradients(max_pool, x)
    expected, grad, cotangent = np.zeros(y.shape), np.zeros(x.shape), draw(*y.shape, seed=7)
    for s, i, j, c in np.ndindex(y.shape):
        top, left = max(2 * i - 1, 0), max(2 * j - 1, 0)
        window = x[s, top : 2 * i + 2, left : 2 * j + 2, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        expected[s, i, j, c] = window.max()
        grad[s, top + row, left + column, c] += cotangent[s, i, j, c]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(dx, grad, rtol=1e-6)


def test_ties_after_a_relu_get_no_gradient_on_any_platform():
    x = np.maximum(draw(1, 8, 8, 2), -0.5)
    x[:, :4, :4] = -0.5  # windows of nothing but zeros
    results = []
    for platform in ("cpu", "gpu"):
        with traced_for(platform):
            results.append(value_and_gradients(lambda x: max_pool(jax.nn.relu(x)), x))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not results[0][1][:, :4, :4].any()


def primitives(function, *arguments):
    """The names of the operations that a function is traced into, those of its own calls too."""
    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for option in jax.tree.leaves(
                    list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                if hasattr(getattr(option, "jaxpr", option), "eqns"):
                    yield from names(getattr(option, "jaxpr", option))

    return set(names(jax.make_jaxpr(function)(*arguments).jaxpr))


def products(function, x):
    return primitives(function, x) & {"conv_general_dilated", "dot_general"}


def test_the_form_follows_the_mesh_or_what_is_asked_for_and_not_the_host(monkeypatch):
    """A 1x1 convolution is a product on CPUs and a convolution elsewhere."""
    if jax.default_backend() != "cpu":
        pytest.skip("meshes of CPUs are what this is about")

    def pointwise(x):
        return conv(x, jnp.asarray(draw(1, 1, 3, 4)), 1)

    x, mapped = draw(2, 4, 4, 3), per_device(mesh_of(1), pointwise, (P(),), P())
    product, convolution = {"dot_general"}, {"conv_general_dilated"}
    assert products(mapped, x) == products(pointwise, x) == product
    with traced_for("tpu"):  # an export, say: traced anew
        assert products(mapped, x) == products(pointwise, x) == convolution
    with plain_forms():  # counting
        assert products(pointwise, x) == convolution
    assert products(mapped, x) == products(pointwise, x) == product
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # a CPU mesh on a host with a GPU
    mapped = per_device(mesh_of(1), lambda x: pointwise(x), (P(),), P())
    assert products(mapped, x) == product
    assert products(lambda x: pointwise(x), x) == convolution


def test_forms_of_gradients_do_not_reach_accelerators():
    """A sum of slices, and reductions of several operands, on CPUs alone."""
    def depthwise(kernel, x):
        return jnp.sum(depthwise_conv(x, kernel, 1))

    def norm(scale, x):
        total, squares, _ = moments(x, None, jnp.float32(32), jnp.zeros(3))
        return jnp.sum(scale_and_shift(x, scale * squares, total))

    x = draw(2, 4, 4, 3)
    for function, weights in ((depthwise, draw(3, 3, 1, 3)), (norm, draw(3))):
        for platform, several in (("cpu", True), ("gpu", False), ("tpu", False), ("none", False)):
            with traced_for(platform):
                found = primitives(jax.grad(function), weights, x)
            assert ("reduce" in found) == several
            assert ("conv_general_dilated" in found) == (function is depthwise and not several)
            assert not any("custom_vjp" in name for name in found) or several
