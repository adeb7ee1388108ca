"""Operations: every form against the plain one, and which form is traced where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import per_device
from drnet_jax.ops import conv, max_pool, plain_forms, traced_for
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


def plain(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


SHAPES = [(6, 5, 1, 4), (8, 9, 3, 4), (4, 5, 3, 4), (2, 9, 3, 4), (1, 1, 3, 4), (8, 7, 3, 512)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("platform", "height", "width", "size", "features"), [
    *(("cpu", *shape) for shape in SHAPES), ("cpu", 6, 5, 7, 4), ("cpu", 9, 8, 7, 4),
    ("cpu", 8, 9, 5, 4), ("cpu", 9, 10, 5, 64), ("gpu", 6, 5, 1, 4),
    ("tpu", 8, 9, 3, 4)])
def test_conv_and_its_gradients_are_the_plain_ones(
        platform, height, width, size, features, stride):
    # The name chooses the form; the arithmetic runs on whatever there is.
    x, kernel = draw(2, height, width, 3), draw(size, size, 3, features, seed=1)
    expected = value_and_gradients(lambda x, k: plain(x, k, stride), x, kernel)
    with traced_for(platform):
        found = value_and_gradients(lambda x, k: conv(x, k, stride), x, kernel)
    assert found[0].shape[1:3] == (-(-height // stride), -(-width // stride))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5 * abs(b).max())


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
