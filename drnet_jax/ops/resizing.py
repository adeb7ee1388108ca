"""Resizing: antialiased, as products or, on CPUs, with nothing transposed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.ops.forms import in_graph, on_cpu

HIGHEST = jax.lax.Precision.HIGHEST  # pixels must not be rounded to bfloat16 or TF32


def resize(images: jax.Array, size: int, interpolation: str = "bilinear") -> jax.Array:
    """Antialiased resize, as Pillow's: [B, H, W, 3] in [0, 255] -> float32 [B, size, size, 3].

    The weights of `jax.image.resize`, applied to rows and then to columns; `interpolation` is a key
    of KERNELS. What goes beyond the range, as bicubic does at edges, is clipped.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images.astype(jnp.float32)
    rows, columns = (_weights(old, size, interpolation) for old in (height, width))
    form = _resize_on_cpu if on_cpu() else _resize_in_graph if in_graph() else _resize
    resized = form(images, rows, columns)
    return resized if min(rows.min(), columns.min()) >= 0 else jnp.clip(resized, 0, 255)


def _resize(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    # A weight matrix for all channels at once moves more bytes, and has products for which jax
    # 0.10.1 finds no tiles on GPUs.
    images = jnp.einsum("hs,bhwc->bswc", rows, images.astype(jnp.float32), precision=HIGHEST)
    return jnp.einsum("wt,bswc->bstc", columns, images, precision=HIGHEST)


def _resize_on_cpu(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """`resize` with the channels kept interleaved, so that nothing is transposed."""
    batch, height, width, channels = images.shape
    images = _weigh_taps(rows, images.reshape(batch, height, width * channels))
    # In bands, which leave out most of the zeros.
    return jnp.concatenate([
        jnp.einsum("bsw,wt->bst", images[..., used], band, precision=HIGHEST)
        for used, band in _bands(np.kron(columns, np.eye(channels, dtype=np.float32)))
    ], axis=-1).reshape(batch, rows.shape[1], columns.shape[1], channels)


def _resize_in_graph(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """`resize` by few operators: rows, in bands, of whole lines of bytes."""
    batch, height, width, channels = images.shape
    lines = images.reshape(batch, height, width * channels)
    resized = jnp.concatenate([
        jnp.einsum("hs,bhw->bsw", band, lines[:, used].astype(jnp.float32), precision=HIGHEST)
        for used, band in _bands(rows)
    ], axis=1).reshape(batch, rows.shape[1], width, channels)
    return jnp.einsum("wt,bswc->bstc", columns, resized, precision=HIGHEST)


def _bands(weights: np.ndarray, count: int = 6) -> list[tuple[slice, np.ndarray]]:
    """Splits a banded matrix into groups of columns, each with the rows in which it is not zero."""
    bands = []
    for band in np.array_split(weights, count, axis=1):
        used = np.flatnonzero(band.any(axis=1))
        rows = slice(used[0], used[-1] + 1)
        bands.append((rows, band[rows]))
    return bands


def _weigh_taps(weights: np.ndarray, images: jax.Array) -> jax.Array:
    """einsum("hs,bhw->bsw") by the few nonzero weights of each column: no operand is transposed."""
    (old, new), used = weights.shape, weights != 0
    first, last = np.argmax(used, axis=0), old - 1 - np.argmax(used[::-1], axis=0)
    taps = int((last - first).max()) + 1
    first = np.minimum(first, old - taps)
    return sum(
        images[:, first + tap].astype(jnp.float32) * weights[first + tap, np.arange(new)][:, None]
        for tap in range(taps)
    )


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - x)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -1/2, as Pillow and `jax.image.resize` have it."""
    inner, outer = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


KERNELS = {"bilinear": _triangle, "bicubic": _cubic}  # of the distance in pixels, from 0


@functools.cache
def _weights(old: int, new: int, interpolation: str) -> np.ndarray:
    """float32 [old, new]: the kernel, widened when shrinking, columns of sum 1."""
    scale = max(old / new, 1)
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = KERNELS[interpolation](np.abs(np.arange(old)[:, None] - centre) / scale)
    return (weights / weights.sum(0)).astype(np.float32)
